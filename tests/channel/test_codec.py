"""The codec: every bit comes back, sizes are true, and bytes that do not fit are refused in words."""

import contextlib
import json
import struct
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedloom.channel.codec import KEY, CodecError, Envelope, decode, encode, schema_of, size

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


def law(examples):
    return settings(deadline=None, derandomize=True, max_examples=examples)


@dataclass(frozen=True)
class Inner:
    t: Tensor
    d: int
    """Named like the codec's own marks, on purpose; so are b and f."""
    b: bytes
    f: float


@dataclass(frozen=True)
class Everything:
    inner: Inner
    x: float
    n: int
    s: str
    flag: bool
    nothing: None
    maybe: float | None
    term: Tensor | tuple[Tensor, ...]
    many: tuple[Tensor, ...]
    pair: tuple[int, str]
    rows: list[tuple[str, float]]
    named: dict[str, Tensor]
    counts: dict[int, int]
    entries: dict[str, Tensor | int | float | str]
    inners: dict[str, Inner]
    union: Inner | str | None


@dataclass(frozen=True)
class Two:
    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Named:
    named: dict[str, Tensor]


@dataclass(frozen=True)
class Plain:
    n: int = 1
    x: float = 0.5


def same(left: Any, right: Any) -> bool:
    """Equal types, and equal bits in every tensor and float."""
    if isinstance(left, Tensor):
        return (left.dtype, left.shape) == (right.dtype, right.shape) and raw(left) == raw(right)
    if is_dataclass(left):
        return type(left) is type(right) and all(
            same(getattr(left, f.name), getattr(right, f.name)) for f in fields(left)
        )
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, tuple | list):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return type(right) is float and (repr(left) == repr(right))  # NaN is NaN, -0.0 is not 0.0
    return type(left) is type(right) and left == right


def raw(t: Tensor) -> bytes:
    flat = t.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).tolist())


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = torch.Size(shape).numel() * dtype.itemsize
    data = draw(st.binary(min_size=count, max_size=count))
    if dtype is torch.bool:
        return torch.tensor([byte % 2 == 1 for byte in data]).bool().reshape(shape)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


names = st.text(max_size=5)
inners = st.builds(Inner, tensors(), st.integers(), st.binary(max_size=9), st.floats())
messages = st.builds(
    Everything,
    inner=inners,
    x=st.floats(),
    n=st.integers(),
    s=st.text(max_size=20),
    flag=st.booleans(),
    nothing=st.none(),
    maybe=st.none() | st.floats(),
    term=tensors() | st.lists(tensors(), max_size=3).map(tuple),
    many=st.lists(tensors(), max_size=4).map(tuple),
    pair=st.tuples(st.integers(), names),
    rows=st.lists(st.tuples(names, st.floats()), max_size=3),
    named=st.dictionaries(names, tensors(), max_size=4),
    counts=st.dictionaries(st.integers(), st.integers(), max_size=3),
    entries=st.dictionaries(names, tensors() | st.integers() | st.floats() | names, max_size=4),
    inners=st.dictionaries(st.text("abc", max_size=3), inners, max_size=2),
    union=st.none() | names | inners,
)
envelopes = st.none() | st.builds(Envelope, names, names, st.integers(), st.integers(), st.integers(), names, names)


# -- what goes in comes out


@law(80)
@given(messages, envelopes)
def test_every_bit_comes_back(message, envelope):
    assert same(decode(Everything, encode(message, envelope), envelope), message)


@law(80)
@given(messages, envelopes)
def test_size_is_the_number_of_bytes(message, envelope):
    assert size(message, envelope) == len(encode(message, envelope))


@law(60)
@given(st.dictionaries(st.text(max_size=3), st.tuples(st.sampled_from(DTYPES), st.integers(0, 5000)), max_size=12))
def test_size_is_the_number_of_bytes_of_many_tensors(kinds):
    """Offsets of several digits: their order inside the bytes matters."""
    message = Named({name: torch.zeros(count, dtype=dtype) for name, (dtype, count) in kinds.items()})
    assert size(message) == len(encode(message))


@pytest.mark.parametrize("first", DTYPES)
def test_size_knows_the_order_of_formats(first):
    """1000 numbers of one format beside 2 of another: whoever comes first decides how long the offsets are."""
    for second in DTYPES:
        for counts in ((1000, 2), (2, 1000), (300, 2), (2, 300), (3000, 30), (30, 3000)):
            message = Two(torch.zeros(counts[0], dtype=first), torch.zeros(counts[1], dtype=second))
            assert size(message) == len(encode(message)), (first, second, counts)


@law(25)
@given(messages)
def test_equal_messages_are_equal_bytes(message):
    assert encode(message) == encode(replace(message))
    assert encode(decode(Everything, encode(message))) == encode(message)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.T, lambda t: t[::2], lambda t: t[:, 1:3], lambda t: t[0].expand(5, 4), lambda t: t.requires_grad_(),
        lambda t: torch.nn.Parameter(t), lambda t: t[1, 1], lambda t: t[:0],
    ],
)  # fmt: skip
def test_views_travel_as_they_look(make):
    value = make(torch.arange(12.0).reshape(3, 4))
    message = Two(value, torch.zeros(2))
    assert size(message) == len(encode(message))
    found = decode(Two, encode(message)).a
    assert torch.equal(found, value)
    assert not found.requires_grad
    assert found.is_contiguous()


def test_encoding_changes_nothing_and_decoding_shares_nothing():
    message = Two(torch.ones(3), torch.zeros(2))
    data = encode(message)
    found = decode(Two, data)
    found.a.mul_(7)
    assert message.a.tolist() == [1, 1, 1]
    assert same(decode(Two, data), message)


WHOLE = torch.arange(6.0)


@pytest.mark.parametrize(
    "message",
    [Two(WHOLE, WHOLE), Two(WHOLE, WHOLE.view(2, 3)), Two(WHOLE[:4], WHOLE[2:]), Two(WHOLE, WHOLE[:2])],
    ids=["one tensor twice", "a view of it", "overlapping parts", "a part of it"],
)
def test_tensors_that_share_memory_travel_like_any_others(message):
    """What works in one process works between two: whether two fields are one object is no business of the wire."""
    assert same(decode(Two, encode(message)), message)


@dataclass(frozen=True)
class Deep:
    by: dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Mixed:
    by: dict[int | str, Tensor]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Deep, Deep({"a.b": {"c": torch.ones(1)}, "a": {"b.c": torch.zeros(1)}})),
        (Deep, Deep({"layer": {"0.A": torch.ones(1)}, "layer.0": {"A": torch.zeros(1)}})),
        (Mixed, Mixed({1: torch.ones(1), "1": torch.zeros(1)})),
    ],
)
def test_no_two_tensors_take_each_others_place(kind, message):
    """Names of tensors in models are full of dots."""
    assert same(decode(kind, encode(message)), message)


@dataclass(frozen=True)
class Empty:
    pass


def test_an_empty_message_travels():
    assert decode(Empty, encode(Empty())) == Empty()
    assert size(Empty()) == len(encode(Empty()))


# -- bytes that do not fit


SMALL = Everything(
    Inner(torch.tensor([1.0, 2.0]), 3, b"\x00\x01", float("inf")), 0.5, -7, "Zoë", True, None, None,
    (torch.zeros(2, dtype=torch.int8),), (), (1, "p"), [("r", 2.0)], {"n": torch.ones(1, dtype=torch.bfloat16)}, {4: 5},
    {"e": 1.5}, {}, "u",
)  # fmt: skip


def test_every_truncation_is_refused():
    for message in (SMALL, Plain(), Two(torch.ones(3), torch.zeros(0))):
        data = encode(message)
        for length in range(len(data)):
            with pytest.raises(CodecError):
                decode(type(message), data[:length])


@pytest.mark.parametrize("more", [b"\x00", b" " * 8, encode(Plain())])
def test_what_follows_a_message_is_refused(more):
    with pytest.raises(CodecError):
        decode(Everything, encode(SMALL) + more)


def test_every_damaged_byte_of_a_header_is_refused_or_harmless():
    """Nothing but a CodecError (or ValueError) ever comes of it; three ways to damage each byte."""
    data = encode(SMALL, Envelope("s", "run"))
    for i in range(8 + int.from_bytes(data[:8], "little")):
        for flip in (0x01, 0x04, 0x80):
            refused_or_decoded(Everything, data[:i] + bytes([data[i] ^ flip]) + data[i + 1 :])


@law(300)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=6))
def test_random_damage_is_refused_or_harmless(flips):
    data = bytearray(encode(SMALL))
    for at, flip in flips:
        data[at % len(data)] ^= flip
    refused_or_decoded(Everything, bytes(data))


@law(200)
@given(st.binary(max_size=200))
@example(b"")
@example(struct.pack("<Q", 0))
@example(struct.pack("<Q", 2**63) + b"{}")
@example(struct.pack("<Q", 2) + b"{}")
@example(struct.pack("<Q", 4) + b"null")
@example(struct.pack("<Q", 200_000) + b"[" * 200_000)
@example(b"PK\x03\x04" + b"\x00" * 40)
@example(b"\x80\x04\x95")
def test_foreign_bytes_are_refused(data):
    with pytest.raises(CodecError):
        decode(Plain, data)


def framed(head: Any) -> bytes:
    """Bytes with any header in place of ours."""
    text = json.dumps({"__metadata__": {KEY: head if isinstance(head, str) else json.dumps(head)}}).encode()
    return struct.pack("<Q", len(text)) + text


def refused_or_decoded(kind: type, data: bytes) -> None:
    with contextlib.suppress(ValueError):  # CodecError is one
        assert isinstance(decode(kind, data), kind)


GOOD = {"format": "fedloom-1", "body": {"n": 1, "x": 0.5}}


@pytest.mark.parametrize(
    "head",
    [
        "not json", "[" * 100_000, "1", "null", "[]", '"text"', {}, {"format": "fedloom-1"},
        {**GOOD, "format": "fedloom-0"}, {**GOOD, "format": None}, {**GOOD, "body": None}, {**GOOD, "body": []},
        {**GOOD, "body": {}}, {**GOOD, "body": {"n": 1}}, {**GOOD, "body": {"n": 1, "x": 1.0, "more": 2}},
        {**GOOD, "body": {"n": "1", "x": 1.0}}, {**GOOD, "body": {"n": 1.0, "x": 1.0}},
        {**GOOD, "body": {"n": True, "x": 1.0}}, {**GOOD, "body": {"n": None, "x": 1.0}},
        {**GOOD, "body": {"n": 1, "x": "1.0"}}, {**GOOD, "body": {"n": 1, "x": True}},
        {**GOOD, "body": {"n": 1, "x": {"f": "abc"}}}, {**GOOD, "body": {"n": 1, "x": {"f": [1]}}},
        {**GOOD, "body": {"n": 1, "x": 10**400}},
    ],
    ids=lambda head: str(head)[:60],
)  # fmt: skip
def test_a_header_that_does_not_fit_is_refused(head):
    with pytest.raises(ValueError):
        decode(Plain, framed(head))


@pytest.mark.parametrize("envelope", [None, [], "x", 5, {}, {"schema": 1}])
def test_an_envelope_that_is_none_is_refused(envelope):
    with pytest.raises(CodecError):
        decode(Plain, framed({**GOOD, "envelope": envelope}), Envelope("s"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["t", "d", "b", "f", "v.inner.t", "n"]), inner, max_size=2)
    ),
    max_leaves=5,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a JSON value."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


def put(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = put(node[path[0]], path[1:], value)
    return copy


@law(400)
@given(st.data())
def test_a_header_changed_anywhere_is_refused_or_decoded_to_the_declared_types(data):
    """Whoever can send bytes can send any JSON: the answer is a ValueError, never another exception."""
    whole = encode(SMALL)
    end = 8 + int.from_bytes(whole[:8], "little")
    outer = json.loads(whole[8:end])
    head = json.loads(outer["__metadata__"][KEY])
    where = data.draw(st.sampled_from(places(head)))
    outer["__metadata__"][KEY] = json.dumps(put(head, where, data.draw(json_values)))
    text = json.dumps(outer).encode()
    refused_or_decoded(Everything, struct.pack("<Q", len(text)) + text + whole[end:])


@dataclass(frozen=True)
class One:
    items: tuple[int]


@dataclass(frozen=True)
class Three:
    items: tuple[int, int, int]


@dataclass(frozen=True)
class Any_:
    items: tuple[int, ...]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_tuples_have_as_many_items_as_declared(count):
    data = encode(Any_(tuple(range(count))))
    assert decode(Any_, data).items == tuple(range(count))
    for kind, wanted in ((One, 1), (Three, 3)):
        if count == wanted:
            assert decode(kind, data).items == tuple(range(count))
        else:
            with pytest.raises(CodecError, match="items"):
                decode(kind, data)


def test_a_missing_tensor_is_refused():
    """A message without its tensors is no message, whatever its header says."""
    whole = encode(Two(torch.ones(2), torch.zeros(2)))
    head = json.loads(json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"][KEY])
    with pytest.raises(CodecError, match="tensor is missing"):
        decode(Two, framed(head))


def test_another_message_is_refused_by_its_fields():
    with pytest.raises(CodecError, match=r"fields \['a', 'b'\] are not those of Plain: \['n', 'x'\]"):
        decode(Plain, encode(Two(torch.ones(1), torch.ones(1))))


def test_a_whole_number_is_a_float_where_a_float_is_declared():
    found = decode(Plain, encode(Plain(n=1, x=2)))  # a page may well say weight=2
    assert type(found.x) is float
    assert found.x == 2.0


# -- envelopes


FULL = Envelope("Two(a, b)", "run-1", 3, 4, 5, "abcd", "ef01")


@pytest.mark.parametrize("field", [f.name for f in fields(Envelope)])
def test_a_message_for_somebody_else_is_refused(field):
    other = "x" if isinstance(getattr(FULL, field), str) else 99
    data = encode(Plain(), replace(FULL, **{field: other}))
    assert decode(Plain, data) == Plain()  # nobody asked
    with pytest.raises(CodecError, match=f"is for {field} {other!r}, expected is {field}"):
        decode(Plain, data, FULL)


def test_a_message_without_an_envelope_is_refused_where_one_is_expected():
    with pytest.raises(CodecError, match="is for schema None"):
        decode(Plain, encode(Plain()), FULL)


def test_the_right_envelope_is_accepted():
    assert decode(Plain, encode(Plain(), FULL), FULL) == Plain()


def test_a_schema_names_the_class_and_its_fields():
    assert schema_of(Two) == "Two(a, b)"
    assert schema_of(Empty) == "Empty()"


# -- what cannot travel


@pytest.mark.parametrize(
    "value",
    [torch.ones(1, dtype=torch.complex64), {1, 2}, object(), Plain, lambda: 0, 1j],
    ids=["complex tensor", "set", "object", "class", "function", "complex"],
)
def test_what_cannot_travel_is_named(value):
    with pytest.raises(TypeError, match=r"v\.named\.k.* cannot travel"):
        encode(replace(SMALL, named={"k": value}))
    with pytest.raises(TypeError, match=r"v\.named\.k.* cannot travel"):
        size(replace(SMALL, named={"k": value}))


def test_tensors_come_back_where_torch_would_have_put_them():
    """A matrix product of numbers that begin elsewhere may differ in the last bit, and memory would not be wire."""
    for length in range(1, 40):
        message = Several(tuple(torch.arange(float(length + i)) for i in range(5)))
        found = decode(Several, encode(message)).many
        assert all(tensor.data_ptr() % 64 == 0 for tensor in found)
        assert all(torch.equal(one, two) for one, two in zip(found, message.many, strict=True))


@dataclass(frozen=True)
class Several:
    many: tuple[Tensor, ...]
