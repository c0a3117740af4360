"""Training without gradients minimises whatever the objective says: both engines, references and heads."""

import math
from dataclasses import replace

import pytest
import torch

import tiny
from engine import pair
from engine.pair import ALL, Pair, one, serve
from engine.test_objectives import encoder, judged_answers, pairs_of_answers, rows_of_classes
from engine.test_zeroth import SEEDS, same
from fedloom import noise
from fedloom.adapters.config import FullConfig
from fedloom.contracts import ClientFailed
from fedloom.drift import Drift
from fedloom.engine.reference import Reference
from fedloom.engine.requests import Probe, Wander
from fedloom.models.heads import HeadSpec
from fedloom.objectives.classify import Classify
from fedloom.objectives.config import DpoConfig, KtoConfig
from fedloom.objectives.kto import Kto
from fedloom.objectives.preference import Preference

OBJECTIVES = {
    "dpo over the base": (lambda: Preference(DpoConfig(reference="base")), pairs_of_answers),
    "dpo over the start": (lambda: Preference(DpoConfig(reference="start")), pairs_of_answers),
    "kto": (lambda: Kto(KtoConfig(), 32), judged_answers),
    "classify": (lambda: Classify(), rows_of_classes),
}


def made(tmp_path, name, double=True):
    objective, rows = OBJECTIVES[name]
    classes = name == "classify"
    folder = encoder(tmp_path, "bert") if classes else pair.saved(tmp_path, "llama")
    head = HeadSpec(3) if classes else None
    return Pair(folder, ALL, double=double, objective=objective(), head=head), rows(1)


def request(p, batches, start=None, **changes):
    start = p.somewhere(1) if start is None else start
    lrs = (1e-4,) * len(batches)
    return Wander(start, p.layout, batches, lrs, SEEDS[: len(batches)], 1e-3, "client", **changes)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_both_engines_agree(tmp_path, name):
    p, batches = made(tmp_path, name)
    asked = request(p, batches, accumulate=2)
    ours, theirs = one(p.slots(), asked), one(p.reference(), asked)
    assert ours.steps == theirs.steps == len(batches)
    assert math.isclose(ours.loss, theirs.loss, rel_tol=1e-5)
    assert float((ours.slopes - theirs.slopes).norm()) < 1e-3 * float(theirs.slopes.norm())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_company_changes_no_bit(tmp_path, name):
    p, batches = made(tmp_path, name, double=False)
    asked = [request(p, batches), request(p, batches[::-1]), request(p, batches, Drift(2, torch.tensor([0.01])))]
    for found, wanted in zip(serve(p.slots(8), asked), [one(p.slots(1), a) for a in asked], strict=True):
        assert not isinstance(found, ClientFailed)
        same(found, wanted)


@pytest.mark.parametrize("name", ["dpo over the base", "kto"])
def test_slopes_are_those_of_the_objective(tmp_path, name):
    """A probe compares with the base too, and has the same losses."""
    p, batches = made(tmp_path, name)
    run = one(p.slots(), request(p, batches, step=False))
    x = p.somewhere(1)
    for batch, (seed,), (slope,) in zip(batches, SEEDS, run.slopes.tolist(), strict=False):
        z = noise.direction(seed, p.layout, dtype=torch.float64)
        up, down = one(p.slots(), Probe((x + 1e-3 * z, x - 1e-3 * z), p.layout, batch))
        assert math.isclose(slope, (up - down) / 2e-3, rel_tol=1e-6, abs_tol=1e-9)


@pytest.mark.parametrize("reference", ["base", "start"])
def test_all_parameters_and_a_reference(tmp_path, reference):
    """From a drift, leaf by leaf: the same slopes as from the vector it leads to; the reference stays what it is."""
    folder = pair.saved(tmp_path, "llama")
    rig = tiny.Rig(folder, FullConfig())
    objective, batches = Preference(DpoConfig(reference=reference)), pairs_of_answers(1)
    rig.engine = Reference(rig.adapted, rig.tokenizer, (tiny.END,), objective=objective)
    asked = Wander(Drift(2, torch.tensor([0.01])), rig.layout, batches, (1e-5,) * 3, SEEDS[:3], 1e-2, "client")
    run = rig.ask(asked)
    like = rig.ask(replace(asked, start=noise.add(torch.zeros(rig.layout.size), rig.layout, drift_seed(), 0.01)))
    assert float((run.slopes - like.slopes).norm()) < 1e-2 * float(like.slopes.norm())
    again = rig.ask(asked)
    same(again, run)


def drift_seed():
    (seed,) = Drift(2, torch.tensor([1.0])).table()
    return seed
