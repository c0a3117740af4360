"""What a server and its clients agree on beyond the recipe of a simulation."""

from pydantic import Field

from fedloom.settings import Strict


class DeployConfig(Strict):
    """A run between organisations (`fedloom server`); a simulation reads none of it."""

    clients: int | None = Field(
        None, ge=1, description="The first round begins when so many clients have joined; needed by fedloom server."
    )
    join_timeout: float = Field(
        3600, gt=0, description="Seconds the server waits for clients to join, or to come back when too few are left."
    )
    round_timeout: float = Field(
        3600, gt=0, description="Seconds a client has for one task; later its reply does not count any more."
    )
    silence_timeout: float = Field(
        60, ge=20, description="Seconds without a sign of life after which a client counts as gone until it returns."
    )
    share_model: bool = Field(True, description="At the end every client gets the final model for itself.")
