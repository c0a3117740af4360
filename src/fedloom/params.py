"""The trainable numbers of a model as one flat vector, and the layout that says what each of them is.

`Params` is a float32 tensor [P] (float64 in tests). Algorithms do vector algebra on it; only spaces and adapters look
inside, through the `Layout`. Tensor names of any library appear only in `Leaf.name`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Params: TypeAlias = Tensor
"""[P] float32: the trainable numbers in the order of the layout."""


@dataclass(frozen=True)
class Leaf:
    """One trainable tensor inside the flat vector."""

    name: str
    """Its name in the model, unique."""
    shape: tuple[int, ...]
    offset: int = 0
    """Where its first number stands in the vector."""
    factor: Literal["A", "B", "plain"] = "plain"
    """The LoRA factor it is: A [rank, in], B [out, rank], or an ordinary tensor."""
    module: str = ""
    """The adapted module both factors of a pair name; empty for plain leaves."""
    scale: float = 1.0
    """What the product B A is multiplied with in the forward pass (alpha / rank, or alpha / sqrt(rank))."""
    transposed: bool = False
    """True where the base weight is stored [in, out] (GPT-2's Conv1D)."""
    origin: Literal["value", "difference"] = "value"
    """`difference`: the vector holds what was added to the base's own value, so that a server needs no base."""

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True, repr=False)
class Layout:
    """The leaves of a flat vector, in order, without gaps."""

    leaves: tuple[Leaf, ...]

    @classmethod
    def of(cls, leaves: Sequence[Leaf]) -> "Layout":
        """Lay the leaves out one behind the other; their offsets are set here.

        Raises:
            ValueError: two leaves share a name, or there is none.
        """
        names = [leaf.name for leaf in leaves]
        if not names:
            raise ValueError("a layout needs at least one trainable tensor; none was given")
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise ValueError(f"trainable tensors must have different names; these come twice: {', '.join(twice)}")
        placed, offset = [], 0
        for leaf in leaves:
            placed.append(replace(leaf, offset=offset))
            offset += leaf.size
        return cls(tuple(placed))

    def __hash__(self) -> int:
        """Worked out once: layouts are keys wherever something is done once for all clients of one kind."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.leaves)

    def __repr__(self) -> str:
        """Short: it stands in messages and in what a run folder says of itself."""
        return f"Layout({len(self.leaves)} tensors, {self.size} numbers, {self.fingerprint})"

    @cached_property
    def size(self) -> int:
        """P, the length of the vector."""
        return sum(leaf.size for leaf in self.leaves)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits over everything the layout says; equal only for interchangeable vectors."""
        text = json.dumps([asdict(leaf) for leaf in self.leaves], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def views(self, vector: Params) -> dict[str, Tensor]:
        """The vector's parts by name, shaped; they share its memory.

        Raises:
            ValueError: the vector is not [P].
        """
        if tuple(vector.shape) != (self.size,):
            raise ValueError(
                f"this layout holds {self.size} numbers ({len(self.leaves)} tensors), "
                f"the vector is {tuple(vector.shape)}; it belongs to another model or adapter"
            )
        return {leaf.name: vector[leaf.offset : leaf.offset + leaf.size].view(leaf.shape) for leaf in self.leaves}

    def gather(self, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Params:
        """One new vector [P] from tensors by name.

        Raises:
            ValueError: a tensor is missing, unexpected, or of another shape.
        """
        wanted = {leaf.name for leaf in self.leaves}
        missing, extra = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted)
        if missing or extra:
            raise ValueError(
                f"tensors do not fit the layout: {len(missing)} missing {missing[:3]}, {len(extra)} unexpected "
                f"{extra[:3]}; they come from another model or adapter configuration"
            )
        vector = torch.empty(self.size, dtype=dtype)
        for leaf in self.leaves:
            value = tensors[leaf.name]
            if tuple(value.shape) != leaf.shape:
                raise ValueError(f"tensor {leaf.name} is {tuple(value.shape)}, the layout says {leaf.shape}")
            vector[leaf.offset : leaf.offset + leaf.size].copy_(value.detach().reshape(-1))
        return vector

    def named(self, patterns: Sequence[str]) -> tuple[str, ...]:
        """Names of the leaves that match one of these shell patterns (`*.B`), in the order of the layout.

        Raises:
            ValueError: a pattern matches no leaf.
        """
        names = self.names
        idle = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
        if idle:
            raise ValueError(f"{', '.join(idle)}: no trained tensor has such a name; they are called {_few(names)}")
        return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))

    def take(self, vector: Params, names: Sequence[str]) -> Tensor:
        """The numbers of these leaves, one behind the other in the order given: a copy.

        Raises:
            ValueError: the vector is not [P], or a name is no leaf.
        """
        views = self.views(vector)
        self._know(names)
        return torch.cat([views[name].reshape(-1) for name in names]) if names else vector.new_zeros(0)

    def put(self, vector: Params, names: Sequence[str], part: Tensor) -> Params:
        """A copy of the vector in which these leaves hold what `take` would have given as `part`.

        Raises:
            ValueError: sizes do not fit, or a name is no leaf.
        """
        self._know(names)
        new = vector.clone()
        views = self.views(new)
        wanted = sum(views[name].numel() for name in names)
        if tuple(part.shape) != (wanted,):
            raise ValueError(f"these {len(names)} tensors hold {wanted} numbers, the part is {tuple(part.shape)}")
        done = 0
        for name in names:
            view = views[name]
            view.copy_(part[done : done + view.numel()].view(view.shape))
            done += view.numel()
        return new

    def _know(self, names: Sequence[str]) -> None:
        unknown = sorted(set(names) - set(self.names))
        if unknown:
            raise ValueError(f"no trained tensor is called {_few(unknown)}; they are called {_few(self.names)}")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all leaves, in order."""
        return tuple(leaf.name for leaf in self.leaves)

    def to_json(self) -> list[dict[str, Any]]:
        """A plain form for files and wires."""
        return [asdict(leaf) for leaf in self.leaves]

    @classmethod
    def from_json(cls, data: Sequence[Mapping[str, Any]]) -> "Layout":
        """The layout `to_json` wrote."""
        return cls.of([Leaf(**{**leaf, "shape": tuple(leaf["shape"])}) for leaf in data])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
