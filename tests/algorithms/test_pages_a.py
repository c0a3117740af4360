"""What numbers do not show of these pages: refusals in words, what is kept, and what a client without steps does."""

from dataclasses import dataclass, replace

import pytest
import torch

from algorithms.scalar import LAYOUT, Engine, Scalars, advance, number, trajectory
from fedloom.aggregate.server import ServerSgd
from fedloom.algorithms import fedswa
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.fedbuff import FedBuff
from fedloom.algorithms.fednova import FedNova, norm
from fedloom.algorithms.fedprox import FedProx
from fedloom.algorithms.fedswa import FedSwa
from fedloom.algorithms.lookahead import Lookahead
from fedloom.algorithms.scaffold import Scaffold
from fedloom.channel.codec import decode, encode
from fedloom.contracts import Model, NobodyReplied
from fedloom.events import ReplyMissing
from fedloom.spaces.factors import Factors

SPACE = Factors(LAYOUT)
PAGES = {
    "fedprox": FedProx(SPACE, mu=0.5),
    "scaffold": Scaffold(),
    "fednova": FedNova(server_momentum=0.5),
    "fedswa": FedSwa(SPACE, ServerSgd(0.5, 0.5), start=1, every=2, cycle=0.01, lr=0.1),
    "lookahead": Lookahead(),
    "fedbuff": FedBuff(buffer=2, concurrency=2),
}


@dataclass
class Idle(Engine):
    """One client's training takes no step, or steps of no length."""

    who: int = 1
    steps: int = 0

    def trained(self, client, run):
        made = super().trained(client, run)
        if client != self.who:
            return made
        return replace(made, y=run.start, steps=self.steps, lr_sum=0.0, examples=0, loss=None)


def missing(page, engine):
    """Who did not count in the first round, and why, beside the hub and the state after it."""
    hub, heard = Scalars().hub(page, engine), []
    hub.events = heard.append
    [state] = advance(page, hub, 1, number(0.0))
    return {e.client: e.detail for e in heard if isinstance(e, ReplyMissing)}, hub, state


@pytest.mark.parametrize("name", PAGES)
def test_states_survive_a_checkpoint(name):
    """What a state becomes from its bytes goes on as it did."""
    page, hub = PAGES[name], Scalars().hub(PAGES[name])
    state = page.init(number(0.0))
    for _ in range(4):
        onward = page.round(decode(type(state), encode(state)), hub)
        hub.round += 1
        state = onward
    want, _ = trajectory(page, Scalars().hub(page), 4)
    assert float(page.model(state).x) == want[-1]


@pytest.mark.parametrize("name", sorted(set(PAGES) - {"fedswa", "fedbuff"}))
def test_an_empty_round_has_no_value(name):
    """The round loop keeps the state then; fedswa may sample in it all the same, fedbuff looks who is in flight."""
    page = PAGES[name]
    with pytest.raises(NobodyReplied):
        page.round(page.init(number(0.0)), Scalars(cohorts=((),)).hub(page))


# -- FedProx


def test_without_pull_fedprox_is_fedavg_to_the_bit():
    page, plain = FedProx(SPACE, mu=0.0), FedAvg(SPACE)
    assert trajectory(page, Scalars().hub(page), 3)[0] == trajectory(plain, Scalars().hub(plain), 3)[0]


def test_fedprox_does_not_push():
    with pytest.raises(ValueError, match="away from the shared weights"):
        FedProx(SPACE, mu=-0.1)


# -- SCAFFOLD


@pytest.mark.parametrize("option", ["gradient", "I", "II"])
def test_who_took_no_step_keeps_its_control_variate(option):
    page = Scaffold(option=option)
    why, hub, state = missing(page, Idle())
    assert list(why) == [1]
    assert "step" in why[1]
    assert hub.memory(1) == {}
    assert float(state.x) == pytest.approx(0.19, abs=1e-12)  # the other's alone


def test_a_rate_of_zero_says_nothing_about_gradients():
    why, hub, _ = missing(Scaffold(option="II"), Idle(steps=2))
    assert "sum to 0" in why[1]
    assert hub.memory(1) == {}


def test_only_the_second_option_needs_plain_sgd():
    assert [Scaffold(option=o).needs.sgd_only for o in ("gradient", "I", "II")] == [False, False, True]


# -- FedNova


def test_fednova_cannot_count_pull_and_momentum_together():
    with pytest.raises(ValueError, match=r"mu is 0\.1 and momentum 0\.9"):
        FedNova(mu=0.1, momentum=0.9)


def test_fednova_leaves_out_who_took_no_step():
    why, _, state = missing(FedNova(), Idle())
    assert "no step" in why[1]
    assert float(state.x) == pytest.approx(0.19, abs=1e-12)


@pytest.mark.parametrize(("momentum", "shrink"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.05), (0.0, 1.5)])
def test_norms_are_the_way_of_a_constant_gradient(momentum, shrink):
    """Torch's SGD at rate 1 on the gradient -1 (and the pull): how far it gets is |a|."""
    y = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([y], lr=1.0, momentum=momentum)
    for steps in range(1, 8):
        y.grad = -1.0 + shrink * y.detach()
        optimizer.step()
        assert norm(steps, momentum, shrink) == pytest.approx(float(y.detach()), abs=1e-12)


# -- FedSWA


def test_fedswa_cycles_from_its_start_on():
    """Before `start` and without a cycle the recipe's rate; then, with c = 4, a line that ends at `cycle`."""
    page, engine = FedSwa(SPACE, start=3, every=4, cycle=0.02, lr=0.1), Engine()
    trajectory(page, Scalars(lr=0.3, cohorts=((0,),) * 8).hub(page, engine), 8)
    rates = [request.lrs[0] for _, request, *_ in engine.served]
    assert rates == pytest.approx([0.3, 0.3, 0.3, 0.02, 0.08, 0.06, 0.04, 0.02], abs=1e-12)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"every": 0}, "every is 0"),
        ({"every": 2, "cycle": 0.01}, "give lr"),
        ({"every": 1, "cycle": 0.01, "lr": 0.1}, "no room to fall"),
    ],
)
def test_fedswa_refuses(settings, word):
    with pytest.raises(ValueError, match=word):
        FedSwa(SPACE, start=0, **settings)


def test_fedswa_refuses_spaces_that_carry():
    """Half of what was learned would be missing from the mean."""

    class Carrying(Factors):
        def close(self, shared, carry, term, round):
            return term, (*carry, torch.ones(1, 1), torch.ones(1, 1))

    page = FedSwa(Carrying(LAYOUT), start=5, every=1)
    with pytest.raises(ValueError, match="into the base"):
        page.round(page.init(number(0.0)), Scalars().hub(page))


def test_fedswa_keeps_nothing_before_its_start():
    page = FedSwa(SPACE, start=2, every=1)
    states = advance(page, Scalars().hub(page), 3, number(0.0))
    assert [s.average.numel() for s in states] == [0, 0, 1]


def test_a_mean_of_single_precision_is_taken_in_double():
    """Ten thousand times the same number, one third: it stays that number."""
    third = torch.full((3,), 1 / 3)
    mean = third
    for count in range(1, 10_000):
        mean = fedswa.joined(mean, count, third)
    assert torch.equal(mean, third)


# -- FedBuff


def buffered(page, **world):
    return page, Scalars(weighting="dataset", **world).hub(page)


def test_weighted_updates_are_fedavgs():
    """With everybody fresh: 30 and 10 rows count as 3 to 1."""
    plain = FedAvg(SPACE)
    want, _ = trajectory(*buffered(plain), 3)
    assert trajectory(*buffered(FedBuff(2, 2, weighted=True)), 3)[0] == pytest.approx(want, abs=1e-12)
    assert trajectory(*buffered(FedBuff(2, 2)), 3)[0] != pytest.approx(want, abs=1e-3)


def test_a_buffer_that_stays_short_is_divided_by_what_is_in_it():
    want, _ = trajectory(*buffered(FedBuff(2, 2)), 3)
    assert trajectory(*buffered(FedBuff(5, 5)), 3)[0] == want


def test_who_fails_takes_no_place_in_the_buffer():
    page = FedBuff(2, 2)
    [state] = advance(page, Scalars(n=(30, 0)).hub(page), 1, number(0.0))
    assert float(state.x) == pytest.approx(0.19, abs=1e-12)


def test_where_all_came_too_late_nothing_changes():
    """The slow one of two is alone in the second buffer, one version behind."""
    page = FedBuff(buffer=1, concurrency=2, max_staleness=0)
    hub = Scalars(speeds=(1.0, 0.5), cohorts=((0, 1), ())).hub(page)
    first, second = advance(page, hub, 2, number(0.0))
    assert second is first
    assert first.t == 1
    assert not hub.busy()


def test_it_notes_how_old_updates_are():
    page, notes = FedBuff(buffer=1, concurrency=2, max_staleness=0), []
    hub = Scalars(speeds=(1.0, 0.5), cohorts=((0, 1), ())).hub(page)
    hub.note = lambda **numbers: notes.append(numbers)
    advance(page, hub, 2, number(0.0))
    assert notes == [{"staleness": 0.0, "too_old": 0}, {"staleness": 1.0, "too_old": 1}]


@pytest.mark.parametrize("name", ["scaffold", "fednova", "lookahead", "fedbuff"])
def test_everybody_uses_the_shared_model(name):
    down = Model(number(0.5))
    with pytest.raises(StopIteration) as done:
        PAGES[name].personal(down, None).send(None)
    assert done.value.value is down
