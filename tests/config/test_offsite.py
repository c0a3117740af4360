"""What goes with a model that stays with its owner: each refusal in words, at load, before anything is read."""

import pytest

from fedloom.config import load
from fedloom.config.methods import without_effect
from fedloom.config.offsite import check_made
from fedloom.deployment import agreed
from fedloom.errors import ConfigError, UserError

REFUSED = {
    "offsite: {drop_ratio: 0}": "offsite.drop_ratio is 0: 0 gives the owner's model away whole",
    "offsite: {drop_ratio: 1}": "offsite.drop_ratio is 1: .* 1 leaves no emulator",
    "offsite: {drop_ratio: -0.5}": "offsite.drop_ratio is -0.5",
    "offsite: {head_layers: 0, tail_layers: 0}": "no block is left for clients to train",
    "offsite: {head_layers: -1}": "offsite.head_layers",
    "offsite: {method: prune}": "offsite.method",
    "offsite: {method: distill, align: {kd_weight: 0, lm_weight: 0}}": "nothing would be learned",
    "offsite: {align: {steps: 0}}": "offsite.align.steps",
    "{offsite: {}, objective: {name: classify, labels: [a, b]}}": "Use objective=sft .with the class as the answer",
    "{offsite: {}, model: {layers: [0, 1]}}": "model.layers is given, but offsite chooses the blocks itself",
    "{offsite: {}, model: {quantize: nf4}}": "model.quantize is nf4",
    "{offsite: {}, adapter: {kind: ia3}}": "adapter.kind is ia3, but under offsite clients train whole blocks",
    "{offsite: {}, adapter: {layers: [0]}}": "adapter.layers is given, but offsite says which blocks",
    "{offsite: {}, adapter: {kind: full, layers: [0]}}": "adapter.layers is given",
    "{offsite: {}, algorithm: {name: fedkd, teacher: {name: nano}}, data: {public: 0.1}}": "algorithm is fedkd",
    "{algorithm: fedbiot, data: {public: 0.1}}": "through an emulator, and there is none. Set offsite",
    "{offsite: {}, algorithm: fedbiot}": "rows that belong to no client. Set data.public",
    "{offsite: {}, algorithm: fedbiot, data: {public: 0.1}, adapter: {kind: full}}": "Use adapter.kind=lora",
    "{offsite: {}, algorithm: fedbiot, data: {public: 0.1}, adapter: {freeze: A}}": "fedbiot needs both factors",
    "{offsite: {}, algorithm: fedbiot, data: {public: 0.1}, aggregate: {space: products}}": "space is products, but",
    "{offsite: {}, algorithm: fedbiot, data: {public: 0.1}, aggregate: {space: turns}}": "space is turns, but fedbiot",
    "{offsite: {}, algorithm: fedbiot, data: {public: 0.1}, aggregate: {rule: krum}}": "combines replies by itself",
    "{offsite: {}, algorithm: {name: fedbiot, lam: -1}, data: {public: 0.1}}": "algorithm.lam",
}


def written(tmp_path, text):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", REFUSED)
def test_refused_in_words(tmp_path, text):
    with pytest.raises(ConfigError, match=REFUSED[text]) as error:
        load(written(tmp_path, text))
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    "text",
    [
        "offsite: {}",
        "offsite: null",
        "{offsite: {drop_ratio: 0.8, rule: fs_llm}, adapter: {kind: full}}",
        "{offsite: {head_layers: 0, tail_layers: 0, embeddings: true}, adapter: {kind: full}}",
        "{offsite: {method: distill, emulator: folder}, algorithm: scaffold}",
        "{offsite: {}, algorithm: fedbiot, data: {public: 0.1}}",
        "{offsite: {}, algorithm: fedbiot, data: {public: 0.1}, aggregate: {server_optimizer: adam}}",
        "{offsite: {}, algorithm: {name: fedbiot, prealign_steps: 0, align_steps: 0}}",
    ],
)
def test_allowed(tmp_path, text):
    assert load(written(tmp_path, text)).federation


def test_alignment_that_never_takes_place(tmp_path):
    found = without_effect(load(written(tmp_path, "offsite: {align: {lr: 0.1, source: own.jsonl}}")))
    assert [line.split()[0] for line in found] == ["offsite.align.source", "offsite.align.lr"]
    for text in ("offsite: {}", "offsite: null", "offsite: {method: distill, align: {lr: 0.1}}"):
        assert without_effect(load(written(tmp_path, text))) == []


def test_an_emulator_that_nobody_aligns(tmp_path):
    still = "{offsite: {}, algorithm: {name: fedbiot, prealign_steps: 0, align_steps: 0, lr: 0.1, kd_weight: 1}}"
    found = without_effect(load(written(tmp_path, still)))
    assert [line.split()[0] for line in found] == ["algorithm.kd_weight", "algorithm.lr"]
    moves = "{offsite: {}, algorithm: {name: fedbiot, prealign_steps: 0, lr: 0.1}, data: {public: 0.1}}"
    assert without_effect(load(written(tmp_path, moves))) == []


def test_an_emulator_that_must_be_made_first(tmp_path):
    distill = load(written(tmp_path, "offsite: {method: distill}"))
    with pytest.raises(UserError, match="fedloom emulator build"):
        check_made(distill)
    dropped = load(written(tmp_path, "offsite: {}"))
    check_made(dropped)
    with pytest.raises(UserError, match="in a deployment clients get the emulator as a folder"):
        agreed.check(dropped)
    for text in ("offsite: null", "offsite: {method: distill, emulator: folder}"):
        check_made(load(written(tmp_path, text)), deployed=True)


def test_a_run_says_so_before_anything_is_loaded(tmp_path):
    from fedloom import experiment

    with pytest.raises(UserError, match="is made before the run, once"):
        experiment.run(load(written(tmp_path, "{offsite: {method: distill}, model: {name: /nowhere/at/all}}")))
