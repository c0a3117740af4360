"""Letters as Flower's objects: what Flower's own classes make of them, and everything malformed refused in words."""

import json
import os
import re

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Metadata, ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_id, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.runtime.flower.parcels import BLOCK, HEAD, KIND, Body, Parcel, ParcelError, block_of, head_of, leaves

SIZES = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7)
HEADS = {"what": "Trial", "words": "ünïcödé \0 \n", "numbers": [1, 2.5, None, True], "deep": {"a": {"b": []}}}
IDS = [get_object_id(bytes([i])) for i in range(200)]


def made(size=5, salt=b"s" * 16, head=HEADS, **more):
    metadata = Metadata(run_id=3, src_node_id=1, dst_node_id=2, created_at=1.9e9, ttl=60.0, message_type=KIND, **more)
    data = os.urandom(size)
    message, tree, objects = Parcel(head, Body(data, salt)).message(metadata)
    return data, message, tree, list(objects)


@pytest.mark.parametrize("size", SIZES)
def test_flowers_own_classes_read_it(size):
    data, message, tree, objects = made(size)
    contents = dict(objects)
    assert len(contents) == len(objects) == 3 + -(-size // BLOCK)
    for name, content in objects:
        validate_object_content(content)
        assert get_object_id(content) == name
    theirs = inflate_object_from_contents(tree.object_id, contents, keep_object_contents=True)
    assert isinstance(theirs, Message)
    assert theirs.object_id == tree.object_id == message.metadata.message_id
    assert get_object_tree(theirs) == tree
    record = theirs.content
    assert isinstance(record, RecordDict)
    assert json.loads(record.config_records["0"]["json"]) == HEADS
    assert b"".join(record.config_records[str(i)]["block"] for i in range(1, len(record))) == data
    message.metadata.message_id = ""  # not part of what it is made of
    assert message_to_proto(theirs).metadata == message.metadata


@pytest.mark.parametrize("size", SIZES)
def test_there_and_back(size):
    data, _, tree, objects = made(size)
    contents, (first, *rest) = dict(objects), leaves(tree, size)
    assert head_of(contents[first]) == HEADS
    assert b"".join(block_of(contents[part]) for part in rest) == data
    assert max(map(len, contents.values())) < BLOCK + 300


def test_an_answer_names_what_it_answers():
    _, message, tree, objects = made(reply_to_message_id=IDS[0])
    theirs = inflate_object_from_contents(tree.object_id, dict(objects))
    assert theirs.metadata.reply_to_message_id == IDS[0] == message.metadata.reply_to_message_id


def test_what_a_reader_waits_for_comes_last():
    _, _, tree, objects = made(BLOCK + 1)
    assert objects[0][0] == tree.object_id
    assert objects[-1][0] == leaves(tree, BLOCK + 1)[0]


def test_salts_keep_equal_bodies_apart():
    one, other = Body(b"same" * 9, b"a" * 16), Body(b"same" * 9, b"b" * 16)
    assert not set(one.ids) & set(other.ids)
    assert Body(b"same" * 9, b"a" * 16).ids == one.ids
    whole = Body(bytes(3 * BLOCK), b"a" * 16)
    assert len(set(whole.ids)) == 3


def test_a_shared_body_is_shared():
    body = Body(b"x" * 10, b"a" * 16)
    trees = [
        Parcel({"to": node}, body).message(Metadata(run_id=1, src_node_id=1, dst_node_id=node, message_type=KIND))[1]
        for node in (2, 3)
    ]
    (head, block), (other, same) = (leaves(tree, 10) for tree in trees)
    assert head != other
    assert block == same == body.ids[0]


def test_a_body_may_be_a_view():
    whole = os.urandom(BLOCK + 3)
    assert Body(memoryview(whole), b"a" * 16).ids == Body(whole, b"a" * 16).ids


# -- refused


def tree(*parts):
    return ObjectTree(object_id=IDS[0], children=[ObjectTree(object_id=IDS[1], children=list(parts))])


def leaf(i, *children):
    return ObjectTree(object_id=IDS[i], children=list(children))


def deep(levels):
    found = leaf(2)
    for _ in range(levels):
        found = ObjectTree(object_id=IDS[3], children=[found])
    return found


@pytest.mark.parametrize(
    "shape, words",
    [
        (ObjectTree(), "not nested"),
        (leaf(0), "not nested"),
        (leaf(0, leaf(1), leaf(2)), "not nested"),
        (leaf(0, leaf(1)), "0 parts"),
        (tree(leaf(2, leaf(3))), "not nested"),
        (tree(leaf(2), leaf(4, leaf(5))), "not nested"),
        (deep(60), "not nested"),
        (tree(*(leaf(i) for i in range(2, 5))), "3 parts, at most 2"),
        (tree(*(leaf(i) for i in range(2, 200))), "198 parts"),
        (tree(leaf(2), leaf(3), leaf(3)), "twice"),
        (tree(leaf(2), leaf(2)), "twice"),
    ],
)
def test_foreign_trees(shape, words):
    with pytest.raises(ParcelError, match=words):
        leaves(shape, 5 * BLOCK if words == "twice" else 5)


def test_as_many_blocks_as_a_body_may_have():
    for most in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK):
        parts = [leaf(i) for i in range(2, 3 + -(-most // BLOCK))]
        assert len(leaves(tree(*parts), most)) == len(parts)


def record(**entries):
    return ConfigRecord(entries).deflate()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "no record"),
        (b"ConfigRecord  0\0", "no JSON object"),
        (b"ConfigRecord  7\0garbage", "no record"),
        (b"\0" * 100, "no record"),
        (RecordDict().deflate(), "no record"),
        (record(json="{}")[:-1], "no record|no JSON object"),
        (record(other="{}"), "no JSON object"),
        (record(json=b"{}"), "no JSON object"),
        (record(json=["{}"]), "no JSON object"),
        (record(json=7), "no JSON object"),
        (record(json=""), "no JSON object"),
        (record(json="[]"), "no JSON object"),
        (record(json="1e999"), "no JSON object"),
        (record(json="{"), "no JSON object"),
        (record(json='"{}"'), "no JSON object"),
        (record(json="[" * 200_000), "no JSON object"),
        (record(json='{"a":' * 100_000), "no JSON object"),
        (record(json='{"a":' + "9" * 5000 + "}"), "no JSON object"),
        (record(json='{"a":"' + "x" * HEAD + '"}'), "at most"),
    ],
)
def test_foreign_heads(content, words):
    with pytest.raises(ParcelError, match=words):
        head_of(content)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "no record"),
        (record(), "no bytes"),
        (record(block="text"), "no bytes"),
        (record(block=[b"a", b"b"]), "no bytes"),
        (record(block=1), "no bytes"),
        (record(block=bytes(BLOCK + 1)), "at most"),
        (record(json="{}"), "no bytes"),
        (RecordDict({"0": ConfigRecord({"block": b"x"})}).deflate(), "no record"),
    ],
)
def test_foreign_blocks(content, words):
    with pytest.raises(ParcelError, match=words):
        block_of(content)


def words_or(call):
    """What it returns, or the refusal: one line of plain words."""
    try:
        return call()
    except ParcelError as error:
        words = str(error)
        if re.fullmatch(r"[ -~]{10,200}", words):
            return error
        raise


def refused_or(value, read, content):
    found = words_or(lambda: read(content))
    assert isinstance(found, value | ParcelError)


CONTENT = [content for _, content in made(300)[3]]


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=100).map(lambda b: f"ConfigRecord  {len(b)}".encode() + b"\0" + b),
        st.tuples(st.sampled_from(CONTENT), st.integers(0, 400)).map(lambda c: c[0][: c[1]]),
        st.tuples(st.sampled_from(CONTENT), st.integers(0, 400), st.integers(0, 255)).map(
            lambda c: c[0][: c[1]] + bytes([c[2]]) + c[0][c[1] + 1 :]
        ),
    )
)
def test_whatever_comes_is_read_or_refused(content):
    refused_or(dict, head_of, content)
    refused_or(bytes, block_of, content)


TREES = st.recursive(
    st.sampled_from(IDS[:6]).map(lambda i: ObjectTree(object_id=i)),
    lambda inner: st.tuples(st.sampled_from(IDS[:6]), st.lists(inner, max_size=4)).map(
        lambda t: ObjectTree(object_id=t[0], children=t[1])
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(TREES, st.integers(0, 3 * BLOCK))
def test_whatever_tree_comes_has_leaves_or_is_refused(found, most):
    parts = words_or(lambda: leaves(found, most))
    if not isinstance(parts, ParcelError):
        assert 1 <= len(parts) == len(set(parts)) <= 2 + most // BLOCK
        assert [node.object_id for node in iterate_object_tree(found)][: len(parts)] == parts
