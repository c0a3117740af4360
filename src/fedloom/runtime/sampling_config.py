"""Who is asked in a round, and who is never asked."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fedloom.settings import Strict


def texts(value: Any) -> Any:
    """A list in which numbers became text, so that `[0, 3, 5-9]` needs no quotes; anything else as it is."""
    if not isinstance(value, list):
        return value
    return [str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in value]


ClientList = Annotated[list[str], BeforeValidator(texts)]
"""Clients by name, number or range (`0-4`)."""

SomeClients = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^(100|[1-9]?\d(\.\d+)?)%$")] | ClientList
"""So many clients or such a share of them (`10%`), drawn from the seed; or a list of them."""


class UniformConfig(Strict):
    """Every client with the same chance, without replacement."""

    name: Literal["uniform"] = "uniform"


class BySizeConfig(Strict):
    """Without replacement, with a chance proportional to a client's training rows (Efraimidis and Spirakis 2006)."""

    name: Literal["size"] = "size"


class FixedConfig(Strict):
    """The same clients in every round."""

    name: Literal["fixed"] = "fixed"
    clients: ClientList = Field(
        [], description="Names, numbers or ranges (`0-4`); of a longer list than the cohort, its first clients."
    )


class CyclicConfig(Strict):
    """All clients in turn: nobody is asked twice before everybody was asked once."""

    name: Literal["cyclic"] = "cyclic"
    shuffle: bool = Field(True, description="In an order drawn once from the seed; false: in the order of numbers.")


class TraceConfig(Strict):
    """Drawn among the clients that a file says are available in that round; the cohort may be smaller, or empty."""

    name: Literal["trace"] = "trace"
    file: str | None = Field(
        None,
        description="CSV with the header `round,client`: a line for each round (from 1) and client (name, number or "
        "range) that is available in it. The trace begins again after its last round.",
    )


class PoissonConfig(Strict):
    """Every client by a coin of its own, so that the cohort has its size on average only and may be empty."""

    name: Literal["poisson"] = "poisson"


SamplingConfig = Annotated[
    UniformConfig | BySizeConfig | FixedConfig | CyclicConfig | TraceConfig | PoissonConfig,
    Field(discriminator="name"),
]
