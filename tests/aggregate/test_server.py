"""Server optimisers: torch's own SGD with the mean difference as gradient, Reddi's forms, products of factors."""

import json
from pathlib import Path

import pytest
import torch

from fedloom.aggregate.server import Adaptive, Momenta, ServerSgd
from fedloom.channel.codec import decode, encode

ORACLES = json.loads((Path(__file__).parents[1] / "oracles.json").read_text())


def means(rounds, size=7, dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    return [torch.randn(size, generator=g, dtype=dtype) for _ in range(rounds)]


def product(seed, rank=2, dtype=torch.float64):
    """Three plain numbers and two modules, [5, 4] and [3, 6]."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(3,), (5, rank), (rank, 4), (3, rank), (rank, 6)]
    return tuple(torch.randn(shape, generator=g, dtype=dtype) for shape in shapes)


def written_out(term):
    """Every number the term stands for."""
    return torch.cat([term[0], *((term[m] @ term[m + 1]).reshape(-1) for m in range(1, len(term), 2))])


def trajectory(server, inputs):
    n, seen = inputs.get("n", [1, 1]), []
    x = torch.tensor([inputs["x0"]], dtype=torch.float64)
    memory = server.start(x)
    for deltas in inputs["client_deltas"]:
        mean = x + sum(k * d for k, d in zip(n, deltas, strict=True)) / sum(n)
        x, memory = server.step(x, mean, memory)
        seen.append((x.item(), memory))
    return seen


# -- sgd


@pytest.mark.parametrize("lr", [0.1, 0.5, 1.0, 1.7])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.5, True), (0.9, True)])
def test_it_is_sgd_along_the_mean_difference(lr, momentum, nesterov):
    """g = x - mean, no dampening: torch.optim.SGD."""
    server = ServerSgd(lr, momentum, nesterov)
    x = torch.ones(7, dtype=torch.float64)
    memory = server.start(x)
    w = torch.nn.Parameter(x.clone())
    optimizer = torch.optim.SGD([w], lr=lr, momentum=momentum, nesterov=nesterov)
    for mean in means(6):
        x, memory = server.step(x, mean, memory)
        w.grad = w.detach() - mean
        optimizer.step()
        assert torch.allclose(x, w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["fedavgm", "fedavgm_uniform"])
def test_fedavgm_in_numbers(name):
    """x0 = 1, the mean differences of two clients with 30 and 10 examples (or equal weights), beta = 0.9."""
    inputs = ORACLES[name]["inputs"]
    seen = trajectory(ServerSgd(inputs["server_lr"], inputs["beta"]), inputs)
    assert [x for x, _ in seen] == pytest.approx(ORACLES[name]["outputs"]["x"], abs=1e-8)


def test_dilocos_outer_step_in_numbers():
    """The velocity points the way x goes, so it is the printed buffer with the other sign."""
    inputs, outputs = (ORACLES["diloco_outer_nesterov"][part] for part in ("inputs", "outputs"))
    seen = trajectory(ServerSgd(inputs["outer_lr"], inputs["momentum"], nesterov=True), inputs)
    assert [x for x, _ in seen] == pytest.approx(outputs["x"], abs=1e-8)
    assert [-memory.m.item() for _, memory in seen] == pytest.approx(outputs["buffer"], abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_momentum_at_rate_one_it_takes_the_mean_itself(dtype):
    """Bit for bit, also where x + (mean - x) rounds: 1e8 + (0.1 - 1e8) is not 0.1."""
    x, mean = torch.tensor([1e8, 1.0, -3.0], dtype=dtype), torch.tensor([0.1, 1e-8, 1e8], dtype=dtype)
    assert not torch.equal(x + (mean - x), mean)
    moved, _ = ServerSgd().step(x, mean, ServerSgd().start(x))
    assert torch.equal(moved, mean)


def test_only_that_is_plain():
    assert ServerSgd().plain
    assert not any(s.plain for s in (ServerSgd(0.5), ServerSgd(1.0, 0.9), ServerSgd(1.0, 0.9, True), Adaptive("adam")))


def test_where_nothing_changes_momentum_carries_on():
    """v = 1 after the first step; with mean = x it is 0.5, then 0.25."""
    server = ServerSgd(momentum=0.5)
    x = torch.zeros(1)
    x, v = server.step(x, torch.ones(1), server.start(x))
    seen = [x.item()]
    for _ in range(2):
        x, v = server.step(x, x, v)
        seen.append(x.item())
    assert seen == [1.0, 1.5, 1.75]


SERVERS = [ServerSgd(0.7), ServerSgd(0.7, 0.9), ServerSgd(1.0, 0.9, True), Adaptive("adam"), Adaptive("yogi", v0=0.0)]


@pytest.mark.parametrize("server", SERVERS)
def test_nothing_is_changed_in_place(server):
    """The old state may still be in a checkpoint or in a message."""
    x, mean, later = means(3)
    _, memory = server.step(x, mean, server.start(x))
    given = (x, later, memory.m, memory.v)
    kept = [t.clone() for t in given]
    moved, new = server.step(x, later, memory)
    for mine in (moved, new.m, new.v):
        if mine.data_ptr() != memory.v.data_ptr():
            mine += 1
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_format_stays(server, dtype):
    x, mean, later = means(3, dtype=dtype)
    memory = server.start(x)
    for goal in (mean, later):
        x, memory = server.step(x, goal, memory)
        assert {x.dtype, memory.m.dtype, memory.v.dtype} == {dtype}


def test_without_momentum_nothing_is_remembered():
    for point in (torch.ones(9), product(1)):
        memory = ServerSgd(0.3).start(point)
        _, memory = ServerSgd(0.3).step(point, point, memory)
        assert memory.m.numel() == memory.v.numel() == 0


# -- sgd on products of factors


@pytest.mark.parametrize(
    "server", [ServerSgd(0.5), ServerSgd(0.7, 0.9), ServerSgd(1.0, 0.9), ServerSgd(0.7, 0.9, True)]
)
def test_products_move_as_the_matrices_they_stand_for(server):
    """Means of other inner sizes than x, five rounds."""
    x = product(0)
    flat = written_out(x)
    memory, flat_memory = server.start(x), server.start(flat)
    for seed in range(1, 6):
        mean = product(seed, rank=1 + seed % 3)
        x, memory = server.step(x, mean, memory)
        flat, flat_memory = server.step(flat, written_out(mean), flat_memory)
        assert torch.allclose(written_out(x), flat, rtol=0, atol=1e-12)
    assert all(factor.shape[1] <= 4 for factor in memory.m[1::2])  # no wider than the matrices, however many rounds


def test_products_at_rest_are_the_mean_itself():
    x, mean = product(0), product(1)
    moved, _ = ServerSgd().step(x, mean, ServerSgd().start(x))
    assert all(torch.equal(a, b) for a, b in zip(moved, mean, strict=True))


@pytest.mark.parametrize("point", [torch.ones(4), product(0)], ids=["vector", "products"])
@pytest.mark.parametrize("server", [ServerSgd(0.5), ServerSgd(0.5, 0.9)])
def test_memories_survive_a_checkpoint(server, point):
    begun = server.start(point)
    _, later = server.step(point, point, begun)
    for memory in (begun, later):
        back = decode(Momenta, encode(memory))
        for mine, its in ((memory.m, back.m), (memory.v, back.v)):
            pairs = zip(mine, its, strict=True) if isinstance(mine, tuple) else [(mine, its)]
            assert all(torch.equal(a, b) for a, b in pairs)
        assert back.t == memory.t


# -- adaptive


def adaptive(kind, inputs, **more):
    known = {name: inputs[name] for name in ("beta1", "beta2", "tau")}
    v0 = "tau2" if inputs.get("v0", "tau^2") == "tau^2" else inputs["v0"]
    return Adaptive(kind, inputs.get("server_lr", inputs.get("lr", inputs.get("eta"))), v0=v0, **known, **more)


@pytest.mark.parametrize(
    ("name", "kind", "form"),
    [
        ("fedadagrad", "adagrad", "final"),
        ("fedadagrad_weighted", "adagrad", "final"),
        ("fedyogi", "yogi", "final"),
        ("fedyogi_weighted", "yogi", "final"),
        ("fedyogi_early_form", "yogi", "early"),
        ("fedadam", "adam", "final"),
        ("fedadam_weighted", "adam", "final"),
        ("fedadam_early_form", "adam", "early"),
        ("fedadam_v0_zero", "adam", "final"),
        ("flower_compat_fedadam", "adam", "flower"),
    ],
)
def test_adaptive_in_numbers(name, kind, form):
    inputs, outputs = ORACLES[name]["inputs"], ORACLES[name]["outputs"]
    seen = trajectory(adaptive(kind, inputs, form=form), inputs)
    assert [x for x, _ in seen] == pytest.approx(outputs["x"], abs=1e-8)
    for moment in ("m", "v"):
        if moment in outputs:
            assert [getattr(s, moment).item() for _, s in seen] == pytest.approx(outputs[moment], abs=1e-8)


@pytest.mark.parametrize("kind", ["yogi", "adam"])
def test_openfedllms_form_in_numbers(kind):
    inputs = ORACLES["openfedllm_compat_fedopt"]["inputs"]
    seen = trajectory(adaptive(kind, inputs, form="openfedllm"), inputs)
    assert [x for x, _ in seen] == pytest.approx(ORACLES["openfedllm_compat_fedopt"]["outputs"][f"fed{kind}"], abs=1e-8)


@pytest.mark.parametrize("form", ["openfedllm", "flower"])
def test_their_adagrad_has_no_momentum(form):
    """As if beta1 were 0, whatever it is."""
    inputs = ORACLES["fedadagrad"]["inputs"]
    seen = trajectory(Adaptive("adagrad", 1e-3, beta1=0.9, v0=1e-6, form=form), inputs)
    assert [x for x, _ in seen] == pytest.approx(ORACLES["fedadagrad"]["outputs"]["x"], abs=1e-8)


def test_flowers_form_begins_at_zero_unless_told():
    """v0 = tau^2 elsewhere; a number given is a number meant."""
    x = torch.zeros(2, dtype=torch.float64)
    begun = [Adaptive("adam", form="flower"), Adaptive("adam", tau=0.1), Adaptive("adam", v0=0.5, form="flower")]
    assert [server.start(x).v.tolist() for server in begun] == [[0, 0], [pytest.approx(0.01)] * 2, [0.5, 0.5]]


@pytest.mark.parametrize("kind", ["adagrad", "yogi", "adam"])
@pytest.mark.parametrize("form", ["final", "early"])
def test_scaling_everything_changes_no_step(kind, form):
    """Differences and tau times a, v0 times a^2."""
    a = 7.0
    small = Adaptive(kind, 0.1, tau=0.01, v0=0.03, form=form)
    large = Adaptive(kind, 0.1, tau=0.01 * a, v0=0.03 * a * a, form=form)
    x = y = torch.zeros(7, dtype=torch.float64)
    one, other = small.start(x), large.start(y)
    for delta in means(5):
        x, one = small.step(x, x + delta, one)
        y, other = large.step(y, y + a * delta, other)
    assert torch.allclose(x, y, rtol=0, atol=1e-12)
    assert x.abs().max() > 1e-2


def test_numbers_without_meaning_are_refused():
    server, point = Adaptive("adam"), product(0)
    with pytest.raises(ValueError, match="use sgd"):
        server.start(point)
    with pytest.raises(ValueError, match="use sgd"):
        server.step(point, point, Momenta(torch.zeros(3), torch.zeros(3)))


@pytest.mark.parametrize(("settings", "word"), [({"tau": 0.0}, "tau is 0"), ({"v0": -1.0}, "v0 is -1")])
def test_settings_that_divide_by_zero_are_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        Adaptive("adam", **settings)
