"""The baseline with all rows in one place: plain training on the pooled rows."""

import pytest
import torch

from algorithms.scalar import LAYOUT, Scalars, trajectory
from fedloom.algorithms.centralized import Centralized
from fedloom.algorithms.fedavg import FedAvg
from fedloom.contracts import HOME
from fedloom.events import ClientTrained
from fedloom.spaces.factors import Factors

PAGE = Centralized()


def pooled(steps):
    """Gradient (30 (w - 1) + 10 x 2 (w + 1)) / 40 = 1.25 w - .25."""
    w, seen = 0.0, []
    for _ in range(steps):
        w -= 0.1 * (1.25 * w - 0.25)
        seen.append(w)
    return seen


def test_it_is_descent_on_the_pooled_rows():
    """Two steps a round: .025, .046875, ..."""
    seen, _ = trajectory(PAGE, Scalars().hub(PAGE), 3)
    assert seen[0] == pytest.approx(0.046875, abs=1e-12)
    assert seen == pytest.approx(pooled(6)[1::2], abs=1e-12)


@pytest.mark.parametrize("weighting", ["examples", "dataset", "uniform"])
def test_weighting_means_nothing_with_one_worker(weighting):
    assert trajectory(PAGE, Scalars(weighting=weighting).hub(PAGE), 2)[0] == pytest.approx(pooled(4)[1::2], abs=1e-12)


def test_with_one_local_step_fedavg_is_the_same():
    """Full gradients, weights by examples: the mean of one step each is one step on all rows."""
    page = FedAvg(Factors(LAYOUT))
    federated, _ = trajectory(page, Scalars(steps=1).hub(page), 5)
    central, _ = trajectory(PAGE, Scalars(steps=1).hub(PAGE), 5)
    assert federated == pytest.approx(central, abs=1e-12)
    assert trajectory(page, Scalars(steps=2).hub(page), 1)[0] != pytest.approx(pooled(2)[1:], abs=1e-3)


def test_only_the_servers_own_worker_is_asked():
    heard, hub = [], Scalars(cohorts=()).hub(PAGE)
    hub.events = heard.append
    trajectory(PAGE, hub, 1)
    assert [(e.client, e.examples) for e in heard if isinstance(e, ClientTrained)] == [(HOME, 80)]


def test_it_says_that_text_must_move():
    assert PAGE.needs.home
    assert PAGE.needs.pooled_data


def test_the_state_is_the_weights():
    start = torch.ones(3)
    model = PAGE.model(PAGE.init(start))
    assert model.x is start
    assert model.whole
    assert model.carry == ()
