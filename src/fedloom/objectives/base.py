"""What an objective declares of a forward pass, and what it makes of the answer: the seam between losses and engines.

An engine knows nothing of losses. It asks which texts a few examples become, runs them, hands back what the model says
of each (and, where it is asked for, what a frozen reference says of the same texts), and gets one loss for every unit
the batch's loss is a mean over. Everything a loss needs is in the examples it is given, so neighbours in a pass change
nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from fedloom.metrics.scores import Scores

Forward: TypeAlias = Literal["logprob", "logits", "pooled"]
"""What is wanted of each text. logprob: log p of each target after its place [wanted], in nats. logits: the model's
words at the places [wanted, vocabulary]. pooled: one row of class logits [classes], from a model with a head."""


@dataclass(frozen=True, slots=True)
class Text:
    """One sequence on its way through the model."""

    ids: Sequence[int]
    places: Sequence[int] = ()
    """After which tokens the model's word is wanted; none where a text is pooled."""
    targets: Sequence[int] = ()
    """What stands there in truth; as many as places."""
    shared: int = 0
    """So many of its first ids, never all, are also the first of the last text before it that shares nothing. A model
    that only looks back says the same there, so an engine may compute them once; dropout's masks are the same too."""

    @property
    def own(self) -> int:
        """Tokens it shares with no other text."""
        return len(self.ids) - self.shared


class Objective(Protocol):
    """What is minimised. Examples are its own: whatever the encoder of its rows makes."""

    @property
    def forward(self) -> Forward:
        """What it wants of each text."""

    @property
    def reference(self) -> Literal["base", "start"] | None:
        """Whose word it compares with: the base without adapter, where the training starts, or nobody's."""

    @property
    def writes(self) -> bool:
        """Whether examples have a prompt and an answer that a model can be asked to write (`prompt`, `answer`)."""

    def texts(self, part: Sequence[Any]) -> list[Text]:
        """The texts of some examples, in a fixed order."""

    def count(self, batch: Sequence[Any]) -> int:
        """Units the loss of a batch is a mean over (labelled tokens, rows, pairs); 0: nothing can be learned."""

    def losses(self, said: Sequence[Tensor], reference: Sequence[Tensor] | None, part: Sequence[Any]) -> Tensor:
        """Loss of each unit of these examples [units], differentiable; their sum is divided by the batch's count.

        Args:
            said: of each of `texts(part)`, what `forward` names, at least in float32.
            reference: the same of the reference, without gradient; None: there is none.
            part: the examples, a batch or a part of one.
        """

    def scores(self, said: Sequence[Tensor], reference: Sequence[Tensor] | None, part: Sequence[Any]) -> list[Scores]:
        """What an evaluation counts, one for each example; the same arguments as `losses`."""

    def made_up(self, ids: Sequence[int]) -> Any:
        """An example of about these tokens, to try an engine with."""
