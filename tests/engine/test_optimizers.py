"""Torch's optimisers by name: the same steps as torch's own defaults, and no setting lost."""

import pytest
import torch
from torch import nn

from fedloom.engine import optimizers
from fedloom.engine.config import OptimizerConfig
from fedloom.errors import UserError

CLASSES = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    if name not in ("Optimizer", "LBFGS", "SparseAdam")
}


def walked(make, steps=4, lr=0.03):
    """Two tensors after some steps down a bowl, the rate changing on the way."""
    source = torch.Generator().manual_seed(0)
    tensors = [nn.Parameter(torch.randn(3, 4, generator=source)), nn.Parameter(torch.randn(5, 2, generator=source))]
    optimizer = make(tensors, lr)
    for step in range(steps):
        optimizer.zero_grad()
        sum((tensor**2).sum() * (i + 1) + tensor.sum() for i, tensor in enumerate(tensors)).backward()
        for group in optimizer.param_groups:
            group["lr"] = lr * (step + 1)
        optimizer.step()
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def test_every_optimiser_of_torch_is_there_but_the_two_that_cannot_work():
    assert set(optimizers.names()) == {name.lower() for name in CLASSES}
    assert {"adamw", "sgd", "adagrad", "rmsprop", "muon"} <= set(optimizers.names())


@pytest.mark.parametrize("name", sorted(CLASSES))
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_torch_s_own(name, decay):
    def theirs(tensors, lr):
        takes = "weight_decay" in CLASSES[name].__init__.__code__.co_varnames
        return CLASSES[name](tensors, lr=lr, **({"weight_decay": decay} if takes else {}))

    if decay and "weight_decay" not in CLASSES[name].__init__.__code__.co_varnames:
        with pytest.raises(UserError, match="has no weight_decay"):
            optimizers.check(OptimizerConfig(name=name, weight_decay=decay))
        return
    mine = walked(lambda tensors, lr: optimizers.make(OptimizerConfig(name=name, weight_decay=decay), tensors, lr))
    assert torch.allclose(mine, walked(theirs), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(mine, walked(theirs, steps=3))


@pytest.mark.parametrize("spelling", ["AdamW", "adamw", "ADAMW"])
def test_any_case_will_do(spelling):
    made = optimizers.make(OptimizerConfig(name=spelling), [nn.Parameter(torch.zeros(2))], 0.1)
    assert type(made) is torch.optim.AdamW


@pytest.mark.parametrize(
    "name, args, check",
    [
        ("sgd", {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "nesterov": True}),
        ("adam", {"betas": [0.8, 0.99], "eps": 1e-6}, {"betas": (0.8, 0.99), "eps": 1e-6}),
        ("adamw", {"amsgrad": True}, {"amsgrad": True}),
        ("rmsprop", {"alpha": 0.9, "centered": True}, {"alpha": 0.9, "centered": True}),
        ("adagrad", {"initial_accumulator_value": 0.5}, {"initial_accumulator_value": 0.5}),
        ("adamw", {"foreach": True}, {"foreach": True}),
        ("adamw", {"fused": False}, {"fused": False}),
    ],
)
def test_arguments_arrive(name, args, check):
    made = optimizers.make(OptimizerConfig(name=name, args=args), [nn.Parameter(torch.zeros(2, 2))], 0.1)
    assert {key: made.defaults[key] for key in check} == check


def test_weight_decay_is_none_unless_asked_for():
    """AdamW's own default is 0.01; the recipe says 0."""
    made = optimizers.make(OptimizerConfig(), [nn.Parameter(torch.zeros(2))], 0.1)
    assert made.defaults["weight_decay"] == 0.0
    made = optimizers.make(OptimizerConfig(weight_decay=0.2), [nn.Parameter(torch.zeros(2))], 0.1)
    assert made.defaults["weight_decay"] == 0.2


@pytest.mark.parametrize("args", [{"weight_decay": 0.3}, {"lr": 0.5}])
def test_an_argument_that_has_a_setting_of_its_own_is_not_lost_in_silence(args):
    """`local.optimizer.weight_decay` and `local.lr` rule; the same thing said in `args` must be refused, or count."""
    config = OptimizerConfig(name="adamw", args=args)
    try:
        optimizers.check(config)
    except UserError as refused:
        assert next(iter(args)) in str(refused)  # noqa: PT017  # one of two good ends
        return
    step = [nn.Parameter(torch.ones(2, 2))]
    made = optimizers.make(config, step, 1e-3)
    for group in made.param_groups:  # the engine sets the rate of every step
        group["lr"] = 1e-3
    assert {key: made.param_groups[0][key] for key in args} == args


@pytest.mark.parametrize(
    "config, words",
    [
        (OptimizerConfig(name="adamv"), r"torch\.optim has none\. Did you mean adam"),
        (OptimizerConfig(name="quickprop9"), r"torch\.optim has none\. Choose one of: .*adamw"),
        (OptimizerConfig(name="lbfgs"), "several times a step"),
        (OptimizerConfig(name="SparseAdam"), "dense"),
        (OptimizerConfig(name="Optimizer"), "has none"),
        (OptimizerConfig(name="sgd", args={"momentun": 0.9}), "does not take momentun .*momentum"),
        (OptimizerConfig(name="sgd", args={"momentum": -1}), "torch refuses these settings of sgd: .*momentum"),
        (OptimizerConfig(name="adamw", args={"betas": [0.9, 1.5]}), "torch refuses"),
        (OptimizerConfig(name="adamw", args={"betas": 0.9}), "torch refuses"),
        (OptimizerConfig(name="adamw", args={"betas": [0.9]}), "torch refuses"),
        (OptimizerConfig(name="adamw", args={"eps": "small"}), "torch refuses"),
        (OptimizerConfig(name="adamw", args={"params": []}), "params"),
        (OptimizerConfig(name="rprop", weight_decay=0.1), "rprop has no weight_decay"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(config, words):
    with pytest.raises(UserError, match=words) as caught:
        optimizers.check(config)
    assert "local.optimizer" in str(caught.value)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_what_is_right_passes_the_check(name):
    optimizers.check(OptimizerConfig(name=name))
