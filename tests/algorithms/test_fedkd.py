"""The server that distils: what it does after averaging, and that its teacher stays where it is."""

import itertools
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from contract.links import Losing, Passing
from fedloom.algorithms.config import AlgorithmConfig
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.fedkd import BASE, TEACHER, FedKd
from fedloom.channel.codec import encode
from fedloom.contracts import HOME, ClientFailed, Lessons, TooFewReplies
from fedloom.engine.lessons import Distil, courses
from fedloom.rounds import advance
from fedloom.runtime.client import LocalClient, LocalPlan
from fedloom.runtime.site import Dispatch, Reply, Tasks
from fedloom.runtime.store import Memory, OnDisk, PendingState
from fedloom.spaces.factors import Factors
from seam.quadratic import PLAIN, Rows, World, distilled, rows_of
from seam.table import rows

LESSONS = Lessons(first=2, alone=1, together=1, lr=0.02, batch_size=16, max_grad_norm=None)
WORLD = World()
PAGE = FedKd(Factors(PLAIN), lessons=LESSONS)


class Listening(Passing):
    """Hears everything that is said over the link, as bytes."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.heard: list[tuple[int, bytes]] = []

    def ask(self, dispatches: Sequence[Dispatch]) -> Iterator[Reply]:
        self.heard += [(d.client, encode(d.down)) for d in dispatches]
        for reply in self.inner.ask(dispatches):
            self.heard.append((reply.dispatch.client, encode(reply.up)))
            yield reply


def memory(hub: Any, client: int) -> dict[str, Any]:
    link = hub.link
    while not hasattr(link, "site"):
        link = link.inner
    return dict(link.site.store.open(client).memory.entries)


def test_a_round_is_fedavgs_and_then_the_workers():
    """The average is FedAvg's to the bit; what the worker makes of it, and of its teacher, is the next state."""
    plain = FedAvg(Factors(PLAIN))
    average = plain.round(plain.init(WORLD.start()), WORLD.hub(plain)).x
    hub = WORLD.hub(PAGE)
    state = PAGE.round(PAGE.init(WORLD.start()), hub)
    fresh = WORLD.hub(PAGE)
    dispatch = fresh._dispatches(PAGE.distil, lambda _: None, [HOME])[0]
    client = fresh.link.site._client(dispatch)
    request = client.distil(average, LESSONS).request
    wanted = distilled(PLAIN, request)
    assert torch.equal(state.x, wanted.y)
    assert torch.equal(memory(hub, HOME)[TEACHER], wanted.teacher)
    assert memory(hub, HOME)[BASE] == wanted.teacher_base
    assert not torch.equal(state.x, average)
    assert hub.traffic.figures["student_loss"] == wanted.student_loss
    assert hub.traffic.figures["teacher_loss"] == wanted.teacher_loss


def test_the_teacher_goes_on_from_what_it_learned():
    asked = []

    class Watched(type(WORLD.site(Tasks(PAGE)).engine)):
        def _serve(self, job: Any) -> Any:
            if isinstance(job.call.request, Distil):
                asked.append(job.call.request)
            return super()._serve(job)

    hub = WORLD.hub(PAGE)
    hub.link.site.engine = Watched(3)
    advance(PAGE, PAGE.init(WORLD.start()), hub, 3, 0)
    assert [len(request.alone) for request in asked] == [2, 1, 1]  # pre-training is the first round's alone
    assert asked[0].teacher is asked[0].teacher_base is None
    for before, after in itertools.pairwise(asked):
        assert torch.equal(after.teacher, distilled(PLAIN, before).teacher)
        assert after.teacher_base == 17


def test_no_message_holds_the_teacher():
    """Neither a field for it, nor one of its numbers in any byte that is said, nor in the server's state."""
    links = []

    def listening(link: Any) -> Listening:
        links.append(Listening(link))
        return links[0]

    hub = WORLD.hub(PAGE, wrap=listening)
    teachers, states, state = [], [], PAGE.init(WORLD.start())
    for _ in range(4):
        state = PAGE.round(state, hub)
        states.append(encode(state))
        hub.round += 1
        hub.commit(hub.round)
        teachers.append(memory(hub, HOME)[TEACHER])
    numbers = {value.tobytes() for teacher in teachers for value in teacher.numpy()}
    numbers |= {numpy.float32(value).tobytes() for teacher in teachers for value in teacher.numpy()}
    assert len(numbers) == 2 * 4 * 9
    said = [text for _, text in links[0].heard] + states
    assert len(said) == 4 * 2 * (4 + 1) + 4
    assert not [n for n in numbers for text in said if n in text]
    kept = [memory(hub, client) for client in range(WORLD.clients)]
    assert not any(kept)
    for task in ("local", "distil"):
        fields = [typing.get_type_hints(kind) for kind in Tasks(PAGE).messages(task)]
        assert not [name for one in fields for name in one if name.startswith("teacher") and name != "teacher_loss"]


def test_a_worker_that_fails_leaves_no_trace():
    """The round is tried again, and ends the run when it fails again; nobody remembers anything of it."""
    hub = WORLD.hub(PAGE)
    state = PAGE.round(PAGE.init(WORLD.start()), hub)
    hub.round = 1
    hub.commit(1)
    before = encode(Memory(memory(hub, HOME)))
    hub.link, hub._home = (Losing(hub.link, HOME),) * 2
    with pytest.raises(TooFewReplies, match="1 are needed"):
        PAGE.round(state, hub)
    hub.rewind(1)
    assert encode(Memory(memory(hub, HOME))) == before


def test_what_the_worker_remembers_is_on_disk(tmp_path: Path):
    """Its number is -1."""
    row = rows()["fedkd"]
    world = World(store=str(tmp_path))
    hub = world.hub(row.algorithm)
    for _ in range(3):
        hub.round += 1
        row.algorithm.round(row.algorithm.init(world.start()), hub)
        hub.commit(hub.round)
    shelf = OnDisk(tmp_path)
    assert list(shelf.clients()) == [HOME]
    assert len(shelf.rounds(HOME)) <= 3
    assert shelf.read(HOME, shelf.rounds(HOME)[-1]).entries[TEACHER].shape == (9,)


def test_without_rows_there_is_nothing_to_distil():
    client = LocalClient(WORLD.profile(HOME), Rows(()), PendingState(Memory()), WORLD.plan(HOME), round=0, root=1)
    with pytest.raises(ClientFailed, match="no public row"):
        client.distil(WORLD.start(), LESSONS)


def test_courses():
    """Batches are keyed, rates fall in a line to nothing, and no two courses see the same order."""
    found = rows_of(HOME, 5).rows[:40]
    alone, together = courses(LESSONS, found, False, 3)
    assert [len(course.batches) for course in alone] == [6, 3]
    assert together is not None
    assert [len(batch) for batch in together.batches] == [16, 16, 8]
    assert together.lrs == pytest.approx([0.02, 0.02 * 2 / 3, 0.02 / 3])
    assert alone[0].lrs[-1] == pytest.approx(0.02 / 6)
    assert len({tuple(id(row) for row in course.batches[0]) for course in (*alone, together)}) == 3
    assert len(courses(LESSONS, found, True, 3)[0]) == 1
    again = courses(LESSONS, found, False, 3)[1]
    assert again is not None
    assert [[id(r) for r in b] for b in again.batches] == [[id(r) for r in b] for b in together.batches]


def test_the_worker_is_needed_and_its_rows():
    assert PAGE.needs.home
    assert PAGE.needs.public_rows
    assert not PAGE.needs.pooled_data


def test_the_published_loss_takes_no_settings():
    read = TypeAdapter(AlgorithmConfig).validate_python
    section = {"name": "fedkd", "teacher": {"name": "x"}, "kl": "raw_logits"}
    assert read({**section, "attention": 1.0, "epsilon": 1e-8}).kl == "raw_logits"
    with pytest.raises(ValidationError, match="leave temperature, mutual out"):
        read({**section, "temperature": 3.0, "mutual": False})
    with pytest.raises(ValidationError, match="teacher"):
        read({"name": "fedkd"})


def test_the_workers_plan_is_not_the_clients():
    """Local steps, rates and batch sizes are the clients' own; only `accumulate` is the machine's."""
    plan = WORLD.plan(HOME)
    local = plan.local.model_copy(update={"accumulate": 3, "lr": 9.0, "batch_size": 2})
    client = LocalClient(
        WORLD.profile(HOME), rows_of(HOME, 5), PendingState(Memory()), LocalPlan(local, 10), round=0, root=1
    )
    request = client.distil(WORLD.start(), LESSONS).request
    assert request.accumulate == 3
    assert request.together.lrs[0] == 0.02
    assert len(request.together.batches[0]) == 16
