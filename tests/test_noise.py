"""Random directions: what their numbers are like, and that nothing but (seed, leaf, index) decides them."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom import noise, rng
from fedloom.params import Layout, Leaf

COUNT = 1 << 20
SEEDS = st.integers(0, (1 << 63) - 1)
KINDS = ("gaussian", "rademacher", "uniform")
LAYOUT = Layout.of([Leaf("one", (300, 7)), Leaf("two", (noise.PIECE + 3,)), Leaf("three", (1,))])


def draw(seed, leaf="leaf", start=0, count=COUNT, kind="gaussian", dtype=torch.float32):
    return noise.fill(torch.empty(count, dtype=dtype), seed, leaf, start, kind)


def correlation(a, b):
    """In standard deviations of what independent numbers would show."""
    return float((a.double() * b.double()).mean() * math.sqrt(len(a)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, rng.key(0, "a seed")])
def test_moments_are_those_of_the_distribution(kind, seed):
    """n numbers: the mean strays by 1 / sqrt(n), the variance by sqrt(2 / n), the fourth moment by sqrt(96 / n)."""
    z = draw(seed, kind=kind).double()
    assert abs(float(z.mean())) < 4.5 / math.sqrt(COUNT)
    if kind == "rademacher":
        assert set(z.tolist()) == {-1.0, 1.0}
        return
    if kind == "uniform":
        assert abs(float(z.square().mean()) - noise.variance("uniform")) < 4.5 * math.sqrt(4 / 45 / COUNT)
        assert 0.9999 < float(z.abs().max()) < noise.largest("uniform") == 1
        assert bool((z * 2**16 % 2 == 1).all())
        return
    assert abs(float(z.square().mean()) - 1) < 4.5 * math.sqrt(2 / COUNT)
    assert abs(float((z**3).mean())) < 4.5 * math.sqrt(15 / COUNT)
    assert abs(float((z**4).mean()) - 3) < 0.01 + 4.5 * math.sqrt(96 / COUNT)  # the tails end at 4.3
    assert 4.2 < float(z.abs().max()) <= noise.largest("gaussian") < 4.4


def test_gaussian_numbers_fill_the_normal_distribution():
    """Kolmogorov's distance of n numbers stays below 1.95 / sqrt(n) in 999 of 1000 cases."""
    z = draw(3).double().sort().values
    expected = torch.special.ndtr(z)
    seen = torch.arange(1, COUNT + 1, dtype=torch.float64) / COUNT
    assert float((expected - seen).abs().max()) < 1.95 / math.sqrt(COUNT) + 1 / 4096


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_leaves_and_indices_are_independent(kind):
    z = draw(5, kind=kind)
    others = [draw(5 ^ (1 << bit), kind=kind) for bit in range(63)]
    others += [draw(5, name, kind=kind) for name in ("leaf.", "leag", "", "layers.0.weight", "layers.1.weight")]
    others += [draw(5, start=shift, kind=kind) for shift in (1, 2, 3, 4, 64, 1024, 1 << 16, 1 << 20, 1 << 31, 1 << 33)]
    assert max(abs(correlation(z, other)) for other in others) < 5
    squares = [abs(correlation(z.square() - 1, other.square() - 1)) / 2 for other in others if kind == "gaussian"]
    assert max(squares, default=0) < 5


def test_neighbouring_seeds_make_no_pattern():
    """Columns of a matrix whose rows are seeds 0, 1, 2, ...: like rows, they are as random as numbers of one seed."""
    z = torch.stack([draw(seed, count=256) for seed in range(2048)]).double()
    gram = (z.t() @ z) / 2048
    assert float((gram - torch.eye(256)).abs().max()) < 6 / math.sqrt(2048) * math.sqrt(2)
    rows = (z @ z.t())[:256, :256] / 256
    assert float((rows - torch.diag(rows.diag())).abs().max()) < 6 / math.sqrt(256)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(0, 1 << 40), st.lists(st.integers(1, 700), min_size=1, max_size=6), st.sampled_from(KINDS))
def test_pieces_of_any_size_are_parts_of_one_whole(seed, start, sizes, kind):
    whole = draw(seed, start=start, count=sum(sizes), kind=kind)
    parts = torch.cat([draw(seed, start=start + sum(sizes[:i]), count=n, kind=kind) for i, n in enumerate(sizes)])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("kind", KINDS)
def test_formats_and_long_leaves_hold_the_same_numbers(kind):
    count = 2 * noise.PIECE + 5
    wide = draw(9, start=7, count=count, kind=kind, dtype=torch.float64)
    assert torch.equal(draw(9, start=7, count=count, kind=kind).double(), wide)
    assert torch.equal(
        wide[noise.PIECE + 1 :], draw(9, start=noise.PIECE + 8, count=noise.PIECE + 4, kind=kind).double()
    )


def test_only_flat_numbers_are_drawn():
    with pytest.raises(ValueError, match="flat tensor"):
        noise.fill(torch.empty(2, 3), 1, "leaf")


def test_no_generator_is_touched():
    before = torch.random.get_rng_state()
    draw(1, count=10)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
def test_a_direction_is_its_leaves(kind):
    z = noise.direction(11, LAYOUT, kind)
    for name, view in LAYOUT.views(z).items():
        assert torch.equal(view.reshape(-1), draw(11, name, count=view.numel(), kind=kind))
    w = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(0))
    moved = noise.add(w.clone(), LAYOUT, 11, -0.3, kind)
    assert torch.equal(moved, w + z * -0.3)
    partly = noise.add(w.clone(), LAYOUT, 11, -0.3, kind, {"two"})
    assert torch.equal(LAYOUT.take(partly, ["two"]), LAYOUT.take(moved, ["two"]))
    assert torch.equal(LAYOUT.take(partly, ["one", "three"]), LAYOUT.take(w, ["one", "three"]))
    leaf = LAYOUT.leaves[1]
    part = w[leaf.offset : leaf.offset + leaf.size]
    near = noise.near(torch.empty_like(part), part, 11, -0.3, "two", kind)
    assert torch.equal(near, LAYOUT.take(moved, ["two"]))


def test_this_machine_draws_what_every_machine_draws():
    """A change of these digits makes every seed kept in a checkpoint or sent by another version mean something else."""
    assert noise.fingerprint() == "63c9e721c4a6565d"
    assert noise.fingerprint(("uniform",)) == "2237de5f22583c35"
    assert [round(float(z) * noise.UNIT) for z in draw(42, count=4)] == FIRST


FIRST = [1777, -2562, -5600, 2601]
THREADS = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
from fedloom import noise
from fedloom.params import Layout, Leaf
layout = Layout.of([Leaf("a", (1000, 301)), Leaf("b", (77,))])
w = noise.add(torch.ones(layout.size), layout, 5, 1e-3)
bits = w.view(torch.int32).to(torch.int64) * torch.arange(len(w))
print(noise.fingerprint(), w.double().sum().item().hex(), bits.sum().item())
"""


def test_threads_change_nothing():
    said = {
        subprocess.run([sys.executable, "-c", THREADS, str(n)], capture_output=True, text=True, check=True).stdout
        for n in (1, 2, 5)
    }
    assert len(said) == 1
    assert noise.fingerprint() in said.pop()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_draws_the_same(kind):
    there = noise.fill(torch.empty(COUNT, device="cuda"), 5, "leaf", 3, kind)
    assert torch.equal(there.cpu(), draw(5, start=3, kind=kind))
