"""FedProx, FedNova, FedSWA and the extrapolating server against numbers worked out without this package."""

from dataclasses import replace

import pytest
import torch

from algorithms.scalar import LAYOUT, ORACLES, Engine, Scalars, advance, number, trajectory, world
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.fednova import FedNova
from fedloom.algorithms.fedprox import FedProx
from fedloom.algorithms.fedswa import FedSwa
from fedloom.algorithms.lookahead import Lookahead
from fedloom.engine.config import OptimizerConfig
from fedloom.errors import UserError
from fedloom.events import ClientTrained
from fedloom.spaces.factors import Factors

SPACE = Factors(LAYOUT)
FEDAVG = FedAvg(SPACE)
THREE = Scalars(
    n=(30, 10, 20), h=(1.0, 2.0, 0.5), m=(1.0, -1.0, 3.0), cohorts=((0, 1, 2), (0, 2), (1,), (1, 2)), steps=(2, 4, 3)
)
"""Three clients that differ in everything, and who takes part."""


def solo(w, h, m, lr, steps, pull=lambda w: 0.0):
    """A client's descent, and the raw gradients on the way."""
    seen = []
    for k in range(steps):
        seen.append(h * (w - m))
        w -= (lr(k) if callable(lr) else lr) * (seen[-1] + pull(w))
    return w, seen


def base(page, w):
    return trajectory(page, w.hub(page), len(w.cohorts) if len(w.cohorts) < 9 else 4)[0]


# -- FedProx


def test_fedprox_in_numbers():
    inputs, outputs = ORACLES["fedprox"]["inputs"], ORACLES["fedprox"]["outputs"]
    page = FedProx(space=SPACE, mu=inputs["mu"])
    assert trajectory(page, world(inputs).hub(page), 3)[0] == pytest.approx(outputs["w"], abs=1e-8)


def test_fedprox_pulls_towards_the_rounds_start_whoever_takes_part():
    page, w, x = FedProx(space=SPACE, mu=0.7), THREE, 0.3
    seen, want = trajectory(page, THREE.hub(page), 4, x)[0], []
    for cohort in w.cohorts:
        ys = [solo(x, w.h[i], w.m[i], w.lr, w.steps[i], lambda v, x=x: 0.7 * (v - x))[0] for i in cohort]
        weights = [w.n[i] * w.steps[i] for i in cohort]  # examples seen
        x = sum(a * y for a, y in zip(weights, ys, strict=True)) / sum(weights)
        want.append(x)
    assert seen == pytest.approx(want, abs=1e-12)


def test_fedprox_without_pull_is_fedavg():
    assert base(FedProx(space=SPACE, mu=0.0), THREE) == pytest.approx(base(FEDAVG, THREE), abs=1e-15)


@pytest.mark.parametrize("mu", [0.001, 0.5, 100.0])
def test_fedprox_with_one_step_is_fedavg(mu):
    """The pull is zero where a round starts."""
    one = Scalars(steps=1)
    assert base(FedProx(space=SPACE, mu=mu), one) == pytest.approx(base(FEDAVG, one), abs=1e-15)


def test_fedprox_reports_the_loss_of_the_data_alone():
    """The pull is no part of what is logged: (1 (0 - 1)^2 / 2 + 1 (.1 - 1)^2 / 2) / 2 in the first round."""
    page, heard = FedProx(space=SPACE, mu=50.0), []
    hub = Scalars(cohorts=((0,),)).hub(page)
    hub.events = heard.append
    trajectory(page, hub, 1)
    assert [e.loss for e in heard if isinstance(e, ClientTrained)] == [pytest.approx((0.5 + 0.405) / 2, abs=1e-12)]


# -- FedNova


def nova(inputs, **changes):
    optimizer = OptimizerConfig(name="sgd", args={"momentum": inputs["rho"]} if "rho" in inputs else {})
    page = FedNova(mu=inputs.get("mu", 0.0), momentum=inputs.get("rho", 0.0), server_momentum=0.0)
    return page, world(inputs, steps=tuple(inputs["tau"]), optimizer=optimizer, weighting="dataset", **changes)


@pytest.mark.parametrize("name", ["fednova_sgd", "fednova_momentum", "fednova_prox"])
def test_fednova_in_numbers(name):
    page, federation = nova(ORACLES[name]["inputs"])
    want = [r["x"] for r in ORACLES[name]["outputs"]["rounds"]]
    assert trajectory(page, federation.hub(page), 3)[0] == pytest.approx(want, abs=1e-8)


@pytest.mark.parametrize("kind", ["momentum", "prox"])
@pytest.mark.parametrize("tau", [1, 2, 5])
def test_fednova_norms_from_the_step_they_make(kind, tau):
    """Beside a client of one step (norm 1, p = .5 each): x = -t (d_0 + d_1 / |a|) / 2 tells |a| of the other."""
    at = ORACLES["fednova_norms"]["inputs"]
    rho, mu = (at["rho"], 0.0) if kind == "momentum" else (0.0, at["mu"])
    optimizer = OptimizerConfig(name="sgd", args={"momentum": rho} if rho else {})
    page = FedNova(mu=mu, momentum=rho, server_momentum=0.0)
    federation = Scalars(n=(7, 7), lr=at["lr"], steps=(1, tau), optimizer=optimizer, weighting="dataset")
    x = trajectory(page, federation.hub(page, Engine(deltas=lambda client: float(client))), 1)[0][0]
    norm = ORACLES["fednova_norms"]["outputs"][kind][at["tau"].index(tau)]
    effective = (1 + norm) / 2 if kind == "momentum" else (1 + tau) / 2
    assert x == pytest.approx(effective * 0.5 / norm, abs=1e-8)


@pytest.mark.parametrize("weighting", ["examples", "dataset"])
@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_fednova_with_equal_steps_is_fedavg(weighting, rho):
    optimizer = OptimizerConfig(name="sgd", args={"momentum": rho} if rho else {})
    same = Scalars(steps=3, weighting=weighting, optimizer=optimizer)
    page = FedNova(mu=0.0, momentum=rho, server_momentum=0.0)
    assert base(page, same) == pytest.approx(base(FEDAVG, same), abs=1e-12)


def test_fednova_weights_by_rows_held_whatever_the_recipe_says():
    """Examples seen would give the client of five steps more, which is what the normalisation takes away."""
    page = FedNova(mu=0.0, momentum=0.0, server_momentum=0.0)
    seen = [base(page, Scalars(steps=(2, 5), weighting=w)) for w in ("examples", "dataset", "uniform")]
    assert seen[0] == seen[1] == seen[2]


def test_fednova_with_a_pull_and_one_step_each_is_fedavg():
    one = Scalars(steps=1)
    page = FedNova(mu=0.5, momentum=0.0, server_momentum=0.0)
    assert base(page, one) == pytest.approx(base(FEDAVG, one), abs=1e-12)


@pytest.mark.parametrize("gmf", [0.0, 0.9])
def test_fednova_whoever_takes_part(gmf):
    """x moves by V = gmf V - tau_eff sum p (x - y) / tau, p over those who replied."""
    page = FedNova(mu=0.0, momentum=0.0, server_momentum=gmf)
    w = replace(THREE, weighting="dataset")
    x, v, want = 0.0, 0.0, []
    for cohort in w.cohorts:
        total = sum(w.n[i] for i in cohort)
        per_step = sum(w.n[i] / total * (solo(x, w.h[i], w.m[i], w.lr, w.steps[i])[0] - x) / w.steps[i] for i in cohort)
        v = gmf * v + sum(w.n[i] / total * w.steps[i] for i in cohort) * per_step
        x += v
        want.append(x)
    assert trajectory(page, w.hub(page), 4)[0] == pytest.approx(want, abs=1e-12)


def test_fednova_refuses_a_pull_together_with_momentum():
    with pytest.raises((ValueError, UserError)):
        FedNova(mu=0.5, momentum=0.9, server_momentum=0.0)


# -- FedSWA: a running mean beside the training


def swa(**settings):
    return FedSwa(space=SPACE, **settings)


def test_fedswa_in_numbers():
    """Averaged after rounds 2 and 4 (from 0); before that the model is the one in training."""
    inputs, outputs = ORACLES["fedswa_server_running_mean"]["inputs"], ORACLES["fedswa_server_running_mean"]["outputs"]
    page = swa(start=inputs["start_round"], every=inputs["freq"])
    want = [w if s is None else s for w, s in zip(outputs["w"], outputs["swa"], strict=True)]
    assert trajectory(page, world(inputs).hub(page), inputs["rounds"])[0] == pytest.approx(want, abs=1e-8)


def test_fedswa_never_feeds_back():
    """Clients start each round where FedAvg's do."""
    page, mean, plain = swa(start=0, every=1), Engine(), Engine()
    seen, _ = trajectory(page, Scalars().hub(page, mean), 5)
    weights, _ = trajectory(FEDAVG, Scalars().hub(FEDAVG, plain), 5)
    assert [run.start.item() for _, run, _ in mean.served] == [run.start.item() for _, run, _ in plain.served]
    assert seen == pytest.approx([sum(weights[: k + 1]) / (k + 1) for k in range(5)], abs=1e-12)


def test_fedswa_lets_the_clients_rate_fall_within_a_cycle():
    """From round 1 on, c = 3 from .1 to .01: t = (r mod 3 + 1) / 3, lr = (1 - t) .1 + t .01."""
    page, w, x, seen = swa(start=1, every=3, cycle=0.01, lr=0.1), Scalars(lr=0.12), 0.0, []
    for r in range(6):
        t = (r % 3 + 1) / 3
        rate = (1 - t) * 0.1 + t * 0.01 if r >= 1 else 0.12
        ys = [solo(x, w.h[i], w.m[i], rate, 2)[0] for i in (0, 1)]
        x = (30 * ys[0] + 10 * ys[1]) / 40
        seen.append(x)
    want = [seen[0], *[seen[1]] * 3, *[(seen[1] + seen[4]) / 2] * 2]
    assert trajectory(page, w.hub(page), 6)[0] == pytest.approx(want, abs=1e-12)


# -- FedSWA of 2025: falling rates, and a server that steps beyond the mean


def test_lookahead_in_numbers():
    inputs, outputs = ORACLES["fedswa_icml25"]["inputs"], ORACLES["fedswa_icml25"]["outputs"]
    page, engine = Lookahead(alpha=inputs["alpha"], rho=inputs["rho"]), Engine()
    assert trajectory(page, world(inputs).hub(page, engine), 3)[0] == pytest.approx(outputs["x"], abs=1e-8)
    assert all(list(run.lrs) == pytest.approx(outputs["local_lr"], abs=1e-12) for _, run, _ in engine.served)


def test_lookahead_whoever_takes_part():
    """Uniform over those who replied, whatever they hold."""
    page, w, x, want = Lookahead(alpha=1.4, rho=0.2), THREE, 0.5, []
    for cohort in w.cohorts:
        ys = []
        for i in cohort:
            k_all = w.steps[i]
            ys.append(solo(x, w.h[i], w.m[i], lambda k, n=k_all: w.lr * (1 - k / n) + k / n * 0.2 * w.lr, k_all)[0])
        x += 1.4 * (sum(ys) / len(ys) - x)
        want.append(x)
    assert trajectory(page, w.hub(page), 4, 0.5)[0] == pytest.approx(want, abs=1e-12)


def test_lookahead_at_rest_is_uniform_fedavg():
    uniform = replace(THREE, weighting="uniform")
    assert base(Lookahead(alpha=1.0, rho=1.0), THREE) == pytest.approx(base(FEDAVG, uniform), abs=1e-12)


# -- all of them

PAGES = {
    "fedprox": FedProx(space=SPACE, mu=0.5),
    "fednova": FedNova(mu=0.0, momentum=0.0, server_momentum=0.5),
    "fedswa": FedSwa(space=SPACE, start=1, every=1),
    "lookahead": Lookahead(alpha=1.5, rho=0.1),
}


@pytest.mark.parametrize("name", PAGES)
def test_in_single_precision_it_stays_single_and_close(name):
    """Within 1e-6 of double precision, without a change of format."""
    page = PAGES[name]
    exact, _ = trajectory(page, Scalars().hub(page), 3)
    states = advance(page, Scalars().hub(page), 3, torch.zeros(1))
    assert [page.model(s).x.dtype for s in states] == [torch.float32] * 3
    assert [float(page.model(s).x) for s in states] == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("name", PAGES)
def test_one_client_alone_goes_its_own_way(name):
    """With one client every mean is its own result; these pages then differ only by what they say they do."""
    page, alone = PAGES[name], Scalars(n=(30,), h=(1.0,), m=(1.0,), cohorts=((0,),) * 3, steps=1)
    step = {"fednova": 0.1, "fedprox": 0.1, "fedswa": 0.1, "lookahead": 0.15}[name]
    assert trajectory(page, alone.hub(page), 1)[0] == pytest.approx([step], abs=1e-12)


@pytest.mark.parametrize("name", PAGES)
def test_the_vector_it_was_given_is_left_alone(name):
    """And so is every state, once it is there: it may be in a checkpoint."""
    page, start = PAGES[name], number(0.5)
    first = advance(page, Scalars().hub(page), 3, start)[0]
    assert start.item() == 0.5
    assert page.model(first).x.item() == trajectory(page, Scalars().hub(page), 1, 0.5)[0][0]
