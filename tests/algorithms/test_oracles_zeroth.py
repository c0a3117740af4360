"""FedMeZO, FedKSeed and DeComFL against numbers worked out without this package."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from algorithms.bowls import BOWL, ORACLES, Bowls, Walker, two
from algorithms.scalar import advance
from fedloom.algorithms.decomfl import DeComFl
from fedloom.algorithms.fedkseed import FedKSeed, draw, likely
from fedloom.algorithms.fedmezo import FedMezo
from fedloom.contracts import Client
from fedloom.drift import pool
from fedloom.spaces.factors import Factors

ROOT = 5


@dataclass(frozen=True)
class Told(FedKSeed):
    """Draws are written down, for each client."""

    told: tuple[tuple[int, ...], ...] = ()

    def drawn(self, down: object, client: Client) -> tuple[Tensor, None]:
        return torch.tensor(self.told[client.id], dtype=torch.int16), None


def test_fedmezo_round():
    """Client 0 is client of `mezo_step`: g = -1, w = (.6, .45)."""
    oracle = ORACLES["fedmezo_round"]
    given = oracle["inputs"]
    world = Bowls(n=(1, 3), steps=1, lr=given["lr"], weighting="dataset", b=tuple(map(tuple, given["b"])))
    engine = Walker()
    page = FedMezo(Factors(BOWL), epsilon=given["eps"])

    class Scripted(dict):
        """One direction for each client, whatever the seed."""

        def __missing__(self, seed: int) -> Tensor:
            return two(given["z"][engine.walks[-1][0]])

    engine.directions = Scripted()
    (state,) = advance(page, world.hub(page, engine), 1, two(given["w0"]))
    assert page.model(state).x.tolist() == pytest.approx(oracle["outputs"]["w"], abs=1e-9)
    assert engine.ends[0][0].tolist() == pytest.approx(ORACLES["mezo_step"]["outputs"]["w_new"], abs=1e-9)


def test_fedkseed_round():
    """Two clients, two steps each; the rebuilt model is the weighted mean of theirs."""
    oracle = ORACLES["fedkseed_round"]
    given, wanted = oracle["inputs"], oracle["outputs"]
    page = Told(BOWL, ROOT, pool=3, epsilon=given["eps"], told=tuple(map(tuple, given["client_seeds"])))
    directions = {pool(ROOT, int(k)): two(z) for k, z in given["z"].items()}
    engine = Walker(directions=directions, start=two(given["w0"]))
    world = Bowls(n=(1, 3), steps=2, lr=given["lr"], weighting="dataset", b=tuple(map(tuple, given["b"])))
    (state,) = advance(page, world.hub(page, engine), 1, engine.start)
    sums = [wanted["accumulators"][str(k)] for k in range(3)]
    assert (state.amounts / -given["lr"]).tolist() == pytest.approx(sums, abs=1e-6)
    ends = [engine.ends[client][0] for client in (0, 1)]
    for end, local in zip(ends, wanted["local_models"], strict=True):
        assert end.tolist() == pytest.approx(local, abs=1e-9)
    rebuilt = engine.at(page.model(state).drift)
    assert rebuilt.tolist() == pytest.approx(wanted["global_model"], abs=1e-7)
    assert torch.allclose(rebuilt, 0.25 * ends[0] + 0.75 * ends[1], rtol=0, atol=1e-7)


def test_fedkseed_pro_probabilities():
    oracle = ORACLES["fedkseed_pro_probabilities"]
    p = likely(two(oracle["inputs"]["mean_abs_gradient"]))
    assert p.tolist() == pytest.approx(oracle["outputs"]["p"], abs=1e-9)
    assert float(p.max() / p.min()) == pytest.approx(torch.e)
    assert likely(torch.zeros(4)).tolist() == [0.25] * 4


def test_draws_are_as_likely_as_they_should_be():
    p = likely(two([0.0, 1.0, 5.0, 100.0]))
    found = draw(p, 40_000, seed=3)
    assert found.dtype == torch.int16
    share = torch.bincount(found.long(), minlength=4) / len(found)
    assert torch.allclose(share.double(), p, atol=0.01)
    assert draw(torch.full((1 << 16,), 1.0), 5, seed=3).dtype == torch.int32


def test_decomfl_rounds():
    """Three rounds, each with one of three clients away: means, models, and what each client is told."""
    oracle = ORACLES["decomfl"]
    given, wanted = oracle["inputs"], oracle["outputs"]
    page = DeComFl(BOWL, ROOT, epsilon=given["mu"], log=None)
    directions = {pool(ROOT, t): two(z) for t, z in enumerate(given["z_per_round"])}
    engine = Walker(directions=directions, start=two(given["x0"]))
    world = Bowls(
        n=(1, 1, 1), lr=given["lr"], cohorts=given["participation"], b=tuple(map(tuple, given["b"]))
    )  # fmt: skip
    hub = world.hub(page, engine)
    told = watched(hub)
    states = advance(page, hub, 3, engine.start)
    for t, (state, round) in enumerate(zip(states, wanted["rounds"], strict=True)):
        assert float(state.table[t, 0] / -given["lr"]) == pytest.approx(round["mean_scalar"], abs=1e-6)
        assert engine.at(page.model(state).drift).tolist() == pytest.approx(round["x"], abs=1e-6)
    # Worked out by hand from algorithm 2: who takes part in round t is first sent the means of all rounds
    # before t that it has not heard, and hears of round t's own mean later. Round 0: nothing. Round 1: client 1
    # was in round 0 and not told its mean: [0]; client 2 is new: [0]. Round 2: client 0 was last told in round
    # 0: [0, 1]; client 2 in round 1, of round 0: [1]. A sheet that says [0, 1] for client 2 in round 1 has it
    # replay the round it is in. The last means and model by hand, from (.521675, .6053) along (-.7, .2): client
    # 0: .7 * .478325 + .2 * 1.2106 = .5769475, client 2: .3348275 - .2 * .7894 = .1769475, mean .3769475, x =
    # (.54806133, .59776105), as the sheet.
    replays = [[client, list(range(down.rounds - len(down.rows), down.rounds))] for client, down in told]
    assert replays == [[0, []], [1, []], [1, [0]], [2, [0]], [0, [0, 1]], [2, [1]]]


def watched(hub):
    """(client, message) of everything the hub sends."""
    seen, ask = [], hub.link.ask

    def asking(dispatches):
        seen.extend((d.client, d.down) for d in dispatches)
        return ask(dispatches)

    hub.link.ask = asking
    return seen


def test_decomfl_forward_difference():
    oracle = ORACLES["decomfl_forward_difference"]
    given = oracle["inputs"]
    page = DeComFl(BOWL, ROOT, epsilon=given["mu"], forward=True)
    engine = Walker(directions={pool(ROOT, 0): two(given["z"])}, start=two(given["x"]))
    world = Bowls(n=(1,), lr=0.1, b=(tuple(given["b"]),), cohorts=((0,),))
    (state,) = advance(page, world.hub(page, engine), 1, engine.start)
    assert float(state.table) / -0.1 == pytest.approx(oracle["outputs"]["g"], abs=1e-6)


def test_decomfl_with_one_step_and_everybody_is_one_walk_on_the_mean_loss():
    """K = 1: the mean of slopes is the slope of the mean, and nobody has gone anywhere in between."""
    b, rounds, lr = ((1.0, 0.0), (0.2, 1.5), (1.0, 1.0)), 6, 0.05
    torch.manual_seed(0)
    directions = {pool(ROOT, k): torch.randn(2, dtype=torch.float64) for k in range(2 * rounds)}
    page = DeComFl(BOWL, ROOT, directions=2)
    engine = Walker(directions=directions, start=two([0.5, 0.5]))
    world = Bowls(n=(1, 1, 1), lr=lr, b=b, cohorts=((0, 1, 2),) * rounds)
    state = advance(page, world.hub(page, engine), rounds, engine.start)[-1]
    x, h = two([0.5, 0.5]), two([1.0, 2.0])
    for t in range(rounds):
        z = [directions[pool(ROOT, 2 * t + j)] for j in range(2)]
        gradient = h * (x - two([sum(one[i] for one in b) / 3 for i in range(2)]))
        x = x - lr / 2 * sum((gradient @ one) * one for one in z)
    assert torch.allclose(engine.at(page.model(state).drift), x, rtol=0, atol=1e-6)
