"""Frames and envelopes: whole messages for the right addressee, or an error."""

import io
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedloom.channel.codec import CodecError, encode, size
from fedloom.contracts import HOME, Client, Message, Missing, Summary, Weighted
from fedloom.runtime import wire
from fedloom.runtime.site import Dispatch, Reply, Tasks
from fedloom.runtime.wire import Marshal, WireClosed, read_frame, write_frame

LAW = settings(deadline=None, derandomize=True, max_examples=80)


@dataclass(frozen=True)
class Down(Message):
    x: Tensor


@dataclass(frozen=True)
class Up(Weighted):
    y: Tensor


@dataclass(frozen=True)
class News(Message):
    x: Tensor


class Page:
    async def local(self, down: Down, client: Client) -> Up:
        raise AssertionError("not run here")

    async def other(self, down: News, client: Client) -> News:
        raise AssertionError("not run here")


TASKS = Tasks(Page())
DOWN = Down(torch.tensor([1.0, -0.0]))
SENT = Dispatch(7, 3, 5, "local", DOWN)
SUMMARY = Summary(steps=2, skipped=1, examples=8, tokens=90, loss=0.1 + 0.2)


def marshal(layout="abcd", config="ef01"):
    return Marshal(TASKS, layout, config)


# -- frames


heads = st.dictionaries(st.sampled_from(["what", "client", "name"]), st.integers() | st.text() | st.none(), max_size=3)
frames = st.lists(st.tuples(heads, st.binary(max_size=40)), max_size=4)


def written(pairs):
    pipe = io.BytesIO()
    for head, data in pairs:
        write_frame(pipe, head, data)
    return pipe.getvalue()


@LAW
@given(frames)
def test_frames_come_back_one_after_the_other(pairs):
    """Whatever is in them: line ends and bytes that look like JSON too."""
    pipe = io.BytesIO(written(pairs))
    for head, data in pairs:
        assert read_frame(pipe) == ({**head, "bytes": len(data)}, data)
    with pytest.raises(WireClosed):
        read_frame(pipe)


def test_a_frame_cut_anywhere_is_a_closed_wire():
    whole = written([({"what": "reply", "client": 3}, b"{}\n\x00 some bytes")])
    for length in range(len(whole)):
        with pytest.raises(WireClosed):
            read_frame(io.BytesIO(whole[:length]))
    assert read_frame(io.BytesIO(whole))[1] == b"{}\n\x00 some bytes"


# -- dispatches


def test_a_dispatch_comes_back():
    found = marshal().dispatch(*marshal().dispatch_frame(SENT))
    assert replace(found, down=DOWN) == SENT
    assert torch.equal(found.down.x.view(torch.int32), DOWN.x.view(torch.int32))


def test_the_servers_own_worker_is_asked_like_a_client():
    assert marshal().dispatch(*marshal().dispatch_frame(replace(SENT, client=HOME))).client == HOME


def test_the_message_of_a_cohort_is_encoded_once(monkeypatch):
    encoded = []
    monkeypatch.setattr(wire, "encode", lambda *args: (encoded.append(args), encode(*args))[1])
    one = marshal()
    frames = [one.dispatch_frame(replace(SENT, client=i, down=Down(DOWN.x))) for i in range(5)]
    assert len(encoded) == 1
    assert [head["client"] for head, _ in frames] == [0, 1, 2, 3, 4]


def test_another_message_is_encoded_anew():
    """Equal tensors are not enough: of the last message, each field must be the very same object."""
    one, other = marshal(), Down(DOWN.x + 1)
    one.dispatch_frame(SENT)
    again = one.dispatch_frame(replace(SENT, round=4))  # the same message in the next round
    assert one.dispatch(*again).round == 4
    assert torch.equal(one.dispatch(*one.dispatch_frame(replace(SENT, down=other))).down.x, other.x)
    news = one.dispatch_frame(replace(SENT, task="other", down=News(DOWN.x)))
    assert isinstance(one.dispatch(*news).down, News)


@pytest.mark.parametrize(
    ("reader", "head"),
    [
        (marshal(layout="other"), {}),
        (marshal(config="other"), {}),
        (marshal(), {"round": 4}),
        (marshal(), {"task": "other"}),
    ],
    ids=["layout", "config", "round", "schema"],
)
def test_a_task_of_another_run_or_round_is_refused(reader, head):
    sent, data = marshal().dispatch_frame(SENT)
    with pytest.raises(CodecError, match="expected is"):
        reader.dispatch({**sent, **head}, data)


def test_an_unknown_task_is_refused():
    sent, data = marshal().dispatch_frame(SENT)
    with pytest.raises(ValueError, match="unknown here"):
        marshal().dispatch({**sent, "task": "personal"}, data)


# -- replies


def test_a_reply_comes_back():
    up = Up(weight=3.5, y=torch.tensor([1e-45, float("nan")]))
    sent = Reply(SENT, up, None, SUMMARY, size(up))
    found = marshal().reply(*marshal().reply_frame(sent), SENT)
    assert (found.dispatch, found.missing, found.summary) == (SENT, None, SUMMARY)
    assert found.up.weight == 3.5
    assert torch.equal(found.up.y.view(torch.int32), up.y.view(torch.int32))


def test_a_reply_has_the_same_size_in_every_runtime():
    """What is counted is the message, not the envelope and frame of one transport."""
    up = Up(weight=3.5, y=torch.ones(100))
    found = marshal().reply(*marshal().reply_frame(Reply(SENT, up, None, SUMMARY, 0)), SENT)
    assert found.bytes_up == size(up) == len(encode(up))


@pytest.mark.parametrize("reason", ["silent", "late", "failed", "nonfinite", "refused"])
def test_the_reason_of_a_failure_comes_back(reason):
    missing = Missing(reason, "no rows\nat all")
    head, data = marshal().reply_frame(Reply(SENT, None, missing, SUMMARY, 0))
    assert data == b""
    found = marshal().reply(head, data, SENT)
    assert (found.up, found.missing, found.summary, found.bytes_up) == (None, missing, SUMMARY, 0)


@pytest.mark.parametrize(
    ("reader", "asked"),
    [
        (marshal(), replace(SENT, number=8)),
        (marshal(), replace(SENT, round=4)),
        (marshal(), replace(SENT, client=6)),
        (marshal(), replace(SENT, task="other")),
        (marshal(layout="other"), SENT),
        (marshal(config="other"), SENT),
    ],
    ids=["dispatch", "round", "client", "schema", "layout", "config"],
)
def test_a_stray_reply_is_refused(reader, asked):
    """One that comes after its round was tried again, say."""
    frame = marshal().reply_frame(Reply(SENT, Up(weight=1.0, y=torch.ones(1)), None, SUMMARY, 0))
    with pytest.raises(CodecError, match="expected is"):
        reader.reply(*frame, asked)
