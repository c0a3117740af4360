"""Letters as Flower's objects: a head of JSON and a body of bytes, cut into blocks that are sent one by one.

Flower keeps a message as a tree of objects named by the SHA-256 of their content, and lets equal objects of different
messages be one. Ours are never equal: every block begins with a salt, so that no message can lose an object because
another one that shared it was delivered. A cohort's common body has one salt and is stored once.

The tree is message -> record dictionary -> [head, block, block, ...]. A reader takes the leaves in that order and needs
nothing else; what stands in the two inner objects is what Flower's own classes would write (the tests compare).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata, ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_id

BLOCK = 4 << 20
"""Bytes of a body in one object; a request is a little larger."""
HEAD = 1 << 20
"""Bytes a head may have."""
KIND = "query.fedloom"
"""Flower's type of all our messages."""


class ParcelError(ValueError):
    """What came is no letter of ours; the message says why."""


@dataclass(frozen=True)
class Body:
    """Bytes cut into blocks; several parcels may share one."""

    data: bytes | memoryview
    salt: bytes
    ids: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", [get_object_id(self.content(i)) for i in range(self.count)])

    @property
    def count(self) -> int:
        """How many blocks."""
        return -(-len(self.data) // BLOCK)

    def content(self, i: int) -> bytes:
        """One block as an object."""
        block = bytes(memoryview(self.data)[i * BLOCK : (i + 1) * BLOCK])
        content: bytes = ConfigRecord({"salt": self.salt + i.to_bytes(4, "big"), "block": block}).deflate()
        return content


@dataclass(frozen=True)
class Parcel:
    """A letter on its way out."""

    head: dict[str, Any]
    body: Body

    def message(self, metadata: Metadata) -> tuple[ProtoMessage, ObjectTree, "Iterator[tuple[str, bytes]]"]:
        """The message with its own id, the tree of its objects, and the objects, made when they are asked for."""
        head: bytes = ConfigRecord({"json": json.dumps(self.head, separators=(",", ":"))}).deflate()
        leaves = [get_object_id(head), *self.body.ids]
        record = _object("RecordDict", leaves, json.dumps({str(i): leaf for i, leaf in enumerate(leaves)}).encode())
        inner = get_object_id(record)
        metadata.message_id = ""
        outer = _object("Message", [inner], ProtoMessage(metadata=metadata).SerializeToString(deterministic=True))
        metadata.message_id = get_object_id(outer)
        tree = ObjectTree(
            object_id=metadata.message_id,
            children=[ObjectTree(object_id=inner, children=[ObjectTree(object_id=leaf) for leaf in leaves])],
        )

        def objects() -> Iterator[tuple[str, bytes]]:  # what a reader waits for comes last: then all of it is there
            yield metadata.message_id, outer
            yield inner, record
            for i, leaf in enumerate(self.body.ids):
                yield leaf, self.body.content(i)
            yield leaves[0], head

        empty = ProtoMessage(metadata=metadata)
        empty.content.SetInParent()
        return empty, tree, objects()


def leaves(tree: ObjectTree, most: int) -> list[str]:
    """Ids of head and blocks.

    Args:
        tree: of a message that came.
        most: bytes its body may have.

    Raises:
        ParcelError: it has another shape, more blocks than that, or the same one twice.
    """
    if len(tree.children) != 1 or any(leaf.children for leaf in tree.children[0].children):
        raise ParcelError("its objects are not nested as a letter's are")
    found = [leaf.object_id for leaf in tree.children[0].children]
    if not 1 <= len(found) <= 2 + most // BLOCK:
        raise ParcelError(f"it has {len(found)} parts, at most {2 + most // BLOCK} are expected")
    if len(set(found)) < len(found):  # a little that is read often is much; ours are all different
        raise ParcelError("one of its parts is named twice")
    return found


def head_of(content: bytes) -> dict[str, Any]:
    """The head in its object.

    Raises:
        ParcelError: it is none.
    """
    if len(content) > HEAD:
        raise ParcelError(f"its head has {len(content)} bytes, at most {HEAD} are expected")
    value = _record(content).get("json")
    try:
        head = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict):
        raise ParcelError("its head is no JSON object")
    return head


def block_of(content: bytes) -> bytes:
    """The bytes in a block's object.

    Raises:
        ParcelError: it is none.
    """
    value = _record(content).get("block")
    if not isinstance(value, bytes):
        raise ParcelError("one of its blocks holds no bytes")
    if len(value) > BLOCK:
        raise ParcelError(f"one of its blocks has {len(value)} bytes, at most {BLOCK} are expected")
    return value


def gathered(count: int, blocks: Iterable[bytes]) -> memoryview:
    """So many blocks as one body, in memory where its first tensor lies well."""
    from fedloom.channel.frames import LENGTH, place  # torch, which the mailroom's own process has no use for

    room, at = memoryview(b""), 0
    for block in blocks:
        if not at:
            room = place(count * BLOCK, block.ljust(LENGTH, b"\0"))
        room[at : at + len(block)] = block
        at += len(block)
    return room[:at]


def _record(content: bytes) -> Any:
    try:
        return ConfigRecord.inflate(content)
    except Exception as error:  # a foreign library on foreign bytes: whatever it raises, it is no record
        raise ParcelError(f"one of its parts is no record ({type(error).__name__})") from None


def _object(kind: str, children: Sequence[str], body: bytes) -> bytes:
    return f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
