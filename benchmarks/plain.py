"""The training loop one would write by hand, without a line of fedloom: what every speed is compared with.

A Hugging Face model, batches filled up to their longest row, the model's own loss, LoRA as two small products beside a
frozen linear layer (or peft), clipping, torch's fused AdamW. Clients train one after another: factors in, train,
factors out.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from models import PAD, Row, Steps

LR, CLIP, ALPHA = 1e-3, 1.0, 16.0


class Lora(nn.Module):
    """W x + (alpha / r) B A x, with W frozen."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.weight, self.scale = linear.weight, ALPHA / rank
        self.exact = linear.weight.dtype == torch.float32
        self.A = nn.Parameter(torch.empty(rank, linear.in_features, device=linear.weight.device))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        if self.exact:
            return F.linear(x, self.weight) + F.linear(F.linear(x, self.A), self.B) * self.scale
        update = F.linear(F.linear(x.float(), self.A), self.B) * self.scale
        return F.linear(x, self.weight) + update.to(x.dtype)


class Plain:
    """A model with factors, trained client by client."""

    def __init__(
        self, folder: Path, targets: Sequence[str], rank: int = 8, *, peft: bool = False, bf16: bool = False,
        dtype: torch.dtype = torch.float32, device: str = "cpu",
    ) -> None:  # fmt: skip
        """`bf16` is autocast; `dtype` is what the frozen weights are held in."""
        self.model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
        self.model.requires_grad_(False).train().config.use_cache = False
        self.bf16 = bf16
        self.tensors = self._peft(targets, rank) if peft else self._by_hand(targets, rank)

    def _by_hand(self, targets: Sequence[str], rank: int) -> dict[str, nn.Parameter]:
        found = {}
        for name, parent in list(self.model.named_modules()):
            for target in targets:
                if isinstance(linear := getattr(parent, target, None), nn.Linear):
                    layer = Lora(linear, rank)
                    setattr(parent, target, layer)
                    found |= {f"{name}.{target}.A": layer.A, f"{name}.{target}.B": layer.B}
        return found

    def _peft(self, targets: Sequence[str], rank: int) -> dict[str, nn.Parameter]:
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=list(targets), task_type="CAUSAL_LM")
        self.model = get_peft_model(self.model, settings)
        trained = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        return {short(name): p for name, p in trained}

    @property
    def size(self) -> int:
        """Trainable numbers."""
        return sum(p.numel() for p in self.tensors.values())

    @torch.no_grad()
    def put(self, factors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(factors[name])

    def take(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def train(self, start: Mapping[str, Tensor], steps: Steps) -> dict[str, Tensor]:
        """One client-round."""
        self.put(start)
        tensors = list(self.tensors.values())
        optimizer = torch.optim.AdamW(tensors, lr=LR, weight_decay=0.0, fused=True)
        for rows in steps:
            self.backward(rows)
            torch.nn.utils.clip_grad_norm_(tensors, CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return self.take()

    def backward(self, rows: Sequence[Row]) -> float:
        with self._precision():
            loss = self.model(**collate(rows, self.model.device)).loss
        loss.backward()
        return loss.item()

    def gradient(self, factors: Mapping[str, Tensor], rows: Sequence[Row]) -> dict[str, Tensor]:
        self.put(factors)
        self.backward(rows)
        found = {name: tensor.grad.clone() for name, tensor in self.tensors.items() if tensor.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return found

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.model.device.type, torch.bfloat16) if self.bf16 else nullcontext()


def short(name: str) -> str:
    """The name of a factor as `Plain` calls it, from peft's."""
    module, _, factor = name.removeprefix("base_model.model.").removesuffix(".weight").partition(".lora_")
    return f"{module}.{factor.removesuffix('.default')}"


def collate(rows: Sequence[Row], device: Any = "cpu") -> dict[str, Tensor]:
    """Filled up to the longest row."""
    width = max(len(row.ids) for row in rows)
    found = {
        "input_ids": [[*row.ids, *[PAD] * (width - len(row.ids))] for row in rows],
        "attention_mask": [[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows],
        "labels": [[*row.labels, *[-100] * (width - len(row.ids))] for row in rows],
    }
    return {name: torch.tensor(value, device=device) for name, value in found.items()}
