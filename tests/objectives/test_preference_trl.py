"""Against TRL: its own loss code on the same numbers, and a whole trainer on the same pairs.

Where TRL's definitions differ, it is said and compared accordingly: its IPO is over means of tokens; its sigmoid knows
no label smoothing (its robust and its CPO do); ORPO's likelihood term there is over prompt and answer; KTO's mismatched
examples are there each prompt with the answer *before*.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

import tiny
from fedloom.objectives import preference_losses as of
from fedloom.objectives.config import DpoConfig, KtoConfig
from fedloom.objectives.kto import Kto
from fedloom.objectives.preference import Preference, averaged
from objectives.preferences import judged, numbers, pair

trl = pytest.importorskip("trl", reason="TRL is not installed; preference losses are not compared with it")

PROMPT = 2
LENGTHS = ((3, 5), (7, 2), (4, 4), (1, 6))
"""Tokens of chosen and rejected answers."""
PAIRS = [pair((5, 6), range(10, 10 + c), range(30, 30 + r)) for c, r in LENGTHS]
ALL = [length for both in LENGTHS for length in both]
HERE = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x, gather=lambda x: x)
"""In the place of an accelerator."""
SAID, REFERENCE = numbers(*ALL, size=4.0), numbers(*ALL, seed=1, size=4.0)


class Table:
    """A model that says what was written down for it: one row of log-likelihoods for each text."""

    training = True

    def __init__(self, said):
        self.log_probs = torch.zeros(len(said), PROMPT - 1 + max(map(len, said)), dtype=torch.float64)
        for row, one in zip(self.log_probs, said, strict=True):
            row[PROMPT - 1 : PROMPT - 1 + len(one)] = one

    def __call__(self, **_):
        nothing = torch.zeros_like(self.log_probs)
        return SimpleNamespace(log_probs=self.log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def inputs(lengths):
    """What TRL's collators make of texts with these answers."""
    width = PROMPT + max(lengths)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    real = torch.zeros_like(mask)
    for row, length in enumerate(lengths):
        mask[row, PROMPT : PROMPT + length] = 1
        real[row, : PROMPT + length] = 1
    return {"input_ids": torch.full_like(mask, 7), "attention_mask": real, "completion_mask": mask}


def trainer(**fields):
    """As much of a trainer as its loss looks at."""
    return SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=HERE, aux_loss_enabled=False, precompute_ref_logps=True,
        use_weighting=False, ld_alpha=None, _total_train_tokens=0, _tp_size=1,
        _metrics=defaultdict(lambda: defaultdict(list)), **fields,
    )  # fmt: skip


def dpo_loss(loss, i, beta, label_smoothing=0.0):
    """TRL's, of one pair."""
    chosen, rejected = slice(2 * i, 2 * i + 1), slice(2 * i + 1, 2 * i + 2)
    batch = inputs(ALL[2 * i : 2 * i + 2])
    batch["ref_chosen_logps"] = torch.stack([one.sum() for one in REFERENCE[chosen]])
    batch["ref_rejected_logps"] = torch.stack([one.sum() for one in REFERENCE[rejected]])
    made = trainer(
        f_divergence_type="reverse_kl",
        loss_types=[loss],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
    )
    return float(trl.DPOTrainer._compute_loss(made, Table(SAID[2 * i : 2 * i + 2]), batch, False))


@pytest.mark.parametrize(
    "loss, config",
    [
        ("sigmoid", DpoConfig(beta=0.3)),
        ("hinge", DpoConfig(loss="hinge", beta=0.3)),
        ("robust", DpoConfig(loss="robust", beta=0.3, label_smoothing=0.2)),
        ("ipo", DpoConfig(loss="ipo", beta=0.3, length_normalized=True)),
    ],
)
def test_losses_with_a_reference(loss, config):
    found = Preference(config).losses(SAID, REFERENCE, PAIRS)
    wanted = [dpo_loss(loss, i, 0.3, config.label_smoothing) for i in range(len(PAIRS))]
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)


def test_conservative_dpo_is_what_trl_has_for_cpo():
    """Its DPO ignores label smoothing; its CPO does not, and is DPO where the reference says 0 of everything."""
    from trl.experimental.cpo import CPOTrainer

    made = SimpleNamespace(alpha=0.0, beta=0.3, loss_type="sigmoid", label_smoothing=0.2, accelerator=HERE)
    sums = [one.sum() for one in SAID]
    wanted, _, _ = CPOTrainer.cpo_loss(made, torch.stack(sums[0::2]), torch.stack(sums[1::2]))
    objective = Preference(DpoConfig(beta=0.3, label_smoothing=0.2))
    found = objective.losses(SAID, [torch.zeros_like(one) for one in SAID], PAIRS)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_simpo():
    from trl.experimental.cpo import CPOTrainer

    made = SimpleNamespace(
        alpha=0.0, beta=2.0, loss_type="simpo", simpo_gamma=0.6, label_smoothing=0.0, accelerator=HERE
    )
    means = averaged(SAID)
    wanted, better, worse = CPOTrainer.cpo_loss(made, means[0::2], means[1::2])
    objective = Preference(DpoConfig(loss="simpo", beta=2.0, gamma=0.3))
    assert torch.allclose(objective.losses(SAID, None, PAIRS), wanted, atol=1e-6)
    scores = objective.scores(SAID, None, PAIRS)
    assert [one.chosen_reward for one in scores] == pytest.approx(better.tolist(), abs=1e-6)
    assert [one.rejected_reward for one in scores] == pytest.approx(worse.tolist(), abs=1e-6)


def test_orpo():
    from trl.experimental.orpo import ORPOTrainer

    means = averaged(SAID)
    made = SimpleNamespace(beta=0.25, accelerator=HERE)
    term, better, worse, _, _ = ORPOTrainer.odds_ratio_loss(made, means[0::2], means[1::2])
    objective = Preference(DpoConfig(loss="orpo", lam=0.25))
    odds = objective.losses(SAID, None, PAIRS) + means[0::2]
    assert torch.allclose(odds, -term.double(), atol=1e-6)
    scores = objective.scores(SAID, None, PAIRS)
    assert [one.chosen_reward for one in scores] == pytest.approx(better.tolist(), abs=1e-6)
    assert [one.rejected_reward for one in scores] == pytest.approx(worse.tolist(), abs=1e-6)


@pytest.mark.parametrize("shift", [-9.0, 9.0])
def test_kto(shift):
    """A baseline above 0, and one that is held at 0; from the same mismatched examples."""
    lengths = [3, 5, 2, 4]
    part = [judged((10 + i, 11), range(30, 30 + n), i % 2 == 0) for i, n in enumerate(lengths)]
    crossed = lengths[1:] + lengths[:1]
    said, reference = numbers(*lengths, *crossed, size=4.0), numbers(*lengths, *crossed, seed=1, size=4.0)
    said[4] = said[4] + shift
    config = KtoConfig(beta=0.3, desirable=1.2, undesirable=0.7)
    found = Kto(config).losses(said, reference, part)
    batch = inputs(lengths)
    batch["label"] = torch.tensor([one.good for one in part])
    batch["ref_logps"] = torch.stack([one.sum() for one in reference[:4]])
    batch["ref_KL_logps"] = torch.stack([one.sum() for one in reference[4:]])
    made = trainer(
        loss_type="kto", beta=0.3, desirable_weight=1.2, undesirable_weight=0.7, calculate_KL=True,
        _compute_kl_logps=lambda model, batch: torch.stack([one.sum() for one in said[4:]]),
    )  # fmt: skip
    wanted = trl.KTOTrainer._compute_loss(made, Table(said[:4]), batch, False)
    assert float(found.mean()) == pytest.approx(float(wanted), abs=1e-6)
    assert (made._metrics["train"]["kl"][0] > 0) == (shift > 0)
    assert float(of.baseline(torch.stack([(a - b).sum() for a, b in zip(said[4:], reference[4:], strict=True)]))) == (
        pytest.approx(made._metrics["train"]["kl"][0])
    )


TEXTS = [
    {"prompt": "one two", "chosen": " three", "rejected": " something else altogether"},
    {"prompt": "a", "chosen": " b c d e f g", "rejected": " h"},
    {"prompt": "who is there, and why so late", "chosen": " me", "rejected": " you"},
]
"""Pairs of unequal length."""


@pytest.fixture(scope="module")
def dpo(tmp_path_factory):
    """TRL's trainer on a tiny model, with an adapter that is no longer zero; its reference is the base without it."""
    import datasets
    import peft

    folder = tiny.saved(tmp_path_factory.mktemp("model"), "llama")
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("run")), per_device_train_batch_size=3, use_cpu=True, bf16=False,
        report_to="none", disable_tqdm=True, beta=0.1, max_length=None,
    )  # fmt: skip
    datasets.disable_progress_bars()
    with torch.random.fork_rng():
        made = trl.DPOTrainer(
            tiny.plain(folder, torch.float64),
            args=arguments,
            train_dataset=datasets.Dataset.from_list(TEXTS),
            processing_class=tiny.load_tokenizer(tiny.config(folder)),
            peft_config=peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        torch.manual_seed(5)
        for name, weight in made.model.named_parameters():
            if "lora_" in name:
                weight.data += 0.1 * torch.randn(weight.shape)
    return made


def likelihoods(model, text):
    """Log p of each target of one text, alone: no filling, no neighbours, no line of TRL."""
    logits = model(input_ids=torch.tensor([list(text.ids)])).logits[0].double()
    return torch.stack(
        [logits[place].log_softmax(0)[target] for place, target in zip(text.places, text.targets, strict=True)]
    )


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_a_whole_trainer_on_pairs_of_unequal_length(dpo, loss, monkeypatch):
    monkeypatch.setattr(dpo, "loss_types", [loss])
    monkeypatch.setattr(dpo, "loss_weights", [1.0])
    batch = dpo.data_collator(list(dpo.train_dataset))
    objective = Preference(DpoConfig(loss=loss, length_normalized=True))
    pairs = [pair(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in dpo.train_dataset]
    texts = objective.texts(pairs)
    model = dpo.model.eval()
    with torch.no_grad():
        wanted = float(dpo.compute_loss(model, batch))
        said = [likelihoods(model, text) for text in texts]
        with model.disable_adapter():
            reference = [likelihoods(model, text) for text in texts]
    assert any(abs(float((a - b).sum())) > 0.1 for a, b in zip(said, reference, strict=True))  # the adapter does much
    assert float(objective.losses(said, reference, pairs).mean()) == pytest.approx(wanted, abs=1e-6)
    scores = objective.scores(said, reference, pairs)
    better = sum(one.chosen_reward for one in scores) / len(scores)
    assert dpo._metrics["eval"]["rewards/chosen"][-1] == pytest.approx(better, abs=1e-6)
