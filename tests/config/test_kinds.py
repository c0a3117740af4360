"""Kinds of adapters: what they go with, and every refusal in words."""

import pytest

from fedloom.config import load
from fedloom.config.methods import without_effect
from fedloom.errors import ConfigError

KINDS = ("prefix", "prompt", "p_tuning", "ia3", "vera", "dora")
ADALORA = "{kind: adalora, steps: 10}"
LOCAL = "{name: local, keep_inner: true}"
REFUSED = {
    **{
        f"{{adapter: {{kind: {kind}}}, algorithm: {name}}}": f"which needs LoRA factors, but adapter.kind is {kind}"
        for kind in KINDS
        for name in ("hetlora", "lora_a2", "dual")
    },
    **{
        f"{{adapter: {kind}, aggregate: {{space: {space}}}}}": f"needs LoRA factors, but adapter.kind is {kind}"
        for kind in KINDS
        for space in ("turns", "products", "slices", "stacked", "residual", "refactored", "sparse")
    },
    **{
        f"{{adapter: {{kind: {kind}}}, engine: slots}}": "are trained one client at a time. Use reference or auto"
        for kind in KINDS
    },
    **{
        f"{{adapter: {{kind: {kind}}}, objective: classify}}": "where objective=classify pools one. Use lora"
        for kind in ("prefix", "prompt", "p_tuning")
    },
    **{
        f"{{adapter: {ADALORA}, algorithm: {name}}}": "leaves out other directions at every client"
        for name in ("fedavg", "scaffold", "ditto", "fedbuff", "centralized", "pfedme", "fedmezo")
    },
    f"{{adapter: {ADALORA}, algorithm: local}}": "algorithm.keep_inner is false, but AdaLoRA's budget",
    f"{{adapter: {ADALORA}, algorithm: {LOCAL}, engine: slots}}": "one client at a time",
    "{adapter: adalora}": "adapter.steps is not given, but it is needed",
    "{adapter: {kind: adalora, steps: 10, target_rank: 12}}": "no rank could fall",
    "{adapter: {kind: adalora, steps: 10, warmup: 4, final: 6}}": "leave no step of 10",
    "{adapter: {kind: prefix}, model: {gradient_checkpointing: true}}": "given to layers as a cache",
    "{adapter: {kind: prefix, hidden: 4}}": "there is no network without projection",
    "{adapter: {kind: prompt, start: text}}": "needs a text to start from",
    "{adapter: {kind: prompt, text: hello}}": "start=random does not look at it",
    "{adapter: {kind: prompt, tokens: 0}}": "adapter.tokens is 0, but must be at least 1",
    "{adapter: {kind: ia3, rank: 4}}": "adapter.rank",
    "{adapter: ia4}": "adapter.kind",
    "{adapter: ia3, algorithm: flexlora}": "flexlora means adapter.kind=lora",
    "{adapter: prompt, algorithm: {name: fedkd, teacher: {name: x}, attention: 0.1}, data: {public: 0.1}}": (
        "20 virtual tokens that the teacher has not"
    ),
    "{adapter: dora, model: {quantize: nf4}}": "only adapter.kind=lora is known to be right, not dora",
    "{adapter: dora, offsite: {}}": "under offsite clients train whole blocks",
}


def loaded(tmp_path, text):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    return load(path)


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_work_is_refused_in_words(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert REFUSED[text] in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "algorithm",
    ["fedavg", "scaffold", "fedadam", "ditto", "fedbuff", "pfedme", "fedmezo", "fedkseed", "decomfl", "local"],
)
def test_what_goes_together_is_let_through(tmp_path, kind, algorithm):
    assert loaded(tmp_path, f"{{adapter: {{kind: {kind}}}, algorithm: {algorithm}}}").adapter.kind == kind


@pytest.mark.parametrize("kind", ["ia3", "vera", "dora"])
def test_classifiers_take_what_changes_layers(tmp_path, kind):
    assert loaded(tmp_path, f"{{adapter: {kind}, objective: classify}}").objective.name == "classify"


def test_adalora_is_for_clients_alone(tmp_path):
    config = loaded(tmp_path, f"{{adapter: {ADALORA}, algorithm: {LOCAL}}}")
    assert (config.adapter.rank, config.adapter.target_rank) == (12, 8)


def test_dropout_means_nothing_without_gradients(tmp_path):
    config = loaded(tmp_path, "{adapter: {kind: vera, dropout: 0.1}, algorithm: fedmezo}")
    assert any("adapter.dropout has no effect" in one for one in without_effect(config))
