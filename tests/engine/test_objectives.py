"""Every objective on both engines: the same numbers, to the bit among neighbours, and those of a plain loop."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import tiny
from engine import pair
from engine.pair import ADAMW, ALL, SGD, Pair, all_close, all_same, norms_in_double, one, serve
from fedloom.adapters.config import FullConfig, LoraConfig
from fedloom.data.encode import Encoded
from fedloom.data.labelled import Labelled
from fedloom.data.pairs import Judged
from fedloom.data.pairs import Pair as Answers
from fedloom.engine.choice import difference, row_invariant
from fedloom.engine.requests import Descend, Evaluate, Logits, Probe
from fedloom.models.heads import HeadSpec
from fedloom.objectives.classify import Classify
from fedloom.objectives.config import DpoConfig, KtoConfig
from fedloom.objectives.kto import Kto
from fedloom.objectives.preference import Preference

CLASSES = 3
LOSSES = ("sigmoid", "robust", "ipo", "hinge", "slic", "orpo", "simpo")
_BERT = {
    "vocab_size": tiny.VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": tiny.POSITIONS, "pad_token_id": 0,
}  # fmt: skip
ENCODERS = {
    "bert": lambda: transformers.BertConfig(**_BERT),
    "roberta": lambda: transformers.RobertaConfig(**{**_BERT, "pad_token_id": 1}),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=tiny.VOCAB, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=tiny.POSITIONS
    ),
}


def encoder(folder: Path, kind: str) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.AutoModel.from_config(ENCODERS[kind]())
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {kind: encoder(tmp_path_factory.mktemp(kind), kind) for kind in ENCODERS}
    for name in ("llama", "gpt2"):
        made[name] = pair.saved(tmp_path_factory.mktemp(name), name)
    return made


def ids(source: random.Random, length: int) -> tuple[int, ...]:
    return tuple(source.randrange(4, tiny.VOCAB) for _ in range(length))


def rows_of_classes(seed: int) -> list[list[Labelled]]:
    source = random.Random(seed)
    return [
        [Labelled(ids(source, source.randrange(3, 14)), source.randrange(CLASSES), None) for _ in range(size)]
        for size in (3, 1, 4)
    ]


def answered(source: random.Random, prompt: tuple[int, ...]) -> Encoded:
    answer = ids(source, source.randrange(1, 8))
    return Encoded((*prompt, *answer), (-100,) * len(prompt) + answer, prompt, "", None)


def pairs_of_answers(seed: int) -> list[list[Answers]]:
    source = random.Random(seed)

    def made() -> Answers:
        prompt = ids(source, source.randrange(2, 7))
        return Answers(answered(source, prompt), answered(source, prompt))

    return [[made() for _ in range(size)] for size in (3, 1, 4)]


def judged_answers(seed: int) -> list[list[Judged]]:
    source = random.Random(seed)
    return [
        [Judged(answered(source, ids(source, source.randrange(2, 7))), source.random() < 0.5) for _ in range(size)]
        for size in (3, 2, 4)
    ]


CASES: dict[str, tuple[str, Any, Any, Any]] = {
    "classify bert": ("bert", Classify(), rows_of_classes, HeadSpec(CLASSES)),
    "classify bert cls": ("bert", Classify(), rows_of_classes, HeadSpec(CLASSES, "cls", "mlp")),
    "classify roberta": ("roberta", Classify(), rows_of_classes, HeadSpec(CLASSES)),
    "classify distilbert": ("distilbert", Classify(), rows_of_classes, HeadSpec(CLASSES, "cls")),
    "classify llama": ("llama", Classify(), rows_of_classes, HeadSpec(CLASSES)),
    "classify gpt2": ("gpt2", Classify(), rows_of_classes, HeadSpec(CLASSES, "mean", "mlp")),
    "kto": ("llama", Kto(KtoConfig()), judged_answers, None),
    "dpo start": ("llama", Preference(DpoConfig(reference="start")), pairs_of_answers, None),
    "dpo gpt2": ("gpt2", Preference(DpoConfig(label_smoothing=0.1)), pairs_of_answers, None),
    **{f"dpo {loss}": ("llama", Preference(DpoConfig(loss=loss, beta=0.5)), pairs_of_answers, None) for loss in LOSSES},
}


@pytest.fixture(scope="module")
def made(folders):
    known: dict[Any, Pair] = {}

    def get(case: str, adapter: Any = ALL, **more: Any) -> Pair:
        family, objective, _, head = CASES[case]
        key = case, repr(adapter), *sorted(more.items())
        if key not in known:
            known[key] = Pair(folders[family], adapter, objective=objective, head=head, **more)
        return known[key]

    return get


def asked(p: Pair, case: str, clients: int = 5, **changes: Any) -> list[Descend]:
    rows = CASES[case][2]
    return [
        p.descend(seed, batches=rows(seed), lrs=(0.05, 0.02, 0.1), gradient=True, **changes) for seed in range(clients)
    ]


@pytest.mark.parametrize("case", CASES)
def test_side_by_side_is_the_plain_loop(made, case):
    """Gradients, weights and losses in float64, in parts of batches too."""
    p = made(case, double=True, attention="sdpa", plain=True)
    for changes in ({}, {"accumulate": 2, "optimizer": ADAMW, "max_grad_norm": 0.5}):
        requests = asked(p, case, **changes)
        with norms_in_double():
            found = serve(p.slots(3, 60), requests)
            all_close(found, serve(p.reference(), requests), 1e-9)
        assert all(run.steps == 3 and float(run.gradient.norm()) > 0 for run in found)


@pytest.mark.parametrize("case", CASES)
def test_neighbours_change_no_bit(made, case):
    p = made(case)
    if not row_invariant(p.base.module, torch.float32):
        pytest.skip("this machine's kernels compute rows differently in company")
    requests = asked(p, case)
    alone = [one(p.slots(1, 60), request) for request in requests]
    for slots, tokens in ((5, 4000), (2, 60)):
        all_same(serve(p.slots(slots, tokens), requests), alone)


@pytest.mark.parametrize("case", ["classify bert", "classify llama", "dpo sigmoid", "kto", "dpo start"])
@pytest.mark.parametrize(
    "adapter", [LoraConfig(rank=3, targets="all-linear", dropout=0.3), FullConfig()], ids=["dropout", "full"]
)
def test_other_adapters(made, case, adapter):
    """Dropout draws the same numbers in both engines, and none for the reference; full tuning has the plain loop."""
    p = made(case, adapter, double=True, attention="sdpa", plain=True)
    requests = asked(p, case, 3)
    with norms_in_double():
        plain = serve(p.reference(), requests)
        if not isinstance(adapter, FullConfig):
            all_close(serve(p.slots(3, 60), requests), plain, 1e-9)
    assert all(run.steps == 3 for run in plain)


@pytest.mark.parametrize("case", CASES)
def test_scores_probes_and_logits_agree(made, case):
    p = made(case, double=True, attention="sdpa", plain=True)
    rows = [row for batch in CASES[case][2](9) for row in batch]
    metrics = ("loss",)
    for request in (
        Evaluate(p.somewhere(4), p.layout, rows, metrics, 3, 4),
        Probe([p.somewhere(1), p.somewhere(2)], p.layout, rows),
        Logits(p.somewhere(1), p.layout, rows),
    ):
        ours, theirs = one(p.slots(2, 50), request), one(p.reference(), request)
        if isinstance(theirs, Tensor):
            assert torch.allclose(ours, theirs, atol=1e-9)
        elif isinstance(theirs, list):
            assert ours == pytest.approx(theirs, rel=1e-9)
        else:
            assert ours.examples == theirs.examples == len(rows)
            assert ours.confusion == theirs.confusion
            assert (ours.nll, ours.won, ours.chosen_reward) == pytest.approx(
                (theirs.nll, theirs.won, theirs.chosen_reward), rel=1e-9
            )


@pytest.mark.parametrize("case", [case for case, (family, *_) in CASES.items() if family != "distilbert"])
def test_the_check_of_the_shared_engine_finds_nothing(made, case):
    p = made(case)
    assert difference(p.slots(2), p.reference(), torch.float32) is None


def test_the_reference_is_the_base_without_adapter_or_the_start(folders):
    """A step of DPO by hand: the plain model's log-likelihoods, with autograd."""
    for way in ("base", "start"):
        objective = Preference(DpoConfig(beta=0.3, reference=way))
        p = Pair(folders["llama"], ALL, objective=objective, double=True, attention="sdpa")
        (batch,) = pairs_of_answers(5)[:1]
        x = p.somewhere(3)
        run = one(p.reference(), p.descend(0, start=x, batches=[batch], lrs=[0.1], optimizer=SGD, gradient=True))
        start = torch.zeros_like(x) if way == "base" else x
        anchor = [likelihoods(p, start, row) for row in batch]
        values = [likelihoods(p, x, row) for row in batch]
        h = torch.stack([(a - b) - (c - d) for (a, b), (c, d) in zip(values, anchor, strict=True)])
        assert run.loss == pytest.approx(float(-torch.nn.functional.logsigmoid(0.3 * h).mean()), rel=1e-9)
        assert (way == "start") is bool(torch.allclose(h, torch.zeros_like(h), atol=1e-9))


@torch.no_grad()
def likelihoods(p: Pair, x: Tensor, row: Answers) -> tuple[Tensor, Tensor]:
    """Summed log-likelihood of both answers, one text at a time."""
    p.adapted.load(x, p.layout)
    found = []
    for text in (row.chosen, row.rejected):
        words = p.adapted.module(input_ids=torch.tensor([text.ids])).logits[0].log_softmax(-1)
        learned = [(i, label) for i, label in enumerate(text.labels[1:]) if label != -100]
        found.append(torch.stack([words[i, label] for i, label in learned]).sum())
    return found[0], found[1]


def test_a_head_trains_and_its_gradient_is_autograds(made):
    p = made("classify bert", double=True, attention="sdpa", plain=True)
    (batch,) = rows_of_classes(2)[:1]
    run = one(p.slots(2), p.descend(0, batches=[batch], lrs=[0.1], optimizer=SGD, gradient=True))
    head = [leaf for leaf in p.layout.leaves if leaf.name.startswith("head")]
    assert head
    for leaf in head:
        span = slice(leaf.offset, leaf.offset + leaf.size)
        assert float(run.gradient[span].norm()) > 0
        assert torch.allclose(run.y[span], p.somewhere(0)[span] - 0.1 * run.gradient[span], atol=1e-12)
