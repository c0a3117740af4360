"""Averaging LoRA factors apart: the space changes nothing, and its error is what theory says."""

import json
from pathlib import Path

import pytest
import torch

from fedloom.aggregate.rules import Mean
from fedloom.params import Layout, Leaf
from fedloom.spaces.factors import Factors

FEDIT = json.loads((Path(__file__).parents[1] / "oracles.json").read_text())["fedit"]
LAYOUT = Layout.of([Leaf("w.A", (1, 2), factor="A", module="w"), Leaf("w.B", (2, 1), factor="B", module="w")])


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def average(space, vectors, weights):
    acc = space.rule.start()
    for vector, weight in zip(vectors, weights, strict=True):
        acc = space.rule.add(acc, space.lift(vector, LAYOUT), weight)
    return space.close(torch.zeros(LAYOUT.size, dtype=torch.float64), space.rule.finish(acc))


def test_lower_after_lift_is_the_vector_itself():
    space, y = Factors(), torch.randn(4)
    assert torch.equal(space.lower(space.lift(y, LAYOUT), LAYOUT), y)
    assert torch.equal(space.close(torch.zeros(4), y), y)


def test_means_are_weighted_unless_said_otherwise():
    assert Factors().rule == Mean()
    assert Factors(Mean(uniform=True)).rule.uniform


def test_factors_are_averaged_apart():
    """FedIT: A = .25 A_1 + .75 A_2 and B likewise; the product misses the mean of products by Σ p_i dB_i dA_i."""
    inputs, outputs = FEDIT["inputs"], FEDIT["outputs"]
    pairs = list(zip(inputs["A"], inputs["B"], strict=True))
    ys = [LAYOUT.gather({"w.A": tensor(a), "w.B": tensor(b)}, torch.float64) for a, b in pairs]
    views = LAYOUT.views(average(Factors(), ys, [10.0, 30.0]))
    assert torch.allclose(views["w.A"], tensor(outputs["A"]), rtol=0, atol=1e-12)
    assert torch.allclose(views["w.B"], tensor(outputs["B"]), rtol=0, atol=1e-12)
    product = inputs["s"] * views["w.B"] @ views["w.A"]
    ideal = sum(p * inputs["s"] * tensor(b) @ tensor(a) for p, (a, b) in zip(inputs["p"], pairs, strict=True))
    assert torch.allclose(ideal - product, tensor(outputs["error"]), rtol=0, atol=1e-12)


def test_equal_clients_lose_nothing():
    y = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    views = LAYOUT.views(y)
    mean = LAYOUT.views(average(Factors(), [y, y, y], [1.0, 5.0, 2.0]))
    assert (mean["w.B"] @ mean["w.A"]).flatten().tolist() == pytest.approx(
        (views["w.B"] @ views["w.A"]).flatten().tolist()
    )
