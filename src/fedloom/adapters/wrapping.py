"""The other kinds of peft around a model: our settings as peft's, and its wrapper with nothing drawn yet."""

from typing import Any

import torch

from fedloom.adapters import heads
from fedloom.adapters.config import (
    AdaLoraConfig,
    DoraConfig,
    Ia3Config,
    OtherConfig,
    PrefixConfig,
    PromptConfig,
    PTuningConfig,
    TargetConfig,
    VeraConfig,
)
from fedloom.adapters.lora import ENCODERS, check_targets, linear_names
from fedloom.errors import UserError
from fedloom.models.heads import Classifier
from fedloom.models.load import quiet


def wrap(module: Any, config: OtherConfig) -> Any:
    """The model inside peft's wrapper; of a classifier, the model without its head.

    Args:
        module: the causal model or the classifier; may be a skeleton.
        config: the kind.

    Raises:
        UserError: a target names no linear layer, or peft does not know the architecture.
    """
    from peft import get_peft_model

    inner = module.backbone if isinstance(module, Classifier) else module
    made = settings(module, config)
    with torch.random.fork_rng(), quiet():  # peft draws from the global generator; ours are drawn later
        try:
            return get_peft_model(inner, made)
        except ValueError as error:
            why = str(error)
    if isinstance(config, PromptConfig | PTuningConfig | PrefixConfig):
        raise UserError(f"adapter.kind={config.kind}: a {inner.config.model_type} cannot be used with it: {why}")
    if made.target_modules is None or "feedforward" in why:
        key, layers = ("targets", "all-linear, or names") if made.target_modules is None else ("feedforward", "names")
        why = (
            f"peft names no layers for a {inner.config.model_type}; use {layers} of linear layers "
            f"({', '.join(linear_names(inner)[:6])})"
        )
        raise UserError(f"adapter.{key}=auto: {why}")
    raise UserError(f"adapter.targets={config.targets}: {why}")


def settings(module: Any, config: OtherConfig) -> Any:
    """Peft's own settings object.

    Raises:
        UserError: a target names no linear layer.
    """
    import peft

    task = "FEATURE_EXTRACTION" if isinstance(module, Classifier) else "CAUSAL_LM"
    match config:
        case PromptConfig():  # a start at the base's numbers is set later
            return peft.PromptTuningConfig(task_type=task, num_virtual_tokens=config.tokens)
        case PTuningConfig():
            return peft.PromptEncoderConfig(
                task_type=task, num_virtual_tokens=config.tokens, encoder_hidden_size=config.hidden or _width(module)
            )
        case PrefixConfig():
            return peft.PrefixTuningConfig(
                task_type=task,
                num_virtual_tokens=config.tokens,
                prefix_projection=config.projection,
                encoder_hidden_size=(config.hidden or _width(module)) if config.projection else None,
            )
    common: dict[str, Any] = {
        "task_type": task,
        "target_modules": _targets(module, config),
        "fan_in_fan_out": any(type(layer).__name__ == "Conv1D" for layer in module.modules()),
    }
    if isinstance(config, VeraConfig):  # peft draws its factors too, but ours take their place
        return peft.VeraConfig(r=config.rank, d_initial=config.start, vera_dropout=config.dropout, **common)
    pooler = isinstance(module, Classifier) and getattr(module.backbone, "pooler", None) is not None
    common["exclude_modules"] = heads.POOLER if pooler else None
    if isinstance(config, Ia3Config):
        named = None if config.feedforward == "auto" else list(config.feedforward)
        return peft.IA3Config(feedforward_modules=named, **common)
    common |= {"lora_alpha": config.alpha, "lora_dropout": config.dropout}
    if isinstance(config, DoraConfig):
        return peft.LoraConfig(r=config.rank, use_dora=True, use_rslora=config.rslora, **common)
    return _adalora(config, common)


def _adalora(config: AdaLoraConfig, common: dict[str, Any]) -> Any:
    import peft

    return peft.AdaLoraConfig(
        init_r=config.rank, target_r=config.target_rank, total_step=config.steps, tinit=config.warmup,
        tfinal=config.final, deltaT=config.every, beta1=config.beta1, beta2=config.beta2,
        orth_reg_weight=config.orthogonal, **common,
    )  # fmt: skip


def _targets(module: Any, config: TargetConfig) -> Any:
    """Peft's `target_modules`: None lets it choose by the architecture."""
    model = module.backbone if isinstance(module, Classifier) else module
    targets = config.targets
    if isinstance(targets, str) and targets not in ("auto", "all-linear"):
        targets = [targets]
    if isinstance(targets, list):
        check_targets(model, targets)
        if isinstance(config, Ia3Config) and config.feedforward != "auto":
            _check_feedforward(targets, config.feedforward)
    if isinstance(config, VeraConfig) and isinstance(module, Classifier) and module.pooler and targets == "all-linear":
        raise UserError(  # peft's settings of this kind have no way to leave a layer out
            "adapter.targets=all-linear: with adapter.kind=vera the model's own pooler would be adapted too, which is "
            f"not used where it is written; name the layers ({', '.join(linear_names(model)[:6])})"
        )
    if targets != "auto":
        return targets
    return None if isinstance(config, Ia3Config) else ENCODERS.get(module.config.model_type)


def _check_feedforward(targets: list[str], feedforward: list[str]) -> None:
    strangers = sorted(set(feedforward) - set(targets))
    if strangers:
        raise UserError(
            f"adapter.feedforward names {', '.join(strangers)}, which adapter.targets does not; name them in both"
        )


def _width(module: Any) -> int:
    """Numbers of a token's vector."""
    width: int = module.get_input_embeddings().embedding_dim
    return width
