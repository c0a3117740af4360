"""Pages without gradients: rates of clients, what is sent, what is refused, and that everybody has the same model."""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from algorithms.bowls import BOWL, Bowls, Walker, two
from algorithms.scalar import advance
from contract.links import Passing
from fedloom import noise
from fedloom.algorithms import seeded
from fedloom.algorithms.decomfl import DeComFl
from fedloom.algorithms.fedkseed import FedKSeed, Moves, Pooled, Result
from fedloom.algorithms.fedmezo import FedMezo, Spread, spread
from fedloom.algorithms.ferret import Ferret
from fedloom.channel.codec import size
from fedloom.drift import Footing, moved, pool
from fedloom.events import ReplyMissing
from fedloom.params import Layout, Leaf
from fedloom.spaces.factors import Factors
from seam.quadratic import PLAIN, World

NEAR = World(far=0.1, lr=0.02)
KIB = 1024


class Listening(Passing):
    """Keeps what goes down and up."""

    def __init__(self, inner):
        super().__init__(inner)
        self.down, self.up = [], []

    def ask(self, dispatches):
        self.down += [(d.client, d.down) for d in dispatches]
        for reply in self.inner.ask(dispatches):
            self.up.append((reply.dispatch.client, reply.up))
            yield reply


def rounds(page, world, count, **hub):
    """The state after each round, and the hub."""
    made = world.hub(page, **hub)
    state, seen = page.init(world.start()), []
    for _ in range(count):
        state = page.round(state, made)
        made.round += 1
        made.commit(made.round)
        seen.append(state)
    return seen, made


# -- rates


@dataclass
class Losses(Walker):
    """Clients whose losses are written down, round by round."""

    told: tuple[tuple[float, ...], ...] = ()

    def walked(self, client, run):
        number = sum(one == client for one, _ in self.walks) - 1
        return replace(super().walked(client, run), loss=self.told[number][client])


class Anything(dict):
    """A direction for every seed."""

    def __missing__(self, seed):
        return two([1.0, -1.0])


def rates(rate, told, **world):
    """Learning rate of each client in each round: base 0.1, C 0.03."""
    count = len(told[0])
    engine = Losses(directions=Anything(), told=told)
    bowls = Bowls(n=(1,) * count, steps=1, b=((1.0, 0.0),) * count, cohorts=(tuple(range(count)),) * len(told), **world)
    page = FedMezo(Factors(BOWL), rate=rate, spread=0.03)
    advance(page, bowls.hub(page, engine), len(told), two([0.5, 0.5]))
    found = [run.lrs[0] for _, run in engine.walks]
    return [found[i : i + count] for i in range(0, len(found), count)]


def test_round_wise_compares_the_last_losses():
    """1, 2, 6: mean 3, distances -2, -1, 3; then equal losses, which mean the base rate."""
    found = rates("round_wise", ((1.0, 2.0, 6.0), (4.8, 4.8, 4.8), (1.0, 1.0, 1.0)))
    assert found[0] == [0.1] * 3
    assert found[1] == pytest.approx([0.08, 0.09, 0.13])
    assert found[2] == [0.1] * 3


def test_five_round_compares_means_of_five():
    """Client 0 has 1 five times, client 1 has 1, 1, 1, 1, 6: means 1 and 2. Before there are five: the base rate."""
    losses = ((1.0, 1.0),) * 4 + ((1.0, 6.0), (11.0, 6.0), (0.0, 0.0))
    found = rates("five_round", losses)
    assert found[:5] == [[0.1, 0.1]] * 5
    assert found[5] == pytest.approx([0.07, 0.13])
    assert found[6] == [0.1, 0.1]  # the windows' means: 3 and 3


def test_one_client_has_the_base_rate():
    for rate in ("round_wise", "five_round", "model_diff"):
        assert rates(rate, tuple((float(t),) for t in range(7))) == [[0.1]] * 7


def test_random_rates_are_within_the_spread_and_differ():
    found = [rate for row in rates("random", ((1.0,) * 5,) * 8) for rate in row]
    assert len(set(found)) == 40
    assert all(0.07 <= rate <= 0.13 for rate in found)
    assert min(found) < 0.08 and max(found) > 0.12


def test_model_diff_compares_how_far_the_models_ended():
    """Steps of 1, 2 and 4 along (1, -1) in two tensors: measures are sums of the tensors' norms of y - mean."""
    directions = Anything()
    engine = Losses(directions=directions, told=((1.0,) * 3,) * 2)
    world = Bowls(n=(1, 1, 1), steps=(1, 2, 4), lr=0.01, b=((1.0, 0.0),) * 3, cohorts=((0, 1, 2),) * 2)
    page = FedMezo(Factors(BOWL), rate="model_diff", spread=0.003)
    states = advance(page, world.hub(page, engine), 2, two([0.5, 0.5]))
    ends = [engine.ends[client][0] for client in range(3)]
    x = page.model(states[0]).x
    far = [float((end - x).abs().sum()) for end in ends]  # a tensor of one number: its norm is its size
    mean = sum(far) / 3
    worst = max(abs(one - mean) for one in far)
    found = [run.lrs[0] for _, run in engine.walks[3:]]
    assert found == pytest.approx([0.01 + 0.003 * (one - mean) / worst for one in far])
    assert states[0].spread == Spread(pytest.approx(mean), pytest.approx(worst))


def test_who_was_away_goes_no_further_than_those_that_were_there():
    known = {"measure": 100.0}
    client = SimpleNamespace(lr=0.1, state=SimpleNamespace(get=known.get))
    page = FedMezo(Factors(BOWL), rate="round_wise", spread=0.03)
    assert page._rate(Spread(1.0, 2.0), client) == pytest.approx(0.13)
    assert page._rate(Spread(1.0, 0.0), client) == 0.1
    assert page._rate(None, client) == 0.1


def test_rounding_errors_are_no_spread():
    assert spread([0.1 + 0.2, 0.3, 0.3]).worst == 0.0
    assert spread([]) is None


def test_only_pages_that_compare_clients_look_at_single_replies():
    assert not FedMezo(Factors(PLAIN), directions=3).needs.single_replies
    assert not FedMezo(Factors(PLAIN), rate="random").needs.single_replies
    assert FedMezo(Factors(PLAIN), rate="model_diff").needs.single_replies


# -- seeds and scalars


def test_everybody_rebuilds_the_same_model_after_fifty_rounds():
    """Going on round by round, or from nothing: the same bits, and those of the server's model."""
    for page in (
        FedKSeed(PLAIN, 7, pool=32, pro=True),
        DeComFl(PLAIN, 7, steps=2, directions=2),
        DeComFl(PLAIN, 7, steps=2, log=5),
        Ferret(PLAIN, 7, bases=40, server_lr=0.3, log=7),
    ):
        seen, _ = rounds(page, NEAR, 50)
        start = NEAR.start().float()
        going = Footing(start.clone(), PLAIN)
        for state in seen:
            going.to(page.model(state).drift)
        rebuilt = moved(start, PLAIN, page.model(seen[-1]).drift)
        assert torch.equal(going.w, rebuilt)
        assert not torch.equal(rebuilt, start)


@pytest.mark.parametrize(
    "page", [DeComFl(PLAIN, 7, steps=2, directions=2, log=6), Ferret(PLAIN, 7, bases=20, server_lr=0.3, log=6)]
)
def test_clients_hold_the_servers_model_whatever_they_missed(page):
    """3 of 5 in each round."""
    world = replace(NEAR, cohort=3)
    hub = world.hub(page)
    state = page.init(world.start())
    for _ in range(40):
        before = state
        state = page.round(state, hub)
        hub.round += 1
        hub.commit(hub.round)
        for client in hub.last_cohort:
            memory = hub.link.site.store.open(client).memory.entries
            assert torch.equal(memory["table"], before.table)
            assert memory["rounds"] == before.rounds
    assert len(state.table) == 6


def test_a_client_whose_memory_is_another_is_sent_everything():
    """The server thinks that client 1 knows one round, as if its folder were of another day."""
    page, world, events = DeComFl(PLAIN, 7), replace(NEAR, cohort=5), []
    hub = world.hub(page, wrap=Listening, events=events.append)
    state = page.init(world.start())
    for round in range(6):
        if round == 3:
            state = replace(state, seen={**state.seen, 1: 1})
        state = page.round(state, hub)
        assert (1 in state.seen) == (round != 3)
        hub.round += 1
        hub.commit(hub.round)
    assert [len(down.rows) for client, down in hub.link.down if client == 1] == [0, 1, 1, 2, 4, 1]
    assert [len(down.rows) for client, down in hub.link.down if client == 2] == [0, 1, 1, 1, 1, 1]
    (missing,) = [e for e in events if isinstance(e, ReplyMissing)]
    assert missing.client == 1 and "next time it gets them all" in missing.detail


def test_sizes_on_the_wire_do_not_depend_on_the_model():
    """The paper's 18 KB, at two sizes of the model, 4096 directions and 200 steps."""
    found = []
    for width in (1_600, 46_000):
        layout = Layout.of([Leaf(f"layer.{i}.weight", (width, 100)) for i in range(10)])
        assert layout.size == 1000 * width
        found.append([sizes(layout, **how) for how in ({}, {"pro": True}, {"pro": True, "draws": "server"})])
        found[-1].append(sizes(layout, steps=3000))
    assert found[0] == found[1]
    plain, pro, drawn, long = found[0]
    assert plain[0] <= 18 * KIB and plain[1] <= 2 * KIB
    assert pro[0] <= 34 * KIB and pro[1] <= 2 * KIB
    assert drawn[0] <= 18 * KIB and drawn[1] <= 2 * KIB
    assert long[1] <= 18 * KIB


def sizes(layout, steps=200, **how):
    """Bytes down and up of one client's round."""
    page = FedKSeed(layout, 3, pool=4096, steps=steps, **how)
    state = page.init(torch.zeros(0))
    index = torch.arange(steps) % 4096
    run = SimpleNamespace(rates=torch.ones(steps), slopes=torch.ones(steps, 1, dtype=torch.float64))
    sent = []

    class Fed:
        round = 3

        def cohort(self):
            return [0]

        def collect(self, task, down, to, rule, fits):
            sent.append(down(0))
            moves = Moves(*page.gone(run, index.to(torch.int16)), rate=1e-3)
            sent.append(Result(moves=moves, origin=seeded.origin(layout), weight=200.0))
            assert fits(0, sent[1]) is None
            acc = rule["moves"].add(rule["moves"].start(), moves, 200.0)
            return SimpleNamespace(value=SimpleNamespace(moves=rule["moves"].finish(acc)))

        def profile(self, client):
            return SimpleNamespace(layout=layout)

    page.round(state, Fed())
    return [size(one) for one in sent]


def test_pairs_and_sums_say_the_same():
    """9 steps along 3 directions: the sums are shorter, and combine to the same."""
    page = FedKSeed(PLAIN, 3, pool=3)
    slopes = torch.arange(9, dtype=torch.float64)[:, None]
    slopes[4] = math.nan
    run = SimpleNamespace(rates=torch.full((9,), 0.1), slopes=slopes)
    index = (torch.arange(9) % 3).to(torch.int16)
    none, sums = page.gone(run, index)
    assert not len(none)
    assert sums.tolist() == pytest.approx([-0.9, -0.8, -1.5])  # 0+3+6, 1+7 (4 was left out), 2+5+8
    rule = Pooled(page, torch.ones(3))
    pairs = Moves(index[[0, 3]], torch.tensor([1.0, 2.0]), 0.1)
    mean = rule.finish(rule.add(rule.add(rule.start(), pairs, 3.0), Moves(none, sums, 0.1), 1.0))
    assert mean.amounts.tolist() == pytest.approx([(9 - 0.9) / 4, -0.2, -0.375])


def test_amplitudes_are_means_of_slopes_whatever_the_rate_and_the_correction():
    """Two clients: |g| of 4 and 2 along direction 1, 1e6 along 2 (cut at 1000); each history begins with a 0."""
    page = FedKSeed(PLAIN, 3, pool=4, pro=True, corrected=True)
    scale = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    rule = Pooled(page, scale)
    acc = rule.add(rule.start(), Moves(torch.tensor([1], dtype=torch.int16), torch.tensor([-0.1 * 0.5 * 4]), 0.1), 9.0)
    index = torch.tensor([1, 2], dtype=torch.int16)
    acc = rule.add(acc, Moves(index, torch.tensor([0.2 * 0.5 * 2, 0.2 * 2 * 1e6]), 0.2), 1.0)
    sums = rule.finish(acc)
    assert sums.amplitude.tolist() == pytest.approx([0, 6, 1000, 0])
    assert sums.met.tolist() == [0, 2, 1, 0]
    state = replace(page.init(torch.zeros(9)), amplitude=sums.amplitude, met=sums.met)
    p = page.probabilities(state)
    assert (p / p[0]).tolist() == pytest.approx([1, math.exp(2 / 500), math.e, 1])


def test_a_corrected_step_is_unbiased():
    """E[step] over draws is that of equal chances: sum_k p_k / (K p_k) = 1."""
    page = FedKSeed(PLAIN, 3, pool=4, pro=True, corrected=True)
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    client = SimpleNamespace(steps=4000, key=lambda purpose: 11)
    down = SimpleNamespace(p=p)
    index, scales = page.drawn(down, client)
    total = torch.zeros(4, dtype=torch.float64).index_add_(0, index.long(), torch.tensor(scales, dtype=torch.float64))
    assert torch.allclose(total / 1000, torch.ones(4, dtype=torch.float64), atol=0.15)


def test_a_server_that_draws_sends_the_clients_seeds():
    page = FedKSeed(PLAIN, 7, pool=16, pro=True, draws="server", steps=4)
    _, hub = rounds(page, NEAR, 3, wrap=Listening)
    downs = dict(hub.link.down[-4:])
    assert all(len(down.draws) == 4 and not len(down.p) for down in downs.values())
    for client, up in hub.link.up[-4:]:
        steps = NEAR.plan(client).local.steps
        assert torch.equal(up.moves.index, downs[client].draws[:steps])
    short = FedKSeed(PLAIN, 7, pool=16, pro=True, draws="server", steps=2)
    events = []
    rounds(short, NEAR, 1, events=events.append)
    said = [e.detail for e in events if isinstance(e, ReplyMissing)]
    assert said and all("seeds were drawn for it" in one for one in said)


@pytest.mark.parametrize("page", [FedKSeed(PLAIN, 7, pool=16), DeComFl(PLAIN, 7), Ferret(PLAIN, 7, bases=9)])
def test_strangers_are_refused_in_words(page):
    """Another way to draw random numbers, or other tensors, would average what has nothing in common."""

    class Foreign(Passing):
        def ask(self, dispatches):
            for reply in self.inner.ask(dispatches):
                wrong = replace(reply.up, origin="noise 0123456789abcdef, tensors 0")
                yield replace(reply, up=wrong) if reply.dispatch.client == 2 else reply

    events = []
    rounds(page, replace(NEAR, cohort=5), 1, wrap=Foreign, events=events.append)
    (missing,) = [e for e in events if isinstance(e, ReplyMissing)]
    assert (missing.client, missing.reason) == (2, "refused")
    assert "its directions are others than ours" in missing.detail and "same version of fedloom" in missing.detail
    fed = SimpleNamespace(profile=lambda client: SimpleNamespace(layout=BOWL))
    why = seeded.stranger(seeded.origin(BOWL), 0, fed, PLAIN)
    assert why is not None and "give all clients the same ranks" in why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"index": torch.tensor([16, 1], dtype=torch.int16)}, "not 0 to 15"),
        ({"index": torch.tensor([-1, 1], dtype=torch.int32)}, "not 0 to 15"),
        ({"index": torch.tensor([0.5, 1.0])}, "whole numbers"),
        ({"rate": 0.0}, "learning rate is 0"),
        ({"amounts": torch.zeros(3)}, "calls for (2,)"),
        ({"amounts": torch.zeros(2, dtype=torch.float64)}, "torch.float64"),
        ({"index": torch.zeros(0, dtype=torch.int16), "amounts": torch.zeros(5)}, "calls for (16,)"),
    ],
)
def test_moves_that_cannot_be_are_refused(change, why):
    page = FedKSeed(PLAIN, 7, pool=16)
    fed = SimpleNamespace(profile=lambda client: SimpleNamespace(layout=PLAIN))
    good = Moves(torch.tensor([0, 15], dtype=torch.int16), torch.zeros(2), 0.1)
    fits = page.fits(fed)
    assert fits(0, SimpleNamespace(moves=good, origin=seeded.origin(PLAIN))) is None
    said = fits(0, SimpleNamespace(moves=replace(good, **change), origin=seeded.origin(PLAIN)))
    assert said is not None and why in said


def test_pro_is_told_single_slopes():
    page = FedKSeed(PLAIN, 7, pool=16, pro=True)
    fed = SimpleNamespace(profile=lambda client: SimpleNamespace(layout=PLAIN))
    sums = Moves(torch.zeros(0, dtype=torch.int16), torch.zeros(16), 0.1)
    assert "which slopes" in page.fits(fed)(0, SimpleNamespace(moves=sums, origin=seeded.origin(PLAIN)))


def test_steps_beyond_the_limit_count_for_nothing():
    page = FedKSeed(PLAIN, 7, pool=16, limit=1e-12)
    hub = NEAR.hub(page)
    with pytest.raises(Exception, match="0 replies counted"):
        page.round(page.init(NEAR.start()), hub)


def test_directions_of_pages_are_the_pools():
    """Round 5 of a log of 4 walks along the directions of round 1."""
    page = DeComFl(PLAIN, 7, steps=2, directions=3, log=4)
    assert page.seeds(5) == page.seeds(1) == [[pool(7, 6 + 3 * k + j) for j in range(3)] for k in range(2)]
    assert noise.fingerprint() in seeded.origin(PLAIN)
