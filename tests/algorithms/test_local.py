"""The baseline without federation: every client is a training of its own."""

import pytest
import torch

from algorithms.scalar import Scalars, number, owns
from fedloom.algorithms.local import Done, LocalOnly, Start
from fedloom.channel.codec import size
from fedloom.contracts import Model

PAGE = LocalOnly()


def advance(hub, rounds):
    state = PAGE.init(torch.zeros(1, dtype=torch.float64))
    for _ in range(rounds):
        state = PAGE.round(state, hub)
        hub.round += 1
    return state


def own(hub, down=9.0):
    """What each client would use when the shared model is `down`."""
    return [float(model.x) for model in owns(hub, Model(number(down), whole=False))]


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_every_client_goes_on_from_where_it_was(rounds):
    """The distance to its own minimum shrinks by 1 - .1 h a step, two steps a round: 1 - .9^(2k) and .8^(2k) - 1."""
    hub = Scalars().hub(PAGE)
    advance(hub, rounds)
    assert own(hub) == pytest.approx([1 - 0.9 ** (2 * rounds), 0.8 ** (2 * rounds) - 1], abs=1e-12)


def test_who_was_not_asked_stays_where_it_was():
    """Cohorts {0, 1}, {0}, {0}: client 1 trained for one round; after none it would use what everybody begins with."""
    hub = Scalars(cohorts=((0, 1), (0,), (0,))).hub(PAGE)
    assert own(hub, down=9.0) == [9.0, 9.0]
    advance(hub, 3)
    assert own(hub) == pytest.approx([1 - 0.9**6, 0.8**2 - 1], abs=1e-12)


def test_nobody_learns_from_anybody():
    alone = Scalars(cohorts=((0,),) * 3).hub(PAGE)
    together = Scalars().hub(PAGE)
    advance(alone, 3)
    advance(together, 3)
    assert own(alone)[0] == own(together)[0]


def test_there_is_no_shared_model_and_the_start_does_not_move():
    hub = Scalars().hub(PAGE)
    state = advance(hub, 2)
    assert not PAGE.model(state).whole
    assert PAGE.model(state).x.item() == 0.0
    assert PAGE.needs.personal


def test_examples_are_added_up():
    """Two steps of all 30 and of all 10 rows a round."""
    assert advance(Scalars().hub(PAGE), 3).examples == 3 * 2 * 40


def test_only_a_number_travels_up():
    hub = Scalars().hub(PAGE)
    advance(hub, 1)
    assert hub.traffic.bytes_up == size(Done(60)) + size(Done(20))
    assert hub.traffic.bytes_down == 2 * size(Start(torch.zeros(1, dtype=torch.float64)))
