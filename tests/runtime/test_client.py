"""What a client's coroutine asks of the engine: batches, rates and seeds, all from its own key."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from fedloom.contracts import ClientFailed, Exchange, Message, Model, Profile, Trained
from fedloom.engine.config import CosineConfig, LocalConfig, OptimizerConfig
from fedloom.engine.requests import Descend, Evaluate, Generate, Logits, Probe
from fedloom.params import Layout, Leaf
from fedloom.runtime.client import LocalClient, LocalPlan
from fedloom.runtime.store import Memory, PendingState

LAYOUT = Layout.of([Leaf("w", (3,))])
X = torch.zeros(3)
CARRY = (torch.ones(3, 1), torch.ones(1, 3))


@dataclass(frozen=True)
class Row:
    name: str
    ids: tuple[int, ...] = (1,)

    @property
    def size(self) -> int:
        return len(self.ids)


@dataclass
class Data:
    splits: dict[str, list[Any]]

    def get(self, split: str) -> list[Any]:
        return self.splits[split]


@dataclass
class Make:
    """A client, with everything a test may want to change."""

    rows: int = 10
    local: dict[str, Any] = field(default_factory=dict)
    rounds: int = 5
    weighting: Any = "examples"
    round: int = 0
    root: int = 11
    lengths: tuple[int, ...] = ()

    def __call__(self) -> LocalClient:
        lengths = self.lengths or (1,) * self.rows
        rows = [Row(f"row {i}", (0,) * n) for i, n in enumerate(lengths[: self.rows])]
        data = Data({"train": rows, "validation": ["v0", "v1"], "test": ["t0", "t1", "t2"]})
        profile = Profile(4, "hospital", LAYOUT)
        plan = LocalPlan(LocalConfig(**{"batch_size": 4, **self.local}), self.rounds, self.weighting)
        return LocalClient(profile, data, PendingState(Memory()), plan, self.round, self.root)


def asked(awaitable: Any) -> Any:
    """The request an awaitable hands to the driver."""
    call = next(awaitable.__await__())
    assert call.client == 4
    return call.request


def answered(awaitable: Any, value: Any) -> Any:
    """What awaiting gives once the engine answered."""
    steps = awaitable.__await__()
    next(steps)
    with pytest.raises(StopIteration) as end:
        steps.send(value)
    return end.value.value


def names(batches: Any) -> list[list[str]]:
    return [[row.name for row in batch] for batch in batches]


def trained(**changes: Any) -> Trained:
    return Trained(**{"y": X, "steps": 2, "lr_sum": 0.2, "examples": 8, "tokens": 30, "loss": 1.0, **changes})


# -- descend


def test_training_is_as_the_recipe_says():
    optimizer = OptimizerConfig(name="sgd", args={"momentum": 0.9})
    local = {"steps": 3, "lr": 0.1, "warmup": 1, "max_grad_norm": 2.0, "accumulate": 2, "optimizer": optimizer}
    request = asked(Make(local=local)().descend(X))
    assert isinstance(request, Descend)
    assert request.start is X
    assert request.layout is LAYOUT
    assert [len(batch) for batch in request.batches] == [4, 4, 2]  # ten rows, one pass
    assert request.lrs == [0.05, 0.1, 0.1]
    assert (request.optimizer, request.max_grad_norm, request.accumulate) == (optimizer, 2.0, 2)
    assert request.label == "hospital, round 1"
    assert (request.train, request.correct, request.with_, request.penalty) == (None, None, (), None)
    assert (request.gradient, request.carry, request.inner) == (False, (), None)


def test_what_a_page_asks_for_reaches_the_engine():
    def correct(g, w, c):
        return g

    def penalty(leaves, c):
        return torch.zeros(())

    c, carry, inner = torch.ones(3), [torch.ones(3, 1), torch.ones(1, 3)], {"0 v": torch.ones(3)}
    request = asked(
        Make()().descend(
            X, train=["w"], correct=correct, with_=[c], penalty=penalty, gradient=True, carry=carry, inner=inner
        )
    )
    assert (request.train, request.correct, request.penalty, request.gradient) == (["w"], correct, penalty, True)
    assert request.with_ == (c,)
    assert request.carry == tuple(carry)
    assert request.inner is inner


@pytest.mark.parametrize(
    ("local", "asks", "batches"),
    [
        ({"steps": 5}, {}, 5),
        ({"steps": 5}, {"steps": 2}, 2),
        ({"epochs": 2.0}, {}, 6),  # ten rows in batches of four: three a pass
        ({"epochs": 2.0}, {"steps": 4}, 4),
        ({"epochs": 0.01}, {}, 1),
        ({}, {}, 10),
    ],
)
def test_how_long_it_trains(local, asks, batches):
    request = asked(Make(local=local)().descend(X, **asks))
    assert len(request.batches) == len(request.lrs) == batches


@pytest.mark.parametrize(("round", "rate"), [(0, 0.1), (2, 0.05), (4, 0.0)])
def test_the_rate_is_the_rounds(round, rate):
    """Half a cosine over five rounds: full, half, nothing."""
    client = Make(round=round, local={"steps": 2, "lr": 0.1, "schedule": CosineConfig()})()
    assert asked(client.descend(X)).lrs == pytest.approx([rate, rate], abs=1e-15)
    assert asked(client.descend(X)).label == f"hospital, round {round + 1}"


def test_a_page_may_give_the_rate_itself():
    client = Make(round=4, local={"steps": 2, "warmup": 1, "schedule": CosineConfig()})()
    assert asked(client.descend(X, lr=0.3)).lrs == [0.15, 0.3]
    assert asked(client.descend(X, lr=0.0)).lrs == [0.0, 0.0]


def test_a_client_without_rows_fails_and_is_not_a_bug():
    with pytest.raises(ClientFailed, match="hospital has no training row") as caught:
        Make(rows=0)().descend(X)
    assert caught.value.missing.reason == "failed"
    with pytest.raises(ClientFailed):
        Make(rows=0)().probe([X])


@pytest.mark.parametrize(("round", "rate"), [(0, 0.1), (2, 0.05), (4, 0.0)])
def test_a_page_may_ask_for_the_rate_of_the_round(round, rate):
    client = Make(round=round, local={"steps": 2, "lr": 0.1, "warmup": 3, "schedule": CosineConfig()})()
    assert client.lr == pytest.approx(rate, abs=1e-15)
    assert type(client.lr) is float


def test_the_rate_may_fall_within_a_training():
    """From 0.1 in a line towards a half of it: 0.1 (1 - k / 4 / 2); a page's own rate falls too."""
    client = Make(local={"steps": 4, "lr": 0.1})()
    assert asked(client.descend(X, decay=0.5)).lrs == pytest.approx([0.1, 0.0875, 0.075, 0.0625])
    assert asked(client.descend(X, decay=0.0, lr=0.8, steps=2)).lrs == pytest.approx([0.8, 0.4])
    assert asked(client.descend(X)).lrs == [0.1] * 4
    warm = Make(local={"steps": 4, "lr": 0.1, "warmup": 1})()
    assert asked(warm.descend(X, decay=0.0)).lrs == pytest.approx([0.05, 0.075, 0.05, 0.025])


def test_one_batch_again_and_again():
    client = Make(rows=40, local={"steps": 5})()
    many = asked(client.descend(X, batches="shared"))
    one = asked(client.descend(X, batches="shared", one_batch=True))
    assert len(one.batches) == len(one.lrs) == 5
    assert names(one.batches) == names(many.batches)[:1] * 5
    assert names(many.batches)[1] != names(many.batches)[0]
    assert names([asked(client.probe([X], batches="shared")).examples]) == names(one.batches)[:1]
    assert names(asked(client.descend(X, batches="shared", one_batch=True, steps=2)).batches) == names(one.batches)[:2]
    assert asked(client.descend(X, one_batch=True, steps=0)).batches == []


def test_without_a_name_every_one_batch_is_another():
    client = Make(rows=40, local={"steps": 3})()
    first, second = (names(asked(client.descend(X, one_batch=True)).batches) for _ in range(2))
    assert first[0] == first[1] == first[2]
    assert first != second


@pytest.mark.parametrize(
    ("rows", "count", "steps"),
    [(10, 1.0, 3), (10, 2.0, 6), (10, 1 / 3, 1), (10, 0.001, 1), (8, 1.0, 2), (8, 1.5, 3), (9, 4.0, 12), (1, 1.0, 1)],
)
def test_steps_of_so_many_passes(rows, count, steps):
    """Batches of four. As many as `local.epochs` would make of it."""
    client = Make(rows=rows)()
    assert client.passes(count) == steps
    assert len(asked(Make(rows=rows, local={"epochs": count})().descend(X)).batches) == steps
    if count == 1.0:
        assert client.passes() == steps


def test_a_pass_sees_every_row_as_often():
    client = Make(rows=11)()
    batches = names(asked(client.descend(X, steps=client.passes(3))).batches)
    assert sorted(name for batch in batches for name in batch) == sorted([f"row {i}" for i in range(11)] * 3)


def test_a_client_without_rows_can_be_asked_for_its_passes():
    assert Make(rows=0)().passes() == 1  # the training itself will say that there is no row


# -- batches and seeds


def test_a_client_draws_the_same_wherever_it_runs():
    one, other = Make()(), Make()()
    for _ in range(3):
        left, right = asked(one.descend(X)), asked(other.descend(X))
        assert names(left.batches) == names(right.batches)
        assert left.seed == right.seed


def test_every_training_of_a_task_has_its_own_batches_and_masks():
    client = Make(rows=40)()
    first, second = asked(client.descend(X)), asked(client.descend(X))
    assert names(first.batches) != names(second.batches)
    assert first.seed != second.seed


def test_trainings_of_one_stream_see_the_same_batches_and_other_masks():
    client = Make(rows=40)()
    first, second = (asked(client.descend(X, batches="shared")) for _ in range(2))
    third = asked(client.descend(X, batches="other"))
    assert names(first.batches) == names(second.batches) != names(third.batches)
    assert first.seed != second.seed


def test_a_probe_of_a_stream_sees_the_first_batch_of_its_training():
    client = Make(rows=40)()
    request = asked(client.probe([X, X + 1], batches="shared", carry=CARRY))
    assert isinstance(request, Probe)
    assert (request.layout, request.carry) == (LAYOUT, CARRY)
    assert len(request.points) == 2
    assert names([request.examples]) == names(asked(client.descend(X, batches="shared")).batches)[:1]


def test_probes_see_one_batch_after_the_other():
    client = Make(rows=40)()
    assert names([asked(client.probe([X])).examples]) != names([asked(client.probe([X])).examples])


def test_a_longer_training_begins_like_the_shorter():
    short, long = asked(Make()().descend(X, steps=2)), asked(Make()().descend(X, steps=7))
    assert names(long.batches)[:2] == names(short.batches)


def test_other_roots_draw_otherwise():
    """Of another client, round, or run: the root is keyed by all of them."""
    one, other = asked(Make(rows=40)().descend(X)), asked(Make(rows=40, root=12)().descend(X))
    assert names(one.batches) != names(other.batches)
    assert one.seed != other.seed
    assert Make()().key("a") != Make(root=12)().key("a")
    assert Make()().key("a") != Make()().key("b")
    assert Make()().key("a") == Make()().key("a")


def test_rows_of_like_length_stand_together_when_asked_for():
    lengths = (1, 9) * 6
    local = {"batch_size": 6, "steps": 2}
    mixed = asked(Make(rows=12, lengths=lengths, local=local)().descend(X)).batches
    grouped = asked(Make(rows=12, lengths=lengths, local={**local, "group_by_length": True})().descend(X)).batches
    assert all(len({len(row.ids) for row in batch}) == 2 for batch in mixed)
    assert all(len({len(row.ids) for row in batch}) == 1 for batch in grouped)


# -- what it counts for


@pytest.mark.parametrize(("weighting", "weight"), [("examples", 8.0), ("dataset", 10.0), ("uniform", 1.0)])
def test_weights(weighting, weight):
    found = Make(weighting=weighting)().weight(trained(examples=8))
    assert found == weight
    assert type(found) is float


def test_it_knows_itself():
    client = Make()()
    assert (client.id, client.layout, client.examples) == (4, LAYOUT, 10)


def test_the_summary_covers_all_trainings_of_the_task():
    """Losses 1 over 2 steps and 4 over 1: mean 2 over steps."""
    client = Make()()
    first = trained(steps=2, examples=8, tokens=30, loss=1.0, skipped=1)
    assert answered(client.descend(X), first) is first
    answered(client.descend(X), trained(steps=1, examples=4, tokens=10, loss=4.0))
    answered(client.descend(X), trained(steps=0, examples=0, tokens=0, loss=None, skipped=3))
    found = client.summary()
    assert (found.steps, found.examples, found.tokens, found.skipped) == (3, 12, 40, 4)
    assert found.loss == pytest.approx(2.0)


def test_a_task_without_training_has_nothing_to_sum_up():
    client = Make()()
    answered(client.probe([X]), [1.0])
    found = client.summary()
    assert (found.steps, found.examples, found.loss) == (0, 0, None)


# -- attackers


@dataclass
class Attacker:
    """Writes down what it sees, and reports something else."""

    seen: list[Any] = field(default_factory=list)

    def __call__(self, x: Any, run: Trained, key: int) -> Trained:
        self.seen.append((x, run, key))
        return replace(run, y=run.y - 5, examples=run.examples)


def test_an_attacker_s_page_goes_on_with_the_false_result():
    attacker = Attacker()
    client = Make()()
    client.attack = attacker
    honest, start = trained(y=torch.ones(3)), torch.full((3,), 7.0)
    found = answered(client.descend(start), honest)
    assert found.y.tolist() == [-4, -4, -4]
    assert honest.y.tolist() == [1, 1, 1]
    ((x, run, _),) = attacker.seen
    assert x is start
    assert run is honest
    assert client.runs == [found]
    assert client.summary().examples == 8


def test_every_training_of_an_attacker_has_its_own_key_and_every_run_the_same():
    def keys(root):
        client, attacker = Make(root=root)(), Attacker()
        client.attack = attacker
        for _ in range(3):
            answered(client.descend(X), trained())
        return [key for _, _, key in attacker.seen]

    assert len(set(keys(11))) == 3
    assert keys(11) == keys(11)
    assert not set(keys(11)) & set(keys(12))


def test_an_attack_changes_neither_batches_nor_masks():
    """Attackers are compared with the run without them: everything else must stay."""
    honest, hostile = Make(rows=40)(), Make(rows=40)()
    hostile.attack = Attacker()
    for _ in range(2):
        one, other = asked(honest.descend(X)), asked(hostile.descend(X))
        assert names(one.batches) == names(other.batches)
        assert (one.seed, one.lrs) == (other.seed, other.lrs)
    assert answered(hostile.probe([X]), [1.0]) == [1.0]


def test_a_training_that_failed_is_not_attacked():
    client, attacker = Make()(), Attacker()
    client.attack = attacker
    steps = client.descend(X).__await__()
    next(steps)
    with pytest.raises(ClientFailed, match="diverged"):
        steps.throw(ClientFailed("diverged"))
    assert attacker.seen == client.runs == []


# -- the other requests


@pytest.mark.parametrize(("rows", "want"), [(None, ["t0", "t1", "t2"]), (2, ["t0", "t1"]), (9, ["t0", "t1", "t2"])])
def test_evaluation_takes_the_first_rows_of_a_split(rows, want):
    request = asked(Make()().evaluate(Model(X, CARRY), "test", ("loss",), rows, 8, 16))
    assert request == Evaluate(X, LAYOUT, want, ("loss",), 8, 16, CARRY)


def test_logits_are_of_the_validation_rows():
    assert asked(Make()().logits(X)) == Logits(X, LAYOUT, ["v0", "v1"])
    assert asked(Make()().logits(X, carry=list(CARRY))) == Logits(X, LAYOUT, ["v0", "v1"], CARRY)


def test_prompts_are_continued():
    found = asked(Make()().generate(Model(X, CARRY), [[1, 2], [3]], 5))
    assert found == Generate(X, LAYOUT, [[1, 2], [3]], 2, 5, CARRY)


def test_what_is_said_to_the_others():
    said = Message()
    assert asked(Make()().exchange("keys", said)) == Exchange("keys", said)
    assert answered(Make()().exchange("keys", said), {4: said}) == {4: said}
