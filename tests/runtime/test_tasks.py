"""Which coroutines of a page can be asked for, under which name, with which messages."""

from dataclasses import dataclass

import pytest

from fedloom.algorithms.fedavg import FedAvg, Result, Start
from fedloom.contracts import Client, Message, Model
from fedloom.params import Layout, Leaf
from fedloom.runtime.site import Tasks
from fedloom.spaces.factors import Factors


@dataclass(frozen=True)
class Down(Message):
    n: int


@dataclass(frozen=True)
class Up(Message):
    n: int


class Page:
    async def local(self, down: Down, client: Client) -> Up:
        return Up(down.n)

    async def spread(self, other_name: Up, client: Client) -> Down:
        return Down(other_name.n)

    async def personal(self, down: Model, client: Client) -> Down:
        return Down(0)

    async def _inner(self, down: Down, client: Client) -> Up:
        return Up(0)

    def round(self, state, fed):
        return state


class Child(Page):
    async def local(self, down: Down, client: Client) -> Up:
        return Up(-down.n)


class Beside:
    async def score(self, down: Model, client: Client) -> Up:
        return Up(1)


def test_tasks_are_the_public_coroutines():
    tasks = Tasks(Page(), Beside())
    assert {name for name in ("local", "spread", "score") if tasks.get(name)} == {"local", "spread", "score"}
    for none in ("personal", "_inner", "round", "nothing"):
        with pytest.raises(ValueError, match=f"'{none}' is unknown here; tasks: local, score, spread$"):
            tasks.get(none)


def test_a_task_is_sent_under_its_name_and_found_by_it():
    page = Page()
    tasks = Tasks(page)
    assert tasks.name(page.local) == "local"
    assert tasks.get("local").__self__ is page  # type: ignore[attr-defined]


def test_messages_are_read_from_the_annotations():
    assert Tasks(Page()).messages("local") == (Down, Up)
    assert Tasks(Page()).messages("spread") == (Up, Down)  # whatever the first argument is called
    assert Tasks(FedAvg(Factors(Layout.of([Leaf("w", (1,))])))).messages("local") == (Start, Result)


def test_an_inherited_task_is_the_childs_own():
    child = Child()
    tasks = Tasks(child)
    assert tasks.name(child.local) == "local"
    assert tasks.get("local").__func__ is Child.local  # type: ignore[attr-defined]
    assert tasks.name(child.spread) == "spread"


async def stranger(down: Down, client: Client) -> Up:
    return Up(0)


async def local(down: Down, client: Client) -> Up:
    return Up(0)


@pytest.mark.parametrize(
    "task",
    [stranger, local, Page().personal, Page()._inner, Beside().score, Child().local, Page().round, "local", None],
)
def test_what_is_no_task_of_this_run_is_refused(task):
    """Also a coroutine that only shares its name with one."""
    with pytest.raises(ValueError, match="is not a task of this run; tasks: local, spread"):
        Tasks(Page()).name(task)


def test_two_tasks_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two tasks are named local"):
        Tasks(Page(), Child())
