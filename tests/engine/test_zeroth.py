"""Training without gradients in both engines: by hand, one engine against the other, company, drifts, failures."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from engine import pair
from engine.pair import ALL, SILENT, Pair, one, serve
from fedloom import noise
from fedloom.adapters.config import FullConfig
from fedloom.contracts import ClientFailed, Wandered
from fedloom.drift import Drift, moved, pool, rounded
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.requests import Descend, Evaluate, Generate, Probe, Stand, Wander
from fedloom.errors import UserError
from tiny import BATCHES

LRS = (0.02, 0.04, 0.06, 0.06)
SEEDS = ((11,), (12,), (13,), (14,))
THREE = tuple(tuple(100 * step + j for j in range(3)) for step in range(4))
ORACLES = json.loads((Path(__file__).parent.parent / "oracles.json").read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    names = ("llama", "tied", "gpt2", "opt", "bloom", "gemma3", "phi", "gpt_neox")
    return {name: pair.saved(tmp_path_factory.mktemp(name), name) for name in names}


@pytest.fixture(scope="module")
def llama(folders):
    return Pair(folders["llama"])


@pytest.fixture(scope="module")
def double(folders):
    return Pair(folders["gpt2"], double=True, attention="sdpa", plain=True)


def wander(start, layout, **changes):
    """Four steps along one direction each, unless told otherwise; from a drift small ones, within the range."""
    if isinstance(start, Drift):
        changes = {"lrs": tuple(lr / 1000 for lr in LRS), **changes}
    decayed = tuple(leaf.name for leaf in layout.leaves if len(leaf.shape) > 1)
    request = Wander(start, layout, BATCHES, LRS, SEEDS, 1e-3, "client", decayed=decayed)
    return replace(request, **changes)


def walked(p, request, kind="gaussian"):
    """The definition, by losses the engine gives of whole vectors."""
    w, slopes = request.start.clone(), []
    decayed = torch.zeros(len(w), dtype=torch.bool)
    for leaf in request.layout.leaves:
        decayed[leaf.offset : leaf.offset + leaf.size] = leaf.name in request.decayed
    for batch, lr, seeds in zip(request.batches, request.lrs, request.seeds, strict=True):
        zs = [noise.direction(seed, request.layout, request.kind, w.dtype) for seed in seeds]
        e = request.epsilon
        if request.forward:
            here = one(p, Probe((w,), request.layout, batch))[0]
            found = [(one(p, Probe((w + e * z,), request.layout, batch))[0] - here) / e for z in zs]
        else:
            found = [
                (up - down) / (2 * e)
                for up, down in (one(p, Probe((w + e * z, w - e * z), request.layout, batch)) for z in zs)
            ]
        slopes.append(found)
        if request.step:
            w = w - lr * request.weight_decay * w * decayed
            for g, z in zip(found, zs, strict=True):
                w = w - lr * g / len(zs) * z
    return w, torch.tensor(slopes, dtype=torch.float64)


WAYS = {
    "plain": {},
    "directions": {"seeds": THREE},
    "forward": {"forward": True, "seeds": THREE},
    "decay": {"weight_decay": 0.3},
    "signs": {"kind": "rademacher"},
    "parts": {"accumulate": 2},
    "still": {"step": False, "seeds": THREE},
}


@pytest.mark.parametrize("engine", ["reference", "slots"])
@pytest.mark.parametrize("way", WAYS)
def test_a_walk_is_its_definition(double, way, engine):
    """float64: both engines, by hand from the losses of whole vectors."""
    served = getattr(double, engine)()
    request = wander(double.somewhere(1), double.layout, **WAYS[way])
    run = one(served, request)
    w, slopes = walked(served, request)
    assert isinstance(run, Wandered)
    assert (run.steps, run.skipped, run.examples) == (4, 0, sum(map(len, BATCHES)))
    assert float((run.slopes - slopes).abs().max()) < 1e-7 * float(slopes.abs().max())
    assert float((run.y - w).norm()) < 1e-8 * float((w - request.start).norm()) or way == "still"
    assert run.seeds == request.seeds
    assert math.isclose(run.lr_sum, sum(LRS))
    if way == "still":
        assert torch.equal(run.y, request.start)


@pytest.mark.parametrize("way", WAYS)
def test_both_engines_agree(double, way):
    request = wander(double.somewhere(2), double.layout, **WAYS[way])
    ours, theirs = one(double.slots(), request), one(double.reference(), request)
    assert float((ours.slopes - theirs.slopes).abs().max()) < 1e-9 / 1e-3 * abs(theirs.loss)
    assert float((ours.y - theirs.y).abs().max()) < 1e-9
    assert math.isclose(ours.loss, theirs.loss, rel_tol=1e-12)
    assert (ours.steps, ours.skipped, ours.examples, ours.tokens, ours.lr_sum) == (
        theirs.steps, theirs.skipped, theirs.examples, theirs.tokens, theirs.lr_sum,
    )  # fmt: skip


def test_the_slope_is_the_gradient_along_the_direction(double):
    """Central differences err by epsilon squared."""
    run = one(double.slots(), wander(double.somewhere(3), double.layout, step=False, epsilon=1e-5, batches=BATCHES[:1],
                                     lrs=LRS[:1], seeds=THREE[:1]))  # fmt: skip
    like = one(
        double.slots(), double.descend(3, start=double.somewhere(3), batches=BATCHES[:1], lrs=[0.0], gradient=True)
    )
    for seed, slope in zip(THREE[0], run.slopes[0].tolist(), strict=True):
        wanted = float(like.gradient @ noise.direction(seed, double.layout, dtype=torch.float64))
        assert math.isclose(slope, wanted, rel_tol=1e-5, abs_tol=1e-6)


def same(found, wanted):
    assert type(found) is type(wanted), found
    if isinstance(wanted, ClientFailed):
        assert found.missing == wanted.missing
        return
    assert (found.y is None) is (wanted.y is None)
    assert wanted.y is None or torch.equal(found.y, wanted.y)
    assert torch.equal(found.slopes.nan_to_num(9e9), wanted.slopes.nan_to_num(9e9))
    assert torch.equal(found.rates, wanted.rates)
    for name in ("seeds", "steps", "lr_sum", "examples", "tokens", "loss", "skipped"):
        assert getattr(found, name) == getattr(wanted, name), name


@pytest.mark.parametrize("tokens", [40, 200, 1024])
def test_company_changes_no_bit(llama, tokens):
    drift = Drift(torch.tensor([3, 4]), torch.tensor([0.01, -0.02]))
    requests = [
        wander(llama.somewhere(1), llama.layout),
        wander(llama.somewhere(2), llama.layout, seeds=THREE, batches=BATCHES[::-1]),
        wander(drift, llama.layout, keep=False),
        wander(llama.somewhere(3, llama.of_rank(2)), llama.of_rank(2), forward=True),
        wander(llama.somewhere(4), llama.layout, batches=BATCHES[:1], lrs=LRS[:1], seeds=SEEDS[:1], accumulate=3),
        wander(drift, llama.layout, kind="gaussian", seeds=THREE),
        wander(llama.somewhere(1) * math.inf, llama.layout),
    ]
    alone = [one(llama.slots(1, tokens), request) for request in requests]
    for slots in (2, 8):
        for found, wanted in zip(serve(llama.slots(slots, tokens), requests), alone, strict=True):
            same(found, wanted)


def test_training_and_walking_clients_share_an_engine(llama):
    walk, train = wander(llama.somewhere(1), llama.layout), llama.descend(2)
    found = serve(llama.slots(4), [train, walk, train, walk])
    same(found[1], one(llama.slots(1), walk))
    pair.same(found[0], one(llama.slots(1), train))
    pair.same(found[2], found[0])


# -- drifts

KINDS = {"lora": (ALL, "slots"), "lora alone": (ALL, "reference"), "full": (FullConfig(), "reference")}


def rig(folders, kind, family="llama"):
    if kind == "full":
        one_ = tiny.Rig(folders[family], FullConfig())
        return one_.engine, one_.layout, one_.adapted
    p = Pair(folders[family])
    return (p.slots() if kind == "lora" else p.reference()), p.layout, p.adapted


def loss(scores):
    return scores.metrics(("loss",))["loss"]


def led(adapted, drift):
    """The vector a drift leads to, made without any engine."""
    start = adapted.start.clone()
    if not adapted.differences:
        return moved(start, adapted.layout, drift)
    base = adapted._origin().clone()
    return moved(base, adapted.layout, drift) - moved(base, adapted.layout, Drift(1, torch.zeros(1)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_walk_from_a_drift_ends_where_its_slopes_lead(folders, kind):
    """Whoever has the slopes has the model, to the bit."""
    engine, layout, adapted = rig(folders, kind)
    drift = Drift(5, torch.tensor([1e-3, 0.0, -2e-3]))
    seeds = tuple((pool(5, k),) for k in (0, 1, 1, 3))
    run = one(engine, wander(drift, layout, seeds=seeds))
    assert run.steps == 4
    table = drift.table()
    for (seed,), lr, (slope,) in zip(run.seeds, run.rates.tolist(), run.slopes.tolist(), strict=True):
        table[seed] = rounded(table.get(seed, 0.0) - lr * slope)
    there = Drift(torch.tensor(list(table)), torch.tensor(list(table.values())))
    assert torch.equal(run.y, led(adapted, there))


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_a_drift_leads_to_are_handed_out(folders, kind):
    """Also between two trainings with gradients, which change what stands in the model."""
    engine, layout, adapted = rig(folders, kind)
    drift, far = Drift(5, torch.tensor([1e-3, 0.0, -2e-3])), Drift(5, torch.tensor([50.0]))
    x = one(engine, Stand(drift, layout))
    assert torch.equal(x, led(adapted, drift))
    descend = Descend(x, layout, BATCHES, LRS, OptimizerConfig(name="sgd"), None, 1, 0, "client")
    first = one(engine, descend)
    assert torch.equal(one(engine, Stand(drift, layout)), x)
    assert torch.equal(one(engine, descend).y, first.y)
    failed = one(engine, Stand(far, layout))
    assert isinstance(failed, ClientFailed) and failed.missing.reason == "nonfinite"
    assert torch.equal(one(engine, Stand(drift, layout)), x)


@pytest.mark.parametrize("kind", KINDS)
def test_what_came_before_changes_no_bit(folders, kind):
    engine, layout, adapted = rig(folders, kind)
    drift = Drift(5, 1e-3 * torch.randn(6, generator=torch.Generator().manual_seed(0)))
    request = wander(drift, layout)
    wanted = one(engine, request)
    one(engine, wander(Drift(torch.tensor([8]), torch.tensor([0.01])), layout, keep=False))
    score = Evaluate(torch.empty(0), layout, BATCHES[0], ("loss",), 4, 4, drift=drift)
    scores = one(engine, score)
    same(one(engine, request), wanted)
    assert one(engine, score) == scores
    as_vector = one(engine, replace(score, drift=None, x=led(adapted, drift)))
    assert math.isclose(loss(as_vector), loss(scores), rel_tol=1e-5)
    same(one(engine, request), wanted)
    same(one(rig(folders, kind)[0], request), wanted)
    answers = [one(engine, Generate(torch.empty(0), layout, [[5, 6, 7]], 1, 5, drift=drift)) for _ in range(2)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_several_drifts_are_told_apart(folders, kind):
    engine, layout, _ = rig(folders, kind)
    drifts = [None, Drift(5, torch.tensor([0.02])), Drift(5, torch.tensor([0.02])), Drift(5, torch.tensor([-0.02]))]
    x = torch.zeros(layout.size)
    requests = [Evaluate(x if d is None else x[:0], layout, BATCHES[0], ("loss",), 4, 4, drift=d) for d in drifts]
    losses = [loss(s) for s in serve(engine, requests)]
    assert losses[1] == losses[2]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_drift_out_of_range_fails_its_client_only(folders, kind):
    engine, layout, _ = rig(folders, kind)
    far = Drift(5, torch.tensor([50.0]))
    score = Evaluate(torch.empty(0), layout, BATCHES[0], ("loss",), 4, 4)
    near = Drift(5, torch.tensor([1e-3]))
    found = serve(engine, [wander(far, layout), replace(score, drift=far), replace(score, drift=near),
                           wander(near, layout), wander(near, layout, lrs=(1e9,) * 4)])  # fmt: skip
    assert [isinstance(one_, ClientFailed) for one_ in found] == [True, True, False, False, True]
    assert found[0].missing.reason == found[4].missing.reason == "nonfinite"
    assert "diverged" in found[4].missing.detail


# -- all parameters, leaf by leaf


@pytest.mark.parametrize("family", ["llama", "tied", "gpt2", "opt", "bloom", "gemma3", "phi", "gpt_neox"])
def test_leaf_by_leaf_is_the_whole_vector(folders, family):
    rig_ = tiny.Rig(folders[family], FullConfig())
    adapted = rig_.adapted
    before = adapted.w.clone()
    x = 0.01 * torch.randn(rig_.layout.size, generator=torch.Generator().manual_seed(2))
    request = wander(x, rig_.layout, epsilon=1e-2, step=False)
    run = rig_.ask(request)
    assert torch.equal(adapted.w, x + before)  # not a bit was touched
    for tensor, leaf in zip(adapted.tensors, rig_.layout.leaves, strict=True):
        assert tensor.data_ptr() == adapted.w[leaf.offset :].data_ptr()
    for batch, (seed,), (slope,) in zip(request.batches, request.seeds, run.slopes.tolist(), strict=True):
        z = noise.direction(seed, rig_.layout)
        up, down = rig_.ask(Probe((x + 1e-2 * z, x - 1e-2 * z), rig_.layout, batch))
        assert math.isclose(slope, (up - down) / 2e-2, rel_tol=1e-3, abs_tol=1e-3)


def test_a_drift_walk_makes_no_copy_and_saves_nothing(folders):
    rig_ = tiny.Rig(folders["llama"], FullConfig())
    rig_.ask(wander(Drift(5, torch.tensor([1e-3])), rig_.layout, keep=False))
    assert rig_.adapted._base is None
    assert rig_.adapted.g.numel() == 0
    assert all(p.grad is None for p in rig_.adapted.module.parameters())
    assert not any(module._forward_hooks for module in rig_.adapted.module.modules())


def test_all_parameters_can_be_trained_with_gradients_after_a_walk(folders):
    fresh, used = tiny.Rig(folders["llama"], FullConfig()), tiny.Rig(folders["llama"], FullConfig())
    x = torch.zeros(fresh.layout.size)
    used.ask(wander(x, used.layout))
    wanted, found = fresh.ask(fresh.descend(x)), used.ask(used.descend(x))
    assert torch.equal(found.y, wanted.y)


def test_parameters_used_outside_their_module_are_found_out(folders):
    rig_ = tiny.Rig(folders["llama"], FullConfig())
    inner = rig_.adapted.module.model
    own = inner.norm.forward
    inner.norm.forward = lambda x: own(x) + 0.01 * inner.embed_tokens.weight.mean()
    before = rig_.adapted.w.clone()
    with pytest.raises(UserError, match=r"uses some of them elsewhere.*adapter\.kind=lora"):
        rig_.ask(wander(torch.zeros(rig_.layout.size), rig_.layout))
    assert torch.equal(rig_.adapted.w, before)


def test_an_adapter_is_trained_in_float32_over_a_base_in_bfloat16(folders):
    p = Pair(folders["llama"], dtype="bfloat16")
    drift = Drift(5, torch.tensor([1e-7]))
    for engine in (p.slots(), p.reference()):
        run = one(engine, wander(drift, p.layout, lrs=(1e-6,) * 4))
        assert run.y.dtype == torch.float32
        assert 0 < float((run.y - p.adapted.start).abs().max()) < 1e-3


# -- what is left out


def test_steps_with_nothing_to_learn_are_left_out(llama):
    batches = (BATCHES[0], [SILENT], *BATCHES[2:])
    for engine in (llama.slots(), llama.reference()):
        run = one(engine, wander(llama.somewhere(1), llama.layout, batches=batches))
        assert (run.steps, run.skipped) == (3, 1)
        assert run.slopes.isnan().tolist() == [[False], [True], [False], [False]]
        nothing = one(engine, wander(llama.somewhere(1), llama.layout, batches=([SILENT],) * 4))
        assert (nothing.steps, nothing.loss, nothing.skipped) == (0, None, 4)


def test_a_difference_beyond_the_limit_leaves_the_step_out(llama):
    request = wander(llama.somewhere(1), llama.layout)
    free = one(llama.slots(), request)
    apart = (free.slopes * 2e-3).abs()[:, 0]
    limit = float(apart[0]) * 0.999
    for engine in (llama.slots(), llama.reference()):
        run = one(engine, replace(request, limit=limit))
        assert run.slopes[0].isnan()
        assert run.skipped >= 1
        assert run.steps == 4 - run.skipped
        none = one(engine, replace(request, limit=0.0))
        assert (none.steps, none.skipped) == (0, 4)
        assert torch.equal(none.y, request.start)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_without_finite_losses_fails(llama, bad):
    x = llama.somewhere(1)
    x[5] = bad
    for engine in (llama.slots(), llama.reference()):
        found = one(engine, wander(x, llama.layout))
        assert isinstance(found, ClientFailed)
        assert found.missing.reason == "nonfinite"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0"),
        ({"epsilon": math.nan}, "epsilon=nan"),
        ({"seeds": SEEDS[:3]}, "there are 3 rows"),
        ({"seeds": ((1,), (2, 3), (4,), (5,))}, "same number of directions"),
        ({"seeds": ((),) * 4}, "same number of directions"),
        ({"start": Drift(1, torch.zeros(1)), "weight_decay": 0.1}, "weight decay"),
        ({"start": Drift(1, torch.zeros(1), "rademacher")}, "distribution"),
        ({"decayed": ("nobody",)}, "names no leaf"),
    ],
)
def test_what_cannot_be_is_refused(llama, changes, words):
    with pytest.raises(ValueError, match=words):
        replace(wander(llama.somewhere(1), llama.layout), **changes).check()


def test_a_drift_of_unequal_ranks_is_refused(llama):
    with pytest.raises(UserError, match="same ranks"):
        one(llama.slots(), wander(Drift(1, torch.zeros(1)), llama.of_rank(2)))
