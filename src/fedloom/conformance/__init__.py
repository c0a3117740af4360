"""Does an aggregation function of LoRA adapters compute what it should? `python -m fedloom.conformance module:name`.

The function takes what the clients hold and gives the update of one layer. It is compared with the exact target
dW* = Σ p_i s_i B_i A_i over a grid of ranks, scalings, weights, layers, number formats, drift and numbers of clients.
Only numpy arrays cross the border, so any project can be wrapped in a few lines; see docs/conformance.md.
"""

from fedloom.conformance.answers import Aggregate, Answer, Base, Client, Factors, Update
from fedloom.conformance.judge import Report, check

__all__ = ["Aggregate", "Answer", "Base", "Client", "Factors", "Report", "Update", "check"]
