"""Which client has which rank: published shares, named ones, and the largest of all."""

from collections import Counter
from itertools import pairwise

import pytest

import tiny
from fedloom.adapters.config import LoraConfig, RanksConfig
from fedloom.adapters.ranks import MIXTURES, Ranks
from fedloom.errors import UserError

ATTENTION, OTHER = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
MODULES = [ATTENTION, OTHER]
PUBLISHED = {  # FlexLoRA: all small, all large, medium in attention and large elsewhere, all medium
    "uniform": (0.25, 0.25, 0.25, 0.25),
    "heavy_tail": (0.80, 0.10, 0.05, 0.05),
    "heavy_tail_strong": (0.05, 0.80, 0.10, 0.05),
    "normal": (0.0575, 0.4425, 0.4425, 0.0575),
}
KINDS = ((8, 8), (200, 200), (30, 200), (30, 30))
"""Ranks of (attention, other) of each type."""


def made(name="uniform", clients=10, named=None, seed=0, **settings):
    config = LoraConfig(rank=4, ranks=RanksConfig(name=name, **settings))
    return Ranks(config, clients, named or {}, seed)


def drawn(ranks, clients):
    return [tuple(ranks.of(i, MODULES).values()) for i in range(clients)]


# -- mixtures


def test_the_table_is_the_published_one():
    assert {name: tuple(shares) for name, shares in MIXTURES.items()} == PUBLISHED
    assert all(sum(shares) == pytest.approx(1) for shares in MIXTURES.values())


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_types_come_in_their_shares(name, seed):
    """n draws of probability p: a standard deviation of sqrt(n p (1 - p)); five of them are allowed."""
    n = 20_000
    counts = Counter(drawn(made(name, n, seed=seed), n))
    assert set(counts) == set(KINDS)
    for kind, p in zip(KINDS, PUBLISHED[name], strict=True):
        assert abs(counts[kind] - n * p) < 5 * (n * p * (1 - p)) ** 0.5


def test_neighbours_are_drawn_independently():
    """Of 20,000 pairs of neighbours a quarter is alike; standard deviation 61."""
    types = drawn(made(clients=20_001), 20_001)
    alike = sum(left == right for left, right in pairwise(types))
    assert abs(alike - 5_000) < 5 * 62


def test_the_seed_alone_decides():
    whole = drawn(made(clients=200, seed=5), 200)
    before = tiny.randomness()
    again = made(clients=200, seed=5, small=1, medium=2, large=3)
    assert [again.of(i, MODULES) for i in reversed(range(200))][::-1] == [
        {ATTENTION: {8: 1, 30: 2, 200: 3}[a], OTHER: {8: 1, 30: 2, 200: 3}[o]} for a, o in whole
    ]
    assert tiny.randomness() == before
    assert drawn(made(clients=200, seed=6), 200) != whole
    assert drawn(made(clients=90, seed=5), 90) == whole[:90]  # more clients change nobody's type


def test_the_mixture_decides_by_the_same_numbers():
    """A client of heavy_tail's rare types is no small one under uniform: 0.8 lies above 0.25."""
    tail, even = (drawn(made(name, 500), 500) for name in ("heavy_tail", "uniform"))
    assert all(b != (8, 8) for a, b in zip(tail, even, strict=True) if a != (8, 8))


def test_without_a_mixture_all_are_alike():
    ranks = made("homogeneous", 1000)
    assert not ranks.differ
    assert set(drawn(ranks, 1000)) == {(4, 4)}
    assert ranks.largest(MODULES) == {ATTENTION: 4, OTHER: 4}
    assert made("uniform").differ
    assert made("homogeneous", named={3: 9}).differ


# -- attention or not


@pytest.mark.parametrize(
    "family, inside, outside",
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}),
        ("gpt2", {"attn.c_attn", "attn.c_proj"}, {"mlp.c_fc", "mlp.c_proj"}),
        ("opt", {"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc1", "fc2"}),
        ("bloom", {"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
        ("gpt_neox", {"attention.query_key_value", "attention.dense"}, {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}),
    ],
)
def test_attention_is_found_in_every_family(tmp_path, family, inside, outside):
    """The third type: medium in attention, large elsewhere."""
    rig = tiny.Rig(tiny.saved(tmp_path, family), LoraConfig(rank=2, targets="all-linear"))
    modules = list(rig.adapted.extras)
    ranks = made("uniform", 100)
    client = drawn(ranks, 100).index((30, 200))
    found = ranks.of(client, modules)
    assert list(found) == modules
    for name, rank in found.items():
        (suffix,) = [end for end in inside | outside if name.endswith(f".{end}")]
        assert rank == (30 if suffix in inside else 200), name
    assert set(found.values()) == {30, 200}


def test_attention_may_be_called_otherwise():
    ranks = made("uniform", 100, attention=["*.mixer.*"])
    client = drawn(made("uniform", 100), 100).index((30, 200))
    assert ranks.of(client, ["a.mixer.q", ATTENTION]) == {"a.mixer.q": 30, ATTENTION: 200}


# -- named


def test_named_clients_go_before_the_mixture():
    ranks = made("uniform", 100, named={2: 5, 7: {"q_proj": 6}, 9: {"*": 3, "*.mlp.*": 2}})
    plain = made("uniform", 100)
    assert ranks.of(2, MODULES) == {ATTENTION: 5, OTHER: 5}
    assert ranks.of(7, MODULES) == {**plain.of(7, MODULES), ATTENTION: 6}
    assert ranks.of(9, MODULES) == {ATTENTION: 3, OTHER: 2}  # the later entry wins
    for client in {*range(100)} - {2, 7, 9}:
        assert ranks.of(client, MODULES) == plain.of(client, MODULES)


@pytest.mark.parametrize(
    "pattern, chosen",
    [
        ("q_proj", {"a.0.q_proj", "a.1.q_proj"}),
        ("*.q_proj", {"a.0.q_proj", "a.1.q_proj"}),
        ("a.1.*", {"a.1.q_proj", "a.1.up_proj"}),
        ("a.0.up_proj", {"a.0.up_proj"}),
        ("1.q_proj", {"a.1.q_proj"}),
        ("*", {"a.0.q_proj", "a.0.up_proj", "a.1.q_proj", "a.1.up_proj"}),
    ],
)
def test_patterns(pattern, chosen):
    modules = [f"a.{i}.{name}" for i in (0, 1) for name in ("q_proj", "up_proj")]
    found = made("homogeneous", named={1: {pattern: 9}}).of(1, modules)
    assert {name for name, rank in found.items() if rank == 9} == chosen
    assert {rank for name, rank in found.items() if name not in chosen} <= {4}


@pytest.mark.parametrize("pattern", ["p_proj", "proj", "Q_PROJ", "*.self_atn.*", "self_attn.q_pro"])
def test_a_pattern_that_names_no_module(pattern):
    ranks = made("homogeneous", named={1: {"up_proj": 3, pattern: 9}})
    with pytest.raises(UserError) as caught:
        ranks.of(1, MODULES)
    assert pattern in str(caught.value)
    assert "clients" in str(caught.value)
    assert "q_proj" in str(caught.value) or "up_proj" in str(caught.value)  # the nearest, or all there are
    assert ranks.of(2, MODULES) == {ATTENTION: 4, OTHER: 4}


# -- the shared adapter


@pytest.mark.parametrize("name", ["homogeneous", *PUBLISHED])
@pytest.mark.parametrize("named", [{}, {3: 2}, {3: 999}, {5: {"q_proj": 250}, 6: {"up_proj": 1}}], ids=str)
def test_the_shared_rank_is_the_largest_any_client_holds(name, named):
    for clients in (7, 8, 300):
        ranks = made(name, clients, named)
        every = [ranks.of(i, MODULES) for i in range(clients)]
        assert ranks.largest(MODULES) == {m: max(one[m] for one in every) for m in MODULES}


def test_it_is_no_larger_than_needed():
    """Seven of heavy_tail, none of them large: nobody pays for ranks nobody has."""
    for seed in range(200):
        ranks = made("heavy_tail", 3, seed=seed)
        if set(drawn(ranks, 3)) == {(8, 8)}:
            assert ranks.largest(MODULES) == {ATTENTION: 8, OTHER: 8}
            return
    raise AssertionError("half of all seeds draw three small ones")


def test_everybody_named():
    ranks = made("homogeneous", 2, named={0: 2, 1: {"q_proj": 3, "up_proj": 1}})
    assert ranks.largest(MODULES) == {ATTENTION: 3, OTHER: 2}  # not adapter.rank, which nobody has
