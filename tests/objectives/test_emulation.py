"""How far an emulator is, on paper and against the numbers of the published code."""

import json
from pathlib import Path

import pytest
import torch

from fedloom.objectives.emulation import distance, sums

ORACLE = json.loads((Path(__file__).parents[1] / "oracles_offsite.json").read_text())["offsite_emulator_kd"]


def tensors():
    owner, emulator = (torch.tensor(ORACLE["inputs"][f"{name}_hidden"])[None] for name in ("teacher", "student"))
    return owner, emulator, torch.ones(1, 2, dtype=torch.bool)


def test_the_published_number():
    """T = [[1, 2], [0, -1]]: σ² = 6 / 4; Σ (T − S)² = .04 + .01 + .01 + .09 = .15; .15 / 4 / 1.5 = .025."""
    owner, emulator, real = tensors()
    found = ORACLE["outputs"]
    assert distance(owner, emulator, real).item() == pytest.approx(found["kd"], abs=1e-7)
    assert owner.square().mean().sqrt().item() == pytest.approx(found["sigma"])
    weighed = 0.9 * distance(owner, emulator, real) + 0.1 * found["lm_loss_used"]
    assert weighed.item() == pytest.approx(found["kd_09_lm_01"])


def test_equal_outputs_are_no_distance_apart():
    owner, _, real = tensors()
    assert distance(owner, owner, real).item() == 0


def test_filling_does_not_count():
    owner, emulator, real = tensors()
    wide, other = (torch.cat([one, torch.full((1, 3, 2), 7.0 * i)], 1) for i, one in enumerate((owner, emulator), 1))
    real = torch.cat([real, torch.zeros(1, 3, dtype=torch.bool)], 1)
    assert distance(wide, other, real).item() == pytest.approx(0.025, abs=1e-7)


def test_sums_of_batches_add_up_to_one_distance():
    torch.manual_seed(0)
    owner, emulator = torch.randn(2, 4, 3, 5)
    real = torch.rand(4, 3) > 0.3
    parts = [sums(owner[i : i + 2], emulator[i : i + 2], real[i : i + 2]) for i in (0, 2)]
    together = sum(one[0] for one in parts) / sum(one[1] for one in parts)
    assert together.item() == pytest.approx(distance(owner, emulator, real).item())


def test_the_gradient_reaches_the_emulator_alone():
    owner, emulator, real = tensors()
    emulator.requires_grad_(True)
    distance(owner, emulator, real).backward()
    assert torch.allclose(emulator.grad, 2 * (emulator - owner).detach() / 6)
