"""The section `channel` in whole runs on the embedded model."""

import pytest

from fedloom import experiment
from fedloom.assembly import Parts
from fedloom.channel.encoding import Encoding
from fedloom.config import load
from fedloom.errors import RunStopped
from fedloom.events import ClientTrained, Event, ReplyMissing, RoundFinished
from fedloom.runtime.store import OnDisk
from test_experiment import TINY, killed_at, same, weights


def config(tmp_path, *overrides):
    return load("quickstart", [*TINY, "evaluate.metrics=[loss]", f"run.folder={tmp_path / 'runs'}", *overrides])


def ran(cfg):
    seen: list[Event] = []
    return experiment.run(cfg, sinks=[seen.append]).folder, seen


def bytes_up(seen):
    return [e.bytes_up for e in seen if isinstance(e, RoundFinished)]


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_int8_killed_resumed_and_in_a_second_process_is_the_same_run(tmp_path, name):
    whole, seen = ran(config(tmp_path, f"algorithm={name}", "channel.encoding=int8"))
    broken = killed_at(
        config(tmp_path / "broken", f"algorithm={name}", "channel.encoding=int8"),
        lambda seen: sum(isinstance(e, ClientTrained) for e in seen) == 5,
    )
    experiment.resume(broken)
    same(whole, broken)
    there, heard = ran(config(tmp_path, f"algorithm={name}", "channel.encoding=int8", "runtime=loopback"))
    assert weights(there) == weights(whole)
    assert bytes_up(heard) == bytes_up(seen)


def test_bytes_up_are_those_of_the_encoding(tmp_path):
    up = {e: sum(bytes_up(ran(config(tmp_path, f"channel.encoding={e}"))[1])) for e in ("fp32", "fp16", "int8")}
    assert up["fp16"] / up["fp32"] == pytest.approx(0.5, abs=0.03)
    assert up["int8"] / up["fp32"] == pytest.approx(0.25 * (1 + 4 / 256), abs=0.03)


def test_how_often_a_run_is_evaluated_changes_nothing(tmp_path):
    often, _ = ran(config(tmp_path, "channel.encoding=int8", "evaluate.every=1"))
    never, _ = ran(config(tmp_path, "channel.encoding=int8", "evaluate.every=0"))
    last = [{k: v for k, v in weights(folder).items() if "final" in k} for folder in (often, never)]
    assert last[0] and last[0] == last[1]


def test_what_was_lost_is_in_the_clients_memory(tmp_path):
    folder, _ = ran(config(tmp_path, "channel.encoding=int8"))
    shelves = [path for path in folder.rglob("*.safetensors") if path.parent.name.isdigit()]
    shelf = OnDisk(shelves[0].parent.parent)
    client = next(shelf.clients())
    assert set(shelf.read(client, shelf.rounds(client)[-1]).entries) == {"channel y"}


@pytest.mark.parametrize(
    ("algorithm", "feedback"),
    [
        ("fedavg", True),
        ("scaffold", True),
        ("rolora", False),
        ("fedsvd", False),
        ("flexlora", False),
        ("lora_a2", False),
    ],
)
def test_feedback_is_where_replies_mean_the_same_in_every_round(tmp_path, algorithm, feedback):
    parts = Parts(config(tmp_path, f"algorithm={algorithm}", "channel.encoding=int8"))
    assert parts.stages == (Encoding("int8", feedback),)


def test_bounds_refuse_in_words_and_stop_a_run_that_has_nobody_left(tmp_path):
    for bound, words in (("channel.max_norm=0.001", "have the norm"), ("channel.max_weight=0.5", "its weight is")):
        seen: list[Event] = []
        with pytest.raises(RunStopped, match=words):
            experiment.run(config(tmp_path, bound, "federation.retries=0"), sinks=[seen.append])
        missing = [e for e in seen if isinstance(e, ReplyMissing)]
        assert len(missing) == 3 and {e.reason for e in missing} == {"refused"}


def test_wide_bounds_change_nothing(tmp_path):
    free, _ = ran(config(tmp_path))
    bound, _ = ran(config(tmp_path, "channel.max_norm=1000", "channel.max_weight=1000"))
    assert weights(free) == weights(bound)
