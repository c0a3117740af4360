"""LoRA-A2 against numbers worked out without this package, and a round of it written out."""

import numpy
import pytest
import torch

from algorithms.linear import TWO, Linear, fit, pairs, vector
from algorithms.scalar import ORACLES, Engine, Scalars, advance
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.lora_a2 import LoraA2
from fedloom.engine.config import OptimizerConfig
from fedloom.spaces.turns import Turns

START = [
    ([[0.5, 0.4], [0.2, -0.3], [-0.1, 0.7]], [[0.2, -0.1, 0.3], [0.1, 0.4, -0.2]]),
    ([[-0.3, 0.6], [0.8, 0.1], [0.4, -0.5]], [[-0.2, 0.3, 0.1], [0.25, 0.15, -0.3]]),
]
"""Two modules of rank 3."""


def arrays(layout, x):
    return [(a.numpy(), b.numpy()) for a, b, _ in pairs(layout, x)]


def page(layout, **settings):
    return LoraA2(**{"layout": layout, "rank": 1, "selection_steps": 1, "lr_ratio": 1.0, **settings})


def test_the_choice_in_numbers():
    """Scores m0 (.1, .6), m1 (.158, .2), two slots over both modules: slot 1 of each moves, slot 0 is left."""
    inputs, outputs = ORACLES["lora_a2_selection"]["inputs"], ORACLES["lora_a2_selection"]["outputs"]
    names = list(inputs["A"])
    zero = numpy.zeros((2, 2))
    federation = Linear(n=(5,), held=TWO[:1], ranks=(2,), cohorts=((0,),))
    layout = federation.shared
    start = vector(layout, [(inputs["A"][m], zero) for m in names])
    moved = vector(layout, [(zero, inputs["delta_B"][m]) for m in names])
    algorithm = page(layout, rank=inputs["r_client"])
    hub = federation.hub(algorithm, Engine(deltas=lambda client: moved))
    [state] = advance(algorithm, hub, 1, start)
    for m, (a, b) in zip(names, arrays(layout, algorithm.model(state).x), strict=True):
        chosen = [slot for name, slot in outputs["selected"] if name == m]
        want = numpy.array(inputs["delta_B"][m])
        want[:, [i for i in range(2) if i not in chosen]] = 0
        assert b.tolist() == want.tolist()
        assert a.tolist() == inputs["A"][m]


def test_the_sum_in_numbers():
    """Client 0 chose slot 0 only: its 9s in slot 1 count as nothing, and nobody's share is raised for it."""
    inputs, outputs = ORACLES["lora_a2_aggregate"]["inputs"], ORACLES["lora_a2_aggregate"]["outputs"]
    federation = Linear(n=(10, 30), ranks=(2, 2), cohorts=((0, 1),), weighting="dataset")
    layout, zero, asked = federation.shared, numpy.zeros((2, 2)), []

    def deltas(client):
        asked.append(client)
        if client == 0 and asked.count(0) == 1:  # before the choice: large where the mask is
            return vector(layout, [(zero, numpy.array([inputs["client_masks"][0]] * 2))])
        return vector(layout, [(zero, inputs["client_delta_B"][client])])

    algorithm = page(layout, budget=lambda client: sum(inputs["client_masks"][client]))
    hub = federation.hub(algorithm, Engine(deltas=deltas))
    start = vector(layout, [(numpy.eye(2), inputs["B"]["m0"])])
    [state] = advance(algorithm, hub, 1, start)
    ((_, b),) = arrays(layout, algorithm.model(state).x)
    assert b.flatten().tolist() == pytest.approx([v for row in outputs["B_new"] for v in row], abs=1e-8)
    assert sorted(asked)[:2] == [0, 0]


def reference(w, start, rounds, budgets, probe, ratio):
    """The paper's rounds in plain arrays; B first."""
    shared = [(numpy.array(a), numpy.array(b)) for a, b in start]
    seen = []
    for r, cohort in enumerate(w.cohorts[:rounds]):
        factor, rate = ("B", ratio * w.lr) if r % 2 == 0 else ("A", w.lr)
        total, sums = sum(w.n[i] for i in cohort), [(0 * a, 0 * b) for a, b in shared]
        for i in cohort:
            tried = fit(shared, w.held[i], rate, probe, train=factor)
            norms = numpy.array([
                numpy.linalg.norm(b1 - b0, axis=0) * numpy.linalg.norm(a0, axis=1) if factor == "B"
                else numpy.linalg.norm(b0, axis=0) * numpy.linalg.norm(a1 - a0, axis=1)
                for (a0, b0), (a1, b1) in zip(shared, tried, strict=True)
            ])  # fmt: skip
            best = numpy.argsort(-norms.flatten(), kind="stable")[: budgets[i] * len(shared)]
            masks = numpy.isin(numpy.arange(norms.size), best).reshape(norms.shape).astype(float)
            out = fit(shared, w.held[i], rate, w.steps, train=factor, masks=masks)
            sums = [
                (sa + w.n[i] / total * (a1 - a0), sb + w.n[i] / total * (b1 - b0))
                for (sa, sb), (a0, b0), (a1, b1) in zip(sums, shared, out, strict=True)
            ]
        shared = [(a + sa, b + sb) for (a, b), (sa, sb) in zip(shared, sums, strict=True)]
        seen.append(shared)
    return seen


@pytest.mark.parametrize("ratio", [1.0, 5.0])
@pytest.mark.parametrize("budgets", [(1, 2, 1), (2, 2, 2)])
def test_four_rounds_written_out(budgets, ratio):
    """Three clients, two modules of three slots; who takes part changes; B, A, B, A."""
    w = Linear(
        n=(10, 30, 20), held=TWO, ranks=(3, 3, 3), steps=3, cohorts=((0, 1, 2), (0, 2), (1,), (0, 1, 2)),
        weighting="dataset",
    )  # fmt: skip
    algorithm = page(w.shared, budget=lambda client: budgets[client], selection_steps=2, lr_ratio=ratio)
    states = advance(algorithm, w.hub(algorithm), 4, vector(w.shared, START))
    for state, want in zip(states, reference(w, START, 4, budgets, 2, ratio), strict=True):
        assert torch.allclose(algorithm.model(state).x, vector(w.shared, want), rtol=0, atol=1e-12)


def test_with_every_slot_it_is_rolora():
    w = Linear(n=(10, 30), held=TWO[:2], ranks=(3, 3))
    algorithm, rolora = page(w.shared, rank=3), FedAvg(Turns(w.shared))
    mine = advance(algorithm, w.hub(algorithm), 4, vector(w.shared, START))
    plain = advance(rolora, w.hub(rolora), 4, vector(w.shared, START))
    for a, b in zip(mine, plain, strict=True):
        assert torch.allclose(algorithm.model(a).x, rolora.model(b).x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("first", [0, 1])
def test_slots_nobody_chose_stay_bit_for_bit(first):
    """AdamW with decay would move every number it is shown: 2 of 6 slots move, and nothing of the other factor."""
    optimizer = OptimizerConfig(name="adamw", weight_decay=0.1)
    w = Linear(n=(10,), held=TWO[:1], ranks=(3,), cohorts=((0,),) * 2, optimizer=optimizer, steps=4)
    algorithm, start = page(w.shared), vector(w.shared, START)
    before, after = [start, *(algorithm.model(s).x for s in advance(algorithm, w.hub(algorithm), 2, start))][
        first : first + 2
    ]
    moved = {"A": 0, "B": 0}
    for (a0, b0), (a1, b1) in zip(arrays(w.shared, before), arrays(w.shared, after), strict=True):
        moved["A"] += int((a0 != a1).any(axis=1).sum())
        moved["B"] += int((b0 != b1).any(axis=0).sum())
    assert moved == ({"A": 0, "B": 2} if first == 0 else {"A": 2, "B": 0})


def test_the_choice_is_made_after_a_pass_over_the_rows():
    """10 rows, batches of 4: three steps, then the recipe's two, each from where the round began."""
    w = Linear(n=(10,), held=TWO[:1], ranks=(3,), cohorts=((0,),), batch=4)
    algorithm, engine, start = page(w.shared, selection_steps=None), Engine(), vector(w.shared, START)
    advance(algorithm, w.hub(algorithm, engine), 1, start)
    assert [len(run.lrs) for _, run, _ in engine.served] == [3, 2]
    assert all(torch.equal(run.start, start) for _, run, _ in engine.served)


def test_it_needs_lora_factors():
    with pytest.raises(ValueError, match="LoRA"):
        page(Scalars().layout(0))
