"""FedBiOT's page: what the clients hold on to, who trains what and when."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contract.links import Losing
from fedloom.algorithms.fedbiot import FedBiot, moved
from fedloom.channel.codec import encode
from fedloom.contracts import HOME, ClientFailed, Fitting, NobodyReplied, TooFewReplies
from fedloom.engine.lessons import Align
from fedloom.engine.requests import Descend
from fedloom.params import Layout, Leaf
from fedloom.runtime.client import LocalClient
from fedloom.runtime.site import Tasks
from fedloom.runtime.store import Memory, PendingState
from seam.quadratic import Rows, World, rows_of

ORACLE = json.loads((Path(__file__).parents[1] / "oracles_offsite.json").read_text())["fedbiot_client_loss"]
HOW = Fitting(0.02, 16, 0.1, None)
WORLD = World(ranks=(2,))
LAYOUT = WORLD.layout(-1)
ENDS = ("w.A", "w.B")
PAGE = FedBiot(LAYOUT, ENDS, HOW, lam=0.05, before=3, steps=2)
STILL = replace(PAGE, before=0, steps=0)


def part(x: Tensor, *names: str) -> Tensor:
    return LAYOUT.take(x, names)


def pair(out: int, inner: int, rank: int, scale: float = 1.0, name: str = "w") -> list[Leaf]:
    common: dict[str, Any] = {"module": name, "scale": scale}
    return [
        Leaf(f"{name}.A", (rank, inner), factor="A", **common),
        Leaf(f"{name}.B", (out, rank), factor="B", **common),
    ]


def watched(page: FedBiot) -> tuple[Any, list[Any]]:
    """A federation that keeps what its engine is asked."""
    asked: list[Any] = []

    class Watched(type(WORLD.site(Tasks(page)).engine)):  # type: ignore[misc]
        def admit(self, call: Any) -> None:
            asked.append(call.request)
            super().admit(call)

    hub: Any = WORLD.hub(page)
    hub.link.site.engine = Watched(3, WORLD.layout)
    return hub, asked


# -- the clients' penalty


def test_the_loss_by_hand() -> None:
    """B is the product, A the identity: .5² + .5² = .5, and 2 + .01 · .5 = 2.005."""
    given, wanted = ORACLE["inputs"], ORACLE["outputs"]
    layout = Layout.of([*pair(2, 2, 2), *pair(2, 2, 1, name="v")])
    page = FedBiot(layout, ENDS, HOW, lam=given["lam"])

    def at(product: list[list[float]]) -> Tensor:
        tensors = {"w.A": torch.eye(2), "w.B": torch.tensor(product), "v.A": torch.ones(1, 2), "v.B": torch.ones(2, 1)}
        return layout.gather(tensors)

    now, start = at(given["adapter_merged_now"]), at(given["adapter_at_round_start"])
    found = page.penalty(layout.views(now), start).item()
    assert found / given["lam"] == pytest.approx(wanted["reg"])
    assert given["ce"] + found == pytest.approx(wanted["loss"])


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_it_is_the_dense_one_with_a_gradient(scale: float) -> None:
    """Which that of the published code has not; other blocks' leaves do not count."""
    layout = Layout.of([*pair(5, 4, 2, scale), *pair(3, 6, 2, 0.5, "v"), *pair(4, 4, 2, 1.0, "middle")])
    page = FedBiot(layout, ("w.A", "w.B", "v.A", "v.B"), HOW, lam=0.3)
    source = torch.Generator().manual_seed(1)
    start, x = (torch.randn(layout.size, generator=source, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    now, first = layout.views(x), layout.views(start)
    dense = torch.zeros((), dtype=torch.float64)
    for name, by in (("w", scale), ("v", 0.5)):
        difference = now[f"{name}.B"] @ now[f"{name}.A"] - first[f"{name}.B"] @ first[f"{name}.A"]
        dense = dense + 0.3 * (by * difference).square().sum()
    found = page.penalty(now, start)
    assert found.item() == pytest.approx(dense.item())
    one, other = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in (found, dense))
    assert torch.allclose(one, other)
    assert one.any()


def test_where_nothing_moved_it_is_nothing_and_near_it_nothing_cancels() -> None:
    source = torch.Generator().manual_seed(2)
    a, b = torch.randn(8, 300, generator=source), torch.randn(200, 8, generator=source)
    near = b + 1e-5 * torch.randn(200, 8, generator=source)
    here = a.clone().requires_grad_()
    assert moved(here, b, a, b).item() == 0
    assert not torch.autograd.grad(moved(here, b, a, b), here)[0].any()
    wanted = (near.double() @ a.double() - b.double() @ a.double()).square().sum().item()
    assert moved(a, near, a, b).item() == pytest.approx(wanted, rel=1e-4)


# -- the two levels


def test_clients_move_the_adapter_alone() -> None:
    start = WORLD.start()
    state = STILL.round(STILL.init(start), WORLD.hub(STILL))
    assert torch.equal(part(state.x, "bias"), part(start, "bias"))
    for name in ENDS:
        assert not torch.equal(part(state.x, name), part(start, name))
    hub, asked = watched(PAGE)
    PAGE.round(PAGE.init(start), hub)
    for request in (one for one in asked if isinstance(one, Descend)):
        assert request.train == ENDS
        assert request.penalty is not None
    assert Tasks(PAGE).messages("local")[1].__annotations__.keys() == {"adapter"}, "nothing else is sent"


def test_the_server_moves_the_emulator_alone() -> None:
    """The clients' average stays what it was to the bit; the emulator follows it."""
    late = replace(PAGE, before=0)
    plain = STILL.round(STILL.init(WORLD.start()), WORLD.hub(STILL)).x
    state = late.round(late.init(WORLD.start()), WORLD.hub(late))
    assert torch.equal(part(state.x, *ENDS), part(plain, *ENDS))
    assert not torch.equal(part(state.x, "bias"), part(plain, "bias"))
    hub, asked = watched(late)
    late.round(late.init(WORLD.start()), hub)
    (request,) = (one for one in asked if isinstance(one, Align))
    assert torch.equal(request.x, plain)
    assert request.train == ("bias",)


def test_the_emulator_is_aligned_before_the_first_round_and_after_each() -> None:
    hub, asked = watched(PAGE)
    state = PAGE.init(WORLD.start())
    for _ in range(3):
        state = PAGE.round(state, hub)
        hub.round += 1
        hub.commit(hub.round)
    steps = [len(request.course.batches) for request in asked if isinstance(request, Align)]
    assert steps == [3, 2, 2, 2]
    assert isinstance(asked[0], Align)
    assert hub.traffic.figures["emulator_divergence"] == HOW.kd_weight  # what the toy engine tells


def test_a_first_round_without_clients_does_not_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, asked = watched(PAGE)
    state = PAGE.init(WORLD.start())
    with monkeypatch.context() as empty:
        empty.setattr(hub, "cohort", list)
        with pytest.raises(NobodyReplied):
            PAGE.round(state, hub)
    assert not state.begun
    hub.round = 1
    assert PAGE.round(state, hub).begun
    assert [len(one.course.batches) for one in asked if isinstance(one, Align)] == [3, 3, 2]


def test_without_alignment_and_penalty_nobody_is_asked_for_either() -> None:
    """What is left is FedAvg on the leaves of the adapter (see `test_fedbiot_runs`)."""
    page = replace(STILL, lam=0.0)
    hub, asked = watched(page)
    page.round(page.init(WORLD.start()), hub)
    assert asked and all(isinstance(request, Descend) and request.penalty is None for request in asked)


def test_a_worker_that_fails_leaves_no_trace() -> None:
    hub: Any = WORLD.hub(PAGE)
    state = PAGE.round(PAGE.init(WORLD.start()), hub)
    before = encode(state)
    hub.round = 1
    hub.commit(1)
    hub.link, hub._home = (Losing(hub.link, HOME),) * 2
    with pytest.raises(TooFewReplies, match="1 are needed"):
        PAGE.round(state, hub)
    hub.rewind(1)
    assert encode(state) == before


def test_without_rows_there_is_nothing_to_align() -> None:
    client = LocalClient(WORLD.profile(HOME), Rows(()), PendingState(Memory()), WORLD.plan(HOME), round=0, root=1)
    with pytest.raises(ClientFailed, match="no public row"):
        client.align(WORLD.start(), HOW, steps=2, train=("bias",))


def test_batches_are_the_worker_s_and_rates_fall() -> None:
    rows = rows_of(HOME, 5)
    client = LocalClient(WORLD.profile(HOME), rows, PendingState(Memory()), WORLD.plan(HOME), round=0, root=1)
    one, two = (client.align(WORLD.start(), HOW, steps=4, train=("bias",)).request for _ in range(2))
    assert one.course.lrs == pytest.approx([0.02, 0.015, 0.01, 0.005])
    assert [len(batch) for batch in one.course.batches] == [16, 16, 16, 2]
    assert [[id(r) for r in b] for b in one.course.batches] != [[id(r) for r in b] for b in two.course.batches]


def test_what_it_needs() -> None:
    assert PAGE.needs.home and PAGE.needs.public_rows
    assert not STILL.needs.home and not STILL.needs.public_rows
    with pytest.raises(ValueError, match="set offsite"):
        FedBiot(LAYOUT, (), HOW)
    with pytest.raises(ValueError, match=r"nothing could be aligned; let adapter.targets name layers of all blocks"):
        FedBiot(LAYOUT, LAYOUT.names, HOW)
