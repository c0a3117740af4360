"""What a client asks of the engine when it trains without gradients, and what its log says of it."""

import math
from dataclasses import replace

import pytest
import torch

from fedloom import rng
from fedloom.contracts import Drift, Model, Trained, Wandered
from fedloom.engine.requests import Evaluate, Generate, Wander
from fedloom.errors import UserError
from fedloom.params import Layout, Leaf
from runtime.test_client import LAYOUT, Attacker, Make, X, answered, asked, names

DRIFT = Drift(3, torch.tensor([0.5, 0.25]))


def wandered(**changes):
    values = {
        "y": X, "seeds": ((1,), (2,)), "slopes": torch.zeros(2, 1), "rates": torch.ones(2), "steps": 2, "lr_sum": 0.2,
        "examples": 8, "tokens": 30, "loss": 1.0,
    }  # fmt: skip
    return Wandered(**{**values, **changes})


def test_it_is_as_the_recipe_says():
    local = {"steps": 3, "lr": 0.1, "warmup": 1, "accumulate": 2}
    request = asked(Make(local=local)().wander(X, epsilon=0.01))
    assert isinstance(request, Wander)
    assert request.start is X
    assert [len(batch) for batch in request.batches] == [4, 4, 2]
    assert request.lrs == [0.05, 0.1, 0.1]
    assert (request.epsilon, request.accumulate, request.label) == (0.01, 2, "hospital, round 1")
    assert request.seeds == [[rng.key(11, "direction", 0, step, 0)] for step in range(3)]
    assert (request.weight_decay, request.limit, request.forward, request.kind) == (0.0, None, False, "gaussian")
    assert (request.keep, request.step, request.carry) == (True, True, ())


def test_it_sees_the_batches_a_training_sees():
    client = Make(rows=40)()
    one, other = asked(client.descend(X, batches="same")), asked(client.wander(X, epsilon=1e-3, batches="same"))
    assert names(one.batches) == names(other.batches)
    assert names(asked(client.wander(X, epsilon=1e-3)).batches) != names(one.batches)


def test_every_step_and_turn_and_client_has_its_own_directions():
    client, other = Make(local={"steps": 4})(), Make(local={"steps": 4}, root=12)()
    rows = [asked(c.wander(X, epsilon=1e-3, directions=3)).seeds for c in (client, client, other)]
    seeds = [seed for one in rows for row in one for seed in row]
    assert len(set(seeds)) == len(seeds) == 3 * 4 * 3


def test_given_seeds_say_how_many_steps():
    seeds = [(1, 2), (3, 4), (5, 6)]
    request = asked(Make(local={"steps": 9})().wander(DRIFT, epsilon=1e-3, seeds=seeds, keep=False))
    assert len(request.batches) == len(request.lrs) == 3
    assert request.seeds == seeds
    assert request.start is DRIFT
    with pytest.raises(ValueError, match="2 steps need as many rows of seeds"):
        Make()().wander(X, epsilon=1e-3, seeds=seeds, steps=2)


def test_biases_and_norms_do_not_decay_unless_named():
    make = Make()
    client = make()
    layout = Layout.of([Leaf("weight", (3, 2)), Leaf("bias", (3,)), Leaf("norm", (2,))])
    client.profile = replace(client.profile, layout=layout)
    x = torch.zeros(layout.size)
    assert asked(client.wander(x, epsilon=1e-3, weight_decay=0.1)).decayed == ["weight"]
    assert asked(client.wander(x, epsilon=1e-3, weight_decay=0.1, decayed=["norm"])).decayed == ["norm"]


@pytest.mark.parametrize("epsilon", [0.0, -1e-3, math.nan, math.inf])
def test_points_that_do_not_lie_apart_are_refused(epsilon):
    with pytest.raises(ValueError, match="must lie apart"):
        Make()().wander(X, epsilon=epsilon)


def test_it_counts_like_a_training():
    client = Make()()
    run = wandered(skipped=1)
    assert answered(client.wander(X, epsilon=1e-3), run) is run
    answered(client.wander(X, epsilon=1e-3), wandered(steps=1, loss=4.0, examples=4, tokens=10))
    found = client.summary()
    assert (found.steps, found.examples, found.tokens, found.skipped) == (3, 12, 40, 1)
    assert found.loss == pytest.approx(2.0)
    assert client.weight(run) == 8.0
    assert client.weight(wandered(steps=0)) == 0.0


def test_an_attacker_changes_the_weights_it_sends():
    client, attacker = Make()(), Attacker()
    client.attack = attacker
    found = answered(client.wander(X, epsilon=1e-3), wandered(y=torch.ones(3)))
    assert found.y.tolist() == [-4, -4, -4]
    assert isinstance(attacker.seen[0][1], Trained)


@pytest.mark.parametrize(("start", "y"), [(DRIFT, X), (X, None)])
def test_attacks_on_slopes_are_refused(start, y):
    client = Make()()
    client.attack = Attacker()
    with pytest.raises(UserError, match="slopes along directions"):
        answered(client.wander(start, epsilon=1e-3), wandered(y=y))


def test_models_that_are_drifts_reach_the_engine_as_such():
    model = Model(X[:0], drift=DRIFT)
    assert asked(Make()().evaluate(model, "test", ("loss",), 1, 8, 16)) == Evaluate(
        model.x, LAYOUT, ["t0"], ("loss",), 8, 16, (), DRIFT
    )
    assert asked(Make()().generate(model, [[1]], 5)) == Generate(model.x, LAYOUT, [[1]], 1, 5, (), DRIFT)
