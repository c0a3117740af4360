"""The seams everything hangs on: what an algorithm, a federation, a client, a rule, an engine and a stage promise.

An algorithm is one page with both halves: `round` is the server's, straight-line; `local` is one client's, written for
one client. Simulation and deployment differ only behind `Federation.collect`. Messages and states are frozen
dataclasses of tensors and scalars; everything a checkpoint needs is in the state.
"""

from fedloom.contracts.client import (
    Call,
    Client,
    ClientState,
    Correct,
    Distilled,
    Exchange,
    Fitted,
    Fitting,
    Lessons,
    Penalty,
    Summary,
    Trained,
    Wandered,
)
from fedloom.contracts.geometry import Rule, Rules, Space, Stage, Term
from fedloom.contracts.messages import (
    HOME,
    Carry,
    ClientFailed,
    ClientId,
    Message,
    Missing,
    Model,
    NobodyReplied,
    Reason,
    TooFewReplies,
    Weighted,
)
from fedloom.contracts.server import Algorithm, Combined, Engine, Federation, Fits, Got, Needs, Profile, Task
from fedloom.drift import Drift

__all__ = [
    "HOME",
    "Algorithm",
    "Call",
    "Carry",
    "Client",
    "ClientFailed",
    "ClientId",
    "ClientState",
    "Combined",
    "Correct",
    "Distilled",
    "Drift",
    "Engine",
    "Exchange",
    "Federation",
    "Fits",
    "Fitted",
    "Fitting",
    "Got",
    "Lessons",
    "Message",
    "Missing",
    "Model",
    "Needs",
    "NobodyReplied",
    "Penalty",
    "Profile",
    "Reason",
    "Rule",
    "Rules",
    "Space",
    "Stage",
    "Summary",
    "Task",
    "Term",
    "TooFewReplies",
    "Trained",
    "Wandered",
    "Weighted",
]
