"""A classification head on a model's hidden states: one row of numbers stands for a text, the head scores its classes.

Every text is pooled from its own tokens alone, by the same code for texts side by side in a padded batch and one behind
the other in a stream. The head's first numbers are drawn from a key, so that they are the same on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedloom import rng
from fedloom.errors import UserError

Pooling: TypeAlias = Literal["cls", "mean", "last"]
SMALL = 0.02
"""Standard deviation of the last layer's first weights."""
ROUNDING, BLIND = 1e-2, 1e-6
"""Relative distances: what is below the first is the same, in any number format; what is above the second differs."""
LEAST = 4
"""Products over fewer rows are computed by other kernels on some machines, in other bits."""


@dataclass(frozen=True)
class HeadSpec:
    """What is put on a model."""

    classes: int
    pooling: Literal["auto", "cls", "mean", "last"] = "auto"
    """auto: the last token of a decoder, the mean over an encoder's."""
    kind: Literal["linear", "mlp"] = "linear"
    seed: int = 0
    """Where the head's numbers start."""
    labels: tuple[str, ...] | None = None
    """What the classes are called, where that is known; only written beside a saved head."""

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"a head needs at least one class, not {self.classes}")
        if self.labels is not None and len(self.labels) != self.classes:
            raise ValueError(f"{len(self.labels)} labels do not name {self.classes} classes")


class Head(nn.Module):
    """[..., width] -> [..., classes]: a linear layer, or before it a dense one with tanh."""

    def __init__(self, width: int, classes: int, kind: Literal["linear", "mlp"] = "linear") -> None:
        super().__init__()
        self.dense = nn.Linear(width, width) if kind == "mlp" else None
        self.out = nn.Linear(width, classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """Class logits."""
        inner = pooled if self.dense is None else torch.tanh(self.dense(pooled))
        scores: Tensor = self.out(inner)
        return scores


class Classifier(nn.Module):
    """A model without a language head, and a head that classifies whole texts."""

    def __init__(self, backbone: Any, spec: HeadSpec, pooler: bool = True) -> None:
        """Put a head on a model.

        Args:
            backbone: what transformers' AutoModel gives; its own pooler is let go of where it is not used.
            spec: the head; its numbers are drawn in float32, or left out where the model is on device `meta`.
            pooler: whether the model's own pooler, if its kind has one, holds numbers of its files.

        Raises:
            UserError: the model is none for texts in one piece, or the pooling means nothing for it.
        """
        super().__init__()
        self.backbone, self.spec = backbone, spec
        self.config = backbone.config
        self.pooling = resolved(self.config, spec.pooling)
        self.pooler = getattr(backbone, "pooler", None) is not None
        """Whether models of this kind have a pooler when they are loaded without a head."""
        if self.pooler and not (pooler and self.pooling == "cls"):
            backbone.pooler = None
        device = next(backbone.parameters()).device
        with torch.device("meta"):
            self.head = Head(width(self.config), spec.classes, spec.kind)
        if device.type != "meta":
            self.head.to_empty(device=device)
            with torch.no_grad():
                for name, parameter in self.head.named_parameters():
                    parameter.copy_(start(spec, name, tuple(parameter.shape)))
        self.first_position = _first_position(backbone)
        """Position of a text's first token: models of RoBERTa's kind count on from their filling token's number."""
        self._takes = frozenset(_arguments(backbone))
        self._types = "token_type_ids" in self._takes and getattr(self.config, "type_vocab_size", 0) > 0

    def get_input_embeddings(self) -> nn.Module:
        """The table of token vectors."""
        table: nn.Module = self.backbone.get_input_embeddings()
        return table

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """Compute activations again in the backward pass."""
        self.backbone.gradient_checkpointing_enable(**settings)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        """Class logits [b, classes] of ids [b, t]; the mask [b, t] is 1 on text, which begins each row.

        Raises:
            ValueError: a row is empty, or filling stands before text.
        """
        spans = _spans(attention_mask)
        return self.scores(self.pool(self.states(input_ids, attention_mask).flatten(0, 1), spans))

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states [b, t, H] of ids [b, t] and their mask."""
        more: dict[str, Any] = {"attention_mask": attention_mask.long()}
        if "position_ids" in self._takes:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device) + self.first_position
            more["position_ids"] = positions.expand_as(input_ids)
        return self._run(input_ids, more)

    def hidden(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Hidden states [tokens, H] of one row [1, tokens] of texts one behind the other, which needs no mask.

        Args:
            input_ids: the texts.
            position_ids: the same shape; every text begins at `first_position`.

        Raises:
            RuntimeError: the model counts positions itself, from the first text's beginning.
        """
        if "position_ids" not in self._takes:
            raise RuntimeError(f"{type(self.backbone).__name__} takes no positions, so texts cannot share a row")
        return self._run(input_ids, {"position_ids": position_ids})[0]

    def pool(self, hidden: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """What stands for each text [texts, H], at least in float32, from hidden states [tokens, H].

        Args:
            hidden: of all tokens.
            spans: first token of each text, and the one behind its last.
        """
        exact = torch.promote_types(hidden.dtype, torch.float32)
        if self.pooling == "mean":
            return torch.stack([hidden[a:b].to(exact).mean(0) for a, b in spans])
        places = [b - 1 if self.pooling == "last" else a for a, b in spans]
        rows = hidden[torch.tensor(places, device=hidden.device)]
        pooler = getattr(self.backbone, "pooler", None)
        return (rows if pooler is None else self._pooler(pooler, rows)).to(exact)

    def scores(self, pooled: Tensor) -> Tensor:
        """Class logits [texts, classes] of pooled texts [texts, H]."""
        found: Tensor = self.head(pooled.to(self.head.out.weight.dtype))
        return found

    def _run(self, input_ids: Tensor, more: dict[str, Any]) -> Tensor:
        if self._types:  # the model's own zeros are only as many as its longest text
            more["token_type_ids"] = torch.zeros_like(input_ids)
        if "use_cache" in self._takes:
            more["use_cache"] = False
        found: Tensor = self.backbone(input_ids=input_ids, **more).last_hidden_state
        return found

    def _pooler(self, pooler: nn.Module, rows: Tensor) -> Tensor:
        """The model's own pooler over first tokens [texts, H], never over fewer than LEAST rows."""
        filled = functional.pad(rows, (0, 0, 0, max(0, LEAST - len(rows))))
        if isinstance(pooler, nn.Linear):  # ALBERT, BigBird: the activation stands beside it
            activation = getattr(self.backbone, "pooler_activation", None) or self.backbone.activation
            found: Tensor = activation(pooler(filled))
        else:
            found = pooler(filled[:, None])
        return found[: len(rows)]


def start(spec: HeadSpec, name: str, shape: tuple[int, ...]) -> Tensor:
    """First numbers of one of the head's parameters, float32: biases 0, weights normal and small in the last layer."""
    if len(shape) < 2:
        return torch.zeros(shape)
    deviation = SMALL if name.startswith("out.") else shape[1] ** -0.5
    return (rng.normal(rng.key(spec.seed, "head start", name), *shape) * deviation).float()


def resolved(config: Any, pooling: Literal["auto", "cls", "mean", "last"]) -> Pooling:
    """What stands for a text of this model.

    Raises:
        UserError: the model writes from one text to another, or the pooling means nothing for it.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"objective=classify needs an encoder or a decoder, and a {config.model_type} is both (it turns one text "
            "into another); take a model like BERT, RoBERTa, Llama or GPT-2"
        )
    decoder = is_decoder(config)
    if pooling == "auto":
        return "last" if decoder else "mean"
    if pooling == "cls" and decoder:
        raise UserError(
            f"objective.pooling=cls: a {config.model_type} is a decoder, whose first token sees nothing of the text "
            "behind it; use last (or auto), or mean"
        )
    return pooling


def is_decoder(config: Any) -> bool:
    """Whether tokens of this kind of model see only what stands before them, as far as its configuration says."""
    from transformers.models.auto import modeling_auto as auto

    causal = config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    fills_gaps = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return causal and (not fills_gaps or bool(getattr(config, "is_decoder", False)))


@torch.no_grad()
def check_texts(model: Classifier, name: str) -> None:
    """Try a model with its numbers: positions and the pooler must mean here what they mean inside it.

    Args:
        model: the classifier, with weights.
        name: what the recipe calls it.

    Raises:
        UserError: it cannot be run, or what it says is not what was expected of its kind.
    """
    backbone, device = model.backbone, next(model.backbone.parameters()).device
    known = [i for i in range(4, 12) if i != model.config.pad_token_id]
    ids = torch.tensor([known[:4], [known[0], *known[4:7]]], device=device)
    mask = torch.ones_like(ids)
    try:
        own = backbone(input_ids=ids, attention_mask=mask)
        hidden = model.states(ids, mask)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise UserError(
            f"model.name={name}: a {type(backbone).__name__} cannot be used for classification "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None
    if _apart(hidden, own.last_hidden_state) > ROUNDING:
        raise UserError(f"model.name={name}: a {type(backbone).__name__} counts positions in a way that is not known")
    if model.pooling != "cls":
        return
    if _apart(hidden[0, 0], hidden[1, 0]) < BLIND:
        raise UserError(
            f"objective.pooling=cls: the first token of {name} sees nothing of the text behind it; use last or mean"
        )
    if getattr(backbone, "pooler", None) is not None:
        pooled = model.pool(hidden.flatten(0, 1), [(0, 4), (4, 8)])
        if _apart(pooled, own.pooler_output) > ROUNDING:
            raise UserError(f"model.name={name}: its pooler works in a way that is not known; use pooling=mean")


def _apart(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def width(config: Any) -> int:
    """Numbers of one hidden state."""
    text = config.get_text_config()
    return int(text.hidden_size)


def _spans(mask: Tensor) -> list[tuple[int, int]]:
    """Where texts stand when the rows of a mask [b, t] are laid one behind the other."""
    long = mask.shape[1]
    lengths = mask.long().sum(1)
    expected = torch.arange(long, device=mask.device)[None] < lengths[:, None]
    if not torch.equal(mask.bool(), expected) or not bool((lengths > 0).all()):
        raise ValueError("texts must stand at the beginning of their rows, with filling behind them, and none be empty")
    return [(row * long, row * long + length) for row, length in enumerate(lengths.tolist())]


def _first_position(backbone: nn.Module) -> int:
    for name, table in backbone.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(table, nn.Embedding):
            return 0 if table.padding_idx is None else table.padding_idx + 1
    return 0


def _arguments(module: nn.Module) -> list[str]:
    import inspect

    return list(inspect.signature(module.forward).parameters)
