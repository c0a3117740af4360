"""SCAFFOLD against numbers worked out without this package, and against what its authors promise."""

from functools import cache

import pytest
import torch

from algorithms.scalar import LAYOUT, ORACLES, SGD, Engine, Scalars, advance, number, trajectory, world
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.scaffold import Scaffold
from fedloom.engine.config import OptimizerConfig
from fedloom.spaces.factors import Factors

SHEET = {"I": "option1", "II": "option2", "gradient": "option2"}
"""`gradient` is option II in another form: the same for SGD at a constant rate."""
THREE = {
    "n": (30, 10, 20),
    "h": (1.0, 2.0, 0.5),
    "m": (1.0, -1.0, 3.0),
    "cohorts": ((0, 1, 2), (0, 2), (1,), (1, 2), (0,)),
    "steps": (2, 4, 3),
}
"""Three clients that differ in everything, and who takes part."""


@cache
def page(option, server_lr=1.0):
    """One object for one setting: tasks belong to it."""
    return Scaffold(server_lr=server_lr, option=option)


def control(hub, client):
    """c_i, the one vector a client keeps; 0 before it keeps one."""
    kept = [value for value in hub.memory(client).values() if isinstance(value, torch.Tensor)]
    assert len(kept) <= 1
    return float(kept[0]) if kept else 0.0


def reference(w, option, server_lr, rounds, x=0.0):
    """Algorithm 1 of the paper in plain numbers: [x, c, c_i] after each round."""
    c, own, seen = 0.0, [0.0] * len(w.n), []
    for cohort in w.cohorts[:rounds]:
        dy, dc = [], []
        for i in cohort:
            y, k_all, new = x, w.steps if isinstance(w.steps, int) else w.steps[i], w.h[i] * (x - w.m[i])
            for _ in range(k_all):
                y -= w.lr * (w.h[i] * (y - w.m[i]) - own[i] + c)
            if option != "I":
                new = own[i] - c + (x - y) / (k_all * w.lr)
            dy.append(y - x)
            dc.append(new - own[i])
            own[i] = new
        x += server_lr * sum(dy) / len(dy)
        c += sum(dc) / len(w.n)
        seen.append((x, c, *own))
    return seen


def measured(algorithm, hub, rounds, clients, x=0.0):
    """The same of the page."""
    state, seen = algorithm.init(number(x)), []
    for _ in range(rounds):
        state = algorithm.round(state, hub)
        hub.round += 1
        seen.append((float(algorithm.model(state).x), float(state.c), *(control(hub, i) for i in range(clients))))
    return seen


def flat(rounds):
    return [value for r in rounds for value in r]


@pytest.mark.parametrize("option", SHEET)
@pytest.mark.parametrize("part", ["scaffold_", "scaffold_partial_"])
def test_three_rounds_in_numbers(part, option):
    """x, c and every c_i; in the partial case c moves by the mean over all three, not over the two who replied."""
    oracle = ORACLES[part + SHEET[option]]
    federation, want = world(oracle["inputs"]), oracle["outputs"]["rounds"]
    seen = measured(page(option), federation.hub(page(option)), 3, len(federation.n))
    assert flat(seen) == pytest.approx(flat([r["x"], r["c"], *r["c_i"]] for r in want), abs=1e-8)


@pytest.mark.parametrize("server_lr", [1.0, 0.6])
@pytest.mark.parametrize("option", SHEET)
def test_whoever_takes_part_for_however_long(option, server_lr):
    federation, algorithm = Scalars(**THREE), page(option, server_lr)
    seen = measured(algorithm, federation.hub(algorithm), 5, 3, 0.4)
    assert flat(seen) == pytest.approx(flat(reference(federation, option, server_lr, 5, 0.4)), abs=1e-12)


@pytest.mark.parametrize("option", SHEET)
def test_the_first_round_is_uniform_fedavg(option):
    fedavg = FedAvg(Factors(LAYOUT))
    plain, _ = trajectory(fedavg, Scalars(weighting="uniform").hub(fedavg), 1)
    assert trajectory(page(option), Scalars().hub(page(option)), 1)[0] == pytest.approx(plain, abs=1e-15)


@pytest.mark.parametrize("option", SHEET)
def test_rows_give_no_weight(option):
    """30 : 10 or 1 : 50 rows, weighted or not: the same numbers."""
    algorithm = page(option)
    runs = [
        measured(algorithm, Scalars(n=n, weighting=weighting).hub(algorithm), 4, 2)
        for n, weighting in [((30, 10), "examples"), ((1, 50), "dataset"), ((5, 5), "uniform")]
    ]
    assert flat(runs[1]) == pytest.approx(flat(runs[0]), abs=1e-12)
    assert flat(runs[2]) == pytest.approx(flat(runs[0]), abs=1e-12)


@pytest.mark.parametrize("option", SHEET)
def test_with_everybody_the_servers_control_is_the_mean_of_the_clients(option):
    federation = Scalars(**{**THREE, "cohorts": ((0, 1, 2),) * 5})
    for _, c, *own in measured(page(option), federation.hub(page(option)), 5, 3):
        assert c == pytest.approx(sum(own) / 3, abs=1e-12)


@pytest.mark.parametrize("option", SHEET)
def test_it_ends_at_the_minimiser_where_fedavg_does_not(option):
    """-1/3; FedAvg stops at -.309..."""
    seen, _ = trajectory(page(option), Scalars().hub(page(option)), 250)
    assert seen[-1] == pytest.approx(ORACLES["scaffold_converges"]["outputs"][f"x_inf_{SHEET[option]}"], abs=1e-8)
    assert seen[-1] != pytest.approx(ORACLES["fedavg_fixed_point_uniform"]["outputs"]["w_inf"], abs=1e-2)


def test_with_one_step_of_all_rows_the_options_agree():
    runs = [measured(page(o), Scalars(steps=1).hub(page(o)), 4, 2) for o in ("I", "II")]
    assert flat(runs[0]) == pytest.approx(flat(runs[1]), abs=1e-12)


@pytest.mark.parametrize("option", ["II", "gradient"])
def test_the_second_option_is_the_mean_raw_gradient(option):
    """x = 1, c = .2, c_i = .5: three steps of (y - 1) - .3 with raw gradients 0, .03, .057, whose mean is c_i+ = .029.

    A round before brings everybody there: three plain steps from x0 have the mean raw gradient .90333 (x0 - m), .5 for
    the client and -.1 for the other, and the server's rate takes x to 1.
    """
    inputs, outputs = (ORACLES["scaffold_option2_equals_mean_raw_gradient"][k] for k in ("inputs", "outputs"))
    mean = (1 + 0.9 + 0.81) / 3
    x0 = 1 + 0.5 / mean
    algorithm, engine = page(option, server_lr=(x0 - 1) / 0.06), Engine()
    hub = Scalars(n=(1, 1), h=(1.0, 1.0), m=(1.0, x0 + 0.1 / mean), steps=inputs["local_steps"]).hub(algorithm, engine)
    state = algorithm.round(algorithm.init(number(x0)), hub)
    there = (float(algorithm.model(state).x), float(state.c), control(hub, 0))
    assert there == pytest.approx((inputs["x"], inputs["c"], inputs["c_i"]), abs=1e-12)
    hub.round += 1
    algorithm.round(state, hub)
    assert control(hub, 0) == pytest.approx(outputs["c_i_plus"], abs=1e-8)
    assert control(hub, 0) == pytest.approx(sum(outputs["raw_gradients"]) / 3, abs=1e-8)
    assert [float(made.y) for client, _, made in engine.served if client == 0][1] == pytest.approx(
        outputs["y"], abs=1e-8
    )


def test_the_recommended_form_under_adamw():
    """The correction goes in before the optimiser, c_i is the mean of raw gradients."""
    inputs, want = ORACLES["scaffold_adamw_recommended"]["inputs"], ORACLES["scaffold_adamw_recommended"]["outputs"]
    algorithm = page("gradient")
    federation = world(inputs, optimizer=OptimizerConfig(name="adamw"))
    seen = measured(algorithm, federation.hub(algorithm), 3, 2)
    assert flat(seen) == pytest.approx(flat([r["x"], r["c"], *r["c_i"]] for r in want["rounds"]), abs=1e-8)


@pytest.mark.parametrize("option", SHEET)
def test_who_was_absent_keeps_its_control(option):
    federation = Scalars(**{**THREE, "cohorts": ((0, 1, 2), (0,), (1,))})
    seen = measured(page(option), federation.hub(page(option)), 3, 3)
    assert [seen[k][4] for k in (1, 2)] == [seen[0][4]] * 2
    assert seen[2][2] == seen[1][2]
    assert seen[1][2] != seen[0][2]


@pytest.mark.parametrize("option", ["I", "gradient"])
def test_clipping_does_not_enter_the_control(option):
    """Gradients of 1 and 2 are clipped to .05 before the step; the controls are the raw ones (one step, c = 0)."""
    algorithm = page(option)
    hub = Scalars(steps=1, max_grad_norm=0.05, optimizer=SGD).hub(algorithm)
    seen = measured(algorithm, hub, 1, 2)
    assert seen[0] == pytest.approx((0.0, 0.5, -1.0, 2.0), abs=1e-12)


@pytest.mark.parametrize("option", SHEET)
def test_single_precision_stays_single_and_close(option):
    algorithm = page(option)
    states = advance(algorithm, Scalars().hub(algorithm), 3, torch.zeros(1))
    assert all(algorithm.model(s).x.dtype == torch.float32 for s in states)
    exact, _ = trajectory(algorithm, Scalars().hub(algorithm), 3)
    assert [float(algorithm.model(s).x) for s in states] == pytest.approx(exact, abs=1e-6)
