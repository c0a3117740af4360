"""Which engine runs, and why: clients side by side where a check against the plain loop agrees, else the plain loop.

The check is one step of two clients with a text each, at a point where no factor is zero: losses and gradients of the
shared pass must be those of one client after the other. A model that looks across texts, counts positions otherwise,
routes tokens or keeps an attention of its own shows here, before a run begins.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedloom import rng
from fedloom.adapters.adapted import Adapted
from fedloom.contracts import Call, ClientFailed, Engine
from fedloom.engine.attention import Way
from fedloom.engine.config import EngineConfig, OptimizerConfig
from fedloom.engine.optimizers import ELEMENTWISE
from fedloom.engine.reference import Reference
from fedloom.engine.requests import Descend
from fedloom.engine.slots import Slots
from fedloom.errors import RunStopped, UserError
from fedloom.metrics.scores import Scores
from fedloom.models import quantised
from fedloom.objectives.base import Forward, Objective, Text
from fedloom.objectives.sft import Sft
from fedloom.params import Params

SLOTS = 8
TOKENS = {"cpu": 1024, "cuda": 8192}
TOKENS_LARGE = 2048
"""On a GPU, for bases of at least LARGE parameters, where a pass is filled sooner."""
LARGE = 3_000_000_000
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Largest relative difference of a gradient that is rounding: padded and unpadded texts are summed in other orders."""
HEEDED = frozenset({"full_attention", "sliding_attention"})
"""Kinds of attention layers, by transformers' names, that are computed text by text."""
LENGTHS = (11, 6)


@dataclass(frozen=True)
class Chosen:
    """The engine of a run."""

    engine: Engine
    config: EngineConfig
    """What was asked for, with every number as used."""
    why: str
    """For the log."""
    invariant: bool | None = None
    """Whether neighbours change no bit on this machine; None: there are none."""

    @property
    def words(self) -> str:
        """The engine in one line."""
        return f"{self.config.name} ({self.why})"


def choose(
    config: EngineConfig,
    adapted: Adapted,
    tokenizer: Any,
    stop_ids: Sequence[int],
    *,
    optimizer: OptimizerConfig,
    dtype: torch.dtype,
    parameters: int,
    checkpointing: bool = False,
    attention: str = "sdpa",
    objective: Objective | None = None,
) -> Chosen:
    """The engine a recipe names, or the fastest that is right for this model.

    Args:
        config: the section `engine`.
        adapted: the model with its adapter.
        tokenizer: writes answers.
        stop_ids: tokens that end an answer.
        optimizer: of local training; some need their tensors' shapes.
        dtype: of the base.
        parameters: of the base.
        checkpointing: compute activations again in the backward pass.
        attention: the base's own, as transformers names it.
        objective: what is minimised; None: supervised fine-tuning.

    Raises:
        UserError: `engine.name=slots` is demanded, but this model or setting cannot be run so.
    """
    objective = objective or Sft()
    reference = Reference(adapted, tokenizer, stop_ids, checkpointing, objective)
    if config.name == "reference":
        return Chosen(reference, config, "one client at a time, as engine.name says")
    problem = _unsuited(adapted, optimizer)
    begun = time.perf_counter()
    if problem is None:
        slots = config.slots or SLOTS
        tokens = config.tokens_per_step or default_tokens(adapted.w.device, parameters)
        for way in ways(attention, adapted.w.device, dtype):
            engine = Slots(adapted, tokenizer, stop_ids, slots, tokens, checkpointing, way, objective)
            problem = difference(engine, reference, dtype)
            if problem is None:
                break
        seconds = time.perf_counter() - begun
    if problem is not None:
        if config.name == "slots":
            raise UserError(f"engine.name=slots cannot work here: {problem}. Use engine.name=reference or auto")
        return Chosen(
            reference, config.model_copy(update={"name": "reference"}), f"one client at a time, since {problem}"
        )
    resolved = config.model_copy(update={"name": "slots", "slots": slots, "tokens_per_step": tokens})
    invariant = row_invariant(engine.model.inner, dtype)
    exact = "neighbours change no bit" if invariant else "neighbours change the last digits"
    why = f"{slots} clients side by side, {tokens} tokens a pass, {way} attention; checked in {seconds:.1f} s; {exact}"
    return Chosen(engine, resolved, why, invariant)


def default_tokens(device: torch.device, parameters: int) -> int:
    """Tokens that fill a pass: more only need memory."""
    return TOKENS_LARGE if device.type == "cuda" and parameters >= LARGE else TOKENS[device.type]


def ways(attention: str, device: torch.device, dtype: torch.dtype) -> tuple[Way, ...]:
    """How texts may be attended to, the fastest first."""
    if attention == "eager":
        return ("plain",)
    return ("packed", "fused") if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) else ("fused",)


def difference(slots: Slots, reference: Reference, dtype: torch.dtype) -> str | None:
    """Why the shared pass is not the plain loop for this model; None: it is.

    Args:
        slots: the engine in question.
        reference: the oracle.
        dtype: of the base, for how much rounding is to be expected.
    """
    tried = _tried(slots.objective)
    requests = _requests(slots.adapted, slots.model.inner, tried)
    with reference.minimising(tried):
        wanted = [_served(reference, [request])[0] for request in requests]
    try:
        with slots.minimising(tried):
            found = _served(slots, requests)
    except (RunStopped, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever a model's code does with a stream it was not written for
        return f"this model cannot be run over a stream of texts ({type(error).__name__}: {_short(error)})"
    finally:
        slots.abandon()
    tolerance = TOLERANCE.get(dtype, 5e-2)
    for mine, right in zip(found, wanted, strict=True):
        if isinstance(mine, ClientFailed) or isinstance(right, ClientFailed):
            if type(mine) is not type(right):
                return "the check's loss is finite in one engine only"
            continue
        far = _apart(mine.gradient, right.gradient)
        if not far <= tolerance or not math.isclose(mine.loss, right.loss, rel_tol=max(tolerance, 1e-5)):
            return (
                f"in the check its gradient is off by {far:.1e} of its length where {tolerance:.0e} is rounding (loss "
                f"{mine.loss:.5f} for {right.loss:.5f})"
            )
    return None


@torch.no_grad()
def row_invariant(module: nn.Module, dtype: torch.dtype, rows: Sequence[int] = (4, 5, 7, 13, 32)) -> bool:
    """Whether products of some rows are, bit by bit, those rows of the product of more: forward and backward.

    Every shape of linear layer in the module is tried, with each number of rows. Libraries choose kernels by size, so
    this is a property of the machine, the library, the format and the number of threads.
    """
    shapes = {
        (quantised.shape(layer), weight.device)
        for layer in module.modules()
        if _linear(layer) and isinstance(weight := getattr(layer, "weight", None), Tensor) and weight.dim() == 2
    }
    source = torch.Generator().manual_seed(0)
    for (outputs, inputs), device in sorted(shapes, key=str):
        for wide, narrow in ((inputs, outputs), (outputs, inputs)):
            matrix = torch.randn(narrow, wide, generator=source).to(device, dtype)
            x = torch.randn(max(rows) + 8, wide, generator=source).to(device, dtype)
            whole = x @ matrix.t()
            for count in rows:
                if not torch.equal(x[3 : 3 + count].clone() @ matrix.t(), whole[3 : 3 + count]):
                    return False
    return True


def _unsuited(adapted: Adapted, optimizer: OptimizerConfig) -> str | None:
    if adapted.together is None:
        return adapted.apart
    config: Any = adapted.module.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - HEEDED)
    if getattr(config, "attention_chunk_size", None) or odd:  # it stands in the mask only, which is not built
        return f"this model attends in ways that are not computed text by text ({', '.join(odd) or 'in chunks'})"
    if optimizer.name.lower() not in ELEMENTWISE:
        return f"{optimizer.name} needs each tensor's shape (element by element: {', '.join(sorted(ELEMENTWISE))})"
    return None


@dataclass(frozen=True)
class _Likelihoods:
    """Of an objective's texts, the likelihoods of what they want alone."""

    of: Objective
    forward: Forward = "logprob"
    reference: None = None
    writes: bool = False

    def texts(self, part: Sequence[Any]) -> list[Text]:
        """The objective's, with the beginnings they share."""
        return self.of.texts(part)

    def count(self, batch: Sequence[Any]) -> int:
        """Tokens."""
        return sum(len(text.targets) for text in self.texts(batch))

    def losses(self, said: Sequence[Tensor], reference: Sequence[Tensor] | None, part: Sequence[Any]) -> Tensor:
        """[tokens], in nats."""
        return -torch.cat(list(said))

    def scores(self, said: Sequence[Tensor], reference: Sequence[Tensor] | None, part: Sequence[Any]) -> list[Scores]:
        """Nothing is evaluated."""
        return [Scores()] * len(part)

    def made_up(self, ids: Sequence[int]) -> Any:
        """The objective's."""
        return self.of.made_up(ids)


def _tried(objective: Objective) -> Objective:
    """What the check minimises: where only likelihoods of tokens are wanted, those alone. A loss of their differences
    is small beside them, and half precision's rounding would look like an error.
    """
    return _Likelihoods(objective) if objective.forward == "logprob" else objective


def _requests(adapted: Adapted, module: Any, objective: Objective) -> list[Descend]:
    """Two clients with a text each, one step of plain gradient descent from different points."""
    known = min(module.get_input_embeddings().num_embeddings, 1000)
    found = []
    for client, length in enumerate(LENGTHS):
        source = rng.numbers(rng.key(0, "engine check", client))
        ids = tuple(int(token) for token in source.integers(0, known, length))
        found.append(
            Descend(
                start=_point(adapted, source),
                layout=adapted.layout,
                batches=[[objective.made_up(ids)]],
                lrs=[1e-3],
                optimizer=OptimizerConfig(name="sgd"),
                max_grad_norm=None,
                accumulate=1,
                seed=client,
                label="engine check",
                gradient=True,
            )
        )
    return found


def _point(adapted: Adapted, source: Any) -> Params:
    """Near the start, where no factor is zero; small enough that the model stays itself."""
    noise = torch.from_numpy(source.standard_normal(adapted.layout.size)).to(adapted.start.dtype)
    return adapted.start + 0.02 * noise


def _served(engine: Engine, requests: Sequence[Descend]) -> list[Any]:
    for client, request in enumerate(requests):
        engine.admit(Call(client, replace(request)))
    found = dict[int, Any]()
    while len(found) < len(requests):
        found.update(engine.advance())
    return [found[client] for client in range(len(requests))]


def _apart(found: Tensor | None, wanted: Tensor | None) -> float:
    assert found is not None
    assert wanted is not None
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def _linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
