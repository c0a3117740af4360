"""Attackers in a federation: their replies are what was changed, everybody else's are what they were."""

import pytest
import torch

from fedloom.aggregate.rules import Gather
from fedloom.algorithms.fedavg import FedAvg, Start
from fedloom.algorithms.scaffold import Scaffold
from fedloom.runtime.attack import Gaussian, Scaled, SignFlip
from fedloom.runtime.simulation import InProcess
from fedloom.runtime.site import Site, Tasks
from fedloom.runtime.store import InMemory, Store
from fedloom.spaces.factors import Factors
from seam.quadratic import PLAIN, QuadraticEngine, World

WORLD = World(clients=5, cohort=5)
PAGE = FedAvg(Factors(PLAIN))
START = torch.linspace(-1, 1, 9, dtype=torch.float64)


def federation(page, attackers):
    """The toy world, where these clients do harm."""
    hub = WORLD.hub(page)
    site = Site(
        tasks=Tasks(page),
        engine=QuadraticEngine(WORLD.slots, WORLD.layout),
        store=Store(InMemory()),
        profile=WORLD.profile,
        data=WORLD.data,
        plan=WORLD.plan,
        root=WORLD.seed,
        attack=attackers.get,
    )
    hub.link = hub._home = InProcess(site)
    return hub


def replies(attackers):
    made = federation(PAGE, attackers)
    got = made.collect(PAGE.local, lambda _: Start(START, (), 0), range(5), Gather())
    return got.value.y


@pytest.mark.parametrize(
    "attack, wanted",
    [
        (SignFlip(), lambda y: START - (y - START)),
        (SignFlip(0.5), lambda y: START - 0.5 * (y - START)),
        (Scaled(10.0), lambda y: START + 10 * (y - START)),
    ],
)
def test_an_attacker_replies_with_what_it_made_of_its_training(attack, wanted):
    honest, found = replies({}), replies({1: attack, 4: attack})
    for i in range(5):
        (value, weight), (before, usual) = found[i], honest[i]
        assert weight == usual  # as heavy as an honest client
        if i in (1, 4):
            assert torch.allclose(value, wanted(before), rtol=0, atol=1e-12)
            assert float((value - before).norm()) > 1e-3
        else:
            assert torch.equal(value, before)


def test_noise_is_keyed_by_client_and_round_and_has_nothing_of_the_training():
    one, again = replies({1: Gaussian(0.3), 2: Gaussian(0.3)}), replies({1: Gaussian(0.3), 2: Gaussian(0.3)})
    assert all(torch.equal(left, right) for (left, _), (right, _) in zip(one, again, strict=True))
    first, second = one[1][0] - START, one[2][0] - START
    assert not torch.allclose(first, second)
    made = federation(PAGE, {1: Gaussian(0.3)})
    made.round = 1
    later = made.collect(PAGE.local, lambda _: Start(START, (), 1), [1], Gather()).value.y[0][0] - START
    assert not torch.allclose(first, later)


def test_the_mean_of_attackers_only_goes_the_other_way():
    honest, hostile = (
        PAGE.round(PAGE.init(START), federation(PAGE, attackers)).x
        for attackers in ({}, dict.fromkeys(range(5), SignFlip()))
    )
    assert torch.allclose(hostile - START, START - honest, rtol=0, atol=1e-12)


def test_what_a_client_derives_from_its_training_follows_the_false_one():
    """Scaffold's control variate is made of the way gone: the attacker's memory holds the turned one."""
    page = Scaffold()
    memories = []
    for attackers in ({}, {1: SignFlip()}):
        made = federation(page, attackers)
        page.round(page.init(START), made)
        store = made.link.site.store
        memories.append({i: store.open(i).memory.entries for i in range(5)})
    honest, hostile = memories
    assert honest[1].keys() == hostile[1].keys()
    (name,) = honest[1]
    assert not torch.allclose(honest[1][name], hostile[1][name])
    for i in (0, 2, 3, 4):
        assert torch.equal(honest[i][name], hostile[i][name])


def test_nobody_attacks_unless_told():
    usual = WORLD.hub(PAGE)
    got = usual.collect(PAGE.local, lambda _: Start(START, (), 0), range(5), Gather())
    assert all(torch.equal(left, right) for (left, _), (right, _) in zip(got.value.y, replies({}), strict=True))
