"""What travels, why a reply does not count, and what is trained: plain values every other contract is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from fedloom.drift import Drift
from fedloom.params import Params

ClientId: TypeAlias = int
HOME: ClientId = -1
"""The server's own worker: public data, pooled data, a teacher. It is asked like a client."""


@dataclass(frozen=True)
class Message:
    """Base of everything that travels: a frozen dataclass of tensors, scalars, text and tuples or dicts of them."""


@dataclass(frozen=True, kw_only=True)
class Weighted(Message):
    """A reply that says how much it counts in a weighted rule."""

    weight: float
    """Not normalised; the sum of all that counted is known only at the end."""


Reason: TypeAlias = Literal["silent", "late", "failed", "nonfinite", "refused"]


@dataclass(frozen=True)
class Missing:
    """Why a reply did not count."""

    reason: Reason
    detail: str


class ClientFailed(Exception):
    """This client's reply must not count; the round goes on without it. Anything else raised is a bug."""

    def __init__(self, detail: str, reason: Reason = "failed") -> None:
        super().__init__(detail)
        self.missing = Missing(reason, detail)


class TooFewReplies(Exception):
    """A collect got fewer replies than the run or a rule needs; the round is tried again with a new cohort."""

    def __init__(self, counted: int, wanted: int, missing: Mapping[ClientId, Missing]) -> None:
        of = {i: "the server" if i == HOME else f"client {i}" for i in missing}
        reasons = "; ".join(f"{of[i]}: {m.reason}, {m.detail}" for i, m in list(missing.items())[:3])
        super().__init__(f"{counted} replies counted, {wanted} are needed" + (f" ({reasons})" if reasons else ""))
        self.missing = dict(missing)


class NobodyReplied(LookupError):
    """A page asked for the value of a collect nobody replied to; the round loop lets such a round change nothing."""


Carry: TypeAlias = tuple[Tensor, ...]
"""What has left the adapter for the base, as frozen factors: (L_1, R_1, L_2, R_2, ...), one pair for each adapted
module in the order of the layout, L [out, k] and R [k, in], scale within; L R is added to what the module computes. ()
is nothing. The shared base itself is never changed."""


@dataclass(frozen=True)
class Model(Message):
    """A model on its way to be used: the base, what is carried on top of it, and the trained numbers."""

    x: Params
    """[P]; empty [0] where `drift` says it all."""
    carry: Carry = ()
    whole: bool = True
    """False: only the part that is shared; nobody uses it as it stands."""
    drift: Drift | None = None
    """How far the run's start, which everybody has, was left along which directions; None: `x` holds the numbers."""
