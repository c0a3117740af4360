"""FedAvg and FedAvgM against numbers worked out without this package."""

import pytest

from algorithms.scalar import LAYOUT, ORACLES, Engine, Scalars, number, owns, trajectory, world
from fedloom.aggregate.rules import Gather, Mean
from fedloom.aggregate.server import ServerSgd
from fedloom.algorithms.fedavg import FedAvg
from fedloom.contracts import Model, NobodyReplied
from fedloom.spaces.factors import Factors

PAGE = FedAvg(Factors(LAYOUT))
START = PAGE.local.__annotations__["down"]


def outputs(name):
    return ORACLES[name]["outputs"]


@pytest.mark.parametrize(
    ("name", "weighting"), [("fedavg", "examples"), ("fedavg", "dataset"), ("fedavg_uniform", "uniform")]
)
def test_three_rounds_in_numbers(name, weighting):
    """Weights 30 : 10 by examples seen (60 : 20) as by rows held; or 1 : 1."""
    seen, _ = trajectory(PAGE, world(ORACLES[name]["inputs"], weighting=weighting).hub(PAGE), 3)
    assert seen == pytest.approx(outputs(name)["w"], abs=1e-8)


def test_the_first_round_by_hand():
    """0 -> .1 -> .19 and 0 -> -.2 -> -.36; (30 x .19 - 10 x .36) / 40 = .0525."""
    hub = Scalars().hub(PAGE)
    got = hub.collect(PAGE.local, lambda _: START(number(0.0), (), 0), [0, 1], Gather())
    assert [(float(y), w) for y, w in got.value.y] == [
        (pytest.approx(y, abs=1e-12), w) for y, w in zip(outputs("fedavg")["y_round1"], [60.0, 20.0], strict=True)
    ]
    assert trajectory(PAGE, Scalars().hub(PAGE), 1)[0] == [pytest.approx(0.0525, abs=1e-12)]


def test_who_is_not_asked_has_no_share():
    """Cohorts {0, 1}, {0}, {1}: weights are renormalised over those who reply."""
    federation = world(ORACLES["fedavg_partial"]["inputs"])
    assert trajectory(PAGE, federation.hub(PAGE), 3)[0] == pytest.approx(outputs("fedavg_partial")["w"], abs=1e-8)


def test_it_stops_beside_the_minimiser():
    """With two local steps at -.309..., not at -1/3: known of FedAvg, and a sign that steps are counted right."""
    wanted = outputs("fedavg_fixed_point_uniform")
    seen, _ = trajectory(PAGE, Scalars(weighting="uniform").hub(PAGE), 200)
    assert seen[-1] == pytest.approx(wanted["w_inf"], abs=1e-8)
    one_step, _ = trajectory(PAGE, Scalars(weighting="uniform", steps=1).hub(PAGE), 300)
    assert one_step[-1] == pytest.approx(wanted["true_minimiser_uniform"], abs=1e-8)


@pytest.mark.parametrize(("name", "weighting"), [("fedavgm", "dataset"), ("fedavgm_uniform", "uniform")])
def test_momentum_in_numbers(name, weighting):
    """Clients that moved by given differences; v = .9 v + mean, x = x + v."""
    inputs = ORACLES[name]["inputs"]
    page = FedAvg(Factors(LAYOUT), ServerSgd(inputs["server_lr"], inputs["beta"]))
    engine = Engine(deltas=lambda client: inputs["client_deltas"][hub.round][client])
    hub = Scalars(weighting=weighting).hub(page, engine)
    seen, state = trajectory(page, hub, 3, inputs["x0"])
    assert seen == pytest.approx(outputs(name)["x"], abs=1e-8)
    velocity = float(state.memory[0].m)
    assert velocity == pytest.approx(seen[2] - seen[1], abs=1e-8)  # server rate 1: it is the last move


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_one_client_alone_is_plain_gradient_descent(weighting):
    """w - 1 shrinks by .9 a step: after k rounds of 2 steps 1 - .9^(2k)."""
    alone = Scalars(cohorts=((0,),) * 4, weighting=weighting)
    assert trajectory(PAGE, alone.hub(PAGE), 4)[0] == pytest.approx(
        [1 - 0.9 ** (2 * k) for k in range(1, 5)], abs=1e-12
    )


def test_a_server_rate_scales_the_move():
    """Half of .0525 in the first round."""
    page = FedAvg(Factors(LAYOUT), ServerSgd(lr=0.5))
    assert trajectory(page, Scalars().hub(page), 1)[0] == [pytest.approx(0.02625, abs=1e-12)]


def test_the_spaces_rule_is_the_one_that_is_used():
    page = FedAvg(Factors(LAYOUT, Mean(uniform=True)))
    assert trajectory(page, Scalars().hub(page), 1)[0] == [pytest.approx(-0.085, abs=1e-12)]


def test_an_empty_cohort_is_not_taken_for_a_round():
    with pytest.raises(NobodyReplied, match="no reply counted"):
        trajectory(PAGE, Scalars(cohorts=((),)).hub(PAGE), 1)


def test_everybody_uses_the_shared_model():
    assert [float(own.x) for own in owns(Scalars().hub(PAGE), Model(number(0.5)))] == [0.5, 0.5]


def test_it_needs_nothing_special():
    assert PAGE.needs == type(PAGE.needs)()
