"""What kinds of adapters besides LoRA go with."""

from collections.abc import Iterator
from typing import Final, TypeAlias

from fedloom.adapters.config import (
    AdaLoraConfig,
    FullConfig,
    LoraConfig,
    PrefixConfig,
    PromptConfig,
    PTuningConfig,
    virtual_tokens,
)
from fedloom.algorithms.config import FedKdConfig, LocalOnlyConfig
from fedloom.config.schema import Config
from fedloom.objectives.config import ClassifyConfig

Said: TypeAlias = Iterator[tuple[str, ...]]
"""(what is wrong, the key it is said of, further keys it depends on)."""


def virtual(config: Config) -> Said:
    """Virtual tokens stand before every text, and what looks at texts token by token must know."""
    adapter = config.adapter
    if not isinstance(adapter, PromptConfig | PTuningConfig | PrefixConfig):
        return
    if isinstance(config.objective, ClassifyConfig):
        text = (
            f"is {adapter.kind}, whose virtual tokens would count as text where objective=classify pools one. Use "
            "lora, dora, ia3 or vera."
        )
        yield text, "adapter.kind", "objective"
    if isinstance(adapter, PrefixConfig) and config.model.gradient_checkpointing:
        text = (
            "is true, but keys and values of adapter.kind=prefix are given to layers as a cache, which is not there "
            "when they are computed again. Use false, or another kind."
        )
        yield text, "model.gradient_checkpointing", "adapter.kind"
    if isinstance(config.algorithm, FedKdConfig) and config.algorithm.attention:
        text = (
            f"is {config.algorithm.attention:g}, but with adapter.kind={adapter.kind} attention looks at "
            f"{virtual_tokens(adapter)} virtual tokens that the teacher has not. Use 0, or another kind."
        )
        yield text, "algorithm.attention", "adapter.kind"


def falling_ranks(config: Config) -> Said:
    """Ranks that fall are each client's own business."""
    adapter, algorithm = config.adapter, config.algorithm
    if not isinstance(adapter, AdaLoraConfig):
        return
    if not isinstance(algorithm, LocalOnlyConfig):
        text = (
            "is adalora, which leaves out other directions at every client, so what two of them hold cannot be "
            f"combined, and {algorithm.name} would. Use algorithm=local, or adapter.kind=lora (with "
            "aggregate.space=products, where ranks differ)."
        )
        yield text, "adapter.kind", "algorithm"
    elif not algorithm.keep_inner:
        text = "is false, but AdaLoRA's budget is planned over all rounds, so its memory must last. Use true."
        yield text, "algorithm.keep_inner", "adapter.kind"


def one_at_a_time(config: Config) -> Said:
    """Which engine carries a kind is known before anything is loaded."""
    if config.engine.name == "slots" and not isinstance(config.adapter, LoraConfig | FullConfig):
        text = (
            f"is slots, but adapters of kind {config.adapter.kind} are trained one client at a time. Use reference or "
            "auto, or adapter.kind=lora."
        )
        yield text, "engine.name", "adapter.kind"


def quantised_bases(config: Config) -> Said:
    """Only what was tried over quantised layers is let through."""
    if config.model.quantize is not None and not isinstance(config.adapter, LoraConfig | FullConfig):
        text = (
            f"is {config.model.quantize}, over which only adapter.kind=lora is known to be right, not "
            f"{config.adapter.kind}. Leave it out, or use lora."
        )
        yield text, "model.quantize", "adapter.kind"


KINDS: Final = (virtual, falling_ranks, one_at_a_time, quantised_bases)
