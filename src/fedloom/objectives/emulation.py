"""How far an emulator's blocks are from the blocks they stand for.

Xiao et al. 2023, Offsite-Tuning, https://arxiv.org/abs/2302.04870: T is what all of the owner's middle blocks put out,
S what the emulator's put out, both [texts, places, width] of the same input; σ = √mean(T²); the distance is
mean(((T − S) / σ)²).

The published codes take the means over filling as well. Here only real tokens count, so that a text's neighbours in a
batch change nothing but the mean.

FedBiOT (Wu et al. 2024, https://arxiv.org/abs/2406.17706) also looks at how far its words are from the owner's: p and q
are what both expect as the next token, and KL(p ‖ q) = Σ p log (p / q).
"""

from torch import Tensor
from torch.nn import functional as F


def distance(owner: Tensor, emulator: Tensor, real: Tensor) -> Tensor:
    """A scalar, differentiable in the emulator's.

    Args:
        owner: T [texts, places, width].
        emulator: S, the same shape.
        real: bool [texts, places]: text, not filling.
    """
    apart, size = sums(owner, emulator, real)
    return apart / size  # σ² is a mean over as many numbers


def sums(owner: Tensor, emulator: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Σ (T − S)² and Σ T² over the real tokens: of several batches they add up to one distance."""
    chosen = owner[real]
    return (chosen - emulator[real]).square().sum(), chosen.square().sum()


def divergence(owner: Tensor, emulator: Tensor) -> Tensor:
    """Σ over tokens of KL(owner ‖ emulator) in nats, differentiable in the emulator's; logits [tokens, vocabulary].

    It is computed as Σ p log (p / q) − p + q, which is the same since both add up to 1. Rounded sums are not quite 1,
    and the plain form has a gradient where p and q are equal to the bit: small, but Adam makes whole steps of it.
    """
    p, q = F.log_softmax(owner, -1), F.log_softmax(emulator, -1)
    return (p.exp() * (p - q) - p.exp() + q.exp()).sum()
