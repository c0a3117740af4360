"""Server optimisers inside a whole round, against numbers worked out without this package.

Clients move by given differences; how the server follows is what is tested. The optimisers alone are in
tests/aggregate.
"""

from dataclasses import replace

import pytest
import torch

from algorithms.scalar import LAYOUT, ORACLES, Engine, Scalars, advance, number, trajectory
from fedloom.aggregate.server import Adaptive, ServerSgd
from fedloom.algorithms.fedavg import FedAvg
from fedloom.engine.config import OptimizerConfig
from fedloom.spaces.factors import Factors

SPACE = Factors(LAYOUT)
FINAL = ["fedadagrad", "fedyogi", "fedadam"]


def adaptive(name, **changes):
    """The optimiser of an oracle's inputs."""
    inputs = ORACLES[name]["inputs"]
    known = {"kind": name.split("_")[0].removeprefix("fed"), "tau": inputs["tau"]}
    known["lr"] = inputs.get("server_lr", inputs.get("lr"))
    known["beta1"], known["beta2"] = inputs["beta1"], inputs["beta2"]
    return Adaptive(**{**known, **changes})


def follow(server, name, weighting="uniform"):
    """The page's shared number and its memory after each round in which clients move as the oracle says."""
    inputs = ORACLES[name]["inputs"]
    page = FedAvg(SPACE, server=server)
    engine = Engine(deltas=lambda client: inputs["client_deltas"][hub.round][client])
    hub = Scalars(weighting=weighting).hub(page, engine)
    states = advance(page, hub, 3, number(inputs["x0"]))
    return [float(page.model(s).x) for s in states], [s.memory[0] for s in states]


@pytest.mark.parametrize("name", FINAL)
@pytest.mark.parametrize(("suffix", "weighting"), [("", "uniform"), ("_weighted", "dataset")])
def test_adaptive_servers_in_numbers(name, suffix, weighting):
    """x, and both moments, over three rounds; v begins at tau squared."""
    x, memory = follow(adaptive(name + suffix), name + suffix, weighting)
    want = ORACLES[name + suffix]["outputs"]
    assert x == pytest.approx(want["x"], abs=1e-8)
    assert [float(part.m) for part in memory] == pytest.approx(want["m"], abs=1e-8)
    assert [float(part.v) for part in memory] == pytest.approx(want["v"], abs=1e-8)


@pytest.mark.parametrize("name", ["fedyogi_early_form", "fedadam_early_form"])
def test_the_form_of_the_first_preprint(name):
    x, memory = follow(adaptive(name, form="early"), name)
    assert x == pytest.approx(ORACLES[name]["outputs"]["x"], abs=1e-8)
    assert [float(part.v) for part in memory] == pytest.approx(ORACLES[name]["outputs"]["v"], abs=1e-8)


def test_a_second_moment_that_begins_at_zero():
    x, _ = follow(adaptive("fedadam_v0_zero", v0=0.0), "fedadam_v0_zero")
    assert x == pytest.approx(ORACLES["fedadam_v0_zero"]["outputs"]["x"], abs=1e-8)
    assert x != pytest.approx(ORACLES["fedadam"]["outputs"]["x"], abs=1e-6)


@pytest.mark.parametrize("kind", ["yogi", "adam"])
def test_openfedllms_form(kind):
    name = "openfedllm_compat_fedopt"
    x, _ = follow(adaptive(name, kind=kind, form="openfedllm"), name)
    assert x == pytest.approx(ORACLES[name]["outputs"][f"fed{kind}"], abs=1e-8)


def test_flowers_form():
    name = "flower_compat_fedadam"
    server = adaptive(name, kind="adam", form="flower", lr=ORACLES[name]["inputs"]["eta"], v0=0.0)
    assert follow(server, name, "dataset")[0] == pytest.approx(ORACLES[name]["outputs"]["x"], abs=1e-8)


@pytest.mark.parametrize("kind", ["adagrad", "yogi", "adam"])
def test_one_scale_for_everything_changes_no_step(kind):
    """Differences and tau times 7, v0 times 49: the same way."""

    def way(a):
        moves = [[0.4, -0.2], [-0.1, 0.5], [0.3, 0.1]]
        page = FedAvg(SPACE, server=Adaptive(kind=kind, lr=0.01, beta1=0.9, beta2=0.99, tau=0.01 * a, v0=0.04 * a * a))
        hub = Scalars(weighting="uniform").hub(page, Engine(deltas=lambda client: a * moves[hub.round][client]))
        return trajectory(page, hub, 3)[0]

    assert way(7.0) == pytest.approx(way(1.0), abs=1e-12)


def test_adagrads_second_moment_never_falls():
    _, memory = follow(adaptive("fedadagrad"), "fedadagrad")
    v = [float(part.v) for part in memory]
    assert v == sorted(v)
    assert v[0] < v[1]


# -- momentum, and DiLoCo's outer step


def outer(**changes):
    inputs = ORACLES["diloco_outer_nesterov"]["inputs"]
    return replace(ServerSgd(lr=inputs["outer_lr"], momentum=inputs["momentum"], nesterov=True), **changes)


def test_diloco_in_numbers():
    """The velocity has the sign of the difference here, of the gradient on the sheet."""
    x, memory = follow(outer(), "diloco_outer_nesterov")
    want = ORACLES["diloco_outer_nesterov"]["outputs"]
    assert x == pytest.approx(want["x"], abs=1e-8)
    assert [-float(part.m) for part in memory] == pytest.approx(want["buffer"], abs=1e-8)


def test_dilocos_first_step_is_a_third_beyond_the_mean():
    """(1 + .9) .7 = 1.33 times it."""
    page = FedAvg(SPACE, server=outer())
    hub = Scalars(weighting="uniform").hub(page, Engine(deltas=lambda client: 0.2))
    assert trajectory(page, hub, 1, 1.0)[0] == [pytest.approx(1 + 1.33 * 0.2, abs=1e-12)]


def test_diloco_is_torchs_own_nesterov():
    x, _ = follow(outer(), "diloco_outer_nesterov")
    w = torch.nn.Parameter(number(1.0))
    sgd, seen = torch.optim.SGD([w], lr=0.7, momentum=0.9, nesterov=True), []
    for one, other in ORACLES["diloco_outer_nesterov"]["inputs"]["client_deltas"]:
        w.grad = number(-(one + other) / 2)
        sgd.step()
        seen.append(w.item())
    assert x == pytest.approx(seen, abs=1e-12)


@pytest.mark.parametrize("server", [ServerSgd(), ServerSgd(momentum=0.0, nesterov=False), ServerSgd(lr=1.0)])
def test_without_momentum_at_rate_one_it_is_fedavg(server):
    page, plain = FedAvg(SPACE, server=server), FedAvg(SPACE)
    assert trajectory(page, Scalars().hub(page), 4)[0] == trajectory(plain, Scalars().hub(plain), 4)[0]


def test_momentum_goes_on_when_clients_stand_still():
    """Moves of 1, 0, 0 with momentum .5: 1, 1.5, 1.75."""
    page = FedAvg(SPACE, server=ServerSgd(momentum=0.5))
    hub = Scalars().hub(page, Engine(deltas=lambda client: float(hub.round == 0)))
    assert trajectory(page, hub, 3)[0] == pytest.approx([1.0, 1.5, 1.75], abs=1e-12)


def inner_adamw(w, rounds, keeps):
    """Each worker's AdamW lives on over rounds (or not) while the number it moves is set to the shared one."""
    x, velocity, optimizers, seen = 0.0, 0.0, {}, []
    for _ in range(rounds):
        ys = []
        for i in range(len(w.n)):
            y = torch.nn.Parameter(number(x))
            if i not in optimizers or not keeps:
                optimizers[i] = torch.optim.AdamW([y], lr=w.lr, betas=(0.8, 0.95), weight_decay=0.1)
            else:
                old, new = optimizers[i].param_groups[0]["params"][0], y
                optimizers[i].state[new] = optimizers[i].state.pop(old)
                optimizers[i].param_groups[0]["params"] = [new]
            for _ in range(w.steps):
                y.grad = (w.h[i] * (y - w.m[i])).detach()
                optimizers[i].step()
            ys.append(y.item())
        delta = sum(ys) / len(ys) - x
        velocity = 0.9 * velocity + delta
        x += 0.7 * (delta + 0.9 * velocity)
        seen.append(x)
    return seen


@pytest.mark.parametrize("keeps", [True, False])
def test_diloco_workers_keep_their_inner_optimiser(keeps):
    """AdamW's moments and step count go on from round to round; elsewhere they begin anew."""
    w = Scalars(
        h=(1.0, 2.0),
        m=(0.4, -2.0),
        steps=3,
        lr=0.05,
        weighting="uniform",
        optimizer=OptimizerConfig(name="adamw", weight_decay=0.1, args={"betas": [0.8, 0.95]}),
    )
    page = FedAvg(SPACE, server=outer(), keep_inner=keeps)
    seen = trajectory(page, w.hub(page), 4)[0]
    assert seen == pytest.approx(inner_adamw(w, 4, keeps), abs=1e-10)
    assert seen != pytest.approx(inner_adamw(w, 4, not keeps), abs=1e-6)


@pytest.mark.parametrize("server", [outer(), adaptive("fedadam"), adaptive("fedyogi"), adaptive("fedadagrad")])
def test_single_precision_stays_single_and_close(server):
    page = FedAvg(SPACE, server=server)
    states = advance(page, Scalars().hub(page), 3, torch.zeros(1))
    exact, _ = trajectory(page, Scalars().hub(page), 3)
    assert all(page.model(s).x.dtype == torch.float32 for s in states)
    assert [float(page.model(s).x) for s in states] == pytest.approx(exact, abs=1e-6)
