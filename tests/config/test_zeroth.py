"""What goes with algorithms without gradients, and what means nothing beside them."""

import pytest

from fedloom.config import load
from fedloom.config.methods import without_effect
from fedloom.errors import ConfigError

KSEED, MEZO = "algorithm: {name: fedkseed", "algorithm: {name: fedmezo"
REFUSED = {
    "{" + MEZO + "}, aggregate: {space: turns}}": "Use factors, products, stacked or residual, or adapter.freeze=A",
    "{" + MEZO + "}, aggregate: {space: refactored}}": "some tensors rest in a round",
    "{" + MEZO + ", rate: model_diff}, aggregate: {space: products}}": "cannot be compared",
    "{" + MEZO + ", rate: random, spread: 0.001}, local: {lr: 0.001}}": "some clients' would be 0 or less",
    "{"
    + MEZO
    + ", rate: random, spread: 1e-4}, local: {lr: 0.001, schedule: {name: linear, floor: 0}}}": "is 0 in some",
    "{" + MEZO + ", rate: random, spread: 1e-4}, clients: {1: {lr: 5e-5}}}": "5e-05 in some round",
    "{" + MEZO + ", rate: sometimes}}": "five_round",
    "{" + MEZO + ", epsilon: 0}}": "algorithm.epsilon",
    "{" + MEZO + ", directions: 0}}": "algorithm.directions",
    "{" + KSEED + ", epsilon: 0}}": "algorithm.epsilon",
    "{" + KSEED + ", pool: 1}}": "algorithm.pool",
    "{" + KSEED + ", weight_decay: 0.1}}": "weight_decay is a setting of fedmezo, but algorithm.name is fedkseed",
    "{" + KSEED + "}, aggregate: {space: products}}": "works on the trained numbers themselves",
    "{" + KSEED + "}, aggregate: {rule: median}}": "combines replies by itself",
    "{" + KSEED + "}, aggregate: {server_optimizer: adam}}": "has no weights to step from",
    "{" + KSEED + "}, aggregate: {server_optimizer: {momentum: 0.5}}}": "has no weights to step from",
    "{" + KSEED + "}, adapter: {ranks: uniform}}": "cannot be averaged by fedkseed",
    "{" + KSEED + "}, attack: sign_flip}": "clients of fedkseed send scalars",
    "{" + KSEED + ", pro: true}, local: {warmup: 2}}": "with one rate for a round",
    "{" + KSEED + ", pro: true, draws: server}, local: {epochs: 1}}": "Use local.steps, or draws=client",
    "{" + KSEED + ", pro: true, draws: server}, clients: {0: {epochs: 1}}}": "Use local.steps, or draws=client",
    "{algorithm: decomfl, aggregate: {server_optimizer: yogi}}": "has no weights to step from",
    "{algorithm: {name: decomfl, log: 1}}": "algorithm.log",
    "{algorithm: {name: decomfl, epsilon: 0}}": "algorithm.epsilon",
    "{algorithm: {name: ferret, bases: 1}}": "algorithm.bases",
    "{algorithm: {name: ferret, server_lr: 0}}": "algorithm.server_lr",
    "{algorithm: {name: ferret, noise: truncated}}": "uniform",
    "{algorithm: {name: ferret, epsilon: 1e-3}}": "epsilon is a setting of fedkd and fedmezo",
    "{algorithm: ferret, aggregate: {server_optimizer: adam}}": "has no weights to step from",
    "{algorithm: ferret, aggregate: {space: products}}": "works on the trained numbers themselves",
    "{algorithm: ferret, adapter: {ranks: uniform}}": "cannot be averaged by ferret",
}
IDLE = {
    "{" + MEZO + "}, local: {optimizer: sgd, max_grad_norm: 3, accumulate: 2}, adapter: {dropout: 0.1}}": [
        "local.optimizer", "local.max_grad_norm", "local.accumulate", "adapter.dropout",
    ],
    "{" + MEZO + ", rate: round_wise, spread: 0}}": ["algorithm.rate=round_wise"],
    "{" + MEZO + ", rate: model_diff}, federation: {cohort: 1}}": ["algorithm.rate=model_diff"],
    "{" + MEZO + ", rate: random}, federation: {cohort: 1}}": [],
    "{" + KSEED + ", corrected: true}}": ["algorithm.corrected"],
    "{algorithm: decomfl, local: {epochs: 1}, aggregate: {weighting: examples}}": [
        "aggregate.weighting", "local.epochs",
    ],
    "{" + MEZO + ", rate: five_round}, aggregate: {space: stacked, server_optimizer: {momentum: 0.5}}}": [],
    "{" + MEZO + "}, aggregate: {rule: median}, adapter: {kind: full}}": [],
    "{" + KSEED + ", pro: true, draws: server, corrected: true}, adapter: {kind: full}, attack: label_flip}": [],
    "{algorithm: fedavg, local: {optimizer: sgd}}": [],
    "{algorithm: ferret, local: {optimizer: sgd, accumulate: 2}, attack: sign_flip}": [],
}  # fmt: skip


def loaded(tmp_path, text):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    return load(path)


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_work_is_refused_in_words(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert REFUSED[text] in str(caught.value)


@pytest.mark.parametrize("text", IDLE)
def test_what_means_nothing_is_said(tmp_path, text):
    said = without_effect(loaded(tmp_path, text))
    assert len(said) == len(IDLE[text])
    assert all(one.startswith(key) for one, key in zip(said, IDLE[text], strict=True))
