"""AdaLoRA's budget: which of the numbers E of P E Q stay, as training goes on.

Zhang et al. 2023, https://arxiv.org/abs/2303.10512: after each step every number has an importance, a smoothed |w dw|
times how unsure that is; once in a while the numbers of E with the least important triplets (a number, its row of Q,
its column of P) become 0, so many that the budget of the step is left. peft's own allocator decides; what it remembers
is taken out after each training and put back before the next, since many clients share one model.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedloom.adapters.config import AdaLoraConfig

MARK = "AdaLoRA "
"""How the names of what is remembered begin."""


class Budget:
    """The budget of the client at hand."""

    def __init__(self, wrapped: Any, config: AdaLoraConfig) -> None:
        self.model, self.config = wrapped.base_model, config
        self.settings = wrapped.peft_config["default"]
        self.steps = 0
        named = dict(self.model.model.named_parameters())
        self._parameters = {
            name: tensor for name, tensor in named.items() if any(f"lora_{letter}.default" in name for letter in "ABE")
        }

    def begin(self, kept: Mapping[str, Tensor] | None) -> None:
        """Go on from what `memory` gave, or begin anew.

        Raises:
            ValueError: it belongs to another adapter.
        """
        mine = {name.removeprefix(MARK): value for name, value in (kept or {}).items() if name.startswith(MARK)}
        self.steps = int(mine.pop("steps", torch.tensor(0)))
        allocator = self.model.rankallocator
        allocator.reset_ipt()
        self.settings.rank_pattern = None
        pattern = dict[str, list[bool]]()
        for key, value in mine.items():
            what, _, name = key.partition(" ")
            if name not in self._parameters:
                raise ValueError(f"the kept budget is that of another adapter: it knows {name}")
            if what == "stays":
                pattern[name] = value.bool().tolist()
            else:
                getattr(allocator, what)[name] = value.to(self._parameters[name], copy=True)
                allocator.ipt.setdefault(name, torch.zeros_like(self._parameters[name]))
        self.settings.rank_pattern = pattern or None

    def penalty(self) -> Tensor:
        """A scalar: how far P and Q are from orthogonal, times its weight."""
        far = list[Tensor]()
        for name, tensor in self._parameters.items():
            if "lora_E" in name:
                continue
            square = tensor @ tensor.T if "lora_A" in name else tensor.T @ tensor
            far.append((square - torch.eye(len(square), dtype=square.dtype, device=square.device)).norm())
        return self.config.orthogonal * torch.stack(far).mean()

    def spend(self) -> None:
        """A step was taken, and its gradients are still there."""
        self.model.update_and_allocate(self.steps)
        self.steps += 1

    def memory(self) -> dict[str, Tensor]:
        """What the next training begins from."""
        allocator, found = self.model.rankallocator, {f"{MARK}steps": torch.tensor(self.steps)}
        for what in ("exp_avg_ipt", "exp_avg_unc"):
            for name, value in getattr(allocator, what).items():
                found[f"{MARK}{what} {name}"] = value.detach().to("cpu", copy=True)
        for name, stays in (self.settings.rank_pattern or {}).items():
            found[f"{MARK}stays {name}"] = torch.tensor(stays)
        return found


def without(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What else was remembered."""
    return {name: value for name, value in kept.items() if not name.startswith(MARK)}
