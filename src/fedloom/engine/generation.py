"""Greedy answers to many prompts, in batches of similar lengths, filled up on the left.

Prompts behind virtual tokens share a batch where they are of one length: see `fedloom.adapters.virtual`.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fedloom.adapters import virtual


@torch.no_grad()
def answers(
    module: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """The text after each prompt (token ids), up to a stop token, in the order of the prompts.

    A prompt that leaves less room than `max_new_tokens` before the model's last position gets a shorter answer.
    """
    module.eval()
    found = [""] * len(prompts)
    batches = _batches(prompts, max(1, batch_size), max_new_tokens, _positions(module), virtual.tokens(module) > 0)
    with _plain_settings(module):
        for room, chosen in batches:
            batch = [prompts[i] for i in chosen]
            for i, ids in zip(chosen, _continue(module, tokenizer, batch, stop_ids, room), strict=True):
                found[i] = tokenizer.decode(ids, skip_special_tokens=True)
    return found


def filling(module: nn.Module, tokenizer: Any) -> int:
    """A token to fill rows up with, which no text ever sees: the tokenizer's own where the model has a place for it."""
    inner: Any = module.get_base_model() if hasattr(module, "get_base_model") else module  # type: ignore[operator]
    known = inner.get_input_embeddings().num_embeddings
    pad = tokenizer.pad_token_id
    return int(pad) if pad is not None and pad < known else 0


def _batches(
    prompts: Sequence[Sequence[int]], size: int, longest: int, positions: int | None, alike: bool = False
) -> Iterator[tuple[int, list[int]]]:
    """How many tokens may follow, and which prompts; those with equal room and similar lengths together.

    `alike`: only those of one length.
    """
    by_room: dict[tuple[int, int], list[int]] = {}
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        room = longest if positions is None else min(longest, positions - len(prompts[i]))
        if room > 0:
            by_room.setdefault((room, len(prompts[i]) if alike else 0), []).append(i)
    for (room, _), chosen in by_room.items():
        for i in range(0, len(chosen), size):
            yield room, chosen[i : i + size]


def _continue(
    module: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    device = next(module.parameters()).device
    width, pad = max(len(prompt) for prompt in prompts), filling(module, tokenizer)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Position ids are not supported")  # the model counts them itself
        out = module.generate(  # type: ignore[operator]
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=pad,
            eos_token_id=list(stop_ids),
        )
    stops = set(stop_ids)
    return [_until(row, stops) for row in out[:, width:].tolist()]


@contextmanager
def _plain_settings(module: nn.Module) -> Iterator[None]:
    """Without the generation settings a model ships (penalties, sampling): scores must not depend on them."""
    from transformers import GenerationConfig

    inner = module.get_base_model() if hasattr(module, "get_base_model") else module  # type: ignore[operator]
    owners: list[Any] = [inner] if inner is module else [inner, module]
    before = [owner.generation_config for owner in owners]
    for owner in owners:
        owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for owner, settings in zip(owners, before, strict=True):
            owner.generation_config = settings


def _positions(module: nn.Module) -> int | None:
    limit = getattr(module.config, "max_position_embeddings", None)
    return limit - virtual.tokens(module) if isinstance(limit, int) else None


def _until(ids: list[int], stops: set[int]) -> list[int]:
    for i, token in enumerate(ids):
        if token in stops:
            return ids[:i]
    return ids
