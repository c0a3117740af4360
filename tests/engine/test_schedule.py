"""Learning rates over rounds and steps, by hand and in their limits."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.engine.config import ConstantConfig, CosineConfig, LinearConfig, StepConfig
from fedloom.engine.schedule import round_rate, step_rates


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (ConstantConfig(), [0.8, 0.8, 0.8, 0.8, 0.8]),
        (LinearConfig(), [0.8, 0.6, 0.4, 0.2, 0.0]),
        (LinearConfig(floor=0.5), [0.8, 0.7, 0.6, 0.5, 0.4]),
        (CosineConfig(), [0.8, 0.4 + 0.2 * 2**0.5, 0.4, 0.4 - 0.2 * 2**0.5, 0.0]),
        (CosineConfig(floor=0.25), [0.8, 0.5 + 0.15 * 2**0.5, 0.5, 0.5 - 0.15 * 2**0.5, 0.2]),
        (StepConfig(every=2, gamma=0.5), [0.8, 0.8, 0.4, 0.4, 0.2]),
        (StepConfig(every=1, gamma=0.1), [0.8, 0.08, 0.008, 0.0008, 0.00008]),
        (StepConfig(every=10, gamma=0.1), [0.8] * 5),
    ],
    ids=repr,
)
def test_five_rounds(schedule, rates):
    """cos(pi / 4) = sqrt(2) / 2."""
    assert [round_rate(schedule, 0.8, r, 5) for r in range(5)] == pytest.approx(rates, abs=1e-15)


@pytest.mark.parametrize("schedule", [ConstantConfig(), LinearConfig(), CosineConfig(), StepConfig()], ids=repr)
def test_a_single_round_has_the_full_rate(schedule):
    assert round_rate(schedule, 0.8, 0, 1) == 0.8


@given(st.floats(0, 1), st.integers(2, 500), st.sampled_from([LinearConfig, CosineConfig]))
def test_from_the_rate_down_to_the_floor(floor, rounds, kind):
    rates = [round_rate(kind(floor=floor), 0.3, r, rounds) for r in range(rounds)]
    assert rates[0] == pytest.approx(0.3)
    assert rates[-1] == pytest.approx(0.3 * floor, abs=1e-15)
    assert all(left >= right - 1e-15 for left, right in pairwise(rates))


@pytest.mark.parametrize("kind", [LinearConfig, CosineConfig])
def test_beyond_the_last_round_the_floor_stays(kind):
    assert round_rate(kind(floor=0.1), 1.0, 99, 5) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("warmup", "rates"),
    [
        (0, [1.0, 1.0, 1.0, 1.0]),
        (1, [0.5, 1.0, 1.0, 1.0]),
        (3, [0.25, 0.5, 0.75, 1.0]),
        (7, [0.125, 0.25, 0.375, 0.5]),
    ],
)
def test_warmup_rises_to_the_rate_and_stays(warmup, rates):
    assert step_rates(1.0, 4, warmup) == rates
    assert step_rates(0.5, 4, warmup) == [0.5 * rate for rate in rates]


def test_no_step_has_no_rate():
    assert step_rates(1.0, 0, 3) == []
    assert step_rates(1.0, 0, 0, 0.5) == []


@pytest.mark.parametrize(
    ("decay", "rates"),
    [
        (1.0, [1.0, 1.0, 1.0, 1.0]),
        (0.0, [1.0, 0.75, 0.5, 0.25]),  # the last step is not lost: 0 would come after it
        (0.5, [1.0, 0.875, 0.75, 0.625]),
        (0.2, [1.0, 0.8, 0.6, 0.4]),
    ],
)
def test_the_rate_of_a_training_falls_in_a_line(decay, rates):
    """lr (1 - k / K (1 - decay)), K = 4."""
    assert step_rates(1.0, 4, 0, decay) == pytest.approx(rates, abs=1e-15)
    assert step_rates(0.5, 4, 0, decay) == pytest.approx([0.5 * rate for rate in rates], abs=1e-15)


def test_a_falling_rate_rises_first_where_there_is_a_warmup():
    """Halves and whole, times 1, 3/4, 1/2, 1/4."""
    assert step_rates(1.0, 4, 1, 0.0) == pytest.approx([0.5, 0.75, 0.5, 0.25])


def test_a_training_that_does_not_fall_has_the_very_rates_it_had():
    assert step_rates(0.3, 7, 2, 1.0) == step_rates(0.3, 7, 2)
    assert set(step_rates(0.3, 7, 0)) == {0.3}  # to the bit
