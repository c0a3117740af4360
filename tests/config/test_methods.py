"""Which methods go together: every refusal in words, and what must be let through."""

import pytest

from fedloom.config import load
from fedloom.config.methods import without_effect
from fedloom.errors import ConfigError


def loaded(tmp_path, text):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    return load(path)


REFUSED = {
    "{algorithm: scaffold, aggregate: {space: products}}": "scaffold works on the trained numbers themselves",
    "{algorithm: hetlora, aggregate: {space: products}}": "hetlora brings its own",
    "{algorithm: scaffold, aggregate: {rule: median}}": "scaffold combines replies by itself",
    "{algorithm: centralized, attack: gaussian}": "no client trains under centralized",
    "{adapter: {kind: full}, aggregate: {space: turns}}": "needs LoRA factors, but adapter.kind is full",
    "{adapter: {kind: full}, algorithm: dual}": "needs LoRA factors, but adapter.kind is full",
    "{adapter: {ranks: uniform}}": "Use aggregate.space=products (FlexLoRA), slices (raFLoRA), stacked (FLoRA)",
    "{clients: {0: {rank: 3}}, algorithm: scaffold}": "cannot be averaged by scaffold",
    "{adapter: {ranks: uniform, freeze: A}, aggregate: {space: factors}}": "shares one first factor",
    "{adapter: {ranks: uniform}, algorithm: hetlora}": "Use adapter.scale=shared",
    "{algorithm: raflora, adapter: {scale: rank}, clients: {1-3: {rank: 2}}}": "Use adapter.scale=shared",
    "{aggregate: {space: products, server_optimizer: adam}}": "works number by number",
    "{aggregate: {space: residual, rule: trimmed_mean}}": "geometric_median",
    "{aggregate: {space: refactored, server_optimizer: {momentum: 0.9}}}": "turns B's basis in every round",
    "{algorithm: raflora, aggregate: {server_optimizer: {momentum: 0.5}}}": "aggregate.space.empty=zero",
    "{federation: {sampling: trace}}": "trace needs a CSV file",
    "{federation: {sampling: fixed}}": "Name the clients that are asked",
    "{algorithm: ffa, aggregate: {space: turns}}": "ffa means aggregate.space.name=factors",
    "{adapter: {freeze: A}, aggregate: {space: products}}": "products needs both factors",
    "{adapter: {freeze: A}, algorithm: dual}": "dual needs both factors",
    "{aggregate: {space: sparse}}": "adapter.sparse is not given",
    "{algorithm: {name: fedkd, teacher: {name: x}}}": "Set data.public",
    "{algorithm: {name: fedkd, teacher: {name: x}}, data: {public: 0.1}, objective: dpo}": "Use objective=classify",
    "{algorithm: {name: fedkd, teacher: {name: x}, kl: raw_logits}, data: {public: 0.1}, local: {accumulate: 2}}": (
        "Use local.accumulate=1"
    ),
    "{algorithm: {name: fedkd, teacher: {name: x}, kl: raw_logits, alpha: 0.5}, data: {public: 0.1}}": (
        "leave alpha out"
    ),
    "{algorithm: {name: fedkd, teacher: {name: x}}, data: {public: 0.1}, aggregate: {space: products}}": (
        "works on the trained numbers themselves"
    ),
    "{adapter: {sparse: 0.1}}": "only aggregate.space=sparse (SLoRA) knows",
    "{algorithm: slora, federation: {rounds: 5}}": "none would be left for LoRA",
    "{algorithm: slora, adapter: {sparse: 0}}": "adapter.sparse",
    "{algorithm: slora, adapter: {sparse: 1.5}}": "adapter.sparse",
    "{aggregate: {rule: krum}, federation: {cohort: 4}}": "needs 5 replies, but 4 clients are asked",
    "{aggregate: {rule: {name: bulyan, f: 2}}, federation: {cohort: 10}}": "needs 11 replies",
    "{aggregate: {rule: {name: multi_krum, m: 8}}, federation: {cohort: 10}}": "at most 7 are sure to be honest",
    "{algorithm: fedbuff, federation: {cohort: 5}}": "only 5 clients are at work at once",
    "{algorithm: {name: pfedme, lr: 0.1}}": "would overshoot",
    "{algorithm: {name: fedswa, cycle: 0.001}}": "a cycle of one round",
    "{algorithm: {name: fednova, mu: 0.1}, local: {optimizer: {name: sgd, args: {momentum: 0.9}}}}": "Drop one",
    "{algorithm: {name: fedavg, keep_inner: true}, aggregate: {space: turns}}": "optimiser remembers",
    "{algorithm: {name: scaffold, option: II}}": "local.max_grad_norm is 1, but option II",
    "{algorithm: fednova, local: {optimizer: {name: sgd, args: {nesterov: true, momentum: 0.9}}}}": "has nesterov",
    "{algorithm: fednova, clients: {0: {lr: 0.1}}}": "compares steps of one rate",
    "{algorithm: pfedme, attack: scaled}": "trains several times",
    "{aggregate: {space: {name: turns, first: A, alternate: false}}}": "nothing is ever learned",
    "{aggregate: {rule: krum}, federation: {holdout: 7}, partition: {clients: 10}}": "but 3 clients are asked",
    "{algorithm: fedper}": "algorithm.private is not given, but it is needed",
    "{algorithm: {name: fedper, private: []}}": "algorithm.private",
    "{algorithm: diloco, aggregate: {server_optimizer: adam}}": "diloco means aggregate.server_optimizer.name=sgd",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_work_is_refused_in_words(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert REFUSED[text] in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{algorithm: flexlora, adapter: {ranks: heavy_tail}, aggregate: {server_optimizer: {momentum: 0.9}}}",
        "{algorithm: flexlora, aggregate: {rule: krum}}",
        "{algorithm: raflora, adapter: {ranks: normal}}",
        "{algorithm: flora, clients: {0: {rank: {q_proj: 4}}}}",
        "{algorithm: hetlora, adapter: {ranks: uniform, scale: shared}}",
        "{algorithm: rolora, aggregate: {server_optimizer: adam}}",
        "{algorithm: fedprox, aggregate: {space: products, rule: geometric_median}}",
        "{algorithm: ffa, aggregate: {rule: median, server_optimizer: yogi}}",
        "{algorithm: slora}",
        "{algorithm: fedsa}",
        "{algorithm: fedswa, aggregate: {space: turns}}",
        "{algorithm: ditto, aggregate: {space: turns}}",
        "{algorithm: pfedme, attack: label_flip}",
        "{algorithm: diloco, federation: {sampling: cyclic, holdout: 2}}",
        "{adapter: {kind: full}, algorithm: scaffold}",
        "{clients: {0: {rank: 8}}, adapter: {rank: 8}}",
    ],
)
def test_what_goes_together_is_let_through(tmp_path, text):
    assert loaded(tmp_path, text)


def test_several_mistakes_are_told_at_once_and_none_twice(tmp_path):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, "{algorithm: scaffold, aggregate: {space: products, server_optimizer: adam, rule: median}}")
    lines = str(caught.value).splitlines()
    assert len(lines) == len(set(lines)) == 4


def test_settings_without_effect_are_told_and_harmless(tmp_path):
    """The same recipe is run with one algorithm after another."""
    said = without_effect(loaded(tmp_path, "{algorithm: scaffold, aggregate: {server_optimizer: {momentum: 0.9}}}"))
    assert said == ["aggregate.server_optimizer has no effect: scaffold has a server step of its own"]
    assert without_effect(loaded(tmp_path, "{algorithm: fedavg, aggregate: {server_optimizer: {momentum: 0.9}}}")) == []
    weighted = "{algorithm: lookahead, aggregate: {weighting: examples}}"
    assert "lookahead counts all clients alike" in without_effect(loaded(tmp_path, weighted))[0]
