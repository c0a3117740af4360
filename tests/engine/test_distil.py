"""A teacher and a student in one step, against loops over plain transformers and peft models."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from data.tiny_tokenizers import byte_tokenizer, word_tokenizer
from engine import pair
from fedloom.adapters import full
from fedloom.adapters.adapted import Adapted
from fedloom.adapters.config import FullConfig, LoraConfig
from fedloom.contracts import HOME, Call, ClientFailed, Distilled, Trained
from fedloom.data.labelled import Labelled
from fedloom.engine.alike import check_alike, check_labels, check_vocabularies
from fedloom.engine.distil import Tutor, Tutoring
from fedloom.engine.lessons import Course, Distil
from fedloom.engine.maps import maps
from fedloom.errors import UserError
from fedloom.models.heads import HeadSpec
from fedloom.objectives.base import Objective
from fedloom.objectives.classify import Classify
from fedloom.objectives.config import DpoConfig
from fedloom.objectives.distillation import Distillation
from fedloom.objectives.preference import Preference
from fedloom.objectives.sft import Sft
from models import tiny_classifiers as small

RATE = 0.002
PUBLISHED = Distillation(kl="raw_logits", attention=1.0)
HINTON = Distillation(temperature=2.0, alpha=0.5, direction="forward", mutual=False, normalised=False)
LOSSES = {
    "proper": Distillation(attention=0.7),
    "forward": Distillation(temperature=1.0, direction="forward", epsilon=0.1),
    "hinton": HINTON,
    "raw": PUBLISHED,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """The teacher: four layers, other numbers."""
    return tiny.saved(tmp_path_factory.mktemp("deep"), "llama", num_hidden_layers=4)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return small.saved(tmp_path_factory.mktemp("bert"), "bert")


def course(batches: Sequence[Sequence[Any]] = tiny.BATCHES) -> Course:
    return Course(batches, [RATE * (1 - k / len(batches)) for k in range(len(batches))])


class Duet:
    """A student with LoRA and a teacher, with their tutor."""

    def __init__(self, folder: Any, deep: Any, loss: Distillation, adapter: Any = None, **model: Any) -> None:
        model = {"attention": "eager", **model}
        self.rig = tiny.Rig(folder, adapter, **model)
        self.teacher: Adapted = full.adapt(tiny.loaded(deep, trained_whole=True, **model))
        self.tutor = Tutor(self.rig.adapted, self.teacher, self.rig.tokenizer, Sft(), loss)

    def request(self, **changes: Any) -> Distil:
        base = Distil(
            x=self.rig.somewhere(), layout=self.rig.layout, alone=(), together=course(), max_grad_norm=None,
            accumulate=1, seed=5, label="server",
        )  # fmt: skip
        return replace(base, **changes)

    def ask(self, **changes: Any) -> Any:
        return self.tutor.serve(self.request(**changes))


# -- written without fedloom


def by_hand(loss: Distillation, s: Tensor, t: Tensor, y: Tensor, m: Tensor) -> Tensor:
    """The loss of a batch, as the papers write it."""
    ce_s, ce_t = F.cross_entropy(s, y), F.cross_entropy(t, y)
    if loss.kl == "raw_logits":
        k_s, k_t = ((a.exp() * (a - b.detach())).sum() / len(y) for a, b in ((s, t), (t, s)))
        d = ce_s + ce_t + 1
        return ce_s + ce_t + m / d + (k_s + k_t) / d.detach()
    p, q = (F.softmax(z / loss.temperature, 1) for z in (s, t))

    def kl(first: Tensor, second: Tensor) -> Tensor:
        return (first * (first.log() - second.log())).sum(1).mean()

    own = loss.direction == "reverse"
    k_s = kl(p, q.detach()) if own else kl(q.detach(), p)
    k_t = kl(q, p.detach()) if own else kl(p.detach(), q)
    d = (ce_s + ce_t).item() + loss.epsilon if loss.normalised else 1.0
    if not loss.mutual:
        return (1 - loss.alpha) * ce_s + loss.alpha * loss.temperature**2 * k_s / d
    return ce_s + ce_t + (loss.attention * m + loss.temperature**2 * (k_s + k_t)) / d


def words(model: nn.Module, batch: Sequence[Any], loss: Distillation) -> tuple[Tensor, Tensor, Any]:
    """Logits and truth at the labelled places, and attention maps; the published ones are compared on filling too."""
    filled = tiny.right_padded(batch)
    ids = filled["input_ids"]
    if loss.kl == "raw_logits":
        ids = ids.masked_fill(filled["attention_mask"] == 0, 0)  # as fedloom fills up
    out = model(input_ids=ids, output_attentions=True)
    learned = filled["labels"][:, 1:] != -100
    return out.logits[:, :-1][learned], filled["labels"][:, 1:][learned], out.attentions


def distance_of_maps(loss: Distillation, student: Any, teacher: Any, batch: Sequence[Any]) -> Tensor:
    """Two layers of the student beside the second and fourth of the teacher."""
    total = torch.zeros(())
    for i, j in ((0, 1), (1, 3)):
        square = (student[i] - teacher[j]) ** 2
        if loss.kl == "raw_logits":
            total = total + square.mean()
            continue
        for row, one in enumerate(batch):
            n = len(one.ids)
            total = total + square[row, :, :n, :n].mean() / len(batch)
    return total


def loop(
    student: nn.Module, teacher: nn.Module, loss: Distillation, batches: Sequence[Any], clip: float | None
) -> list[float]:
    """The loop everybody writes; both models are trained in place."""
    trained = [[p for p in student.parameters() if p.requires_grad], list(teacher.parameters())]
    optimizer = torch.optim.AdamW([p for one in trained for p in one], lr=RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - k / len(batches))
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        (s, y, seen), (t, _, taught) = words(student, batch, loss), words(teacher, batch, loss)
        by_hand(loss, s, t, y, distance_of_maps(loss, seen, taught, batch)).backward()
        losses.append(F.cross_entropy(s, y).item())
        for one in trained:
            if clip is not None:
                nn.utils.clip_grad_norm_(one, clip)
        if not loss.mutual:
            for p in trained[1]:
                p.grad = None
        optimizer.step()
        schedule.step()
    return losses


def eager(model: Any) -> Any:
    model.set_attn_implementation("eager")
    return model


def moved(found: Tensor, wanted: Tensor, start: Tensor) -> float:
    """How far two results are apart, as a share of how far one has gone."""
    return float((found - wanted).norm() / (wanted - start).norm())


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("name", LOSSES)
def test_a_plain_loop(folder, deep, name, clip):
    loss = LOSSES[name]
    duet = Duet(folder, deep, loss)
    x = duet.rig.somewhere()
    student = eager(tiny.peft_model(folder, duet.rig.layout, x, r=4, lora_alpha=16, target_modules="all-linear"))
    for key, p in student.named_parameters():
        p.requires_grad_("lora_" in key)
    teacher = eager(tiny.plain(deep))
    before = nn.utils.parameters_to_vector(teacher.parameters()).detach().clone()
    losses = loop(student, teacher, loss, tiny.BATCHES, clip)
    found = duet.ask(max_grad_norm=clip)
    assert isinstance(found, Distilled)
    assert found.steps == 4
    assert found.skipped == 0
    assert found.student_loss == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert moved(found.y, tiny.vector_of(student, duet.rig.layout), x) < 1e-4
    after = nn.utils.parameters_to_vector(teacher.parameters()).detach()
    if loss.mutual:
        assert moved(before + found.teacher, after, before) < 1e-4
    else:
        assert not found.teacher.any()


def test_classes(encoder):
    """Two encoders with heads, every weight of both trained; logits of whole texts."""
    spec = HeadSpec(3, "mean", seed=1)
    rows = [Labelled(tuple(text), i % 3, None) for i, text in enumerate(small.TEXTS * 2)]
    batches = [rows[:3], rows[3:6], rows[6:]]
    loss = Distillation(temperature=1.5)
    student = full.adapt(small.loaded(encoder, spec, True))
    teacher = full.adapt(small.loaded(encoder, HeadSpec(3, "last", seed=2), True))
    plain = [small.loaded(encoder, one, True).module for one in (spec, HeadSpec(3, "last", seed=2))]
    starts = [nn.utils.parameters_to_vector(m.parameters()).detach().clone() for m in plain]
    for m in plain:
        m.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for m in plain for p in m.parameters()], lr=RATE, weight_decay=0)
    for batch, lr in zip(batches, (RATE, RATE * 2 / 3, RATE / 3), strict=True):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        ids, mask = small.batch([row.ids for row in batch])
        s, t = (m(ids, mask) for m in plain)
        by_hand(loss, s, t, torch.tensor([row.label for row in batch]), torch.zeros(())).backward()
        optimizer.step()
    tutor = Tutor(student, teacher, byte_tokenizer(), Classify(), loss)
    found = tutor.serve(Distil(student.start, student.layout, (), course(batches), None, 1, 5, "server"))
    assert isinstance(found, Distilled)
    for result, model, start in zip((found.y, found.teacher), plain, starts, strict=True):
        assert moved(start + result, nn.utils.parameters_to_vector(model.parameters()).detach(), start) < 1e-4


@pytest.mark.parametrize("name", ["proper", "forward", "hinton"])
def test_parts_of_a_batch_are_the_batch(folder, deep, name):
    """Also the divisor, and maps of texts that stand beside others."""
    duet = Duet(folder, deep, LOSSES[name])
    whole, parts = duet.ask(), duet.ask(accumulate=3)
    assert moved(parts.y, whole.y, duet.rig.somewhere()) < 1e-4
    assert parts.student_loss == pytest.approx(whole.student_loss, rel=1e-5)


def test_the_published_loss_has_no_parts(folder, deep):
    with pytest.raises(UserError, match=r"local\.accumulate=1"):
        Duet(folder, deep, PUBLISHED).ask(accumulate=2)


def test_the_teacher_alone_is_any_training(folder, deep):
    """Two courses, each with an optimiser and rates of its own; the student stays."""
    duet = Duet(folder, deep, Distillation())
    teacher = tiny.plain(deep)
    before = nn.utils.parameters_to_vector(teacher.parameters()).detach().clone()
    for _ in range(2):
        optimizer = torch.optim.AdamW(teacher.parameters(), lr=RATE, weight_decay=0)
        tiny.plain_descent(teacher, optimizer, tiny.BATCHES, course().lrs, 0.3)
    found = duet.ask(alone=(course(), course()), together=None, max_grad_norm=0.3)
    after = nn.utils.parameters_to_vector(teacher.parameters()).detach()
    assert moved(before + found.teacher, after, before) < 1e-4
    assert torch.equal(found.y, duet.rig.somewhere())
    assert found.student_loss is None
    assert found.steps == 0


def test_it_goes_on_from_what_was_learned(folder, deep):
    """Both courses at once are one after the other, to the bit."""
    duet = Duet(folder, deep, Distillation())
    first = duet.ask(alone=(course(),), together=None)
    second = duet.ask(teacher=first.teacher, teacher_base=first.teacher_base)
    at_once = duet.ask(alone=(course(),))
    assert torch.equal(second.y, at_once.y)
    assert torch.equal(second.teacher, at_once.teacher)
    assert not torch.equal(second.y, duet.ask().y)


def test_another_teacher_is_noticed(folder, deep, tmp_path):
    duet = Duet(folder, deep, Distillation())
    found = duet.ask()
    other = Duet(folder, tiny.saved(tmp_path, "llama", num_hidden_layers=3), Distillation())
    assert other.tutor.base != duet.tutor.base
    assert Duet(folder, deep, HINTON).tutor.base == duet.tutor.base
    with pytest.raises(UserError, match="another model"):
        other.ask(teacher=found.teacher, teacher_base=found.teacher_base)


def test_dropout_is_keyed_and_nothing_global_is_touched(folder, deep):
    duet = Duet(folder, deep, Distillation(), LoraConfig(rank=4, targets="all-linear", dropout=0.3))
    state = tiny.randomness()
    first, again, other = duet.ask(), duet.ask(), duet.ask(seed=6)
    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.y, other.y)
    assert tiny.randomness() == state


def test_what_has_nothing_to_learn_is_left_out(folder, deep):
    duet, empty = Duet(folder, deep, Distillation()), [tiny.example(5, 1, learned=0)]
    kept = course()
    with_empty = Course([tiny.BATCHES[0], empty, *tiny.BATCHES[1:]], [kept.lrs[0], 1.0, *kept.lrs[1:]])
    found, plain = duet.ask(together=with_empty), duet.ask()
    assert found.skipped == 1
    assert found.steps == 4
    assert found.student_loss == pytest.approx(plain.student_loss, rel=1e-3)
    nothing = duet.ask(together=course([empty, empty]))
    assert isinstance(nothing, ClientFailed)
    assert "nothing to learn" in str(nothing)


def test_what_is_not_finite_fails(folder, deep):
    duet = Duet(folder, deep, Distillation())
    lost = duet.ask(x=torch.full((duet.rig.layout.size,), math.inf))
    assert isinstance(lost, ClientFailed)
    assert lost.missing.reason == "nonfinite"
    assert "from step 0 to the end" in str(lost)
    alone = duet.ask(alone=(Course(tiny.BATCHES, [math.inf] * 4),))
    assert isinstance(alone, ClientFailed)
    assert "the teacher alone" in str(alone)
    assert isinstance(duet.ask(), Distilled)  # nothing of it stays


def test_one_step_that_is_not_finite_is_left_out(folder, deep, monkeypatch):
    duet, count = Duet(folder, deep, Distillation()), itertools.count()
    total = Distillation.total

    def spoilt(self: Distillation, *args: Any) -> Tensor:
        return total(self, *args) * (math.nan if next(count) == 1 else 1.0)

    monkeypatch.setattr(Distillation, "total", spoilt)
    found = duet.ask()
    assert (found.steps, found.skipped) == (3, 1)
    assert torch.isfinite(found.y).all()


# -- beside the engine of the clients


def test_all_else_is_the_other_engines(folder, deep):
    """A distillation between two trainings changes neither; all are served, whoever came first."""
    p = pair.Pair(folder, LoraConfig(rank=2, targets="all-linear"), attention="eager")
    teacher = full.adapt(tiny.loaded(deep, trained_whole=True, attention="eager"))
    tutor = Tutor(p.adapted, teacher, p.tokenizer, Sft(), Distillation())
    request = Distil(p.adapted.start, p.adapted.layout, (), course(), None, 1, 5, "server")
    wanted = tutor.serve(request)
    for inner in (p.slots(), p.reference()):
        asked = [p.descend(i, optimizer=pair.ADAMW) for i in range(3)]
        alone = pair.serve(inner, asked)
        engine, found = Tutoring(inner, tutor), dict[int, Any]()
        assert engine.room() == inner.room()
        for client, one in [(0, asked[0]), (HOME, request), (1, asked[1]), (2, asked[2])]:
            engine.admit(Call(client, one))
        while len(found) < 4:
            found.update(engine.advance())
        assert torch.equal(found[HOME].y, wanted.y)
        for client, run in enumerate(alone):
            assert isinstance(run, Trained)
            assert torch.equal(found[client].y, run.y)
        engine.admit(Call(HOME, request))
        engine.admit(Call(0, asked[0]))
        engine.abandon()
        engine.admit(Call(HOME, request))
        assert torch.equal(dict(engine.advance())[HOME].y, wanted.y)


# -- what cannot work


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen2"])
def test_maps_are_those_of_transformers(tmp_path, family):
    model, ids = eager(tiny.plain(tiny.saved(tmp_path, family))), torch.tensor([[5, 6, 7, 8]])
    with maps(model) as found:
        wanted = model(input_ids=ids, output_attentions=True).attentions
    assert len(found) == len(wanted) == 2
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    with maps(model) as later:
        pass
    model(input_ids=ids)
    assert not later


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_maps_of_encoders(tmp_path, family):
    model = small.loaded(small.saved(tmp_path, family), HeadSpec(2, "mean"), attention="eager").module
    with torch.no_grad(), maps(model) as found:
        model(*small.batch(small.TEXTS))
    assert [tuple(one.shape) for one in found] == [(4, 4, 8, 8)] * 3
    assert float(found[0].detach()[1, :, 0, 3:].abs().max()) == 0  # nobody looks at filling


def test_maps_that_cannot_be_seen_or_compared(folder, deep, tmp_path):
    loss = Distillation(attention=1.0)
    with pytest.raises(UserError, match=r"0 attention maps of 2 layers of the model.*attention=eager"):
        Duet(folder, deep, loss, attention="sdpa")
    with pytest.raises(UserError, match="deeper teacher"):
        Duet(deep, folder, loss)
    wide = tiny.saved(tmp_path, "llama", num_attention_heads=8, num_key_value_heads=2, head_dim=4)
    with pytest.raises(UserError, match="4 attention heads and the teacher 8"):
        Duet(folder, wide, loss)
    Duet(folder, wide, Distillation())


def test_objectives_without_truth_at_a_place(folder, deep):
    rig, teacher = tiny.Rig(folder), full.adapt(tiny.loaded(deep, trained_whole=True))
    objective: Objective = Preference(DpoConfig())
    with pytest.raises(UserError, match="objective=classify or objective=sft"):
        Tutor(rig.adapted, teacher, rig.tokenizer, objective, Distillation())


def test_two_models_that_read_differently():
    check_alike(byte_tokenizer(), byte_tokenizer())
    with pytest.raises(UserError, match="different tokenizers"):
        check_alike(byte_tokenizer(), byte_tokenizer(more=["<|x|>"]))
    with pytest.raises(UserError, match="different tokenizers"):
        check_alike(byte_tokenizer(), word_tokenizer("a b"))
    check_vocabularies(261, 261)
    with pytest.raises(UserError, match="261 words and the teacher from 300"):
        check_vocabularies(261, 300)


def test_two_models_that_know_other_classes():
    check_labels(("a", "b"), ("a", "b"))
    check_labels(("a", "b"), None)
    check_labels(None, ("a",))
    for other in (("b", "a"), ("a", "c"), ("a", "b", "c")):
        with pytest.raises(UserError, match="in this order"):
            check_labels(("a", "b"), other)


def test_a_student_every_weight_of_which_is_trained(folder, deep):
    """Full FedAvg with distillation."""
    duet = Duet(folder, deep, Distillation(), FullConfig())
    found = duet.ask(x=duet.rig.adapted.start)
    assert isinstance(found, Distilled)
    assert found.y.any()
