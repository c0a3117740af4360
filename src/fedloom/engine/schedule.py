"""Learning rates: over the rounds of a run, and inside one local training."""

import math

from fedloom.engine.config import ConstantConfig, CosineConfig, LinearConfig, ScheduleConfig, StepConfig


def round_rate(schedule: ScheduleConfig, lr: float, round: int, rounds: int) -> float:
    """The base rate of round `round` (from 0) of `rounds`; the first round has `lr`, the last the floor."""
    progress = min(1.0, round / max(1, rounds - 1))
    match schedule:
        case ConstantConfig():
            return lr
        case LinearConfig(floor=floor):
            return lr * (1 - (1 - floor) * progress)
        case CosineConfig(floor=floor):
            return lr * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)
        case StepConfig(every=every, gamma=gamma):
            return lr * gamma ** (round // every)


def step_rates(lr: float, steps: int, warmup: int, decay: float = 1.0) -> list[float]:
    """The rate of each step: rising linearly over the first `warmup` steps, falling in a line towards `decay` times."""
    return [lr * min(1.0, (k + 1) / (warmup + 1)) * (1 - k / steps * (1 - decay)) for k in range(steps)]
