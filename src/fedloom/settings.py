"""The base of every configuration class: strict, frozen, and nothing else.

A setting that is not declared is an error, never ignored; a string is not a number; a value does not change after it
was checked. Configuration classes stand beside the component they configure and are joined in `fedloom.config`.
"""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A frozen section of the configuration that refuses unknown keys and values of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)
