"""What attackers do to the result of their training, and to their rows; for simulations of hostile clients.

Notation: a training starts at x [P] and honestly ends at y [P]; the attacker goes on with another y. Everything its
client derives from the training (updates, control variates, the reported gradient) follows the false one, but counts
such as examples and steps stay, so its weight is an honest client's. Signs flipped: Li et al. 2019, RSA,
https://arxiv.org/abs/1811.03761. Noise: Blanchard et al. 2017, Krum, https://arxiv.org/abs/1703.02757. Scaled updates:
Bagdasaryan et al. 2020, How to backdoor federated learning, https://arxiv.org/abs/1807.00459, whose gamma the factor
is. Flipped labels: Tolpegin et al. 2020, Data poisoning attacks against federated learning systems,
https://arxiv.org/abs/2007.08432.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from fedloom import rng
from fedloom.contracts import ClientId, Trained
from fedloom.errors import UserError
from fedloom.params import Params
from fedloom.runtime.attack_config import AttackConfig, GaussianConfig, NoAttackConfig, ScaledConfig, SignFlipConfig
from fedloom.runtime.sampling import some


class Attacker(Protocol):
    """Changes what a training gave."""

    def __call__(self, x: Params, run: Trained, key: int) -> Trained:
        """The result the client goes on with.

        Args:
            x: [P], where the training started.
            run: what it honestly gave.
            key: decides random numbers; another for every training.
        """


@dataclass(frozen=True)
class SignFlip:
    """Goes the other way: y = x - scale (y - x); the gradient is -scale times its own."""

    scale: float = 1.0

    def __call__(self, x: Params, run: Trained, key: int) -> Trained:
        """See `Attacker`."""
        return _along(x, run, -self.scale)


@dataclass(frozen=True)
class Scaled:
    """Goes too far: y = x + factor (y - x); the gradient is factor times its own."""

    factor: float = 10.0

    def __call__(self, x: Params, run: Trained, key: int) -> Trained:
        """See `Attacker`."""
        return _along(x, run, self.factor)


@dataclass(frozen=True)
class Gaussian:
    """Goes anywhere: y = x + std n, n standard normal in every trained number; the gradient is such noise too."""

    std: float

    def __call__(self, x: Params, run: Trained, key: int) -> Trained:
        """See `Attacker`."""
        gradient = None if run.gradient is None else self.std * _normal(rng.key(key, "gradient"), run.gradient)
        return replace(run, y=x + self.std * _normal(rng.key(key, "weights"), x), gradient=gradient)


def attackers(
    config: AttackConfig, names: Sequence[str], seed: int, without: Collection[ClientId] = ()
) -> dict[ClientId, Attacker]:
    """The clients whose results are changed, and how; none for `none` and `label_flip`.

    Args:
        config: the section `attack`.
        names: of all clients, by number.
        seed: root seed.
        without: clients that never train and are not drawn as attackers.

    Raises:
        UserError: a client does not exist, or there are not so many.
    """
    attack: Attacker
    match config:
        case SignFlipConfig():
            attack = SignFlip(config.scale)
        case ScaledConfig():
            attack = Scaled(config.factor)
        case GaussianConfig():
            attack = Gaussian(config.std)
        case _:
            return {}
    return dict.fromkeys(sorted(attacking(config, names, seed, without)), attack)


def attacking(
    config: AttackConfig, names: Sequence[str], seed: int, without: Collection[ClientId] = ()
) -> frozenset[ClientId]:
    """The clients that attack, whatever the attack; arguments and errors as in `attackers`."""
    if isinstance(config, NoAttackConfig):
        return frozenset()
    return some(config.clients, names, rng.key(seed, "attackers"), "attack.clients", without)


def flip_answers(answers: Sequence[str], client: str) -> list[str]:
    """For every row the answer of another row, and never one that says the same.

    The client's different answers, sorted, form a ring; each becomes the next, so that rows that agreed still agree.
    Spaces around an answer make no difference, and empty answers stay: nothing is learned from them.

    Args:
        answers: of the client's training rows, in their order.
        client: its name, for the message.

    Raises:
        UserError: all its answers are the same, so there is no wrong one to give.
    """
    ring = sorted({answer.strip() for answer in answers} - {""})
    if len(ring) == 1:
        raise UserError(
            f"attack=label_flip gives rows each other's answers, but all answers of {client} are the same; name other "
            "attackers (attack.clients), deal the rows otherwise (partition), or use another attack"
        )
    flipped = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return [flipped.get(answer.strip(), answer) for answer in answers]


def _along(x: Params, run: Trained, factor: float) -> Trained:
    gradient = None if run.gradient is None else factor * run.gradient
    return replace(run, y=x + factor * (run.y - x), gradient=gradient)


def _normal(key: int, like: Tensor) -> Tensor:
    """Standard normal numbers in the shape, format and place of a tensor."""
    return rng.normal(key, *like.shape).to(like)
