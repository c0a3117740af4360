"""Clients side by side against one after the other, number by number.

On one thread a CPU whose kernels treat rows one by one gives the same bits whoever sits beside a client; in float64 the
shared pass is the plain loop up to 1e-12, so whatever differs in float32 is rounding.
"""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from engine import pair
from engine.pair import ADAMW, ALL, QV, SGD, SILENT, Pair, all_close, all_same, rows, serve
from fedloom.adapters.config import LoraConfig
from fedloom.contracts import ClientFailed, Trained
from fedloom.engine.choice import row_invariant
from fedloom.engine.config import OptimizerConfig
from fedloom.engine.requests import Descend

ADAPTERS = {
    "all": ALL,
    "qv": QV,
    "dropout": LoraConfig(rank=4, targets="all-linear", dropout=0.3),
    "frozen": LoraConfig(rank=4, targets="all-linear", freeze="A"),
    "sparse": LoraConfig(rank=2, targets="all-linear", sparse=0.1),
}
MOMENTUM = OptimizerConfig(name="sgd", weight_decay=0.01, args={"momentum": 0.9, "nesterov": True})
RMSPROP = OptimizerConfig(name="rmsprop", args={"alpha": 0.9, "eps": 0.01})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Families once; odd widths, so that rows begin anywhere in a cache line; one of a single layer, to be quick."""
    made = {name: pair.saved(tmp_path_factory.mktemp(name), name) for name in ("llama", "gpt2", "opt", *pair.MORE)}
    made["gemma3"] = pair.saved(tmp_path_factory.mktemp("gemma3"), "gemma3")
    made["short"] = pair.saved(tmp_path_factory.mktemp("short"), "llama", num_hidden_layers=1)
    for hidden, head in ((24, 6), (40, 10)):
        made[f"width {hidden}"] = pair.saved(
            tmp_path_factory.mktemp("odd"), "llama", hidden_size=hidden, head_dim=head, intermediate_size=2 * hidden
        )
    return made


@pytest.fixture(scope="module")
def pairs(folders):
    """Models by what they are made of; shared by tests, since no request may show in the next answer."""
    known: dict[Any, Pair] = {}

    def get(family: str, adapter: str = "all", **settings: Any) -> Pair:
        key = family, adapter, *sorted(settings.items())
        if key not in known:
            known[key] = Pair(folders[family], ADAPTERS[adapter], **settings)
        return known[key]

    return get


def exact(pair: Pair) -> Pair:
    """The pair, on a machine that can keep bits at all."""
    if not row_invariant(pair.base.module, torch.float32):
        pytest.skip("this machine's kernels compute rows differently in company")
    return pair


# -- what clients ask


def steps_differ(p: Pair) -> list[Descend]:
    return [p.descend(i, batches=tiny.BATCHES[:n], lrs=tiny.LRS[:n]) for i, n in enumerate((1, 4, 2, 0, 3))]


def rates_differ(p: Pair) -> list[Descend]:
    optimizers = (SGD, ADAMW, MOMENTUM, RMSPROP, OptimizerConfig(name="adagrad"))
    return [
        p.descend(i, lrs=[(1 + i / 4) * lr for lr in tiny.LRS], optimizer=optimizer, inner={})
        for i, optimizer in enumerate(optimizers)
    ]


def clips_differ(p: Pair) -> list[Descend]:
    return [
        p.descend(i, max_grad_norm=limit, optimizer=ADAMW if i % 2 else SGD, gradient=True)
        for i, limit in enumerate((0.05, 0.5, None, 1e9))
    ]


def parts_differ(p: Pair) -> list[Descend]:
    return [p.descend(i, accumulate=parts, max_grad_norm=0.5) for i, parts in enumerate((1, 2, 3, 100))]


def some_are_silent(p: Pair) -> list[Descend]:
    a, b, *_ = tiny.BATCHES
    lists = ([[SILENT], a, b], [a, [SILENT, SILENT], b], [a, b, [SILENT]], [[SILENT]] * 2, [[*a, SILENT], b, []])
    asked = [
        p.descend(i, batches=batches, lrs=tiny.LRS[: len(batches)], optimizer=ADAMW, accumulate=1 + i % 2)
        for i, batches in enumerate(lists)
    ]
    return [*asked, p.descend(9)]


def short_texts(p: Pair) -> list[Descend]:
    """Texts of one and two tokens; a client whose whole stream is one text of three; one learned token."""
    one, two, three = (tiny.example(n, 50 + n, learned=n) for n in (1, 2, 3))
    lists = ([[three]], [[two]], [[two, one]], [[one, three, one], [two]], [rows(3, 17, 2, 1)], [[one]])
    return [
        p.descend(i, batches=batches, lrs=tiny.LRS[: len(batches)], gradient=True) for i, batches in enumerate(lists)
    ]


def hooked(p: Pair) -> list[Descend]:
    c, c_i = 0.1 * p.somewhere(70), 0.1 * p.somewhere(71)
    x = p.somewhere(72)
    names = [leaf.name for leaf in p.layout.leaves if leaf.factor == "B"]

    def pull(tensors: Any, anchor: Any) -> Any:
        views = p.layout.views(anchor)
        return 0.35 * sum((tensor - views[name]).square().sum() for name, tensor in tensors.items())

    return [
        p.descend(0, correct=lambda g, w, c_i, c: g - c_i + c, with_=(c_i, c), gradient=True, max_grad_norm=0.5),
        p.descend(1, penalty=pull, with_=(x,), accumulate=2, optimizer=ADAMW),
        p.descend(2, train=names, optimizer=ADAMW, inner={}, max_grad_norm=0.2),
        p.descend(3),
        p.descend(4, carry=tiny.carried(p.adapted, 3, 5)),
        p.descend(5, start=p.adapted.start.to(p.dtype), carry=tiny.carried(p.adapted, 1, 6), optimizer=ADAMW),
    ]


CASES = {f.__name__: f for f in (steps_differ, rates_differ, clips_differ, parts_differ, some_are_silent, short_texts)}
COMPANY = {  # slots, tokens of a pass, order of admission
    "all at once": (8, 1024, lambda n: range(n)),
    "backwards in twos": (2, 1024, lambda n: range(n - 1, -1, -1)),
    "threes of few tokens": (3, 30, lambda n: [*range(n // 2, n), *range(n // 2)]),
}


def company(p: Pair, asked: Sequence[Descend], alone: Sequence[Any], **engine: Any) -> None:
    """In whatever company, nothing changes."""
    for name, (slots, tokens, order) in COMPANY.items():
        try:
            all_same(serve(p.slots(slots, tokens, **engine), asked, order(len(asked))), alone)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


# -- no bit


@pytest.mark.parametrize("adapter", ["all", "qv", "dropout"])
@pytest.mark.parametrize("case", CASES)
def test_neighbours_change_no_bit(pairs, case, adapter):
    p = exact(pairs("llama", adapter, attention="sdpa" if adapter == "qv" else "eager"))
    asked = CASES[case](p)
    company(p, asked, serve(p.slots(1), asked))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_hooks_leave_the_neighbours_alone(pairs, adapter):
    p = exact(pairs("llama", adapter))
    asked = hooked(p)
    company(p, asked, serve(p.slots(1), asked))


def ranks_differ(p: Pair) -> list[Descend]:
    layouts = [p.of_rank(rank) for rank in (1, 4, 2, 3)] + [p.layout]
    return [
        p.descend(i, layout=layout, optimizer=ADAMW if i % 2 else MOMENTUM, inner={}, max_grad_norm=0.5)
        for i, layout in enumerate(layouts)
    ]


@pytest.mark.parametrize("adapter", ["all", "qv", "dropout"])
def test_ranks_that_differ(pairs, adapter):
    p = exact(pairs("llama", adapter))
    asked = ranks_differ(p)
    company(p, asked, serve(p.slots(1), asked))
    all_close(serve(p.slots(), asked), serve(p.reference(), asked), 1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["width 24", "width 40", "gpt2", "gemma3", "mistral", "qwen3", "gemma2", "opt"])
def test_no_bit_in_other_models(pairs, family, attention):
    """Widths that are no multiple of a cache line; windows shorter than texts; capped and grouped attention."""
    if family == "gemma2" and attention == "sdpa":
        pytest.skip("transformers offers no sdpa for Gemma 2")
    p = exact(pairs(family, "all", attention=attention))
    asked = [*short_texts(p)[:4], p.descend(7, accumulate=2), p.descend(8, optimizer=ADAMW)]
    company(p, asked, serve(p.slots(1), asked))


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_recomputed_activations_change_no_bit(pairs, folders, family, dropout):
    kept = exact(pairs(family, "dropout" if dropout else "all", attention="sdpa"))
    p = Pair(folders[family], kept.adapter, attention="sdpa")
    asked = [*parts_differ(p)[1:], *steps_differ(p)[1:3], p.descend(5, carry=tiny.carried(p.adapted, 2))]
    p.adapted.module.eval()
    calls: list[int] = []
    layer = p.adapted.module.get_submodule(f"base_model.model.{p.layout.leaves[0].module}")
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    alone = serve(p.slots(1, checkpointing=True), asked)
    parts = sum(min(r.accumulate, len(b)) for r in asked for b in r.batches)
    assert len(calls) == 2 * parts, "each pass is done twice"
    company(p, asked, alone, checkpointing=True)
    all_same(alone, serve(kept.slots(), asked))


def test_activations_are_recomputed_from_the_first_pass_on(folders):
    """Memory must not depend on whether somebody was evaluated before."""
    p = Pair(folders["llama"])
    engine, calls = p.slots(checkpointing=True), list[int]()
    layer = p.adapted.module.get_submodule(f"base_model.model.{p.layout.leaves[0].module}")
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    serve(engine, [p.descend(i) for i in range(2)])
    assert len(calls) == 2 * 4


BAD = {
    "weights are NaN": lambda p: p.descend(1, start=p.somewhere(1) * math.nan, gradient=True),
    "one weight is infinite": lambda p: p.descend(1, start=infinite(p.somewhere(1)), optimizer=ADAMW),
    "it runs away": lambda p: p.descend(1, lrs=[1e30] * 4),
    "its corrections are NaN": lambda p: p.descend(1, correct=lambda g, w: g * math.nan),
    "its penalty is NaN": lambda p: p.descend(1, penalty=lambda ts: sum(t.sum() for t in ts.values()) * math.nan),
    "its memory is NaN": lambda p: p.descend(1, carry=tuple(t * math.nan for t in tiny.carried(p.adapted, 1))),
}


def infinite(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[5] = math.inf
    return x


@pytest.mark.parametrize("kind", BAD)
def test_a_client_that_diverges_fails_and_touches_nobody(pairs, kind):
    p = exact(pairs("llama", "all"))
    tiny_texts = short_texts(p)[0]
    asked = [p.descend(0), BAD[kind](p), tiny_texts, p.descend(3, optimizer=ADAMW, lrs=[0.01] * 4)]
    wanted = serve(p.reference(), asked)
    assert isinstance(wanted[1], ClientFailed)
    alone = serve(p.slots(1), asked)
    company(p, asked, alone)
    assert isinstance(alone[1], ClientFailed)
    assert alone[1].missing.reason == "nonfinite"
    assert alone[1].missing == wanted[1].missing
    healthy = [0, 2, 3]
    all_same([alone[i] for i in healthy], serve(p.slots(), [asked[i] for i in healthy]))
    all_close([alone[i] for i in healthy], [wanted[i] for i in healthy], 1e-5)


def test_a_slot_remembers_nothing_of_the_one_before(pairs):
    """One slot, many who pass through it: failed ones, smaller ranks, other optimisers."""
    p = exact(pairs("llama", "all"))
    last = p.descend(5, optimizer=ADAMW, max_grad_norm=0.5, gradient=True)
    before = [
        p.descend(1, start=p.somewhere(1) * math.nan),
        *ranks_differ(p), p.descend(2, train=[p.layout.leaves[3].name], optimizer=MOMENTUM),
    ]  # fmt: skip
    pair.same(serve(p.slots(1), [*before, last])[-1], serve(p.slots(1), [last])[0])
    engine = p.slots(2)
    serve(engine, before)
    pair.same(serve(engine, [last])[0], serve(p.slots(1), [last])[0])


# -- the plain loop in float64


@pytest.fixture(scope="module")
def doubled(pairs):
    with pair.norms_in_double():
        yield lambda family, adapter="all", plain=True: pairs(
            family, adapter, double=True, attention="sdpa", plain=plain
        )


EVERY = {**CASES, "hooked": hooked, "ranks_differ": ranks_differ}


@pytest.mark.parametrize("adapter", ["all", "qv", "dropout"])
@pytest.mark.parametrize("case", EVERY)
def test_the_shared_pass_is_the_plain_loop(doubled, case, adapter):
    p = doubled("llama", adapter, plain=adapter != "qv")
    asked = EVERY[case](p)
    found = serve(p.slots(3, 60), asked)
    assert all(run.y.dtype == torch.float64 for run in found)
    all_close(found, serve(p.reference(), asked), 1e-12)


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "fused"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "mistral", "width 24"])
def test_it_is_in_other_models(doubled, family, plain):
    """A window of six tokens; Conv1D; biases."""
    p = doubled(family, "all", plain)
    asked = [*short_texts(p), p.descend(7, optimizer=ADAMW, max_grad_norm=0.5)]
    all_close(serve(p.slots(), asked), serve(p.reference(), asked), 1e-12)


@pytest.mark.parametrize("adapter", ["frozen", "sparse"])
def test_it_is_with_other_adapters(doubled, adapter):
    p = doubled("gpt2", adapter)
    asked = [*hooked(p), *some_are_silent(p), p.descend(20, start=p.adapted.start.double(), optimizer=ADAMW)]
    all_close(serve(p.slots(), asked), serve(p.reference(), asked), 1e-12)


@pytest.mark.parametrize("factors", ["at the start", "elsewhere"])
def test_a_sparse_update_that_is_still_zero_is_trained(doubled, factors):
    """Every run begins there."""
    p = doubled("llama", "sparse")
    x = p.adapted.start.double() if factors == "at the start" else p.somewhere()
    for leaf in p.layout.leaves:
        if leaf.name.endswith(".S"):
            p.layout.views(x)[leaf.name].zero_()
    asked = [p.descend(0, start=x, gradient=True), p.descend(1), p.descend(2, start=x, optimizer=ADAMW)]
    all_close(serve(p.slots(), asked), serve(p.reference(), asked), 1e-12)


# -- gradients in float32


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mistral", "qwen3", "gemma2", "width 40"])
def test_gradients_of_one_step(pairs, family, attention):
    """To 1e-6 relative: rounding."""
    if family == "gemma2" and attention == "sdpa":
        pytest.skip("transformers offers no sdpa for Gemma 2")
    p = pairs(family, "all", attention=attention)
    asked = [p.descend(i, batches=[b], lrs=[0.01], gradient=True) for i, b in enumerate(tiny.BATCHES)]
    asked.append(p.descend(9, batches=[rows(5, 40, 2)], lrs=[0.01], gradient=True))
    found, wanted = serve(p.slots(), asked), serve(p.reference(), asked)
    for ours, theirs in zip(found, wanted, strict=True):
        assert tiny.distance(ours.gradient, theirs.gradient) < 1e-6
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)


def test_a_base_in_bfloat16(folders):
    """Gradients up to its rounding; and no bit in company, where its kernels allow that."""
    p = Pair(folders["llama"], dtype="bfloat16")
    asked = [p.descend(i, batches=[b], lrs=[0.01], gradient=True) for i, b in enumerate(tiny.BATCHES)]
    found, wanted = serve(p.slots(), asked), serve(p.reference(), asked)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.y.dtype == ours.gradient.dtype == torch.float32
        assert tiny.distance(ours.gradient, theirs.gradient) < 0.05
        assert ours.loss == pytest.approx(theirs.loss, rel=0.01)
    if row_invariant(p.base.module, torch.bfloat16):
        company(p, asked, serve(p.slots(1), asked))


# -- whatever company is drawn


@st.composite
def clients(draw: Any) -> list[dict[str, Any]]:
    found = []
    for i in range(draw(st.integers(1, 5), label="clients")):
        lengths = st.lists(st.integers(1, 12), min_size=1, max_size=3)
        batches = draw(st.lists(lengths, max_size=3), label="lengths")
        found.append(
            {
                "batches": [tiny.batch(*one, seed=10 * i + j) for j, one in enumerate(batches)],
                "lrs": [draw(st.sampled_from([0.0, 0.01, 0.1]))] * len(batches),
                "accumulate": draw(st.integers(1, 3)),
                "optimizer": draw(st.sampled_from([SGD, ADAMW])),
                "max_grad_norm": draw(st.sampled_from([None, 0.5])),
                "gradient": draw(st.booleans()),
            }
        )
    return found


@settings(
    max_examples=25, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(asked=clients(), slots=st.integers(1, 8), tokens=st.sampled_from([1, 8, 20, 60, 1024]), data=st.data())
def test_any_company_gives_the_same_bits(pairs, asked, slots, tokens, data):
    p = exact(pairs("short", "dropout"))
    requests = [p.descend(i, **changes) for i, changes in enumerate(asked)]
    order = data.draw(st.permutations(range(len(requests))))
    alone = serve(p.slots(1), requests)
    all_same(serve(p.slots(slots, tokens), requests, order), alone)
    for run, request in zip(alone, requests, strict=True):
        assert isinstance(run, Trained)
        assert run.steps + run.skipped == len(request.batches)
