"""Spaces of LoRA factors in whole rounds with real training: FFA-LoRA, RoLoRA, FedSVD, FedSA-LoRA, dual adapters."""

import numpy
import pytest
import torch

from algorithms.linear import TWO, Linear, fit, pairs, vector, weights
from algorithms.scalar import ORACLES, Engine, advance, owns
from fedloom.aggregate.server import ServerSgd
from fedloom.algorithms.dual import Dual
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.fedper import FedPer
from fedloom.algorithms.fedrep import FedRep
from fedloom.engine.config import OptimizerConfig
from fedloom.spaces.factors import Factors
from fedloom.spaces.refactored import Refactored
from fedloom.spaces.turns import Turns

DECAYING = OptimizerConfig(name="adamw", weight_decay=0.1)


def ffa(layout):
    """B alone, for ever."""
    return Turns(layout, first="B", alternate=False)


START = [
    ([[0.5, 0.5], [0.2, -0.3]], [[0.1, -0.2], [0.3, 0.15]]),
    ([[-0.3, 0.6], [0.8, 0.1]], [[-0.2, 0.3], [0.25, 0.15]]),
]
"""Two modules of rank 2."""


def sheet(name):
    """The federation of a LoRA entry, its start, and what should come out."""
    inputs = ORACLES[name]["inputs"]
    w = Linear(lr=inputs["lr"], steps=inputs["local_steps"])
    return w, vector(w.shared, [(inputs["A0"], inputs["B0"])]), ORACLES[name]["outputs"]["rounds"]


def near(tensor, wanted, tolerance=1e-8):
    return torch.allclose(tensor, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=tolerance)


def factors(layout, model):
    return [(a, b) for a, b, _ in pairs(layout, model.x)]


# -- FFA-LoRA


def test_ffa_in_numbers():
    w, start, want = sheet("ffa_lora")
    page = FedAvg(ffa(w.shared))
    for state, expected in zip(advance(page, w.hub(page), 2, start), want, strict=True):
        [(a, b)] = factors(w.shared, page.model(state))
        assert near(b, expected["B"])
        assert a.tolist() == ORACLES["ffa_lora"]["inputs"]["A0"]
        assert near(weights(w.shared, page.model(state))[0], expected["dW"])


@pytest.mark.parametrize("kind", [ffa, Turns])
def test_the_frozen_factor_stays_bit_for_bit(kind):
    """Under AdamW with decay, and under a server with momentum."""
    w = Linear(n=(10, 30, 20), held=TWO, ranks=(2, 2, 2), cohorts=((0, 1, 2),) * 4, optimizer=DECAYING)
    page, before = FedAvg(kind(w.shared), server=ServerSgd(momentum=0.9)), vector(w.shared, START)
    for r, state in enumerate(advance(page, w.hub(page), 4, before)):
        x = page.model(state).x
        same = [
            (torch.equal(a0, a1), torch.equal(b0, b1))
            for (a0, b0, _), (a1, b1, _) in zip(pairs(w.shared, before), pairs(w.shared, x), strict=True)
        ]
        trained_a = kind is Turns and r % 2 == 1
        assert same == [(not trained_a, trained_a)] * 2
        before = x


@pytest.mark.parametrize("kind", [ffa, Turns])
def test_the_product_of_means_is_the_mean_of_products(kind):
    """One factor is the same everywhere, so nothing is lost: W = sum p_i W_i."""
    w = Linear(n=(10, 30, 20), held=TWO, ranks=(2, 2, 2), cohorts=((0, 1, 2),) * 3)
    page, engine = FedAvg(kind(w.shared)), Engine()
    for r, state in enumerate(advance(page, w.hub(page, engine), 3, vector(w.shared, START))):
        made = [made.y for _, _, made in engine.served[3 * r : 3 * r + 3]]
        for m, dense in enumerate(weights(w.shared, page.model(state))):
            mean = sum(n * s * b @ a for n, y in zip(w.n, made, strict=True) for a, b, s in [pairs(w.shared, y)[m]])
            assert torch.allclose(dense, mean / 60, rtol=0, atol=1e-12)


# -- RoLoRA


def test_rolora_in_numbers():
    w, start, want = sheet("rolora")
    page = FedAvg(Turns(w.shared))
    for state, expected in zip(advance(page, w.hub(page), 4, start), want, strict=True):
        [(a, b)] = factors(w.shared, page.model(state))
        assert near(a, expected["A"])
        assert near(b, expected["B"])
        assert near(weights(w.shared, page.model(state))[0], expected["dW"])


def test_rolora_with_server_momentum_keeps_a_velocity_for_each_factor():
    """B's velocity waits while A is trained: v = .5 v + (mean - x), x = x + v, in turn for B and A."""
    w = Linear(n=(10, 30, 20), held=TWO, ranks=(2, 2, 2), cohorts=((0, 1, 2), (0, 2), (1,), (1, 2), (0, 1), (0,)))
    page = FedAvg(Turns(w.shared), server=ServerSgd(momentum=0.5))
    shared, velocity = [(numpy.array(a), numpy.array(b)) for a, b in START], {"A": [0.0] * 2, "B": [0.0] * 2}
    for r, state in enumerate(advance(page, w.hub(page), 6, vector(w.shared, START))):
        factor, cohort = "BA"[r % 2], w.cohorts[r]
        outs = {i: fit(shared, w.held[i], w.lr, w.steps, train=factor) for i in cohort}
        moved = []
        for m, (a, b) in enumerate(shared):
            now, at = (b, 1) if factor == "B" else (a, 0)
            mean = sum(w.n[i] * outs[i][m][at] for i in cohort) / sum(w.n[i] for i in cohort)
            velocity[factor][m] = 0.5 * velocity[factor][m] + mean - now
            moved.append((a, now + velocity["B"][m]) if factor == "B" else (now + velocity["A"][m], b))
        shared = moved
        assert torch.allclose(page.model(state).x, vector(w.shared, shared), rtol=0, atol=1e-12)


# -- FedSVD


def test_fedsvd_in_numbers():
    """The product is that of B's mean and A; its factors are A with orthonormal rows, B with orthogonal columns."""
    w, start, want = sheet("fedsvd")
    page = FedAvg(Refactored(w.shared))
    for state, expected in zip(advance(page, w.hub(page), 2, start), want, strict=True):
        [(a, b)] = factors(w.shared, page.model(state))
        assert near(weights(w.shared, page.model(state))[0], expected["dW"])
        assert near(torch.linalg.svdvals(b @ a), expected["singular_values"])
        assert near(a @ a.T, [[1.0, 0.0], [0.0, 1.0]], 1e-12)
        assert near(b.T @ b, numpy.diag(expected["BtB_diag"]).tolist())


def test_fedsvd_loses_nothing_and_trains_b_alone():
    w = Linear(n=(10, 30, 20), held=TWO, ranks=(2, 2, 2), cohorts=((0, 1, 2), (0, 2), (1, 2)))
    page, engine = FedAvg(Refactored(w.shared)), Engine()
    states = advance(page, w.hub(page, engine), 3, vector(w.shared, START))
    served = iter(engine.served)
    for cohort, state in zip(w.cohorts, states, strict=True):
        runs = [next(served) for _ in cohort]
        assert all(set(run.train) == {"m0.B", "m1.B"} for _, run, _ in runs)
        for m, dense in enumerate(weights(w.shared, page.model(state))):
            parts = [(w.n[i], pairs(w.shared, made.y)[m]) for i, _, made in runs]
            mean = sum(n * s * b @ a for n, (a, b, s) in parts) / sum(n for n, _ in parts)
            assert torch.allclose(dense, mean, rtol=0, atol=1e-12)


def test_fedsvd_leaves_a_product_of_zero_as_it_is():
    """At B = 0 the SVD's right side is arbitrary; A must stay the random start."""
    w = Linear(cohorts=((0, 1),))
    page, start = FedAvg(Refactored(w.shared)), vector(w.shared, [(START[0][0], numpy.zeros((2, 2)))])
    [state] = advance(page, w.hub(page, Engine(deltas=lambda client: 0.0)), 1, start)
    assert torch.equal(page.model(state).x, start)


# -- FedSA-LoRA


def test_fedsa_in_numbers():
    """A is averaged, B stays: client i computes s B_i mean(A)."""
    inputs, outputs = ORACLES["fedsa_lora"]["inputs"], ORACLES["fedsa_lora"]["outputs"]
    w = Linear(ranks=(1, 1), cohorts=((0, 1),))
    start = vector(w.shared, [([[0.3, 0.1]], [[0.0], [0.0]])])
    ends = [vector(w.shared, [(a, b)]) for a, b in zip(inputs["A"], inputs["B"], strict=True)]
    page = FedPer(layout=w.shared, private=("*.B",))
    hub = w.hub(page, Engine(deltas=lambda client: ends[client] - start))
    [state] = advance(page, hub, 1, start)
    assert near(pairs(w.shared, page.model(state).x)[0][0], outputs["A_global"])
    for own, expected in zip(owns(hub, page.model(state)), outputs["client_models"], strict=True):
        assert near(weights(w.shared, own)[0], expected)


@pytest.mark.parametrize("name", ["fedsa", "fedrep"])
def test_private_bs_whoever_takes_part(name):
    """Joint steps, or B first and then A under the new B; the shared A meets each client's own B."""
    w = Linear(n=(10, 30, 20), held=TWO, ranks=(2, 2, 2), steps=3, cohorts=((0, 1, 2), (0, 2), (1,), (0, 1)))
    page = (
        FedPer(layout=w.shared, private=("*.B",))
        if name == "fedsa"
        else FedRep(layout=w.shared, private=("*.B",), head_steps=2, body_steps=3)
    )
    shared = [numpy.array(a) for a, _ in START]
    private = [[numpy.array(b) for _, b in START] for _ in range(3)]
    hub, state = w.hub(page), page.init(vector(w.shared, START))
    for cohort in w.cohorts:
        state = page.round(state, hub)
        hub.round += 1
        sums = [0.0, 0.0]
        for i in cohort:
            out = list(zip(shared, private[i], strict=True))
            if name == "fedsa":
                out = fit(out, w.held[i], w.lr, 3)
            else:
                out = fit(fit(out, w.held[i], w.lr, 2, train="B"), w.held[i], w.lr, 3, train="A")
            private[i] = [b for _, b in out]
            sums = [s + w.n[i] * a for s, (a, _) in zip(sums, out, strict=True)]
        shared = [s / sum(w.n[i] for i in cohort) for s in sums]
        for own, bs in zip(owns(hub, page.model(state), (0, 1, 2)), private, strict=True):
            want = vector(w.shared, list(zip(shared, bs, strict=True)))
            assert torch.allclose(own.x, want, rtol=0, atol=1e-12)


# -- dual adapters


def test_dual_adapters_written_out():
    """v is trained on top of the received x's product, then x on top of the new v's; clients use both.

    Where a client's v begins is the page's choice; it is read from the first training of it.
    """
    w = Linear(n=(10, 30, 20), held=TWO, ranks=(2, 2, 2), steps=3, cohorts=((0, 1, 2), (0, 2), (1,), (0, 1)))
    page, engine = Dual(space=Factors(w.shared)), Engine()
    hub, state, v = w.hub(page, engine), page.init(vector(w.shared, START)), {}
    shared = [(numpy.array(a), numpy.array(b)) for a, b in START]
    for cohort in w.cohorts:
        seen = len(engine.served)
        state = page.round(state, hub)
        hub.round += 1
        sums = [(0.0, 0.0)] * 2
        for k, i in enumerate(cohort):
            if i not in v:
                begin = engine.served[seen + 2 * k][1].start
                v[i] = [(a.numpy(), b.numpy()) for a, b, _ in pairs(w.shared, begin)]
                assert not any(b.any() for _, b in v[i]), "a new private adapter changes nothing yet"
            v[i] = fit(v[i], w.held[i], w.lr, 3, carried=[2.0 * b @ a for a, b in shared])
            out = fit(shared, w.held[i], w.lr, 3, carried=[2.0 * b @ a for a, b in v[i]])
            sums = [(p + w.n[i] * a, q + w.n[i] * b) for (p, q), (a, b) in zip(sums, out, strict=True)]
        total = sum(w.n[i] for i in cohort)
        shared = [(p / total, q / total) for p, q in sums]
        assert torch.allclose(page.model(state).x, vector(w.shared, shared), rtol=0, atol=1e-12)
        for i, own in zip(sorted(v), owns(hub, page.model(state), sorted(v)), strict=True):
            for dense, (a, b), (va, vb) in zip(weights(w.shared, own), shared, v[i], strict=True):
                assert near(dense, (2.0 * b @ a + 2.0 * vb @ va).tolist(), 1e-12)


def test_who_never_trained_with_dual_adapters_uses_the_shared_one():
    w = Linear(n=(10, 30, 20), held=TWO, ranks=(2, 2, 2), cohorts=((0, 1),))
    page = Dual(space=Factors(w.shared))
    hub = w.hub(page)
    [state] = advance(page, hub, 1, vector(w.shared, START))
    [own] = owns(hub, page.model(state), (2,))
    for mine, theirs in zip(weights(w.shared, own), weights(w.shared, page.model(state)), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)
