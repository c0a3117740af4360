"""What clients may send, and how it is encoded."""

from typing import Literal

from pydantic import Field

from fedloom.settings import Strict


class ChannelConfig(Strict):
    """How replies are encoded, and how large they may be."""

    encoding: Literal["fp32", "fp16", "int8"] = Field(
        "fp32",
        description="Of replies. fp32: as they are. fp16: half the bytes. int8: about a quarter; blocks of 256 numbers "
        "with one scale each, and what is lost is made up for in a client's next reply where that is possible.",
    )
    max_norm: float | None = Field(
        None, gt=0, description="A reply whose numbers together have a larger L2 norm is refused; null: none is."
    )
    max_weight: float | None = Field(
        None, gt=0, description="A reply that claims a larger weight is refused; null: none is."
    )
