"""Distillation losses against numbers worked out elsewhere, and laws that hold for any logits."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedloom.objectives.distillation import (
    Distillation,
    attention_apart,
    attention_apart_in_text,
    pairs,
)

DOUBLE = torch.float64
PUBLISHED = Distillation(kl="raw_logits", attention=1.0)


def logits(*rows, grad=False) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE, requires_grad=grad)


def maps(*values) -> list[Tensor]:
    """One text, two heads, three tokens; a constant map of each layer."""
    return [torch.full((1, 2, 3, 3), value, dtype=DOUBLE) for value in values]


T, S, Y = logits([1, -1], [0.5, 0.2]), logits([0.2, 0.1], [-0.3, 0.4]), torch.tensor([0, 1])
TEACHER = logits([2.0, 0.0, -1.0], [0.5, 0.5, 1.0])
STUDENT = logits([1.0, 0.2, -0.5], [0.2, 0.9, 0.3])
LABELS = torch.tensor([0, 2])


def test_the_published_loss():
    """The public code's own functions, run on these numbers: two rows, 4 teacher maps, 2 student maps."""
    m = attention_apart(maps(0.3, 0.6), maps(0.1, 0.2, 0.3, 0.4))
    terms = PUBLISHED.terms(S, T, Y, 2, m)
    d = terms.doubt() + 1
    assert float(terms.student_ce) == pytest.approx(0.52379135, abs=1e-8)
    assert float(terms.teacher_ce) == pytest.approx(0.49064163, abs=1e-8)
    assert float(terms.student_kl) / d == pytest.approx(-0.01383115, abs=1e-8)
    assert float(terms.teacher_kl) / d == pytest.approx(0.70606830, abs=1e-8)
    assert float(m) / d == pytest.approx(0.02482088, abs=1e-8)
    assert float(PUBLISHED.total(terms)) == pytest.approx(1.73149102, abs=1e-8)


def test_the_published_divergence_is_none():
    """A number added to all logits of the student changes K_s / D from -.014 to 3.04; the softmax is the same."""
    shifted = PUBLISHED.terms(S + 1, T, Y, 2, None)
    assert float(shifted.student_kl) / (shifted.doubt() + 1) == pytest.approx(3.0385, abs=1e-4)
    assert float(PUBLISHED.terms(S, T, Y, 2, None).student_kl) < 0


def test_a_proper_divergence():
    proper = Distillation(temperature=1.0)
    terms = proper.terms(S, T, Y, 2, None)
    assert float(terms.student_kl) == pytest.approx(0.25221393, abs=1e-8)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_what_is_added_to_all_logits_of_a_row_means_nothing(direction, temperature):
    loss = Distillation(direction=direction, temperature=temperature)
    shift = torch.tensor([[3.0], [-7.0]], dtype=DOUBLE)
    plain, shifted = (loss.total(loss.terms(s, t, Y, 2, None)) for s, t in ((S, T), (S + shift, T - shift)))
    assert float(shifted) == pytest.approx(float(plain), abs=1e-12)


def test_hinton():
    """alpha T^2 KL(teacher || student) + (1 - alpha) CE with T 2 and alpha one half."""
    loss = Distillation(temperature=2, alpha=0.5, direction="forward", mutual=False, normalised=False)
    terms = loss.terms(STUDENT, TEACHER, LABELS, 2, None)
    assert float(terms.student_kl) == pytest.approx(0.0402890225331, abs=1e-12)
    assert float(terms.student_ce) == pytest.approx(0.914943473057, abs=1e-12)
    assert float(loss.total(terms)) == pytest.approx(0.538049781595, abs=1e-12)


def test_deep_mutual_learning():
    """L1 = CE1 + KL(p2 || p1), L2 = CE2 + KL(p1 || p2); both are minimised at once, each by its own model."""
    loss = Distillation(temperature=1, direction="forward", normalised=False)
    one, two = TEACHER.clone().requires_grad_(), STUDENT.clone().requires_grad_()
    terms = loss.terms(one, two, LABELS, 2, None)
    first, second = terms.student_ce + terms.student_kl, terms.teacher_ce + terms.teacher_kl
    assert float(first) == pytest.approx(0.627991152765, abs=1e-12)
    assert float(second) == pytest.approx(1.0421994181, abs=1e-10)
    alone = [torch.autograd.grad(part, x, retain_graph=True)[0] for part, x in ((first, one), (second, two))]
    together = torch.autograd.grad(loss.total(terms), (one, two))
    assert all(torch.allclose(a, b, atol=1e-15) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("loss", [PUBLISHED, Distillation(), Distillation(direction="forward")])
def test_each_divergence_moves_its_own_model_alone(loss):
    student, teacher = S.clone().requires_grad_(), T.clone().requires_grad_()
    terms = loss.terms(student, teacher, Y, 2, None)
    (own,) = torch.autograd.grad(terms.student_kl, student, retain_graph=True)
    assert own.abs().min() > 0
    assert torch.autograd.grad(terms.student_kl, teacher, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(terms.teacher_kl, student, allow_unused=True) == (None,)


def test_the_divisor_is_a_number_where_it_divides_divergences():
    """The gradient is that of CE_s + CE_t + T^2 (K_s + K_t) / D with D held fast."""
    loss, student = Distillation(temperature=3.0), S.clone().requires_grad_()
    terms = loss.terms(student, T, Y, 2, None)
    (found,) = torch.autograd.grad(loss.total(terms), student, retain_graph=True)
    parts = [torch.autograd.grad(t, student, retain_graph=True)[0] for t in (terms.student_ce, terms.student_kl)]
    assert torch.allclose(found, parts[0] + 9 * parts[1] / (terms.doubt() + 1), atol=1e-14)


def test_the_published_divisor_of_attention_has_a_gradient():
    """d(M / D) / d CE_s = -M / D^2."""
    student, m = S.clone().requires_grad_(), torch.tensor(0.7, dtype=DOUBLE)
    with_, without = (PUBLISHED.total(PUBLISHED.terms(student, T, Y, 2, one)) for one in (m, None))
    terms = PUBLISHED.terms(student, T, Y, 2, None)
    difference = torch.autograd.grad(with_ - without, student)[0]
    ce = torch.autograd.grad(terms.student_ce, student)[0]
    assert torch.allclose(difference, -0.7 / (terms.doubt() + 1) ** 2 * ce, atol=1e-14)


def test_temperature_keeps_the_size_of_gradients():
    """T^2 KL tends to half the square distance of centred logits over K: the same for T 50 and T 100."""
    grads = []
    for t in (50.0, 100.0):
        loss, student = Distillation(temperature=t, normalised=False), S.clone().requires_grad_()
        terms = loss.terms(student, T, Y, 2, None)
        grads.append(torch.autograd.grad(t**2 * terms.student_kl, student)[0])
    centred = (S - T) - (S - T).mean(1, keepdim=True)
    assert torch.allclose(grads[0], grads[1], rtol=0.02)
    assert torch.allclose(grads[1], centred / 2 / 2, rtol=0.02)  # over K = 2 classes and 2 rows


@pytest.mark.parametrize("loss", [Distillation(attention=2.0), Distillation(alpha=0.3), Distillation(mutual=False)])
def test_parts_add_up_to_the_whole(loss):
    student, teacher, labels = torch.randn(5, 4, dtype=DOUBLE), torch.randn(5, 4, dtype=DOUBLE), torch.arange(5) % 4
    whole = loss.terms(student, teacher, labels, 5, torch.tensor(0.4, dtype=DOUBLE))
    cuts = (slice(0, 2), slice(2, 5))
    found = [loss.terms(student[c], teacher[c], labels[c], 5, torch.tensor(0.2, dtype=DOUBLE)) for c in cuts]
    doubt = sum(part.doubt() for part in found)
    assert sum(float(loss.total(part, doubt)) for part in found) == pytest.approx(float(loss.total(whole)), abs=1e-12)


def test_the_published_loss_has_no_parts():
    with pytest.raises(ValueError, match="in parts"):
        PUBLISHED.total(PUBLISHED.terms(S, T, Y, 2, None), doubt=1.0)


def test_equal_models_teach_each_other_nothing():
    terms = Distillation().terms(S, S.clone(), Y, 2, None)
    assert float(terms.student_kl) == float(terms.teacher_kl) == 0
    assert float(terms.student_ce) == float(F.cross_entropy(S, Y))


@pytest.mark.parametrize(
    ("student", "teacher", "wanted"),
    [(2, 4, [(0, 1), (1, 3)]), (6, 12, [(k, 2 * k + 1) for k in range(6)]), (3, 3, [(0, 0), (1, 1), (2, 2)]),
     (2, 3, [(0, 0), (1, 2)]), (1, 5, [(0, 4)])],
)  # fmt: skip
def test_layers_are_paired_at_equal_depth(student, teacher, wanted):
    assert pairs(student, teacher) == wanted


def test_a_deep_student_has_nobody_to_follow():
    with pytest.raises(ValueError, match="cannot follow"):
        pairs(4, 2)


def test_attention_where_text_is_does_not_see_filling():
    torch.manual_seed(0)
    short, long = ([torch.rand(1, 2, n, n, dtype=DOUBLE) for _ in range(2)] for n in (3, 5))

    def filled(values: Tensor, n: int, with_: float) -> Tensor:
        out = torch.full((1, 2, n, n), with_, dtype=DOUBLE)
        out[..., : values.shape[-1], : values.shape[-1]] = values
        return out

    wanted = ((short[0] - short[1]) ** 2).mean() / 2 + ((long[0] - long[1]) ** 2).mean() / 2
    for n in (5, 8):
        student = [torch.cat([filled(short[0], n, 0.3), filled(long[0], n, 0.3)])]
        teacher = [torch.cat([filled(short[1], n, 0.9), filled(long[1], n, 0.9)])]
        assert float(attention_apart_in_text(student, teacher, [3, 5], 2)) == pytest.approx(float(wanted), abs=1e-12)
        assert float(attention_apart(student, teacher)) != pytest.approx(float(wanted), abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [{"kl": "raw_logits", "temperature": 3.0}, {"kl": "raw_logits", "mutual": False}, {"temperature": 0.0},
     {"alpha": 1.5}, {"epsilon": 0.0}, {"attention": -1.0}],
)  # fmt: skip
def test_what_means_nothing_is_refused(settings):
    with pytest.raises(ValueError):
        Distillation(**settings)
