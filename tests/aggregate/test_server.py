"""The server's optimiser: torch's own SGD with the mean difference as its gradient, and FedAvg where it is trivial."""

import json
from pathlib import Path

import pytest
import torch

from fedloom.aggregate.server import ServerSgd

ORACLES = json.loads((Path(__file__).parents[1] / "oracles.json").read_text())


def means(rounds, size=7, dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    return [torch.randn(size, generator=g, dtype=dtype) for _ in range(rounds)]


@pytest.mark.parametrize("lr", [0.1, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_it_is_sgd_along_the_mean_difference(lr, momentum):
    """g = x - mean, no dampening, no Nesterov: torch.optim.SGD."""
    server = ServerSgd(lr, momentum)
    start = torch.ones(7, dtype=torch.float64)
    x, v = start, server.start(start)
    w = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([w], lr=lr, momentum=momentum)
    for mean in means(6):
        x, v = server.step(x, mean, v)
        w.grad = w.detach() - mean
        optimizer.step()
        assert torch.allclose(x, w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["fedavgm", "fedavgm_uniform"])
def test_fedavgm_in_numbers(name):
    """x0 = 1, the mean differences of two clients with 30 and 10 examples (or equal weights), beta = 0.9."""
    inputs, want = ORACLES[name]["inputs"], ORACLES[name]["outputs"]["x"]
    n = inputs.get("n", [1, 1])
    server = ServerSgd(inputs["server_lr"], inputs["beta"])
    x = torch.tensor([inputs["x0"]], dtype=torch.float64)
    v = server.start(x)
    for deltas, wanted in zip(inputs["client_deltas"], want, strict=True):
        mean = x + sum(k * d for k, d in zip(n, deltas, strict=True)) / sum(n)
        x, v = server.step(x, mean, v)
        assert x.item() == pytest.approx(wanted, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_momentum_at_rate_one_it_takes_the_mean_itself(dtype):
    """Bit for bit, also where x + (mean - x) rounds: 1e8 + (0.1 - 1e8) is not 0.1."""
    x, mean = torch.tensor([1e8, 1.0, -3.0], dtype=dtype), torch.tensor([0.1, 1e-8, 1e8], dtype=dtype)
    assert not torch.equal(x + (mean - x), mean)
    moved, _ = ServerSgd().step(x, mean, ServerSgd().start(x))
    assert torch.equal(moved, mean)


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


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_states_are_new_objects(momentum):
    """The old state may still be in a checkpoint or in a message."""
    x, mean, v = means(3)
    kept = [t.clone() for t in (x, mean, v)]
    moved, velocity = ServerSgd(0.7, momentum).step(x, mean, v)
    moved += 1
    assert all(torch.equal(a, b) for a, b in zip((x, mean, v), kept, strict=True))
    assert velocity.shape == v.shape


def test_the_velocity_begins_at_zero_in_the_format_of_the_weights():
    v = ServerSgd().start(torch.ones(3, dtype=torch.float64))
    assert v.dtype == torch.float64
    assert v.tolist() == [0, 0, 0]
