"""The reference engine against the loop everybody writes: plain peft, transformers' own loss, torch's optimisers.

Weights are compared by the norm of the difference, relative to the norm of the weights (1e-6) and to how far training
moved them (1e-4: float32 sums in another order, magnified by the optimiser).
"""

import itertools
import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

import tiny
from fedloom.adapters.config import LoraConfig
from fedloom.contracts import Call, ClientFailed
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.reference import ROOM, split
from fedloom.engine.requests import Evaluate, Generate, Logits, Probe
from fedloom.errors import UserError
from fedloom.metrics.scores import Scores
from tiny import BATCHES, LRS, distance

SGD = OptimizerConfig(name="sgd")
ADAMW = OptimizerConfig(name="adamw", weight_decay=0.1, args={"eps": 1e-5})  # does not magnify rounding noise
ALL = LoraConfig(rank=4, targets="all-linear")
SILENT = replace(tiny.example(8, 900), labels=(-100,) * 8)
"""No token of it is learned."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tiny.saved(tmp_path_factory.mktemp(name), name) for name in tiny.FAMILIES}


@pytest.fixture(scope="module")
def rig(folders):
    """Shared by tests: what one asks of the engine must not show in the next answer."""
    return tiny.Rig(folders["llama"], ALL)


@pytest.fixture(scope="module")
def dropping(folders):
    return tiny.Rig(folders["llama"], LoraConfig(rank=4, targets="all-linear", dropout=0.3))


def near(y, wanted, start):
    """Equal up to the order of sums."""
    assert float((wanted - start).norm()) > 1e-3
    assert distance(y, wanted) < 1e-6
    assert float((y - wanted).norm()) < 1e-4 * float((wanted - start).norm())


def peft_of(folder, rig, x, adapter=ALL):
    targets = {"auto": None}.get(adapter.targets, adapter.targets)
    return tiny.peft_model(
        folder, rig.layout, x, r=adapter.rank, lora_alpha=adapter.alpha, use_rslora=adapter.rslora,
        target_modules=targets,
    )  # fmt: skip


def gradient(folder, rig, x, examples):
    """[P]: gradient of the token mean, example by example, without filling; and the loss."""
    model = peft_of(folder, rig, x)
    count = sum(sum(label != -100 for label in one.labels[1:]) for one in examples)
    total = 0.0
    for one in examples:
        logits = model(input_ids=torch.tensor([one.ids])).logits[0, :-1]
        loss = nn.functional.cross_entropy(logits, torch.tensor(one.labels[1:]), reduction="sum") / count
        loss.backward()
        total += loss.item()
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.grad
    return tiny.vector_of(model, rig.layout), total


# -- the plain loop


OPTIMIZERS = {
    "sgd": (SGD, lambda ps: torch.optim.SGD(ps, lr=1)),
    "momentum": (
        OptimizerConfig(name="sgd", weight_decay=0.01, args={"momentum": 0.9, "nesterov": True}),
        lambda ps: torch.optim.SGD(ps, lr=1, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "adamw": (
        OptimizerConfig(name="AdamW", weight_decay=0.1, args={"betas": [0.8, 0.9]}),
        lambda ps: torch.optim.AdamW(ps, lr=1, weight_decay=0.1, betas=(0.8, 0.9)),
    ),
    "adagrad": (OptimizerConfig(name="adagrad"), lambda ps: torch.optim.Adagrad(ps, lr=1)),
    "rmsprop": (
        OptimizerConfig(name="rmsprop", args={"alpha": 0.9, "eps": 0.01}),
        lambda ps: torch.optim.RMSprop(ps, lr=1, alpha=0.9, eps=0.01),
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("family, rslora", [("llama", False), ("llama", True), ("gpt2", False)])
def test_training_is_the_plain_loop(folders, family, rslora, clip, optimizer):
    adapter = LoraConfig(rank=4, alpha=6, rslora=rslora, targets="all-linear")
    rig = tiny.Rig(folders[family], adapter)
    x = rig.somewhere()
    config, make = OPTIMIZERS[optimizer]
    run = rig.ask(rig.descend(x, optimizer=config, max_grad_norm=clip))
    model = peft_of(folders[family], rig, x, adapter)
    losses = tiny.plain_descent(model, make([p for p in model.parameters() if p.requires_grad]), BATCHES, LRS, clip)
    near(run.y, tiny.vector_of(model, rig.layout), x)
    assert run.loss == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_the_clip_of_these_tests_bites(folders, rig):
    """Guards the test above: every step's gradient is longer than the limit."""
    x = rig.somewhere()
    assert min(float(gradient(folders["llama"], rig, x, one)[0].norm()) for one in BATCHES) > 0.5
    assert distance(rig.ask(rig.descend(x, max_grad_norm=0.5)).y, rig.ask(rig.descend(x)).y) > 1e-5


@pytest.mark.parametrize("adapter", [ALL, LoraConfig(rank=2), LoraConfig(rank=3, dropout=1e-9, targets="all-linear")])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_trains(folders, family, adapter):
    """Chosen layers and all; and with a dropout so small that it drops nothing."""
    rig = tiny.Rig(folders[family], adapter)
    x = rig.somewhere()
    run = rig.ask(rig.descend(x))
    model = peft_of(folders[family], rig, x, adapter)
    tiny.plain_descent(model, torch.optim.SGD(model.parameters(), lr=1), BATCHES, LRS, None)
    near(run.y, tiny.vector_of(model, rig.layout), x)


def test_from_the_start_where_b_is_zero(folders, rig):
    """A's first gradient is exactly zero: AdamW must not make a step of it."""
    x = rig.adapted.start
    one = rig.ask(rig.descend(x, batches=BATCHES[:1], lrs=[0.01], optimizer=OptimizerConfig()))
    parts, before = rig.layout.views(one.y), rig.layout.views(x)
    for leaf in rig.layout.leaves:
        assert torch.equal(parts[leaf.name], before[leaf.name]) is (leaf.factor == "A")
    run = rig.ask(rig.descend(x))
    model = peft_of(folders["llama"], rig, x)
    tiny.plain_descent(model, torch.optim.SGD(model.parameters(), lr=1), BATCHES, LRS, None)
    near(run.y, tiny.vector_of(model, rig.layout), x)


def test_one_step_by_hand_example_by_example(folders, rig):
    """Neither neighbours nor filling: each example alone through the model, gradients added up."""
    x = rig.somewhere()
    g, loss = gradient(folders["llama"], rig, x, BATCHES[2])
    run = rig.ask(rig.descend(x, batches=[BATCHES[2]], lrs=[0.1]))
    near(run.y, x - 0.1 * g, x)
    assert run.loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 4, 100])
def test_parts_of_a_batch_are_the_batch(rig, parts):
    x = rig.somewhere()
    whole = rig.ask(rig.descend(x, optimizer=ADAMW, max_grad_norm=0.5, gradient=True))
    run = rig.ask(rig.descend(x, optimizer=ADAMW, max_grad_norm=0.5, gradient=True, accumulate=parts))
    near(run.y, whole.y, x)
    assert distance(run.gradient, whole.gradient) < 1e-5
    assert run.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (run.steps, run.examples, run.tokens, run.lr_sum) == (4, whole.examples, whole.tokens, whole.lr_sum)


def test_a_part_without_labels_adds_nothing(rig):
    x, batch = rig.somewhere(), [*BATCHES[0], SILENT]
    alone = rig.ask(rig.descend(x, batches=[BATCHES[0]], lrs=[0.1]))
    run = rig.ask(rig.descend(x, batches=[batch], lrs=[0.1], accumulate=4))
    near(run.y, alone.y, x)
    assert (run.examples, run.tokens, run.skipped) == (4, alone.tokens, 0)


@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("parts", range(1, 9))
def test_splitting_loses_nothing(count, parts):
    pieces = list(split(list(range(count)), parts))
    assert list(itertools.chain(*pieces)) == list(range(count))
    assert len(pieces) == min(count, parts)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


# -- what it counts


def test_numbers_by_hand(rig):
    """Learned halves of 9 14 5 | 12 3 | 7 16 8 4 | 6 tokens: 4+7+2, 6+1, 3+8+4+2, 3."""
    x = rig.somewhere()
    run = rig.ask(rig.descend(x))
    assert (run.steps, run.skipped, run.examples, run.tokens) == (4, 0, 10, 13 + 7 + 17 + 3)
    assert run.lr_sum == pytest.approx(0.036)
    assert run.gradient is None
    assert tuple(run.y.shape) == (rig.layout.size,)
    assert run.y.dtype == torch.float32


def test_the_loss_is_the_mean_over_steps_of_the_mean_over_tokens(folders, rig):
    """With a rate of zero the weights stay, so each step's loss is that of the start."""
    x = rig.somewhere()
    model = peft_of(folders["llama"], rig, x)
    means = []
    for batch in BATCHES:
        pairs = [tiny.nll_alone(model, one) for one in batch]
        means.append(sum(nll for nll, _ in pairs) / sum(count for _, count in pairs))
    run = rig.ask(rig.descend(x, lrs=[0.0] * 4))
    assert torch.equal(run.y, x)
    assert run.loss == pytest.approx(sum(means) / 4, rel=1e-6)


# -- steps left out


def test_a_batch_without_labels_is_left_out_and_counted(rig):
    x = rig.somewhere()
    batches = [BATCHES[0], [SILENT], BATCHES[1], [SILENT, SILENT]]
    for optimizer in (SGD, ADAMW):
        run = rig.ask(rig.descend(x, batches=batches, lrs=[0.01, 5.0, 0.02, 5.0], optimizer=optimizer, gradient=True))
        wanted = rig.ask(rig.descend(x, batches=BATCHES[:2], lrs=[0.01, 0.02], optimizer=optimizer, gradient=True))
        assert torch.equal(run.y, wanted.y)
        assert torch.equal(run.gradient, wanted.gradient)
        assert run.skipped == 2
        assert replace(run, skipped=0, y=x, gradient=x) == replace(wanted, y=x, gradient=x)


def test_a_label_nobody_predicts_is_no_label(rig):
    x = rig.somewhere()
    first = replace(SILENT, labels=(SILENT.ids[0], *SILENT.labels[1:]))
    run = rig.ask(rig.descend(x, batches=[[first]], lrs=[0.1]))
    assert (run.steps, run.skipped, run.tokens, run.examples, run.lr_sum, run.loss) == (0, 1, 0, 0, 0, None)
    assert torch.equal(run.y, x)


class Nth:
    """Calls `then` at the n-th call, else `usual`."""

    def __init__(self, n, then, usual):
        self.n, self.then, self.usual, self.calls = n, then, usual, 0

    def __call__(self, *arguments):
        self.calls += 1
        return (self.then if self.calls == self.n else self.usual)(*arguments)


def nothing(tensors):
    return sum(t.sum() for t in tensors.values()) * 0.0


BROKEN = {
    "loss is NaN": {"penalty": lambda: Nth(2, lambda ts: nothing(ts) + math.nan, nothing)},
    "loss is infinite": {"penalty": lambda: Nth(2, lambda ts: nothing(ts) + math.inf, nothing)},
    "gradient is NaN": {"penalty": lambda: Nth(2, lambda ts: nothing(ts).sqrt(), nothing)},
    "correction is NaN": {"correct": lambda: Nth(2, lambda g, w: g * math.nan, lambda g, w: g)},
    "correction is infinite": {"correct": lambda: Nth(2, lambda g, w: g + math.inf, lambda g, w: g)},
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_that_is_not_finite_is_left_out_and_counted(rig, kind, clip):
    """The second of four; the optimiser does not see it either."""
    x = rig.somewhere()
    changes = {name: make() for name, make in BROKEN[kind].items()}
    run = rig.ask(rig.descend(x, optimizer=ADAMW, max_grad_norm=clip, gradient=True, **changes))
    kept, rates = [BATCHES[0], *BATCHES[2:]], [LRS[0], *LRS[2:]]
    wanted = rig.ask(rig.descend(x, batches=kept, lrs=rates, optimizer=ADAMW, max_grad_norm=clip, gradient=True))
    assert torch.equal(run.y, wanted.y)
    assert (run.steps, run.skipped, run.examples, run.tokens) == (3, 1, wanted.examples, wanted.tokens)
    assert run.lr_sum == pytest.approx(sum(rates))
    assert run.loss == pytest.approx(wanted.loss)
    assert torch.equal(run.gradient, wanted.gradient), "`gradient` is the mean over the steps that were taken"


@pytest.mark.parametrize(
    "broken, ends", [({2}, "well"), ({1, 2}, "well"), ({4}, "ill"), ({3, 4}, "ill"), ({1, 4}, "ill")]
)
def test_a_training_that_ends_in_such_steps_fails_its_client(rig, broken, ends):
    """It has diverged; one that found back has only skipped. What is not labelled says nothing either way."""
    calls = itertools.count(1)
    run = rig.ask(
        rig.descend(
            rig.somewhere(), batches=[*BATCHES, [SILENT]], lrs=[*LRS, 0.01],
            correct=lambda g, w: g * (math.nan if next(calls) in broken else 1.0),
        )
    )  # fmt: skip
    if ends == "ill":
        assert isinstance(run, ClientFailed)
        assert run.missing.reason == "nonfinite"
        return
    assert (run.steps, run.skipped) == (4 - len(broken), len(broken) + 1)


def test_weights_that_are_no_numbers_fail_their_client_and_nobody_else(rig):
    x = rig.somewhere()
    wanted = rig.ask(rig.descend(x))
    bad = x.clone()
    bad[3] = math.nan
    run = rig.ask(rig.descend(bad, optimizer=ADAMW))
    assert isinstance(run, ClientFailed)
    assert run.missing.reason == "nonfinite"
    assert torch.equal(rig.ask(rig.descend(x)).y, wanted.y)


def test_no_batch_is_no_step(rig):
    """`steps=0` is a legal wish of a page (a straggler's): nothing happens, and that is said."""
    x = rig.somewhere()
    run = rig.ask(rig.descend(x, batches=[], lrs=[]))
    assert (run.steps, run.skipped, run.examples, run.tokens, run.lr_sum, run.loss) == (0, 0, 0, 0, 0, None)
    assert torch.equal(run.y, x)


# -- which leaves move


@pytest.mark.parametrize("kind", ["factor B", "one module"])
def test_only_the_named_leaves_move(folders, rig, kind):
    """AdamW with weight decay would pull the others too; the clip is over the named ones alone."""
    x = rig.somewhere()
    leaves = [
        leaf for leaf in rig.layout.leaves if (leaf.factor == "B" if kind == "factor B" else "up_proj" in leaf.name)
    ]
    names = [leaf.name for leaf in leaves]
    run = rig.ask(rig.descend(x, optimizer=ADAMW, max_grad_norm=0.2, train=names, gradient=True))
    model = peft_of(folders["llama"], rig, x)
    chosen = []
    for leaf in rig.layout.leaves:
        weight = model.get_submodule(f"base_model.model.{leaf.module}.lora_{leaf.factor}.default").weight
        weight.requires_grad_(leaf.name in names)
        chosen += [weight] if leaf.name in names else []
    tiny.plain_descent(model, torch.optim.AdamW(chosen, lr=1, weight_decay=0.1, eps=1e-5), BATCHES, LRS, 0.2)
    for p in model.parameters():
        p.requires_grad_(False)
    for name, p in model.named_parameters():
        p.requires_grad_(".lora_" in name)
    near(run.y, tiny.vector_of(model, rig.layout), x)
    before, after, raw = rig.layout.views(x), rig.layout.views(run.y), rig.layout.views(run.gradient)
    for leaf in rig.layout.leaves:
        assert torch.equal(before[leaf.name], after[leaf.name]) is (leaf.name not in names)
        assert bool(raw[leaf.name].any()) is (leaf.name in names)


def test_a_correction_moves_no_leaf_that_rests(rig):
    x = rig.somewhere()
    names = [leaf.name for leaf in rig.layout.leaves if leaf.factor == "B"]
    c = torch.where(mask_of(rig, names), 0.0, 100.0)  # pushes the resting leaves only, hard
    plain = rig.ask(rig.descend(x, train=names, max_grad_norm=0.2))
    pushed = rig.ask(rig.descend(x, train=names, max_grad_norm=0.2, correct=lambda g, w, c: g + c, with_=(c,)))
    assert torch.equal(plain.y, pushed.y)


def mask_of(rig, names):
    mask = torch.zeros(rig.layout.size, dtype=torch.bool)
    for leaf in rig.layout.leaves:
        mask[leaf.offset : leaf.offset + leaf.size] = leaf.name in names
    return mask


@pytest.mark.parametrize("names", [["no.such.leaf"], []])
def test_a_leaf_that_is_none(rig, names):
    with pytest.raises(ValueError, match="`train` names"):
        rig.ask(rig.descend(rig.somewhere(), train=names))


# -- corrections, penalties, raw gradients


def test_a_correction_comes_before_the_clip(folders, rig):
    """One step of SGD: x - lr clip(g + c), which is not x - lr (clip(g) + c)."""
    x, c = rig.somewhere(), rig.somewhere(5) - rig.adapted.start
    g, _ = gradient(folders["llama"], rig, x, BATCHES[0])
    sum_, limit = g + c, 0.5
    assert sum_.norm() > limit
    one_step = {"batches": BATCHES[:1], "lrs": [0.1], "max_grad_norm": limit}
    run = rig.ask(rig.descend(x, correct=lambda g, w, c: g + c, with_=(c,), **one_step))
    near(run.y, x - 0.1 * sum_ * limit / sum_.norm(), x)
    assert distance(run.y, x - 0.1 * (g * limit / g.norm() + c)) > 1e-4


def test_a_correction_sees_the_weights_of_the_moment_and_its_vectors_in_order(rig):
    """g' = w + 2 a - b: each step is w <- w - lr (w + 2 a - b), whatever the batch says."""
    x, a, b = rig.somewhere(1), rig.somewhere(2), rig.somewhere(3)
    run = rig.ask(rig.descend(x, correct=lambda g, w, a, b: w + 2 * a - b, with_=(a, b)))
    w = x
    for lr in LRS:
        w = w - lr * (w + 2 * a - b)
    assert distance(run.y, w) < 1e-6


def test_control_variates_of_scaffold(folders, rig):
    """Two steps by hand: y <- y - lr (g - c_i + c)."""
    x, c_i, c = rig.somewhere(), 0.1 * rig.somewhere(1), 0.1 * rig.somewhere(2)
    run = rig.ask(
        rig.descend(x, batches=BATCHES[:2], lrs=[0.05, 0.1], correct=lambda g, w, c_i, c: g - c_i + c, with_=(c_i, c))
    )
    y = x - 0.05 * (gradient(folders["llama"], rig, x, BATCHES[0])[0] - c_i + c)
    y = y - 0.1 * (gradient(folders["llama"], rig, y, BATCHES[1])[0] - c_i + c)
    near(run.y, y, x)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_penalty_adds_its_gradient_once(rig, parts):
    """½ mu ‖w - x‖² as a penalty, and mu (w - x) as a correction, are the same; in three parts, too."""
    x, anchor, mu = rig.somewhere(), rig.somewhere(4), 0.7
    spans = {leaf.name: slice(leaf.offset, leaf.offset + leaf.size) for leaf in rig.layout.leaves}

    def pull(tensors, anchor):
        assert set(tensors) == set(spans)
        return sum((t.reshape(-1) - anchor[spans[name]]).square().sum() for name, t in tensors.items()) * mu / 2

    common = {"with_": (anchor,), "accumulate": parts, "max_grad_norm": 0.8, "optimizer": ADAMW}
    run = rig.ask(rig.descend(x, penalty=pull, **common))
    wanted = rig.ask(rig.descend(x, correct=lambda g, w, anchor: g + mu * (w - anchor), **common))
    near(run.y, wanted.y, x)
    assert distance(run.y, rig.ask(rig.descend(x, **common)).y) > 1e-5


def test_a_penalty_and_a_correction_share_their_vectors(rig):
    x, a = rig.somewhere(), rig.somewhere(4)
    seen = []
    run = rig.ask(
        rig.descend(
            x, batches=BATCHES[:1], lrs=[0.1], with_=(a,),
            penalty=lambda ts, a: seen.append(("penalty", a)) or nothing(ts),
            correct=lambda g, w, a: seen.append(("correct", a)) or g,
        )
    )  # fmt: skip
    assert run.steps == 1
    assert [name for name, _ in seen] == ["penalty", "correct"]
    assert all(torch.equal(vector, a) for _, vector in seen)


def test_the_raw_gradient_is_before_corrections_and_clipping(folders, rig):
    """Mean over two steps; the rate of zero keeps both at x."""
    x, c = rig.somewhere(), rig.somewhere(1)
    run = rig.ask(
        rig.descend(
            x, batches=BATCHES[:2], lrs=[0, 0], max_grad_norm=0.01, gradient=True, correct=lambda g, w, c: g + c,
            with_=(c,),
        )
    )  # fmt: skip
    wanted = sum(gradient(folders["llama"], rig, x, batch)[0] for batch in BATCHES[:2]) / 2
    assert distance(run.gradient, wanted) < 1e-5
    assert run.gradient.device == run.y.device == torch.device("cpu")


def test_one_step_of_sgd_is_the_gradient(rig):
    x = rig.somewhere()
    run = rig.ask(rig.descend(x, batches=BATCHES[:1], lrs=[0.25], gradient=True))
    assert torch.allclose((x - run.y) / 0.25, run.gradient, atol=1e-5)


# -- nothing stays behind


def test_a_training_does_not_depend_on_what_was_asked_before(folders):
    for adapter in (ALL, LoraConfig(rank=4, targets="all-linear", dropout=0.3)):
        fresh, used = tiny.Rig(folders["llama"], adapter), tiny.Rig(folders["llama"], adapter)
        x = fresh.somewhere()
        used.ask(used.descend(fresh.somewhere(8), optimizer=ADAMW, train=[fresh.layout.leaves[3].name], gradient=True))
        assert isinstance(used.ask(used.descend(fresh.somewhere(9), correct=lambda g, w: g * math.nan)), ClientFailed)
        used.ask(Evaluate(x * 2, used.layout, BATCHES[0], ("loss", "exact_match"), 2, 3))
        used.ask(Generate(x * 3, used.layout, [(5, 6)], 1, 2))
        used.ask(Probe([x * 4], used.layout, BATCHES[1]))
        wanted = fresh.descend(x, optimizer=ADAMW, max_grad_norm=0.5, gradient=True)
        one, other = fresh.ask(wanted), used.ask(wanted)
        assert torch.equal(one.y, other.y)
        assert torch.equal(one.gradient, other.gradient)
        assert replace(one, y=x, gradient=x) == replace(other, y=x, gradient=x)
        evaluation = Evaluate(one.y, fresh.layout, BATCHES[2], ("loss", "exact_match"), 2, 3)
        assert fresh.ask(evaluation) == used.ask(evaluation)


def test_a_training_changes_neither_its_start_nor_an_earlier_result(rig):
    x = rig.somewhere()
    kept = x.clone()
    first = rig.ask(rig.descend(x))
    copy = first.y.clone()
    rig.ask(rig.descend(rig.somewhere(6), optimizer=ADAMW))
    assert torch.equal(x, kept)
    assert torch.equal(first.y, copy)


def test_a_training_that_broke_off_leaves_nothing(rig):
    x = rig.somewhere()
    wanted = rig.ask(rig.descend(x))

    def broken(g, w):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rig.ask(rig.descend(x, correct=broken))
    assert torch.equal(rig.ask(rig.descend(x)).y, wanted.y)


# -- dropout


def test_the_same_seed_drops_the_same_and_another_drops_other(dropping):
    x = dropping.somewhere()
    first, again, other = (dropping.ask(dropping.descend(x, seed=seed)) for seed in (11, 11, 12))
    assert torch.equal(first.y, again.y)
    assert distance(first.y, other.y) > 1e-5
    without = tiny.Rig(dropping.base.name, ALL).ask(dropping.descend(x))
    assert distance(first.y, without.y) > 1e-5


def test_every_step_and_every_part_draws_anew(dropping):
    x, one = dropping.somewhere(), BATCHES[0][:1]
    first = dropping.ask(dropping.descend(x, batches=[one], lrs=[0.1]))
    second = dropping.ask(dropping.descend(x, batches=[one, one], lrs=[0.0, 0.1]))  # at x as well, but in step 1
    assert distance(first.y, second.y) > 1e-5
    twice = dropping.ask(
        dropping.descend(x, batches=[one * 2], lrs=[0.1], accumulate=2)
    )  # equal masks would give `first`
    assert distance(first.y, twice.y) > 1e-5
    side_by_side = dropping.ask(dropping.descend(x, batches=[one * 2], lrs=[0.1]))
    assert distance(first.y, side_by_side.y) > 1e-5


def test_filling_does_not_change_what_is_dropped(dropping):
    """A long neighbour without labels widens the batch; being last, it leaves the masks and gradients of the others."""
    x, pair = dropping.somewhere(), [BATCHES[0][2], BATCHES[0][0]]
    wide = replace(tiny.example(40, 901), labels=(-100,) * 40)
    alone = dropping.ask(dropping.descend(x, batches=[pair], lrs=[0.1]))
    beside = dropping.ask(dropping.descend(x, batches=[[*pair, wide]], lrs=[0.1]))
    near(beside.y, alone.y, x)


def test_layers_drop_differently(dropping):
    """q, k and v see one input; with one mask for all, the gradients of their A would be sums over the same tokens."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda m, _, out, name=name: seen.__setitem__(name, out != 0))
        for name, module in dropping.adapted.module.named_modules()
        if type(module).__name__ == "KeyedDropout"
    ]
    dropping.ask(dropping.descend(dropping.somewhere(), batches=BATCHES[:1], lrs=[0.1]))
    for hook in hooks:
        hook.remove()
    masks = [mask for name, mask in seen.items() if not name.endswith("down_proj.lora_dropout.default")]
    assert len(masks) == 2 * 6
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(masks, 2))
    assert len({tuple(mask.shape) for mask in masks}) == 1


def test_nothing_is_dropped_outside_training(dropping):
    without = tiny.Rig(dropping.base.name, ALL)
    x = dropping.somewhere()
    dropping.ask(dropping.descend(x))
    for request in (
        Evaluate(x, dropping.layout, BATCHES[0], ("loss", "exact_match"), 2, 4),
        Generate(x, dropping.layout, [(5, 6, 7), (9,)], 2, 4),
        Probe([x, 2 * x], dropping.layout, BATCHES[0]),
    ):
        assert dropping.ask(request) == without.ask(request)
    assert torch.equal(
        dropping.ask(Logits(x, dropping.layout, BATCHES[0])), without.ask(Logits(x, without.layout, BATCHES[0]))
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bloom"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_activations_give_the_same_gradients(folders, family, dropout):
    adapter = LoraConfig(rank=4, targets="all-linear", dropout=dropout)
    kept, recomputed = (tiny.Rig(folders[family], adapter, checkpointing=c) for c in (False, True))
    assert recomputed.base.module.is_gradient_checkpointing
    x, calls = kept.somewhere(), []
    layer = recomputed.adapted.module.get_submodule(f"base_model.model.{recomputed.layout.leaves[0].module}")
    layer.register_forward_hook(lambda *_: calls.append(1))
    wanted = kept.descend(x, optimizer=ADAMW, max_grad_norm=0.5, gradient=True, accumulate=2)
    one, other = kept.ask(wanted), recomputed.ask(wanted)
    assert len(calls) == 2 * (3 * 2 + 1)  # seven passes in four steps, each done twice
    assert torch.equal(one.gradient, other.gradient)
    assert torch.equal(one.y, other.y)
    assert one.loss == other.loss
    evaluation = Evaluate(one.y, kept.layout, BATCHES[2], ("loss", "exact_match"), 2, 3)
    assert kept.ask(evaluation) == recomputed.ask(evaluation)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi", "bloom"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_global_is_drawn(folders, family, checkpointing):
    import rouge_score.rouge_scorer  # its import draws a number (scikit-learn's does, which it looks for)

    assert rouge_score
    before = tiny.randomness()
    targets = ["q_proj", "v_proj"] if family in ("llama", "opt", "phi") else "all-linear"
    rig = tiny.Rig(folders[family], LoraConfig(rank=2, targets=targets, dropout=0.2), checkpointing=checkpointing)
    x = rig.somewhere()
    run = rig.ask(rig.descend(x))
    rig.ask(Evaluate(run.y, rig.layout, BATCHES[0], ("loss", "exact_match", "rouge_l"), 2, 3))
    rig.ask(Generate(run.y, rig.layout, [(5, 6)], 1, 3))
    rig.ask(Probe([x], rig.layout, BATCHES[0]))
    rig.ask(Logits(x, rig.layout, BATCHES[0]))
    assert run.steps == 4
    assert tiny.randomness() == before


# -- evaluation


def test_scores_by_hand(folders, rig):
    x = rig.somewhere()
    model = peft_of(folders["llama"], rig, x)
    examples = [*tiny.batch(9, 30, 5, 12, 2, seed=7), SILENT]
    pairs = [tiny.nll_alone(model, one) for one in examples]
    for size in (1, 4, 64):
        scores = rig.ask(Evaluate(x, rig.layout, examples, ("loss", "perplexity"), size, 5))
        assert (scores.examples, scores.tokens) == (6, sum(count for _, count in pairs))
        assert scores.nll == pytest.approx(sum(nll for nll, _ in pairs), rel=1e-6)
        assert (scores.answered, scores.exact, scores.rouge) == (0, 0, 0)
        assert scores.metrics(["loss"])["loss"] == pytest.approx(scores.nll / scores.tokens)


def queued(rig, *requests):
    """All at once; results in the order they come, with how many came together."""
    for client, request in enumerate(requests):
        rig.engine.admit(Call(client, request))
    found = []
    while rig.engine.room() < ROOM:
        found.append(rig.engine.advance())
    return found


def test_clients_with_the_same_weights_are_scored_together_and_as_one_by_one(rig):
    x = rig.somewhere()
    prompts = [tiny.example(n, 60 + n) for n in (4, 9, 6)]
    answers = rig.ask(Generate(x, rig.layout, [one.prompt for one in prompts], 3, 4))
    known = [replace(one, answer=f" {answer}\n") for one, answer in zip(prompts, answers, strict=True)]
    rows = [tiny.batch(9, 30, 5, seed=7), [*known[:2], tiny.example(12, 3)], [], [known[2]]]
    asked = [Evaluate(x, rig.layout, examples, ("loss", "exact_match"), 4, 4) for examples in rows]
    (together,) = queued(rig, *asked)
    assert [client for client, _ in together] == [0, 1, 2, 3]
    for (_, scores), request in zip(together, asked, strict=True):
        alone = rig.ask(request)
        assert replace(scores, nll=0) == replace(alone, nll=0)
        assert scores.nll == pytest.approx(alone.nll, rel=1e-6)
    assert [scores.exact for _, scores in together] == [0, 2, 0, 1]
    assert [scores.answered for _, scores in together] == [3, 3, 0, 1]
    assert together[2][1] == Scores()


def test_only_what_asks_for_the_same_shares_a_pass(rig):
    x, rows = rig.somewhere(), BATCHES[0]
    metrics = ("loss", "exact_match")
    found = queued(
        rig,
        Evaluate(x, rig.layout, rows, metrics, 4, 2),
        rig.descend(x),
        Evaluate(2 * x, rig.layout, rows, metrics, 4, 2),
        Evaluate(x, rig.layout, rows[:1], metrics, 4, 2),
        Evaluate(x, rig.layout, rows, ("loss",), 4, 2),
        Evaluate(x, rig.layout, rows, metrics, 4, 3),
    )
    assert [[client for client, _ in batch] for batch in found] == [[0, 3], [1], [2], [4], [5]]
    results = {client: result for batch in found for client, result in batch}
    assert results[2] == rig.ask(Evaluate(2 * x, rig.layout, rows, metrics, 4, 2))
    assert results[0] != results[2]
    assert torch.equal(results[1].y, rig.ask(rig.descend(x)).y)
    assert results[4].answered == 0


def test_equal_weights_in_two_vectors_may_come_apart_but_come_out_alike(rig):
    x = rig.somewhere()
    asked = [Evaluate(vector, rig.layout, BATCHES[0], ("loss",), 4, 2) for vector in (x, x.clone())]
    scores = [result for batch in queued(rig, *asked) for _, result in batch]
    assert scores[0] == scores[1]


def test_answers_are_judged_against_their_own_references(rig):
    """Two prompts of different lengths, references exchanged: exact only where the reference is the answer."""
    x = rig.somewhere()
    first, second = (tiny.example(n, 70 + n) for n in (12, 5))
    a, b = rig.ask(Generate(x, rig.layout, [first.prompt, second.prompt], 2, 6))
    assert a != b

    def exact(one, other):
        rows = [replace(first, answer=one), replace(second, answer=other)]
        return rig.ask(Evaluate(x, rig.layout, rows, ("exact_match",), 2, 6)).exact

    assert [exact(a, b), exact(a, a), exact(b, a), exact(b, b)] == [2, 1, 0, 1]


def test_rouge_is_summed_over_answers(folders):
    """The reference is the answer, so every word of it is found; answers of odd bytes may have none."""
    rig = tiny.Rig(folders["llama"], ALL)
    x = rig.somewhere()
    prompts = [tiny.example(n, 80 + n) for n in range(4, 16)]
    answers = rig.ask(Generate(x, rig.layout, [one.prompt for one in prompts], 4, 8))
    rows = [replace(one, answer=answer) for one, answer in zip(prompts, answers, strict=True)]
    with_words = sum(any(c.isascii() and c.isalnum() for c in answer) for answer in answers)
    assert with_words > 0
    scores = rig.ask(Evaluate(x, rig.layout, rows, ("rouge_l",), 4, 8))
    assert scores.rouge == pytest.approx(with_words)
    assert scores.answered == len(rows)
    assert rig.ask(Evaluate(x, rig.layout, rows, ("exact_match",), 4, 8)).rouge == 0


def test_generating_at_a_point_is_generating_with_its_adapter(folders, rig):
    """By the plain peft model, the likeliest token again and again."""
    x, prompts = rig.somewhere(size=0.2), [tiny.example(n, 90 + n).ids for n in (7, 2, 12)]
    model = peft_of(folders["llama"], rig, x)
    wanted = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tiny.END:
                ids.pop()
                break
        wanted.append(rig.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True))
    assert rig.ask(Generate(x, rig.layout, prompts, 2, 6)) == wanted
    assert rig.ask(Generate(rig.adapted.start, rig.layout, prompts, 2, 6)) != wanted


def test_probes_and_logits(folders, rig):
    points, examples = [rig.somewhere(1), rig.somewhere(2)], BATCHES[0]
    found = rig.ask(Probe(points, rig.layout, examples))
    for x, loss in zip(points, found, strict=True):
        model = peft_of(folders["llama"], rig, x)
        pairs = [tiny.nll_alone(model, one) for one in examples]
        assert loss == pytest.approx(sum(nll for nll, _ in pairs) / sum(count for _, count in pairs), rel=1e-6)
        with torch.no_grad():
            rows = [model(input_ids=torch.tensor([one.ids])).logits[0] for one in examples]
        wanted = [row[len(one.prompt) - 1 : -1] for one, row in zip(examples, rows, strict=True)]
        assert torch.allclose(rig.ask(Logits(x, rig.layout, examples)), torch.cat(wanted), atol=1e-5)


def test_nothing_to_score_and_nothing_to_answer(rig):
    """`LocalClient.generate` asks with as large a batch as there are prompts: none, for none."""
    x = rig.somewhere()
    assert rig.ask(Evaluate(x, rig.layout, [], ("loss", "exact_match", "rouge_l"), 4, 4)) == Scores()
    assert rig.ask(Generate(x, rig.layout, [], 0, 4)) == []


def test_a_filling_token_beyond_the_model_s_vocabulary(folders, rig, tmp_path):
    """Many tokenizers got a padding token that no embedding was made for; filling is seen by nobody, so it may work."""
    folder = shutil.copytree(folders["llama"], tmp_path / "model")
    larger = tiny.byte_tokenizer(more=["<|fill|>"])
    larger.pad_token = "<|fill|>"
    larger.save_pretrained(folder)
    x, prompts = rig.somewhere(), [(5, 6, 7), (9,)]
    try:
        other = tiny.Rig(folder, ALL)
    except UserError as refused:
        assert "pad" in str(refused)  # noqa: PT017  # one of two good ends
        return
    assert other.tokenizer.pad_token_id == tiny.VOCAB
    assert torch.equal(other.ask(other.descend(x)).y, rig.ask(rig.descend(x)).y)
    assert other.ask(Evaluate(x, other.layout, BATCHES[0], ("loss",), 4, 2)) == rig.ask(
        Evaluate(x, rig.layout, BATCHES[0], ("loss",), 4, 2)
    )
    assert other.ask(Generate(x, other.layout, prompts, 2, 4)) == rig.ask(Generate(x, rig.layout, prompts, 2, 4))


# -- the queue


def test_the_queue_has_room_and_forgets(rig):
    x = rig.somewhere()
    assert rig.engine.room() == ROOM
    rig.engine.admit(Call(3, Generate(x, rig.layout, [(5,)], 1, 1)))
    rig.engine.admit(Call(1, rig.descend(x)))
    assert rig.engine.room() == ROOM - 2
    ((client, _),) = rig.engine.advance()
    assert client == 3
    rig.engine.abandon()
    assert rig.engine.room() == ROOM


def test_a_request_it_does_not_know(rig):
    with pytest.raises(TypeError, match="cannot serve a str"):
        rig.ask("a wish")
