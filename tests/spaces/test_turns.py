"""Alternating factors: who is active, what is sent, what is touched, and the numbers of RoLoRA."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom.spaces.turns import Turns
from spaces import federations as fed

LAYOUT = fed.lora({"first": 2, "second": 3}, {"first": 1.0, "second": 2.0})


@pytest.mark.parametrize(
    ("space", "phases", "turns", "active"),
    [
        (Turns(LAYOUT), 2, [0, 1, 0, 1], ["BB", "AA"]),
        (Turns(LAYOUT, first="A"), 2, [0, 1, 0, 1], ["AA", "BB"]),
        (Turns(LAYOUT, alternate=False), 1, [0, 0, 0, 0], ["BB"]),
        (Turns(LAYOUT, first="A", alternate=False), 1, [0, 0, 0, 0], ["AA"]),
    ],
)
def test_whose_turn_it_is(space, phases, turns, active):
    assert space.phases == phases
    assert [space.phase(i) for i in range(4)] == turns
    for phase, factors in enumerate(active):
        names = space.active(phase, LAYOUT)
        assert list(names) == sorted(names, key=LAYOUT.names.index)
        assert set(names) == {"bias", f"first.{factors[0]}", f"second.{factors[1]}"}


@fed.LAW
@given(fed.groups(mixed=False), st.integers(0, 3), st.sampled_from(["A", "B"]))
def test_only_the_active_leaves_travel_and_change_and_one_factor_is_exact(group, round, first):
    space = Turns(group.shared, first)
    phase, resting = space.phase(round), ("B" if first == "A" else "A", first)[space.phase(round)]
    start = group.start
    ys = []
    for y in group.ys:  # a client's resting factor is where the round began
        views = group.shared.views(y.clone())
        rested = {n: group.shared.views(start)[n] if n.endswith(f".{resting}") else v for n, v in views.items()}
        ys.append(group.shared.gather(rested, y.dtype))
    group = fed.Group(group.shared, group.layouts, ys, group.weights)
    sent = space.lift(ys[0], group.shared, phase)
    assert sent.numel() == sum(leaf.size for leaf in group.shared.leaves if not leaf.name.endswith(f".{resting}"))
    assert torch.equal(space.form(sent, phase), sent)
    x, carry = fed.closed(space, group, start, round=round)
    assert carry == ()
    before, after = group.shared.views(start), group.shared.views(x)
    for name in after:
        if name.endswith(f".{resting}"):
            assert torch.equal(after[name], before[name])
    fed.close_to(fed.dense(x, group.shared), fed.exact(group), 16 * fed.tolerance(group))
    np.testing.assert_allclose(after["bias"].double().numpy(), fed.plain_mean(group), rtol=0, atol=fed.tolerance(group))


@fed.LAW
@given(fed.groups(mixed=False), st.integers(0, 1))
def test_closing_with_the_point_changes_nothing(group, round):
    space = Turns(group.shared)
    x, _ = space.close(group.start, (), space.point(group.start, round), round)
    assert torch.equal(x, group.start)


def test_rounds_of_the_oracle():
    """RoLoRA: 4 rounds of two clients with one row each and plain gradient steps."""
    inputs, outputs = fed.ORACLES["rolora"]["inputs"], fed.ORACLES["rolora"]["outputs"]
    layout = fed.single(2, inputs["s"])
    space = Turns(layout)
    x = layout.gather({"w.A": fed.tensor(inputs["A0"]), "w.B": fed.tensor(inputs["B0"])}, torch.float64)
    for round, want in enumerate(outputs["rounds"]):
        phase = space.phase(round)
        active = space.active(phase, layout)
        assert list(active) == [f"w.{want['trained']}"]
        sent = [
            space.lift(fed.trained(space.lower(x, layout), layout, active, inputs, i), layout, phase)
            for i in range(len(inputs["p"]))
        ]
        x, _ = space.close(x, (), fed.collected(space.rule, sent, inputs["p"]), round)
        for factor in ("A", "B"):
            np.testing.assert_allclose(layout.views(x)[f"w.{factor}"].numpy(), want[factor], rtol=0, atol=1e-9)
        np.testing.assert_allclose(fed.dense(x, layout)["w"], want["dW"], rtol=0, atol=1e-9)


def test_starting_with_a_wastes_the_first_round():
    """Beside B = 0 the gradient of A is zero, so nothing moves before the second round."""
    inputs = fed.ORACLES["rolora"]["inputs"]
    layout = fed.single(2, inputs["s"])
    start = layout.gather({"w.A": fed.tensor(inputs["A0"]), "w.B": fed.tensor(inputs["B0"])}, torch.float64)
    moved = {
        first: fed.trained(start, layout, Turns(layout, first).active(0, layout), inputs, 0) - start
        for first in ("A", "B")
    }
    assert not moved["A"].any()
    assert moved["B"].any()


def test_clients_of_another_rank_are_refused_in_words():
    with pytest.raises(ValueError, match="one rank for all"):
        Turns(fed.single(2, 1.0)).lower(torch.zeros(8), fed.single(1, 1.0))
