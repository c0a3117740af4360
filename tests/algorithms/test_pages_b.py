"""Personal models and ranks, beyond numbers on paper: words of errors, limits, restarts, what travels, what stays."""

import asyncio
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from algorithms.scalar import PAIR, Engine, Pairs, Scalars, World, advance, number, owns
from fedloom import lowrank
from fedloom.aggregate.rules import Gather
from fedloom.aggregate.server import ServerSgd
from fedloom.algorithms.ditto import Ditto
from fedloom.algorithms.dual import Dual, joined
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.fedper import FedPer
from fedloom.algorithms.fedrep import FedRep
from fedloom.algorithms.hetlora import ByNorm, HetLora, tail
from fedloom.algorithms.lora_a2 import LoraA2, choose, scores, trained
from fedloom.algorithms.pfedme import PFedMe
from fedloom.algorithms.pfedme import Start as PFedMeStart
from fedloom.channel.codec import decode, encode
from fedloom.contracts import ClientFailed, Model, Trained
from fedloom.engine.config import OptimizerConfig
from fedloom.params import Layout, Leaf
from fedloom.spaces.factors import Factors

ADAMW = OptimizerConfig(name="adamw", weight_decay=0.5)


def lora(*ranks, scale=2.0, plain=True):
    """Modules m0, m1, ... of 3 x 4, and one ordinary tensor."""
    leaves = []
    for m, rank in enumerate(ranks):
        common = {"module": f"m{m}", "scale": scale}
        leaves += [Leaf(f"m{m}.A", (rank, 4), factor="A", **common), Leaf(f"m{m}.B", (3, rank), factor="B", **common)]
    return Layout.of([*leaves, *([Leaf("bias", (2,))] if plain else [])])


@dataclass(frozen=True, eq=False)
class Fit:
    """|scale B A + carried - target|^2 / 2 over all modules, and |bias - target|^2 / 2."""

    client: int

    def loss(self, leaves, layout, carry):
        total = torch.zeros((), dtype=next(iter(leaves.values())).dtype)
        for m, pair in enumerate(lowrank.pairs(layout)):
            made = pair.scale * leaves[pair.b.name] @ leaves[pair.a.name]
            if carry:
                made = made + carry[2 * m] @ carry[2 * m + 1]
            target = torch.arange(12.0).view(3, 4).sin() * (1 + self.client) + m
            total = total + (made - target.to(made.dtype)).square().sum() / 2
        if "bias" in leaves:
            total = total + (leaves["bias"] - self.client - 1).square().sum() / 2
        return total


@dataclass(frozen=True)
class Matrices(World):
    """Clients with LoRA factors, each with ranks of its own where given."""

    layouts: tuple = (lora(2, 2), lora(2, 2))
    lr: float = 0.02
    steps: int = 3

    def row(self, client, number):
        return ROWS[client]

    def layout(self, client):
        return self.layouts[client]


ROWS = [Fit(0), Fit(1)]


def begin(layout, seed=1):
    return lowrank.start(layout, seed, torch.float64)


def full(layout):
    """A start whose B is not zero."""
    return torch.linspace(-0.6, 0.7, layout.size, dtype=torch.float64).cos() * 0.5


def requests(engine, client):
    return [run for i, run, *_ in engine.served if i == client]


PAGES = {
    "ditto": (Ditto(Factors(lora(2, 2)), ServerSgd(0.5, 0.9), lam=0.3), Matrices()),
    "pfedme": (PFedMe(lam=2.0, rounds=2, steps=3, lr=0.05), Matrices()),
    "fedper": (FedPer(lora(2, 2), ("*.B",), ServerSgd(0.5, 0.9)), Matrices()),
    "fedrep": (FedRep(lora(2, 2), ("*.B",), head_steps=2, body_steps=3), Matrices()),
    "dual": (Dual(Factors(lora(2, 2))), Matrices()),
    "hetlora": (HetLora(lora(4, 3), gamma=0.7, lam=0.5), Matrices(layouts=(lora(4, 3), lora(2, 1)))),
    "lora_a2": (LoraA2(lora(2, 2), 1), Matrices()),
}


# -- all of them


@pytest.mark.parametrize("name", PAGES)
def test_a_run_that_stopped_goes_on_to_the_same_bits(name):
    """The state and the clients' memories are all there is."""
    page, world = PAGES[name]
    hub, start = world.hub(page), begin(getattr(page, "layout", None) or lora(2, 2))
    whole = advance(page, hub, 4, start)
    first, second = world.hub(page), world.hub(page)
    half = advance(page, first, 2, start)[-1]
    for client in (0, 1):
        state = second.store.open(client)
        for key, value in first.memory(client).items():
            state[key] = value
        second.store.keep(client, 2, state)
    second.round, state = 2, decode(type(half), encode(half))
    for _ in range(2):
        state = page.round(state, second)
        second.round += 1
    assert encode(state) == encode(whole[-1])
    assert encode(whole[-1]) != encode(half)


@pytest.mark.parametrize("name", PAGES)
def test_single_precision_stays_single(name):
    page, world = PAGES[name]
    start = begin(getattr(page, "layout", None) or lora(2, 2))
    hubs = world.hub(page), world.hub(page)
    exact, single = (
        page.model(advance(page, hub, 3, x)[-1]) for hub, x in zip(hubs, (start, start.float()), strict=True)
    )
    assert single.x.dtype == torch.float32
    assert torch.allclose(single.x.double(), exact.x, atol=1e-4)
    for own in owns(hubs[1], single):
        assert own.x.dtype == torch.float32


@pytest.mark.parametrize("name", ["ditto", "pfedme", "fedper", "fedrep", "dual"])
def test_clients_have_models_of_their_own(name):
    assert PAGES[name][0].needs.personal


# -- Ditto and pFedMe


def test_dittos_own_model_lies_over_the_same_carry_and_moves_everywhere():
    class Carrying(Factors):
        def active(self, phase, layout):
            return ["m0.B"]

    page, engine = Ditto(Carrying(lora(1, plain=False))), Engine()
    hub = Matrices(layouts=(lora(1, plain=False),) * 2).hub(page, engine)
    carry = (torch.ones(3, 1).double(), torch.ones(1, 4).double())
    state = page.init(begin(lora(1, plain=False)))
    page.round(type(state)(state.x, carry, state.memory), hub)
    shared, own = requests(engine, 0)
    assert shared.carry == own.carry == carry
    assert tuple(shared.train) == ("m0.B",)
    assert own.train is None
    assert [m.carry for m in owns(hub, Model(state.x, carry))] == [carry] * 2


@pytest.mark.parametrize("make", [lambda: Ditto(Factors(PAIR), lam=-1.0), lambda: PFedMe(lam=-1.0)])
def test_a_push_away_is_refused(make):
    with pytest.raises(ValueError, match=r"lam is -1\.0"):
        make()


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"steps": 0}, {"beta": 0.0}])
def test_pfedme_that_would_do_nothing_is_refused(settings):
    with pytest.raises(ValueError, match=r"at least 1|above 0"):
        PFedMe(**settings)


def test_pfedme_without_a_pull_trains_apart_and_shares_nothing():
    page = PFedMe(lam=0.0, rounds=3, steps=2)
    hub = Scalars(h=(1.0, 1.0)).hub(page)
    state = advance(page, hub, 1, number(0.5))[-1]
    assert float(state.x) == 0.5
    assert [float(m.x) for m in owns(hub, page.model(state))] == pytest.approx(
        [m + (0.5 - m) * 0.9**6 for m in (1.0, -1.0)], abs=1e-12
    )


class Idle:
    """A client in whose batches nothing is labelled."""

    def __init__(self, layout):
        self.layout, self.state = layout, {}

    async def descend(self, x, **how):
        return Trained(x, 0, 0.0, 0, 0, None)

    def passes(self, count=1.0):
        return 1


def test_a_client_that_took_no_step_does_not_count():
    """These replies carry no weight of 0 that would say so."""
    client, layout = Idle(lora(2)), lora(2)
    with pytest.raises(ClientFailed, match=r"none of 100 steps"):
        asyncio.run(PFedMe().local(PFedMeStart(begin(layout)), client))
    page = HetLora(layout)
    start = page.local.__annotations__["down"](begin(layout))
    with pytest.raises(ClientFailed, match="no step"):
        asyncio.run(page.local(start, client))
    assert not client.state


# -- FedPer and FedRep


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_private_leaves_never_reach_the_server(name):
    """18 of 30 numbers go up: two A of 2 x 4, and the bias; the server's private ones stay as they began."""
    page, world = PAGES[name]
    hub, start, layout = world.hub(page), begin(page.layout), page.layout
    state = advance(page, hub, 3, start)[-1]
    down = page.local.__annotations__["down"](state.x)
    got = hub.collect(page.local, lambda _: down, [0, 1], Gather())
    assert [len(value) for value, _ in got.value.shared] == [18, 18]
    private = ("m0.B", "m1.B")
    assert torch.equal(layout.take(state.x, private), layout.take(start, private))
    model = page.model(state)
    assert not model.whole
    one, other = owns(hub, model)
    assert not torch.equal(layout.take(one.x, private), layout.take(other.x, private))
    shared = ("m0.A", "m1.A", "bias")
    assert torch.equal(layout.take(one.x, shared), layout.take(other.x, shared))


def test_no_private_name_is_said_in_words():
    with pytest.raises(ValueError, match=r"private: head\*: no trained tensor has such a name; they are called u, v"):
        FedPer(PAIR, ("head*",))
    with pytest.raises(ValueError, match="nothing is left to share"):
        FedPer(PAIR, ("u", "v"))
    with pytest.raises(ValueError, match="no trained tensor is private"):
        FedRep(PAIR, ())
    with pytest.raises(ValueError, match="head_steps is 0"):
        FedRep(PAIR, ("v",), head_steps=0)


def test_fedrep_takes_the_recipes_steps_unless_told():
    page, engine = FedRep(PAIR, ("v",)), Engine()
    advance(page, Pairs(steps=4).hub(page, engine), 1, torch.tensor([1.0, 0.5]))
    assert [(run.train, len(run.lrs)) for run in requests(engine, 1)] == [(("v",), 4), (("u",), 4)]


# -- dual adapters


def test_carries_join_module_by_module():
    one = (torch.randn(3, 1), torch.randn(1, 4), torch.randn(2, 2), torch.randn(2, 5))
    two = (torch.randn(3, 2), torch.randn(2, 4), torch.randn(2, 1), torch.randn(1, 5))
    both = joined(one, two)
    assert [t.shape[1 - i % 2] for i, t in enumerate(both)] == [3, 3, 3, 3]
    for m in (0, 2):
        assert torch.allclose(both[m] @ both[m + 1], one[m] @ one[m + 1] + two[m] @ two[m + 1], atol=1e-6)
    assert joined((), two) is two
    assert joined(one, ()) is one
    with pytest.raises(ValueError, match="2 and 1 products"):
        joined(one, two[:2])


def test_each_of_two_adapters_learns_on_top_of_the_other():
    layout = lora(2, 2)
    page, engine = Dual(Factors(layout)), Engine()
    hub = Matrices().hub(page, engine)
    states = advance(page, hub, 2, begin(layout))
    own, first, after, again = requests(engine, 0)
    v0, v1, v2 = own.start, after.start, hub.memory(0)["v"]
    begun = lowrank.products(v0, layout)
    assert all(not bool(t.any()) for t in begun[::2])  # v begins with B = 0, so that it changes nothing yet
    assert [t.tolist() for t in own.carry] == [t.tolist() for t in lowrank.products(begin(layout), layout)]
    assert set(own.train) == {"m0.A", "m0.B", "m1.A", "m1.B"}
    assert [t.tolist() for t in first.carry] == [t.tolist() for t in lowrank.products(v1, layout)]
    assert torch.equal(layout.take(after.start, ["bias"]), layout.take(states[0].x, ["bias"]))
    assert [t.tolist() for t in again.carry] == [t.tolist() for t in lowrank.products(v2, layout)]
    used = owns(hub, page.model(states[-1]))[0]
    assert torch.equal(used.x, states[-1].x)
    assert [t.tolist() for t in used.carry] == [t.tolist() for t in lowrank.products(v2, layout)]
    fedavg = FedAvg(Factors(layout))
    assert not torch.equal(states[0].x, advance(fedavg, Matrices().hub(fedavg), 1, begin(layout))[0].x)


def test_private_adapters_begin_apart_and_help():
    layout = lora(2, 2)
    page, fedavg = Dual(Factors(layout)), FedAvg(Factors(layout))
    hub, other = Matrices(steps=10).hub(page), Matrices(steps=10).hub(fedavg)
    shared = page.model(advance(page, hub, 5, begin(layout))[-1])
    alone = fedavg.model(advance(fedavg, other, 5, begin(layout))[-1])
    assert not torch.equal(hub.memory(0)["v"], hub.memory(1)["v"])
    losses = [row.loss(layout.views(m.x), layout, m.carry) for row, m in zip(ROWS, owns(hub, shared), strict=True)]
    assert sum(losses) < 0.5 * sum(row.loss(layout.views(alone.x), layout, ()) for row in ROWS)


def test_dual_adapters_need_lora():
    page = Dual(Factors(PAIR))
    with pytest.raises(ValueError, match="no module has both factors"):
        advance(page, Pairs().hub(page), 1, torch.tensor([1.0, 0.5]))


# -- HetLoRA


@pytest.mark.parametrize(
    "settings, words",
    [({"gamma": 0.0}, "gamma is 0"), ({"gamma": 1.5}, "gamma"), ({"lam": -0.1}, "lam"), ({"least_rank": 0}, "least_")],
)
def test_impossible_settings_of_hetlora_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        HetLora(lora(2), **settings)


@pytest.mark.parametrize("make", [HetLora, lambda layout: LoraA2(layout, 1)])
def test_ranks_and_slots_need_lora(make):
    with pytest.raises(ValueError, match="no module has both factors"):
        make(PAIR)


def test_other_scales_and_larger_ranks_are_refused():
    page = HetLora(lora(2))
    with pytest.raises(ValueError, match="by 4, the shared adapter by 2"):
        page.lower(begin(lora(2)), lora(1, scale=4.0))
    with pytest.raises(ValueError, match="rank 3"):
        page.lower(begin(lora(2)), lora(3))


def test_the_tail_has_a_gradient_and_none_that_is_nan():
    """At B = 0 a norm has no derivative; 0 is the one that changes nothing."""
    layout = lora(3)
    x = begin(layout)
    leaves = {name: view.clone().requires_grad_() for name, view in layout.views(x).items()}
    tail(leaves, layout, [1], [3]).backward()
    assert not leaves["m0.A"].grad.any()
    assert torch.isfinite(leaves["m0.B"].grad).all()
    with torch.no_grad():
        leaves["m0.B"].fill_(1.0)
    tail(leaves, layout, [1], [3]).backward()
    assert leaves["m0.A"].grad[1:].any()
    assert not leaves["m0.A"].grad[0].any()


@pytest.mark.parametrize("optimizer", [OptimizerConfig(name="sgd", args={"momentum": 0.9}), ADAMW])
def test_a_pruned_slot_stays_pruned_whatever_the_optimiser(optimizer):
    layouts = (lora(4, 3), lora(2, 1))
    page = HetLora(lora(4, 3), gamma=0.5, lam=3.0)
    hub = Matrices(layouts=layouts, optimizer=optimizer).hub(page)
    state, ranks = page.init(full(lora(4, 3))), []
    for _ in range(6):
        state = page.round(state, hub)
        hub.round += 1
        ranks.append(hub.memory(0)["ranks"].tolist())
        own = layouts[0].views(owns(hub, page.model(state))[0].x)
        for m, rank in enumerate(map(int, ranks[-1])):
            assert not own[f"m{m}.A"][rank:].any()
            assert not own[f"m{m}.B"][:, rank:].any()
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] <= [2, 1]
    start = layouts[0].views(requests(hub.engine, 0)[-1].start)
    assert start["m0.B"].any(dim=0).tolist() == [slot < ranks[-2][0] for slot in range(4)]


def test_nothing_is_pruned_where_nothing_had_a_tail():
    """B = 0 at the start: a tail that is not smaller than 0."""
    page = HetLora(lora(4, 3), gamma=0.5, lam=3.0)
    hub = Matrices(layouts=(lora(4, 3),) * 2).hub(page)
    advance(page, hub, 1, begin(lora(4, 3)))
    assert hub.memory(0)["ranks"].tolist() == [4, 3]


def test_gamma_of_one_never_prunes_and_least_rank_is_kept():
    for settings, wanted in (({"gamma": 1.0}, [4, 3]), ({"gamma": 0.5, "least_rank": 3}, [3, 3])):
        page = HetLora(lora(4, 3), lam=3.0, **settings)
        hub = Matrices(layouts=(lora(4, 3),) * 2).hub(page)
        advance(page, hub, 6, full(lora(4, 3)))
        assert hub.memory(0)["ranks"].tolist() == wanted


def ranks_of(hub, client):
    return [int(r) for r in hub.memory(client)["ranks"]]


def test_only_held_slots_travel():
    page = HetLora(lora(4, 3), gamma=0.5, lam=3.0)
    hub = Matrices(layouts=(lora(4, 3), lora(2, 1))).hub(page)
    state = advance(page, hub, 1, full(lora(4, 3)))[-1]
    start = page.local.__annotations__["down"]
    got = hub.collect(page.local, lambda i: start(page.lower(state.x, hub.profile(i).layout)), [0, 1], Gather())
    for (sent, _), client in zip(got.value.y, (0, 1), strict=True):
        ranks = ranks_of(hub, client)
        assert [tuple(t.shape) for t in sent[1:]] == [s for r in ranks for s in ((3, r), (r, 4))]
    assert ranks_of(hub, 0) == [2, 1]
    assert hub.traffic.figures["rank"] == (1.5 + 1) / 2


def reply(seed, *ranks, size=1.0):
    draw = torch.Generator().manual_seed(seed)
    numbers = [torch.randn(2, generator=draw).double()]
    for r in ranks:
        numbers += [size * torch.randn(3, r, generator=draw).double(), torch.randn(r, 4, generator=draw).double()]
    return tuple(numbers)


def mean(rule, *values):
    acc = rule.start()
    for value in values:
        acc = rule.add(acc, value, None)
    return rule.finish(acc)


def test_replies_of_norm_zero_count_only_among_themselves():
    layout = lora(3, 2)
    rule = ByNorm(layout)
    none, nought, some = reply(1, 3, 1, size=0.0), reply(2, 2, 2, size=0.0), reply(3, 1, 2)
    assert torch.allclose(mean(rule, none, nought)[-2:], (none[0] + nought[0]) / 2)
    alone = mean(rule, some)
    assert torch.equal(mean(rule, none, some, nought), alone)
    assert torch.equal(mean(rule, some, none), alone)
    views = layout.views(alone)
    assert torch.allclose(views["m0.B"][:, :1], some[1])
    assert not views["m0.B"][:, 1:].any()
    assert not views["m0.A"][1:].any()


def test_sums_of_hetlora_merge():
    rule, values = ByNorm(lora(3, 2)), [reply(1, 3, 1), reply(2, 2, 2), reply(3, 1, 2, size=0.0), reply(4, 1, 1)]
    halves = []
    for part in (values[:2], values[2:]):
        acc = rule.start()
        for value in part:
            acc = rule.add(acc, value, None)
        halves.append(acc)
    merged = rule.finish(rule.merge(*halves))
    assert torch.allclose(merged, mean(rule, *values), atol=1e-12)
    assert torch.equal(rule.finish(rule.merge(rule.start(), halves[0])), rule.finish(halves[0]))
    assert torch.allclose(mean(rule, *values[::-1]), merged, atol=1e-12)
    assert not rule.linear  # masks would hide the norms


def test_replies_that_cannot_be_padded_are_refused():
    rule = ByNorm(lora(2, 2))
    with pytest.raises(ValueError, match="cannot be padded"):
        mean(rule, reply(1, 3, 1))
    with pytest.raises(ValueError, match="does not fit 2 adapted modules"):
        mean(rule, reply(1, 2))


def test_a_slot_nobody_holds_in_a_round_is_gone():
    """What padding with zeros means: after a round of small clients only, larger ones find slots that cannot learn."""
    layouts, whole = (lora(3, 3), lora(1, 1)), lora(3, 3)
    page = HetLora(whole)
    hub = Matrices(layouts=layouts, cohorts=((0,), (1,), (0,))).hub(page)
    for rank, state in zip((3, 1, 1), advance(page, hub, 3, begin(whole)), strict=True):
        views = whole.views(state.x)
        for m in (0, 1):
            assert views[f"m{m}.A"].any(dim=1).tolist() == [slot < rank for slot in range(3)]
            assert views[f"m{m}.B"].any(dim=0).tolist() == [slot < rank for slot in range(3)]
        assert torch.isfinite(state.x).all()


# -- LoRA-A2


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"rank": 0}, "rank is 0"),
        ({"selection_steps": 0}, "selection_steps is 0"),
        ({"lr_ratio": 0.0}, "lr_ratio is 0"),
    ],
)
def test_impossible_settings_of_lora_a2_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        LoraA2(lora(2), **{"rank": 1, **settings})


def test_clients_of_other_ranks_are_refused():
    page = LoraA2(lora(2, 2), 1)
    with pytest.raises(ValueError, match="client 1 has an adapter of other shapes"):
        advance(page, Matrices(layouts=(lora(2, 2), lora(1, 2))).hub(page), 1, begin(lora(2, 2)))


@pytest.mark.parametrize("optimizer", [OptimizerConfig(name="sgd", args={"momentum": 0.9}), ADAMW])
def test_what_is_not_chosen_is_equal_to_the_bit(optimizer):
    """Also where the optimiser decays weights whose gradient is 0."""
    layout = lora(3, 3)
    page, engine = LoraA2(layout, 1), Engine()
    hub = Matrices(layouts=(layout, layout), cohorts=((0,),) * 4, optimizer=optimizer).hub(page, engine)
    states = [page.init(begin(layout)), *advance(page, hub, 4, begin(layout))]
    for turn, (before, after) in enumerate(pairwise(states)):
        frozen = ("m0.A", "m1.A") if turn % 2 == 0 else ("m0.B", "m1.B")
        assert torch.equal(layout.take(before.x, frozen), layout.take(after.x, frozen))
        old, new = layout.views(before.x), layout.views(after.x)
        moved = 0
        for m in (0, 1):
            if turn % 2 == 0:
                moved += int((old[f"m{m}.B"] != new[f"m{m}.B"]).any(dim=0).sum())
            else:
                moved += int((old[f"m{m}.A"] != new[f"m{m}.A"]).any(dim=1).sum())
        assert moved == 2
        assert (old["bias"] != new["bias"]).all()


def test_who_chooses_all_slots_needs_no_look():
    layout, engine = lora(2, 2), Engine()
    page = LoraA2(layout, 1, budget=lambda client: (2, 1)[client])
    advance(page, Matrices().hub(page, engine), 2, begin(layout))
    assert [len(requests(engine, client)) for client in (0, 1)] == [2, 4]
    assert [run.train for run in requests(engine, 0)] == [trained(layout, 0), trained(layout, 1)]
    assert [len(run.lrs) for run in requests(engine, 1)] == [1, 3, 1, 3]  # a pass is one batch here
    more = LoraA2(layout, 1, selection_steps=5)
    advance(more, Matrices().hub(more, engine), 1, begin(layout))
    assert len(requests(engine, 0)[2].lrs) == 5


def test_b_learns_faster_than_a():
    engine, page = Engine(), LoraA2(lora(2, 2), 1)
    advance(page, Matrices().hub(page, engine), 2, begin(lora(2, 2)))
    assert [run.lrs[0] for run in requests(engine, 0)] == pytest.approx([0.1, 0.1, 0.02, 0.02])


def test_slots_of_all_modules_compete_and_of_equal_ones_the_first_wins():
    layout = lora(2, 2, plain=False)
    x, moved = torch.ones(layout.size).double(), torch.zeros(layout.size).double()
    layout.views(moved)["m1.B"].fill_(1.0)
    layout.views(moved)["m0.B"][:, 1] = 1.0
    score = scores(x, moved, layout, 0)
    assert score.tolist() == pytest.approx([0.0, 12**0.5, 12**0.5, 12**0.5])
    chosen = layout.views(choose(score, layout, 2, 0))
    assert chosen["m0.B"].any(dim=0).tolist() == [False, True]
    assert chosen["m1.B"].any(dim=0).tolist() == [True, False]
    assert layout.views(choose(score, layout, 2, 1))["m0.A"].any(dim=1).tolist() == [False, True]
