"""What the engine of many clients promises its driver and its clients; numbers against the plain loops.

That company changes no bit, and that the shared pass is the plain loop in float64, is held in `test_slots_exact.py`.
"""

import math
from dataclasses import replace

import pytest
import torch

import tiny
from engine import pair
from engine.pair import ADAMW, ALL, SGD, Pair, all_close, all_same, one, serve
from fedloom.adapters.config import FullConfig, LoraConfig
from fedloom.contracts import Call
from fedloom.engine import optimizers
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.reference import Reference
from fedloom.engine.requests import Evaluate, Generate, Logits, Probe
from fedloom.engine.slots import Slots
from fedloom.errors import RunStopped
from fedloom.metrics.scores import Scores
from tiny import BATCHES, LRS, distance

EXACT = 1e-12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: pair.saved(tmp_path_factory.mktemp(name), name) for name in ("llama", "gpt2")}


@pytest.fixture(scope="module")
def llama(folders):
    return Pair(folders["llama"])


@pytest.fixture(scope="module")
def double(folders):
    """GPT-2 in float64, where an optimiser magnifies no rounding."""
    return Pair(folders["gpt2"], double=True, attention="sdpa", plain=True)


def alike(p, requests, tolerance=EXACT, **engine):
    """Served side by side as by the plain loop; the results."""
    found = serve(p.slots(**engine), requests)
    all_close(found, serve(p.reference(), requests), tolerance)
    return found


# -- its driver


def test_room_shrinks_and_comes_back(llama):
    engine = llama.slots(2)
    room = engine.room()
    assert room >= 2
    for client in range(room):
        engine.admit(Call(client, llama.descend(client)))
        assert engine.room() == room - client - 1
    found = set()
    while len(found) < room:
        done = {client for client, _ in engine.advance()}
        assert not done & found
        found |= done
        assert engine.room() == len(found)
    assert found == set(range(room))


def test_a_short_training_does_not_wait_for_a_long_one(llama):
    engine = llama.slots(2)
    lengths = {0: 4, 1: 1, 2: 1}
    for client, steps in lengths.items():
        engine.admit(Call(client, llama.descend(client, batches=BATCHES[:steps], lrs=LRS[:steps])))
    order = []
    while len(order) < 3:
        order += [client for client, _ in engine.advance()]
    assert order[-1] == 0


def test_clients_share_their_passes_and_nothing_is_filled_up(llama):
    """Eight clients of four steps: four passes, whose tokens are those of the texts."""
    seen = []
    hook = llama.base.module.get_input_embeddings().register_forward_hook(lambda m, x, y: seen.append(x[0].numel()))
    asked = [llama.descend(i) for i in range(8)]
    serve(llama.slots(8, 4096), asked)
    assert len(seen) == 4
    assert sum(seen) == 8 * sum(len(e.ids) for batch in BATCHES for e in batch)
    seen.clear()
    budget = 60
    serve(llama.slots(8, budget), asked)
    assert max(seen) <= budget
    assert len(seen) < 8 * 4
    seen.clear()
    serve(llama.slots(3, 1), asked)
    assert len(seen) == 8 * 4
    hook.remove()


def test_all_are_forgotten(llama):
    engine, request = llama.slots(2), llama.descend(3, optimizer=ADAMW, gradient=True)
    room, wanted = engine.room(), one(llama.slots(2), request)
    for client in range(3):
        engine.admit(Call(client, llama.descend(client)))
    engine.advance()
    engine.abandon()
    assert engine.room() == room
    pair.same(one(engine, request), wanted)


def test_a_bug_of_a_page_is_raised_and_leaves_nothing(llama):
    engine = llama.slots()

    def broken(g, w):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        serve(engine, [llama.descend(0), llama.descend(1, correct=broken)])
    pair.same(one(engine, llama.descend(2)), one(llama.slots(), llama.descend(2)))
    with pytest.raises(ValueError, match="`train` names"):
        one(engine, llama.descend(0, train=["no.such.leaf"]))
    with pytest.raises(ValueError, match="`train` names"):
        one(engine, llama.descend(0, train=[]))
    with pytest.raises(ValueError, match="fit"):
        one(engine, llama.descend(0, start=torch.zeros(7)))
    with pytest.raises(ValueError, match="fit"):
        one(engine, llama.descend(0, carry=tiny.carried(llama.adapted, 2)[:-2]))
    with pytest.raises(TypeError, match="cannot serve a str"):
        one(engine, "a wish")
    pair.same(one(engine, llama.descend(2)), one(llama.slots(), llama.descend(2)))


def test_what_it_cannot_be_made_of(folders, llama):
    for slots, tokens in ((0, 8), (8, 0), (-1, 8)):
        with pytest.raises(ValueError, match="at least 1"):
            llama.slots(slots, tokens)
    whole = pair.adapt(tiny.loaded(folders["llama"], True), FullConfig(), 7)
    with pytest.raises(ValueError, match="shared"):
        Slots(whole, llama.tokenizer, (tiny.END,))


def test_nothing_is_written_into_what_was_handed_in(llama):
    asked = [llama.descend(i, optimizer=ADAMW, inner={}) for i in range(3)]
    starts = [request.start.clone() for request in asked]
    engine = llama.slots()
    found = serve(engine, asked)
    kept = [(run.y.clone(), {name: value.clone() for name, value in run.inner.items()}) for run in found]
    serve(engine, [replace(r, inner=run.inner, start=run.y) for r, run in zip(asked, found, strict=True)])
    for request, start, run, (y, inner) in zip(asked, starts, found, kept, strict=True):
        assert torch.equal(request.start, start)
        assert torch.equal(run.y, y)
        assert all(torch.equal(run.inner[name], inner[name]) for name in inner)


def test_nothing_global_is_drawn(folders):
    before = tiny.randomness()
    p = Pair(folders["llama"], LoraConfig(rank=2, targets="all-linear", dropout=0.3))
    engine = p.slots()
    x = p.somewhere()
    asked = [
        p.descend(0), p.descend(1), Evaluate(x, p.layout, BATCHES[0], ("loss", "exact_match"), 2, 3),
        Probe([x], p.layout, BATCHES[0]), Logits(x, p.layout, BATCHES[0]), Generate(x, p.layout, [(5, 6)], 1, 2),
    ]  # fmt: skip
    serve(engine, asked)
    assert tiny.randomness() == before


# -- the loop everybody writes


OPTIMIZERS = {
    "sgd": (SGD, lambda ps: torch.optim.SGD(ps, lr=1)),
    "momentum": (
        OptimizerConfig(name="sgd", weight_decay=0.01, args={"momentum": 0.9}),
        lambda ps: torch.optim.SGD(ps, lr=1, momentum=0.9, weight_decay=0.01),
    ),
    "nesterov": (
        OptimizerConfig(name="sgd", args={"momentum": 0.9, "nesterov": True}),
        lambda ps: torch.optim.SGD(ps, lr=1, momentum=0.9, nesterov=True),
    ),
    "adam": (
        OptimizerConfig(name="adam", weight_decay=0.1, args={"eps": 1e-5}),
        lambda ps: torch.optim.Adam(ps, lr=1, weight_decay=0.1, eps=1e-5),
    ),
    "adamw": (
        OptimizerConfig(name="AdamW", weight_decay=0.1, args={"betas": [0.8, 0.9], "eps": 1e-4}),
        lambda ps: torch.optim.AdamW(ps, lr=1, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-4),
    ),
    "adagrad": (OptimizerConfig(name="adagrad"), lambda ps: torch.optim.Adagrad(ps, lr=1)),
    "rmsprop": (
        OptimizerConfig(name="rmsprop", args={"alpha": 0.9, "eps": 0.01}),
        lambda ps: torch.optim.RMSprop(ps, lr=1, alpha=0.9, eps=0.01),
    ),
}


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_is_the_plain_loop(folders, family, clip):
    """All optimisers side by side; each as plain peft with torch's own, alone."""
    p = Pair(folders[family])
    asked = [p.descend(i, optimizer=OPTIMIZERS[name][0], max_grad_norm=clip) for i, name in enumerate(OPTIMIZERS)]
    for request, run, (_, make) in zip(asked, serve(p.slots(), asked), OPTIMIZERS.values(), strict=True):
        x = request.start
        model = tiny.peft_model(folders[family], p.layout, x, r=4, lora_alpha=ALL.alpha, target_modules="all-linear")
        losses = tiny.plain_descent(model, make([q for q in model.parameters() if q.requires_grad]), BATCHES, LRS, clip)
        wanted = tiny.vector_of(model, p.layout)
        assert float((wanted - x).norm()) > 1e-3
        assert distance(run.y, wanted) < 1e-6
        assert float((run.y - wanted).norm()) < 1e-4 * float((wanted - x).norm())
        assert run.loss == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_numbers_by_hand(llama):
    """Learned halves of 9 14 5 | 12 3 | 7 16 8 4 | 6 tokens: 4+7+2, 6+1, 3+8+4+2, 3."""
    x = llama.somewhere()
    run = one(llama.slots(), llama.descend(start=x))
    assert (run.steps, run.skipped, run.examples, run.tokens) == (4, 0, 10, 13 + 7 + 17 + 3)
    assert run.lr_sum == pytest.approx(0.036)
    assert run.gradient is None
    assert run.inner is None
    assert run.y.dtype == torch.float32
    still = one(llama.slots(), llama.descend(start=x, lrs=[0.0] * 4, optimizer=ADAMW))
    assert torch.equal(still.y, x)
    nothing = one(llama.slots(), llama.descend(start=x, batches=[], lrs=[]))
    assert (nothing.steps, nothing.skipped, nothing.examples, nothing.loss) == (0, 0, 0, None)
    assert torch.equal(nothing.y, x)


@pytest.mark.parametrize("name", sorted(optimizers.ELEMENTWISE))
def test_every_optimiser_of_single_numbers(double, name):
    """As the plain loop; and it goes on from a memory the other engine wrote, both ways."""
    config = OptimizerConfig(name=name, args={"momentum": 0.9} if name == "sgd" else {})
    common = {"optimizer": config, "inner": {}, "max_grad_norm": 0.5}
    asked = [double.descend(i, **common) for i in range(2)]
    wanted = serve(double.reference(), asked)
    found = serve(double.slots(), asked)
    all_close(found, wanted, 1e-9)
    assert found[0].inner
    onward = [
        replace(request, start=run.y, inner=run.inner)
        for request, run in zip([*asked, *asked], [*found, *wanted], strict=True)
    ]
    ours, theirs = serve(double.slots(), onward), serve(double.reference(), onward)
    all_close(ours, theirs, 1e-9)
    fresh = serve(double.slots(), [replace(request, inner={}) for request in onward])
    assert any(distance(a.y, b.y) > 1e-9 for a, b in zip(ours, fresh, strict=True)), "the memory does count"


# -- hooks


def leaves(p, factor):
    return [leaf.name for leaf in p.layout.leaves if leaf.factor == factor]


def test_a_correction_comes_before_the_clip(double):
    c_i, c = 0.1 * double.somewhere(70), 0.1 * double.somewhere(71)
    common = {"correct": lambda g, w, c_i, c: g - c_i + c, "with_": (c_i, c)}
    asked = [double.descend(0, **common, max_grad_norm=limit, gradient=True) for limit in (None, 0.3)]
    free, clipped = alike(double, [*asked, double.descend(1)])[:2]
    assert distance(free.y, clipped.y) > 1e-5
    plain = one(double.slots(), double.descend(0, batches=BATCHES[:1], lrs=LRS[:1], gradient=True))
    step = one(double.slots(), double.descend(0, batches=BATCHES[:1], lrs=LRS[:1], **common, gradient=True))
    assert distance(step.gradient, plain.gradient) < EXACT, "`gradient` is the raw one"
    assert distance(step.y, plain.y + LRS[0] * (c_i - c)) < EXACT


def test_a_correction_sees_the_weights_of_the_moment(double):
    """g' = w + 2 a - b: each step is w <- w - lr (w + 2 a - b), whatever the batch says."""
    a, b = double.somewhere(2), double.somewhere(3)
    asked = [double.descend(i, correct=lambda g, w, a, b: w + 2 * a - b, with_=(a, b)) for i in range(3)]
    for request, run in zip(asked, alike(double, asked), strict=True):
        w = request.start
        for lr in LRS:
            w = w - lr * (w + 2 * a - b)
        assert distance(run.y, w) < EXACT


@pytest.mark.parametrize("parts", [1, 3])
def test_a_penalty_adds_its_gradient_once(double, parts):
    """½ mu ‖w - x‖² as a penalty, and mu (w - x) as a correction, are the same."""
    x, mu = double.somewhere(4), 0.7

    def pull(tensors, anchor):
        assert list(tensors) == list(double.layout.names)
        views = double.layout.views(anchor)
        return sum((t - views[name]).square().sum() for name, t in tensors.items()) * mu / 2

    common = {"with_": (x,), "accumulate": parts, "max_grad_norm": 0.8, "optimizer": ADAMW}
    asked = [double.descend(0, penalty=pull, **common), double.descend(1), double.descend(0, **common)]
    pulled, _, free = alike(double, asked)
    by_hand = one(double.slots(), double.descend(0, correct=lambda g, w, a: g + mu * (w - a), **common))
    assert distance(pulled.y, by_hand.y) < EXACT
    assert pulled.loss > free.loss
    assert distance(pulled.y, free.y) > 1e-5


@pytest.mark.parametrize("factor", ["A", "B"])
def test_only_the_named_leaves_move(double, factor):
    """AdamW with weight decay and momentum would pull the others too; penalties and corrections push them in vain."""
    names = leaves(double, factor)
    momentum = OptimizerConfig(name="sgd", weight_decay=0.1, args={"momentum": 0.9})
    push = {"correct": lambda g, w: g + 1, "penalty": lambda ts: sum(t.sum() for t in ts.values())}
    common = {"train": names, "max_grad_norm": 0.2, "gradient": True, "inner": {}}
    asked = [
        double.descend(0, optimizer=ADAMW, **common), double.descend(1, optimizer=momentum, **common),
        double.descend(2, optimizer=ADAMW, **common, **push), double.descend(3, optimizer=ADAMW),
        double.descend(4, optimizer=ADAMW, start=double.adapted.start.double(), **common),
    ]  # fmt: skip
    for request, run in zip(asked, alike(double, asked), strict=True):
        before, after = double.layout.views(request.start), double.layout.views(run.y)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        if request.train is None:
            assert moved == set(double.layout.names)
        elif factor == "A" and request.start is asked[-1].start:
            assert not run.gradient.any(), "B is zero: A's gradient is, too"
        else:
            assert moved == set(names)
            assert {name for name, g in double.layout.views(run.gradient).items() if g.any()} == set(names)


def test_alternating_halves_with_their_memories(double):
    """RoLoRA: A, then B, each with what its optimiser remembers, whoever served the round before."""
    memories, engines = {"A": {}, "B": {}}, [double.slots(), double.reference()]
    x = y = double.somewhere()
    other = {"A": {}, "B": {}}
    for turn in range(4):
        factor = "AB"[turn % 2]
        common = {"train": leaves(double, factor), "optimizer": ADAMW, "batches": BATCHES[:2], "lrs": LRS[:2]}
        run = one(engines[(turn // 2) % 2], double.descend(0, start=x, inner=memories[factor], **common))
        x, memories[factor] = run.y, run.inner
        run = one(double.reference(), double.descend(0, start=y, inner=other[factor], **common))
        y, other[factor] = run.y, run.inner
    assert distance(x, y) < EXACT


# -- optimisers that go on


INNER = {
    "adamw": OptimizerConfig(name="adamw", weight_decay=0.1, args={"eps": 1e-5}),
    "amsgrad": OptimizerConfig(name="adamw", args={"amsgrad": True, "eps": 1e-5}),
    "adam": OptimizerConfig(name="adam", args={"eps": 1e-5}),
    "momentum": OptimizerConfig(name="sgd", weight_decay=0.01, args={"momentum": 0.9, "nesterov": True}),
    "rmsprop": OptimizerConfig(name="rmsprop", args={"momentum": 0.5, "centered": True, "eps": 0.01}),
    "adagrad": OptimizerConfig(name="adagrad"),
}


@pytest.mark.parametrize("name", INNER)
def test_two_and_two_steps_are_four(llama, name):
    """Bit by bit, the memory between them in a client's store and others in the slots meanwhile."""
    engine, common = llama.slots(2), {"optimizer": INNER[name], "max_grad_norm": 0.5, "gradient": True}
    whole = [llama.descend(i, inner={}, **common) for i in range(3)]
    wanted = serve(engine, whole)
    halves = [replace(r, batches=BATCHES[:2], lrs=LRS[:2]) for r in whole]
    first = serve(engine, [*halves, llama.descend(9, optimizer=INNER["adamw"])])[:3]
    onward = [
        replace(r, start=run.y, batches=BATCHES[2:], lrs=LRS[2:], inner=dict(reversed(list(run.inner.items()))))
        for r, run in zip(whole, first, strict=True)
    ]
    second = serve(engine, onward)
    for ours, theirs in zip(second, wanted, strict=True):
        assert torch.equal(ours.y, theirs.y)
        assert ours.inner.keys() == theirs.inner.keys()
        assert all(torch.equal(ours.inner[key], theirs.inner[key]) for key in theirs.inner)
    forgotten = serve(engine, [replace(r, inner={}) for r in onward])
    assert distance(forgotten[0].y, wanted[0].y) > 1e-5
    without = serve(engine, [replace(r, inner=None) for r in whole])
    assert all(torch.equal(a.y, b.y) and a.inner is None for a, b in zip(without, wanted, strict=True))


def test_the_memory_is_as_the_plain_loop_s(llama):
    """The same names, shapes and formats: plain tensors on the CPU, one set for each leaf."""
    request = llama.descend(0, optimizer=INNER["adamw"], inner={})
    ours, theirs = one(llama.slots(), request).inner, one(llama.reference(), request).inner
    assert len(ours) == 3 * len(llama.layout.leaves)
    described = [
        {k: (v.shape, v.dtype, v.device, v.requires_grad, type(v)) for k, v in m.items()} for m in (ours, theirs)
    ]
    assert described[0] == described[1]
    assert one(llama.slots(), llama.descend(0, inner={})).inner == {}
    kept = one(llama.slots(), llama.descend(0, optimizer=INNER["adamw"], inner=ours, batches=[], lrs=[])).inner
    assert kept.keys() == ours.keys()
    assert all(torch.equal(kept[key], ours[key]) for key in ours)


@pytest.mark.parametrize("kept, asked", [("adamw", "momentum"), ("momentum", "adamw"), ("adagrad", "rmsprop")])
def test_another_optimiser_s_memory_is_refused_in_words(llama, kept, asked):
    inner = one(llama.slots(), llama.descend(0, optimizer=INNER[kept], inner={})).inner
    with pytest.raises(ValueError, match="optimiser"):
        one(llama.slots(), llama.descend(0, optimizer=INNER[asked], inner=inner))


def test_memory_of_another_rank_or_phase_is_refused(llama):
    small = one(llama.slots(), llama.descend(0, layout=llama.of_rank(2), optimizer=INNER["adamw"], inner={})).inner
    seconds = one(llama.slots(), llama.descend(0, train=leaves(llama, "B"), optimizer=INNER["adamw"], inner={})).inner
    for inner in (small, seconds):
        with pytest.raises(ValueError, match=r"does not fit|another optimiser, adapter or phase"):
            one(llama.slots(), llama.descend(0, optimizer=INNER["adamw"], inner=inner))


# -- adapters of every kind


def test_what_is_carried(double):
    """Beside others who carry nothing, more, or less; as the plain loop, for every question."""
    heavy, light = tiny.carried(double.adapted, 4, 1), tiny.carried(double.adapted, 1, 2)
    asked = [double.descend(i, carry=carry, optimizer=ADAMW) for i, carry in enumerate(((), heavy, light, heavy, ()))]
    found = alike(double, asked)
    x = double.somewhere()
    without, with_ = (one(double.slots(), double.descend(0, start=x, carry=carry)) for carry in ((), heavy))
    assert distance(without.y, with_.y) > 1e-5
    assert found[1].loss != found[0].loss


def test_carried_products_are_peft_s_own(folders, llama):
    x, carry = llama.somewhere(3), tiny.carried(llama.adapted, 3, 1)
    model = tiny.widened(folders["llama"], llama.layout, x, carry)
    losses = [tiny.batch_loss(model, batch).item() for batch in BATCHES]
    run = one(llama.slots(), llama.descend(0, start=x, carry=carry, lrs=[0.0] * 4))
    assert run.loss == pytest.approx(sum(losses) / 4, rel=1e-5)


@pytest.mark.parametrize("scale", ["rank", "shared"])
@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_scales_that_differ(folders, scale, rslora):
    largest = {"c_attn": 6, "c_proj": 3, "c_fc": 2}
    adapter = LoraConfig(rank=4, alpha=6, targets="all-linear", scale=scale, rslora=rslora)
    p = Pair(folders["gpt2"], adapter, double=True, attention="sdpa",
             ranks=lambda names: {name: largest[name.rpartition(".")[2]] for name in names})  # fmt: skip
    assert len({leaf.shape[0] for leaf in p.layout.leaves if leaf.factor == "A"}) == 3
    asked = [
        p.descend(0),
        *(p.descend(r, layout=p.of_rank(r), optimizer=ADAMW, inner={}) for r in (1, 2)),
        p.descend(3),
    ]
    alike(p, asked)
    scores = [Evaluate(r.start, r.layout, BATCHES[0], ("loss",), 2, 2) for r in asked]
    for ours, theirs in zip(serve(p.slots(), scores), serve(p.reference(), scores), strict=True):
        assert ours.nll == pytest.approx(theirs.nll, rel=1e-12)


def test_a_first_factor_that_rests(folders):
    p = Pair(folders["gpt2"], LoraConfig(rank=4, targets="all-linear", freeze="A"), double=True, attention="sdpa")
    assert not leaves(p, "A")
    alike(p, [p.descend(i, optimizer=ADAMW, inner={}, gradient=True) for i in range(3)])


def test_sparse_updates_in_turns(folders):
    """SLoRA: the sparse update alone, from zero; then factors, with it at rest; and both."""
    p = Pair(folders["gpt2"], LoraConfig(rank=2, targets="all-linear", sparse=0.1), double=True, attention="sdpa")
    sparse = [name for name in p.layout.names if name.endswith(".S")]
    rest = [name for name in p.layout.names if not name.endswith(".S")]
    start = p.adapted.start.double()
    asked = [
        p.descend(0, start=start, train=sparse, optimizer=ADAMW, inner={}), p.descend(1, start=start, train=rest),
        p.descend(2, train=sparse), p.descend(3, train=rest, optimizer=ADAMW), p.descend(4, gradient=True),
    ]  # fmt: skip
    found = alike(p, asked)
    assert distance(found[0].y, start) > 1e-5
    x = p.somewhere(8)
    scores = [Evaluate(point, p.layout, BATCHES[0], ("loss",), 2, 2) for point in (start, x)]
    for ours, theirs in zip(serve(p.slots(), scores), serve(p.reference(), scores), strict=True):
        assert ours.nll == pytest.approx(theirs.nll, rel=1e-12)


# -- questions without gradients


def questions(p):
    """Of different models, rows and settings; one pair of the same model, one with nothing to score."""
    x, y, small = p.somewhere(1), p.somewhere(2), p.of_rank(2)
    carry = tiny.carried(p.adapted, 2)
    asked = ("loss", "exact_match", "rouge_l")
    return [
        Evaluate(x, p.layout, tiny.batch(9, 30, 5, seed=7), asked, 2, 4),
        Evaluate(x.clone(), p.layout, tiny.batch(4, 6, seed=8), asked, 2, 4),
        Evaluate(y, p.layout, [*tiny.batch(12, 2, 1, seed=9), pair.SILENT], ("loss",), 8, 4),
        Evaluate(p.somewhere(3, small), small, BATCHES[2], ("loss", "perplexity"), 1, 4),
        Evaluate(x, p.layout, BATCHES[1], ("loss",), 4, 4, carry),
        Evaluate(x * math.nan, p.layout, BATCHES[1], ("loss",), 4, 4),
        Evaluate(x, p.layout, [], asked, 4, 4),
        Probe([x, y, p.somewhere(4)], p.layout, BATCHES[0]),
        Probe([p.somewhere(3, small)], small, BATCHES[3]),
        Probe([x, y], p.layout, BATCHES[0], carry),
        Logits(x, p.layout, BATCHES[0]),
        Logits(y, p.layout, tiny.batch(3, seed=5), carry),
        Generate(x, p.layout, [(5, 6, 7), (9,), (8, 8)], 2, 4),
        Generate(y, p.layout, [], 0, 4),
    ]


def equal(ours, theirs, tolerance):
    if isinstance(theirs, Scores):
        assert (ours.examples, ours.tokens, ours.answered) == (theirs.examples, theirs.tokens, theirs.answered)
        assert (ours.exact, ours.rouge) == (theirs.exact, theirs.rouge)
        assert ours.nll == pytest.approx(theirs.nll, rel=tolerance, abs=0, nan_ok=True)
    elif isinstance(theirs, torch.Tensor):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs) if not tolerance else torch.allclose(ours, theirs, atol=tolerance)
    elif theirs and isinstance(theirs[0], float):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=0)
    else:
        assert ours == theirs


@pytest.mark.parametrize(
    "adapter", [ALL, LoraConfig(rank=4, targets="all-linear", dropout=0.5)], ids=["plain", "dropout"]
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_answers_are_the_plain_loop_s_and_nobody_else_s(folders, attention, adapter):
    """All at once, one by one, with other budgets, and while others train: not a bit of them changes."""
    p = Pair(folders["llama"], adapter, attention=attention)
    asked = questions(p)
    found = serve(p.slots(), asked)
    for ours, theirs in zip(found, serve(p.reference(), asked), strict=True):
        equal(ours, theirs, 1e-5)
    for ours, theirs in zip([one(p.slots(1), request) for request in asked], found, strict=True):
        equal(ours, theirs, 0)
    trainings = [p.descend(i) for i in range(3)]
    mixed = serve(p.slots(2, 30), [*trainings, *asked], [0, *range(len(asked) + 2, 0, -1)])
    for ours, theirs in zip(mixed[3:], found, strict=True):
        equal(ours, theirs, 0)
    all_same(mixed[:3], serve(p.slots(1), trainings))


def test_a_question_between_steps_changes_no_training(llama):
    engine, request = llama.slots(2), llama.descend(0, optimizer=ADAMW)
    wanted = one(llama.slots(2), request)
    engine.admit(Call(0, request))
    found = {}
    for i, question in enumerate(questions(llama)):
        engine.admit(Call(10 + i, question))
        while 10 + i not in found:
            found |= dict(engine.advance())
        if 0 not in found:
            found |= dict(engine.advance())
    while 0 not in found:
        found |= dict(engine.advance())
    pair.same(found[0], wanted)


def test_answers_are_judged(llama):
    x = llama.somewhere()
    prompts = [tiny.example(n, 80 + n) for n in range(4, 12)]
    answers = one(llama.reference(), Generate(x, llama.layout, [row.prompt for row in prompts], 4, 8))
    known = [replace(row, answer=answer) for row, answer in zip(prompts, answers, strict=True)]
    rows = Evaluate(x, llama.layout, known, ("exact_match", "rouge_l"), 4, 8)
    ours, theirs = one(llama.slots(), rows), one(llama.reference(), rows)
    assert ours.exact == theirs.exact == len(rows.examples)
    assert ours.rouge == theirs.rouge > 0


# -- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_on_a_gpu(folders, family, attention):
    p = Pair(folders[family], attention=attention, device="cuda")
    momentum = INNER["momentum"]
    asked = [
        p.descend(0, optimizer=ADAMW, gradient=True), p.descend(1, batches=BATCHES[:2], lrs=LRS[:2]),
        p.descend(2, layout=p.of_rank(2), max_grad_norm=0.5), p.descend(3, carry=tiny.carried(p.adapted, 2)),
        p.descend(4, correct=lambda g, w, c: g + c, with_=(0.1 * p.somewhere(9),), accumulate=2),
        p.descend(5, train=leaves(p, "B"), optimizer=momentum, inner={}),
    ]  # fmt: skip
    found = serve(p.slots(), asked)
    assert all(run.y.device.type == "cpu" for run in found)
    all_close(found, serve(p.reference(), asked), 1e-4)
    for ours, theirs in zip(serve(p.slots(), questions(p)), serve(p.reference(), questions(p)), strict=True):
        equal(ours, theirs, 1e-3)
    assert isinstance(p.reference(), Reference)


@pytest.mark.parametrize("cause", ["gpu", "cpu"])
def test_memory_that_runs_out_names_the_settings(folders, monkeypatch, cause):
    """Nothing is made smaller unsaid, and the engine is as before."""
    p = Pair(folders["llama"], attention="eager")
    engine, asked = p.slots(slots=2), [p.descend(i) for i in range(3)]

    def full(*args, **kwargs):
        if cause == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        torch.empty(1 << 60)

    with monkeypatch.context() as patch:
        patch.setattr(engine.model.inner, "forward", full)
        with pytest.raises(RunStopped, match=r"engine\.tokens_per_step \(now \d+\) or engine\.slots \(now 2\)"):
            pair.serve(engine, asked)
    engine.abandon()
    pair.all_same(pair.serve(engine, asked), pair.serve(p.slots(slots=2), asked))
