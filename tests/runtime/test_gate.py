"""Replies of hostile clients: whatever they hold, they are refused in words and leave the fold as it was."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from contract.links import Losing, Passing
from fedloom.aggregate.robust import Bulyan, GeometricMedian, Krum, Median, MultiKrum, NormBound, TrimmedMean
from fedloom.aggregate.rules import Max, Mean, Sum
from fedloom.algorithms.fedbuff import FedBuff
from fedloom.channel.check import Limits, norm
from fedloom.channel.codec import encode
from fedloom.channel.encoding import Encoding
from fedloom.channel.packing import pack
from fedloom.contracts import Message, Missing, Weighted
from fedloom.events import Event, ReplyMissing
from fedloom.rounds import advance
from fedloom.runtime.federation import Hub
from fedloom.runtime.folding import Fold
from fedloom.runtime.site import Dispatch, Reply
from fedloom.spaces.stack import Stack
from runtime.test_hub import PAGE, Times, Up, collect, down, hub
from seam.quadratic import World
from seam.table import NAMES, rows


@dataclass(frozen=True)
class Sent(Weighted):
    y: Any


WRONG: dict[str, Callable[[Tensor], Any]] = {
    "one number less": lambda t: t[..., :-1],
    "one number more": lambda t: torch.cat([t, t[..., :1]], dim=-1),
    "no number": lambda t: t.new_zeros(0),
    "a single one": lambda t: t.new_zeros(()),
    "another dimension": lambda t: t[None],
    "flat": lambda t: t.reshape(-1) if t.dim() > 1 else t.reshape(-1, 1),
    "whole numbers": lambda t: t.to(torch.int64),
    "truths": lambda t: t.bool(),
    "bytes": lambda t: t.to(torch.uint8),
    "a number": lambda t: 1.0,
    "nothing": lambda t: None,
    "text": lambda t: "0.1",
    "a tuple of it": lambda t: (t,),
    "two of it": lambda t: (t, t),
    "an empty tuple": lambda t: (),
}
RULES = {
    "mean": Mean(), "uniform mean": Mean(uniform=True), "sum": Sum(), "stack": Stack(),
    **{
        type(guard).__name__: guard(Mean(), torch.zeros(4), lambda term: term)
        for guard in (Median(), TrimmedMean(), Krum(), MultiKrum(), Bulyan(), NormBound(), GeometricMedian())
    },
}  # fmt: skip
TAKES = {("stack", "a tuple of it")}
"""A term of no products is a tuple of one tensor."""


class Lying(Passing):
    """One client's replies are exchanged for others."""

    def __init__(self, inner: Any, client: int, lie: Callable[[Any], Any]) -> None:
        super().__init__(inner)
        self.client, self.lie = client, lie

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        for reply in self.inner.ask(dispatches):
            lies = reply.dispatch.client == self.client and reply.up is not None
            yield replace(reply, up=self.lie(reply.up)) if lies else reply


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", RULES)
def test_every_rule_stays_whole(name, wrong):
    """Seven honest replies of four numbers, and one that is not, in their midst."""
    honest = {i: Sent(weight=1.0 + i, y=torch.randn(4, generator=torch.Generator().manual_seed(i))) for i in range(8)}
    lie = Sent(weight=2.0, y=WRONG[wrong](honest[3].y))
    found = hub(lambda d: lie if d.client == 3 else honest[d.client], clients=range(8))
    silent = hub(lambda d: Missing("silent", "-") if d.client == 3 else honest[d.client], clients=range(8))
    got, wanted = (collect(one, range(8), {"y": RULES[name]}) for one in (found, silent))
    if (name, wrong) in TAKES:
        return
    assert set(got.missing) == {3} and got.missing[3].reason == "refused" and got.missing[3].detail
    assert encode(Sent(weight=0.0, y=got.value.y)) == encode(Sent(weight=0.0, y=wanted.value.y))
    assert (got.clients, got.weight) == (wanted.clients, wanted.weight)


def test_a_maximum_takes_numbers_only():
    made = hub(lambda d: Up(weight=1.0, y=torch.zeros(1), n=torch.zeros(3) if d.client == 1 else 2.0))  # type: ignore[arg-type]
    got = collect(made, [0, 1, 2], {"y": Mean(), "n": Max()})
    assert (got.clients, got.missing[1].reason, got.value.n) == ((0, 2), "refused", 2.0)


def test_a_rule_that_breaks_in_its_second_field_has_kept_nothing_of_the_first():
    answers = [Up(weight=1.0, y=torch.ones(2), n=1.0), Up(weight=1.0, y=torch.ones(2) * 9, n="x")]  # type: ignore[arg-type]
    got = collect(hub(lambda d: answers[d.client]), [0, 1], {"y": Sum(), "n": Sum()})
    assert (got.value.y.tolist(), got.value.n, got.weight, got.clients) == ([1.0, 1.0], 1.0, 1.0, (0,))


def test_a_page_that_cannot_look_at_a_reply_refuses_it():
    def fits(client: int, up: Up) -> str | None:
        return None if up.y[0] >= 0 else "below 0"

    made = hub(lambda d: Up(weight=1.0, y=torch.zeros(0) if d.client == 1 else torch.ones(1)))
    got = made.collect(PAGE.local, down, [0, 1], Mean(), fits)
    assert got.clients == (0,)
    assert "cannot be looked at" in got.missing[1].detail


def test_what_a_client_says_is_not_repeated_at_any_length():
    made = hub(lambda d: Up(weight=1.0, y=torch.ones(1)))
    got = made.collect(PAGE.local, down, [0, 1], Mean(), lambda client, up: "x" * 10**6 if client else None)
    assert len(got.missing[1].detail) < 500


def test_rules_are_tried_on_zeros_and_once_for_each_kind():
    seen = list[Tensor]()

    class Seeing(type(Mean())):  # type: ignore[misc]
        def add(self, acc: Any, value: Any, weight: Any) -> Any:
            seen.append(value)
            return super().add(acc, value, weight)

    fold = Fold(Seeing(), None, ())
    for i in range(5):
        up = Sent(weight=1.0, y=torch.ones(1000) * i)
        fold.begin(up)
        assert fold.misfit(up) is None
        fold.add(i, up)
    likeness = [one for one in seen if one.untyped_storage().nbytes() == 4]
    assert len(likeness) == 1
    assert len(seen) == 6


# -- every algorithm's message


def lies(up: Message) -> dict[str, Any]:
    """Everything that can be wrong with one field at a time."""
    found = {}
    for field in fields(up):
        value = getattr(up, field.name)
        if isinstance(value, Tensor):
            for wrong, change in WRONG.items():
                found[f"{field.name}: {wrong}"] = replace(up, **{field.name: change(value)})
            found[f"{field.name}: another format"] = replace(up, **{field.name: value.float()})
        elif isinstance(value, tuple):
            every = {"none": (), "one less": value[:-1], "one more": (*value, value[-1]), "the first alone": value[0]}
            for wrong, change in WRONG.items():
                every[f"last {wrong}"] = (*value[:-1], change(value[-1]))
                every[f"first {wrong}"] = (change(value[0]), *value[1:])
            every["another format"] = (*value[:-1], value[-1].float())
            every["turned"] = (value[0], *reversed(value[1:]))
            found |= {f"{field.name}: {wrong}": replace(up, **{field.name: change}) for wrong, change in every.items()}
        elif isinstance(value, float | int):
            for wrong in (10**400, float("nan"), -1.0e9):
                found[f"{field.name}: {str(wrong)[:20]}"] = replace(up, **{field.name: wrong})
    return found


SAME = (
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "diloco",
    "scaffold-I",
    "scaffold-II",
    "local",
    "local-inner",
    "centralized",
)
"""Rows whose replies are like another's, or go to nobody's rule."""
PAGES = [name for name in NAMES if not name.startswith("toy") and name not in SAME and "conv1d" not in name]


def encode_or_nothing(up: Message) -> bytes:
    try:
        return encode(Sent(weight=0.0, y=vars(up)))
    except (TypeError, ValueError):
        return b""


def first_round(name: str, lie: Callable[[Any], Any] | None, events: Callable[[Event], None] = lambda e: None) -> bytes:
    row = rows()[name]
    world = replace(row.world, cohort=row.world.clients)

    def wrap(inner: Any) -> Any:
        return Losing(inner, 0) if lie is None else Lying(inner, 0, lie)

    made = world.hub(row.algorithm, stages=row.stages, wrap=wrap, events=events)
    state = advance(row.algorithm, row.algorithm.init(world.start()), made, 1, retries=0)
    return encode(state)


@pytest.mark.parametrize("name", PAGES)
def test_every_algorithm_refuses_what_cannot_be_combined(name):
    """Client 0, whose reply is the first in the fold, lies; all else is as if it had never replied."""
    honest = list[Any]()
    whole = first_round(name, lambda up: honest.append(up) or up)
    without = first_round(name, None)
    assert whole != without or "krum" in name  # which takes another's reply
    for what, lie in lies(honest[0]).items():
        if encode(Sent(weight=0.0, y=vars(honest[0]))) == encode_or_nothing(lie):
            continue  # bytes as bytes
        seen = list[Event]()
        state = first_round(name, lambda up, lie=lie: lie, seen.append)
        missing = [e for e in seen if isinstance(e, ReplyMissing) and e.client == 0]
        if not missing:  # harmless: what the rules of this page do not look at
            assert what.split(":")[0] in ("rank",) or what == "y: turned", what
            continue
        assert missing[0].reason in ("refused", "nonfinite") and missing[0].detail, what
        assert {e.client for e in seen if isinstance(e, ReplyMissing)} == {0}, what
        assert state == without, what


def test_an_update_does_not_count_itself_more_often():
    page, world = FedBuff(buffer=5, concurrency=5), World(cohort=5)
    seen = list[Event]()
    made = world.hub(page, wrap=lambda inner: Lying(inner, 2, lambda up: replace(up, n=50.0)), events=seen.append)
    page.round(page.init(world.start()), made)
    (missing,) = [e for e in seen if isinstance(e, ReplyMissing)]
    assert "counts itself 50 times" in missing.detail


# -- limits


def limited(limits: Limits, answer: Any, **changes: Any) -> Hub:
    return hub(answer, limits=limits, **changes)


@pytest.mark.parametrize(("bound", "counted"), [(5.0, (0, 1, 2)), (4.99, (0, 2)), (0.5, ())])
def test_norms(bound, counted):
    """Client 1 sends (3, 4), the others (1, 0)."""
    y = {1: torch.tensor([3.0, 4.0])}
    made = limited(Limits(norm=bound), lambda d: Up(weight=9.0, y=y.get(d.client, torch.tensor([1.0, 0.0]))))
    if not counted:
        with pytest.raises(Exception, match=r"its numbers have the norm 1, at most 0\.5 is allowed"):
            collect(made, [0, 1, 2])
        return
    got = collect(made, [0, 1, 2])
    assert got.clients == counted
    assert all(why.reason == "refused" for why in got.missing.values())


def test_a_norm_is_that_of_all_tensors_together_in_float64():
    up = Sent(weight=7.0, y=(torch.full((4,), 3e37), torch.tensor([4.0]).half(), torch.tensor([100])))
    assert norm(up) == pytest.approx(6e37)
    assert norm(Sent(weight=1.0, y=(torch.tensor([3.0]), {"a": torch.tensor([4.0], dtype=torch.bfloat16)}))) == 5.0
    assert norm(Sent(weight=1.0, y=torch.tensor([1e200, 1e200], dtype=torch.float64))) > 1e200
    assert norm(Sent(weight=1.0, y=())) == 0.0


@pytest.mark.parametrize(("bound", "counted"), [(4.0, (0, 1, 2)), (3.9, (0, 1)), (2.5, (0,))])
def test_weights(bound, counted):
    got = collect(limited(Limits(weight=bound), lambda d: Up(weight=2.0 + d.client, y=torch.ones(1))), [0, 1, 2])
    assert got.clients == counted
    assert all("its weight is" in why.detail for why in got.missing.values())


def test_a_weight_that_is_none_by_name_is_bounded_too():
    """FedBuff's n multiplies in through `weigh`."""
    made = limited(Limits(weight=1.5), lambda d: Up(weight=1.0, y=torch.ones(1) * d.client))
    made.send(PAGE.local, down, [1, 2])
    got = made.receive(2, Mean(), weigh=lambda up: 1.2 + 0.2 * float(up.y))
    assert got.clients == (1,)
    assert "1.6" in got.missing[2].detail


def test_a_norm_is_that_of_what_was_encoded():
    stage = Encoding("int8")
    y = pack(torch.tensor([3.0, 4.0]), "int8", torch.float32)
    for bound, counted in ((5.1, (0,)), (4.9, ())):
        made = hub(lambda d: Up(weight=1.0, y=y), stages=[stage], limits=Limits(norm=bound), min_replies=0)
        assert collect(made, [0]).clients == counted


def test_evaluations_and_the_servers_own_worker_have_no_limits():
    made = hub(lambda d: Up(weight=9.0, y=torch.ones(3)), limits=Limits(1.0, 1.0), min_replies=0)
    made._home = made.link
    assert collect(made, [-1, 1]).clients == (-1,)


def test_limits_cannot_be_held_under_a_stage_that_hides():
    with pytest.raises(ValueError, match="cannot be held"):
        hub(stages=[Times(1.0, 0.0, hides=True)], limits=Limits(norm=1.0))


def test_bytes_that_no_stage_makes_are_refused():
    answers = {0: torch.ones(4), 1: torch.ones(4).to(torch.uint8), 2: pack(torch.ones(4), "int8", torch.float32)}
    got = collect(hub(lambda d: Up(weight=1.0, y=answers[d.client]), stages=[Encoding("int8")]), [0, 1, 2])
    assert got.clients == (2,)
    assert {why.reason for why in got.missing.values()} == {"refused"}
    assert got.value.y.tolist() == [1.0] * 4
