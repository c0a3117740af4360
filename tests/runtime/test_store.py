"""Clients' memories as transactions: against a model that simply remembers everything, with crashes at any moment."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from fedloom.channel.codec import CodecError
from fedloom.contracts import HOME
from fedloom.runtime.store import InMemory, Memory, OnDisk, PendingState, Store

CLIENTS = (HOME, 0, 7)


class Killed(BaseException):
    """The process dies here."""


class Dying:
    """A shelf in a process that dies before or after its nth change."""

    def __init__(self, shelf):
        self.shelf, self.left = shelf, None

    def __getattr__(self, name):
        return getattr(self.shelf, name)

    def write(self, *args):
        self._change(self.shelf.write, *args)

    def drop(self, *args):
        self._change(self.shelf.drop, *args)

    def _change(self, change, *args):
        if self.left == 0:
            raise Killed
        change(*args)
        self.left = None if self.left is None else self.left - 1
        if self.left == 0:
            raise Killed


class Transactions(RuleBasedStateMachine):
    """One server and its checkpoints, a few clients, and what each of them must remember."""

    tasks = Bundle("tasks")

    @initialize(disk=st.booleans())
    def begin(self, disk):
        self.folder = tempfile.TemporaryDirectory() if disk else None
        self.shelf = Dying(OnDisk(Path(self.folder.name)) if self.folder else InMemory())
        self.store = Store(self.shelf)
        self.round, self.saved = 0, []
        self.truth = {client: {0: {}} for client in CLIENTS}  # every version ever kept, by round
        self.life = 0  # processes before this one
        self.reply = dict.fromkeys(CLIENTS, 0)  # tasks end with the attempt they belong to

    def now(self, client):
        versions = self.truth[client]
        return versions[max(versions)]

    def forget_after(self, round):
        for versions in self.truth.values():
            for version in [v for v in versions if v > round]:
                del versions[version]

    @rule(target=tasks, client=st.sampled_from(CLIENTS))
    def asks(self, client):
        self.reply[client] += 1
        state = self.store.open(client)
        assert state.get("never written") is None
        return self.life, client, self.reply[client], state, {}

    @rule(
        task=tasks, name=st.sampled_from("abc"), value=st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
    )
    def writes(self, task, name, value):
        task[3][name] = value
        task[4][name] = value

    @rule(task=tasks, name=st.sampled_from("abc"), value=st.integers(0, 99))
    def writes_a_tensor(self, task, name, value):
        tensor = torch.tensor([float(value)])
        task[3][name] = tensor
        task[4][name] = ("tensor", value)
        tensor += 1000  # the client goes on computing with its own

    @rule(task=tasks)
    def reads_its_own_writes(self, task):
        assert seen({name: task[3].get(name) for name in task[4]}) == task[4]

    @rule(task=tasks, counted=st.booleans(), dies=st.none() | st.integers(0, 3))
    def replies(self, task, counted, dies):
        life, client, number, state, written = task
        if (life, number) != (self.life, self.reply[client]):
            return  # of a process that is dead, or a task the client was given anew
        self.reply[client] += 1
        if not counted:
            return
        self.shelf.left = dies
        try:
            self.store.keep(client, self.round + 1, state)
        except Killed:
            self.restart()
            return
        self.shelf.left = None
        if written:
            self.truth[client][self.round + 1] = {**self.now(client), **written}

    @rule(saves=st.booleans(), told=st.booleans())
    def round_ends(self, saves, told):
        self.round += 1
        self.reply = {client: number + 1 for client, number in self.reply.items()}
        if saves:
            self.saved = [*self.saved, self.round][-2:]
            if not told:  # killed between the checkpoint and the news of it
                self.restart()
            else:
                self.store.commit(*self.on_disk())

    @rule(
        who=st.lists(st.sets(st.sampled_from(CLIENTS)), min_size=1, max_size=4),
        saves=st.sampled_from([True, False, False]),
    )
    def rounds_pass(self, who, saves):
        """Several rounds in which all goes well, so that there is something to forget."""
        for asked in who:
            for client in sorted(asked):
                state = self.store.open(client)
                state["r"] = self.round
                self.store.keep(client, self.round + 1, state)
                self.truth[client][self.round + 1] = {**self.now(client), "r": self.round}
            self.round_ends(saves, told=True)

    @rule(dies=st.none() | st.integers(0, 3))
    def round_is_tried_again(self, dies):
        self.reply = {client: number + 1 for client, number in self.reply.items()}
        self.shelf.left = dies
        try:
            self.store.rewind(self.round)
        except Killed:
            self.restart()
            return
        self.shelf.left = None
        self.forget_after(self.round)

    @rule()
    def killed(self):
        self.restart()

    @precondition(lambda self: self.folder is not None)
    @rule(target=tasks, client=st.sampled_from(CLIENTS))
    def killed_while_writing(self, client):
        """Half a file under the name that is used until it is whole."""
        folder = Path(self.folder.name) / f"{client:07d}"
        folder.mkdir(exist_ok=True)
        (folder / f".{self.round + 1:06d}.safetensors.partial").write_bytes(b"half")
        self.restart()
        return multiple()

    def on_disk(self):
        return self.saved or [0]

    @precondition(lambda self: len(self.saved) == 2)
    @rule()
    def newest_checkpoint_is_damaged(self):
        """And was removed, as the message says: the one before it must do."""
        self.saved = self.saved[:1]
        self.restart()

    def restart(self):
        """As a run is resumed: from the newest checkpoint on disk; there are two."""
        self.shelf.left = None
        self.life += 1
        self.store = Store(self.shelf)
        self.store.commit(*self.on_disk())
        self.round = self.on_disk()[-1]
        self.store.rewind(self.round)
        self.forget_after(self.round)

    @invariant()
    def everybody_remembers_what_counted(self):
        for client in CLIENTS if hasattr(self, "truth") else ():
            assert seen(self.store.open(client).memory.entries) == self.now(client)

    @invariant()
    def few_versions_are_kept(self):
        for client in CLIENTS if hasattr(self, "truth") else ():
            assert len(self.shelf.rounds(client)) <= 4

    def teardown(self):
        if getattr(self, "folder", None):
            self.folder.cleanup()


def seen(entries):
    """Values that can be compared: a tensor by its number."""
    return {k: ("tensor", int(v)) if isinstance(v, torch.Tensor) else v for k, v in entries.items()}


Transactions.TestCase.settings = settings(deadline=None, derandomize=True, max_examples=60, stateful_step_count=30)
test_transactions = Transactions.TestCase


# -- by hand


@pytest.fixture(params=["memory", "disk"])
def shelf(request, tmp_path):
    return InMemory() if request.param == "memory" else OnDisk(tmp_path / "clients")


def kept(store, client, round, **entries):
    state = store.open(client)
    for name, value in entries.items():
        state[name] = value
    store.keep(client, round, state)


def test_a_client_that_was_never_asked_remembers_nothing(shelf):
    store = Store(shelf)
    assert store.open(3).memory == Memory()
    assert list(shelf.clients()) == []
    like = torch.ones(2, 3, dtype=torch.float64)
    zeros = store.open(3).get("c", like=like)
    assert torch.equal(zeros, torch.zeros(2, 3, dtype=torch.float64))
    assert store.open(3).get("c") is None


def test_what_is_there_is_not_replaced_by_zeros(shelf):
    store = Store(shelf)
    kept(store, 3, 1, c=torch.ones(2), n=0.0)
    assert store.open(3).get("c", like=torch.zeros(2)).tolist() == [1, 1]
    assert store.open(3).get("n") == 0.0


def test_every_kind_of_entry_comes_back_to_the_bit(shelf):
    store = Store(shelf)
    third = torch.tensor([1 / 3, -0.0, 1e-310], dtype=torch.float64)
    kept(store, 3, 1, t=third, n=2**60 + 1, x=0.1 + 0.2, s="Zoë", i=float("inf"))
    found = store.open(3)
    assert torch.equal(found.get("t").view(torch.int64), third.view(torch.int64))
    assert [found.get(k) for k in "nxsi"] == [2**60 + 1, 0.1 + 0.2, "Zoë", float("inf")]
    assert type(found.get("n")) is int


@pytest.mark.parametrize("value", [True, None, [1, 2], (1, 2), {"a": 1}, b"x", torch.tensor([1j])], ids=repr)
def test_what_cannot_be_kept_is_refused_when_it_is_written_or_comes_back(shelf, value):
    """In memory or on disk alike; not when it is read again a round later."""
    store, state = Store(shelf), Store(shelf).open(3)
    try:
        state["v"] = value
        store.keep(3, 1, state)
    except TypeError:
        return
    found = store.open(3).get("v")
    assert type(found) is type(value)
    assert bool(torch.all(torch.as_tensor(found) == torch.as_tensor(value))) if value is True else found == value


def test_what_a_client_goes_on_computing_with_is_its_own(shelf):
    store = Store(shelf)
    state, mine = store.open(3), torch.ones(2, requires_grad=True)
    state["c"] = mine
    with torch.no_grad():
        mine += 5
    store.keep(3, 1, state)
    assert store.open(3).get("c").tolist() == [1, 1]
    assert not store.open(3).get("c").requires_grad


def test_two_tasks_of_one_round_follow_each_other(shelf):
    """A page with two collects: the second sees what the first kept, in one version."""
    store = Store(shelf)
    kept(store, 3, 1, a=1, b=1)
    kept(store, 3, 1, b=2)
    assert store.open(3).memory.entries == {"a": 1, "b": 2}
    assert shelf.rounds(3) == [1]


def test_a_repeated_round_sees_what_the_first_attempt_saw(shelf):
    store = Store(shelf)
    kept(store, 3, 1, a=1)
    kept(store, 3, 2, a=2)  # round 2, first collect
    kept(store, 3, 2, a=3)  # second collect; the third fails
    store.rewind(1)
    assert store.open(3).memory.entries == {"a": 1}


def test_reading_alone_keeps_no_version(shelf):
    store = Store(shelf)
    state = store.open(3)
    state.get("a")
    store.keep(3, 1, state)
    assert shelf.rounds(3) == []


def test_tasks_side_by_side_do_not_see_each_other(shelf):
    store = Store(shelf)
    kept(store, 3, 1, a=1)
    one, other = store.open(3), store.open(3)
    one["a"] = 2
    assert other.get("a") == 1


def test_versions_between_checkpoints_stay_few(shelf):
    """Checkpoints of rounds 2 and 5: versions 2 and 5 (a crash), 10 (this round again) and 11 are needed."""
    store = Store(shelf)
    for round in range(1, 12):
        kept(store, 3, round, a=round)
        if round in (2, 5):
            store.commit(*[2, 5][: 1 + (round == 5)])
    assert shelf.rounds(3) == [2, 5, 10, 11]


def test_a_checkpoint_between_two_versions_needs_the_older(shelf):
    """Asked in rounds 1, 4, 8, 9 and 10 with checkpoints of 3 and 6: 1 and 4 are what was known then."""
    store = Store(shelf)
    for round in (1, 4, 8, 9, 10):
        kept(store, 3, round, a=round)
        store.commit(*[r for r in (3, 6) if r <= round])
    assert shelf.rounds(3) == [1, 4, 9, 10]
    store.rewind(3)
    assert store.open(3).get("a") == 1


def test_the_servers_own_worker_has_a_memory_too(shelf):
    store = Store(shelf)
    kept(store, HOME, 1, a=1)
    kept(store, 12_345_678, 1, a=2)
    assert list(shelf.clients()) == [HOME, 12_345_678]
    assert store.open(HOME).get("a") == 1
    assert shelf.rounds(HOME) == [1]


def test_on_disk_a_memory_outlives_the_process(tmp_path):
    kept(Store(OnDisk(tmp_path)), 3, 1, a=1.5)
    assert Store(OnDisk(tmp_path)).open(3).get("a") == 1.5
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.safetensors")] == ["0000003/000001.safetensors"]


def test_a_damaged_memory_is_not_taken_for_none(tmp_path):
    kept(Store(OnDisk(tmp_path)), 3, 1, a=1.5)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CodecError):
        Store(OnDisk(tmp_path)).open(3)


def test_a_pending_state_stands_alone():
    state = PendingState(Memory({"a": 1}))
    state["b"] = 2
    assert (state.get("a"), state.get("b"), state.memory.entries) == (1, 2, {"a": 1})
