"""SLoRA: a sparse update of the full weights first, then LoRA that starts from its SVD.

Babakniya et al. 2023, SLoRA: Federated Parameter Efficient Fine-Tuning of Language Models,
https://arxiv.org/abs/2308.06522. Stage one: a random mask of exact density, drawn once from the seed and shared by all,
says which entries of each adapted weight matrix are trained; only those travel. At the switch the mean sparse update ΔW
of each matrix becomes A = V_r^T, B = U_r S_r / s, the best factors of the adapter's rank; stage two averages factors.
What rank r cannot hold is dropped (as in the paper), or carried on top of the base.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from fedloom import lowrank, masks
from fedloom.aggregate.rules import Mean
from fedloom.contracts import Carry, Rule, Term
from fedloom.params import Layout, Params


@dataclass(frozen=True)
class Sparse:
    """Sparse entries, then factors."""

    layout: Layout
    seed: int
    density: float
    rounds: int
    """Of the sparse stage."""
    residual: Literal["drop", "carry"] = "drop"
    rule: Rule = field(default_factory=Mean)
    phases: int = 2

    def phase(self, round: int) -> int:
        """0: sparse, 1: factors."""
        return int(round >= self.rounds)

    def active(self, phase: int, layout: Layout) -> Sequence[str]:
        """Sparse entries or factors; other tensors in both stages."""
        wanted = {True} if phase == 0 else {False}
        return [leaf.name for leaf in layout.leaves if not leaf.module or (leaf.factor == "plain") in wanted]

    def lower(self, shared: Params, layout: Layout) -> Params:
        """The shared vector as it is."""
        return shared

    def lift(self, y: Params, layout: Layout, phase: int) -> Term:
        """What is active, nothing else."""
        return layout.take(y, self.active(phase, layout))

    def point(self, shared: Params, phase: int) -> Term:
        """The shared vector's active part."""
        return self.layout.take(shared, self.active(phase, self.layout))

    def form(self, term: Term, phase: int) -> Term:
        """Entries as they are; factors as products."""
        assert isinstance(term, torch.Tensor)
        if phase == 0:
            return term
        whole = self.layout.put(term.new_zeros(self.layout.size), self.active(phase, self.layout), term)
        return lowrank.plain_vector(whole, self.layout), *lowrank.products(whole, self.layout)

    def close(self, shared: Params, carry: Carry, term: Term, round: int) -> tuple[Params, Carry]:
        """The mean put in its place; after the sparse stage it becomes factors, in the first round that has replies."""
        assert isinstance(term, torch.Tensor)
        new = self.layout.put(shared, self.active(self.phase(round), self.layout), term)
        return self._switched(new, carry) if round + 1 >= self.rounds and self._waiting(new) else (new, carry)

    def _waiting(self, shared: Params) -> bool:
        views = self.layout.views(shared)
        return any(bool(views[f"{pair.module}.S"].any()) for pair in lowrank.pairs(self.layout))

    def _switched(self, shared: Params, carry: Carry) -> tuple[Params, Carry]:
        views = self.layout.views(shared)
        tensors, left_over = dict(views), list[torch.Tensor]()
        for pair in lowrank.pairs(self.layout):
            places = masks.entries(self.seed, pair.module, pair.outputs, pair.inputs, self.density)
            factors = pair.scale * views[pair.b.name] @ views[pair.a.name]  # zero, unless a round came in between
            update = masks.dense(views[f"{pair.module}.S"], places, pair.outputs, pair.inputs) + factors
            unit = torch.eye(pair.inputs, dtype=update.dtype)
            a, b = lowrank.refactor(update, unit, pair.rank, pair.scale)
            tensors |= {pair.a.name: a, pair.b.name: b, f"{pair.module}.S": torch.zeros_like(views[f"{pair.module}.S"])}
            left_over += [*lowrank.compress(update - pair.scale * b @ a, unit)]
        return self.layout.gather(tensors, shared.dtype), tuple(left_over) if self.residual == "carry" else carry
