"""Flat vectors and their layout: what goes in comes out, and nothing that does not fit gets in."""

import json
from dataclasses import replace
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.params import Layout, Leaf

PAIR = (
    Leaf("w.A", (2, 3), factor="A", module="w", scale=0.5),
    Leaf("w.B", (4, 2), factor="B", module="w", scale=0.5),
)
LAW = settings(deadline=None, derandomize=True, max_examples=60)

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
leaves = st.lists(
    st.builds(
        Leaf,
        name=st.text(min_size=1, max_size=6),
        shape=shapes,
        factor=st.sampled_from(["A", "B", "plain"]),
        module=st.text(max_size=3),
        scale=st.floats(1e-3, 1e3),
        transposed=st.booleans(),
        origin=st.sampled_from(["value", "difference"]),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda leaf: leaf.name,
)


def test_leaves_lie_one_behind_the_other():
    """2 x 3 numbers, then 4 x 2: the second begins at 6, the vector has 14."""
    layout = Layout.of(PAIR)
    assert [leaf.offset for leaf in layout.leaves] == [0, 6]
    assert layout.size == 14
    views = layout.views(torch.arange(14.0))
    assert views["w.A"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert views["w.B"].tolist() == [[6, 7], [8, 9], [10, 11], [12, 13]]


def test_views_share_memory_and_gather_does_not():
    layout = Layout.of(PAIR)
    vector = torch.zeros(14)
    layout.views(vector)["w.B"][0, 0] = 7
    assert vector[6] == 7
    tensors = layout.views(vector)
    gathered = layout.gather(tensors)
    tensors["w.B"][0, 0] = 8
    assert gathered[6] == 7


def test_gather_takes_parameters_out_of_their_graph():
    layout = Layout.of([Leaf("a", (2,))])
    gathered = layout.gather({"a": torch.nn.Parameter(torch.tensor([1.0, 2.0]))})
    assert not gathered.requires_grad
    assert gathered.tolist() == [1, 2]


def test_gather_does_not_ask_for_contiguous_tensors():
    layout = Layout.of([Leaf("a", (2, 3))])
    assert layout.gather({"a": torch.arange(6.0).reshape(3, 2).T}).tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize(("dtype", "want"), [(torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_gather_gives_the_format_that_was_asked_for(dtype, want):
    third = torch.full((1,), 1 / 3, dtype=torch.float64)
    gathered = Layout.of([Leaf("a", (1,))]).gather({"a": third}, dtype)
    assert gathered.dtype == want
    assert gathered == third.to(dtype)


def test_float32_is_the_default_format():
    assert Layout.of([Leaf("a", (1,))]).gather({"a": torch.ones(1, dtype=torch.float64)}).dtype == torch.float32


@LAW
@given(leaves, st.randoms(use_true_random=False))
def test_gather_after_views_is_identity_in_any_order_of_names(parts, random):
    layout = Layout.of(parts)
    vector = torch.randn(layout.size, generator=torch.Generator().manual_seed(random.randrange(2**32)))
    named = list(layout.views(vector).items())
    assert {name: tuple(t.shape) for name, t in named} == {leaf.name: leaf.shape for leaf in parts}
    random.shuffle(named)
    assert torch.equal(layout.gather(dict(named)), vector)


@LAW
@given(leaves)
def test_size_counts_every_number_once(parts):
    layout = Layout.of(parts)
    covered = [i for leaf in layout.leaves for i in range(leaf.offset, leaf.offset + prod(leaf.shape))]
    assert covered == list(range(layout.size))


@LAW
@given(leaves)
def test_json_brings_the_layout_back(parts):
    layout = Layout.of(parts)
    again = Layout.from_json(json.loads(json.dumps(layout.to_json())))
    assert again == layout
    assert again.fingerprint == layout.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"name": "w.C"}, {"shape": (3, 2)}, {"factor": "plain"}, {"module": "v"}, {"scale": 0.25},
        {"transposed": True}, {"origin": "difference"},
    ],
)  # fmt: skip
def test_vectors_that_are_not_interchangeable_have_other_fingerprints(change):
    assert Layout.of([replace(PAIR[0], **change), PAIR[1]]).fingerprint != Layout.of(PAIR).fingerprint


def test_the_order_of_leaves_is_part_of_the_fingerprint():
    assert Layout.of(PAIR[::-1]).fingerprint != Layout.of(PAIR).fingerprint


def test_the_fingerprint_is_the_same_on_every_machine():
    """Pinned: it stands in envelopes and env.json, so a change of how it is made is a change of format."""
    assert Layout.of(PAIR).fingerprint == "698c2eef581e6210"


def test_no_leaf_is_refused():
    with pytest.raises(ValueError, match="at least one trainable tensor"):
        Layout.of([])


def test_two_leaves_of_one_name_are_refused_by_name():
    with pytest.raises(ValueError, match=r"come twice: x$"):
        Layout.of([Leaf("x", (1,)), Leaf("y", (1,)), Leaf("x", (2,))])


@pytest.mark.parametrize("shape", [(13,), (15,), (0,), (14, 1), (1, 14), ()])
def test_a_vector_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="14 numbers"):
        Layout.of(PAIR).views(torch.zeros(shape))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w.A": torch.zeros(2, 3)}, r"1 missing \['w.B'\], 0 unexpected"),
        (
            {"w.A": torch.zeros(2, 3), "w.B": torch.zeros(4, 2), "v": torch.zeros(1)},
            r"0 missing .*1 unexpected \['v'\]",
        ),
        ({"w.A": torch.zeros(2, 3), "w.B": torch.zeros(2, 4)}, r"w.B is \(2, 4\), the layout says \(4, 2\)"),
        ({"w.A": torch.zeros(6), "w.B": torch.zeros(4, 2)}, r"w.A is \(6,\)"),
        ({"w.A": torch.zeros(1, 3), "w.B": torch.zeros(4, 2)}, r"w.A is \(1, 3\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tensors, message):
    with pytest.raises(ValueError, match=message):
        Layout.of(PAIR).gather(tensors)


# -- some of the leaves


THREE = Layout.of([*PAIR, Leaf("bias", (3,))])


def test_names_are_in_order():
    assert THREE.names == ("w.A", "w.B", "bias")


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["*.B"], ("w.B",)),
        (["bias", "w.A"], ("w.A", "bias")),  # in the order of the layout
        (["w.*"], ("w.A", "w.B")),
        (["*"], ("w.A", "w.B", "bias")),
        (["*.B", "w.B", "w.[B]"], ("w.B",)),  # once
        ([], ()),
    ],
)
def test_leaves_by_pattern(patterns, found):
    assert THREE.named(patterns) == found


@pytest.mark.parametrize("patterns", [["*.C"], ["*.B", "lm_head"], ["W.B"], ["w.b"], ["w"]])
def test_a_pattern_that_matches_nothing_is_named(patterns):
    with pytest.raises(
        ValueError, match=r"no trained tensor has such a name; they are called w\.A, w\.B, bias"
    ) as caught:
        THREE.named(patterns)
    assert patterns[-1] in str(caught.value)
    assert "*.B," not in str(caught.value)  # the one that matches is not blamed


def test_take_by_hand():
    """A holds 0 to 5, B 6 to 13, the bias 14 to 16; in the order that is asked for."""
    x = torch.arange(17.0)
    assert THREE.take(x, ["bias", "w.A"]).tolist() == [14, 15, 16, 0, 1, 2, 3, 4, 5]
    assert THREE.take(x, []).tolist() == []
    assert THREE.take(x, list(THREE.names)).tolist() == x.tolist()


def test_what_is_taken_is_a_copy():
    x = torch.arange(17.0)
    for names in (["bias"], list(THREE.names)):
        THREE.take(x, names).zero_()
        assert torch.equal(x, torch.arange(17.0))


def test_put_by_hand():
    x = torch.arange(17.0)
    found = THREE.put(x, ["bias", "w.A"], -torch.arange(1.0, 10))
    assert found.tolist() == [-4, -5, -6, -7, -8, -9, 6, 7, 8, 9, 10, 11, 12, 13, -1, -2, -3]
    assert torch.equal(x, torch.arange(17.0))
    assert torch.equal(THREE.put(x, [], x[:0]), x)
    assert THREE.put(x, [], x[:0]) is not x


@LAW
@given(leaves, st.randoms(use_true_random=False))
def test_put_what_was_taken(parts, random):
    layout = Layout.of(parts)
    names = random.sample(list(layout.names), random.randint(0, len(parts)))
    source = torch.Generator().manual_seed(random.randrange(2**32))
    x, y = (torch.randn(layout.size, generator=source, dtype=torch.float64) for _ in range(2))
    part = layout.take(x, names)
    assert part.dtype == torch.float64
    assert torch.equal(layout.put(x, names, part), x)
    moved = layout.put(y, names, part)
    for leaf in layout.leaves:
        whose = x if leaf.name in names else y
        assert torch.equal(layout.views(moved)[leaf.name], layout.views(whose)[leaf.name])


@pytest.mark.parametrize("size", [0, 2, 4, 17])
def test_a_part_of_another_size_is_refused(size):
    with pytest.raises(ValueError, match="hold 3 numbers"):
        THREE.put(torch.zeros(17), ["bias"], torch.zeros(size))


def test_unknown_leaves_are_refused_by_name():
    for call in (lambda: THREE.take(torch.zeros(17), ["w.C"]), lambda: THREE.put(torch.zeros(17), ["w.C"], None)):
        with pytest.raises(ValueError, match=r"no trained tensor is called w\.C; they are called w\.A"):
            call()
    with pytest.raises(ValueError, match="17 numbers"):
        THREE.take(torch.zeros(16), ["bias"])
