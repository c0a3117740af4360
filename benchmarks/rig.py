"""fedloom's side of the speed benchmarks: an engine over a saved model, asked by hand or by a whole federation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from plain import ALPHA, CLIP, LR
from torch import Tensor

from fedloom.adapters.build import adapt
from fedloom.adapters.config import LoraConfig
from fedloom.algorithms.fedavg import FedAvg
from fedloom.contracts import Call, Profile, Trained
from fedloom.data.encode import Encoded
from fedloom.engine.choice import default_tokens
from fedloom.engine.config import LocalConfig, OptimizerConfig
from fedloom.engine.driver import drive
from fedloom.engine.reference import Reference
from fedloom.engine.requests import Descend
from fedloom.engine.slots import Slots
from fedloom.models.config import ModelConfig
from fedloom.models.load import load_model, load_tokenizer
from fedloom.params import Params
from fedloom.rounds import one_round
from fedloom.runtime.client import LocalPlan
from fedloom.runtime.federation import Hub
from fedloom.runtime.simulation import InProcess
from fedloom.runtime.site import Site, Tasks
from fedloom.runtime.store import InMemory, Store
from fedloom.spaces.factors import Factors
from models import END, LONGEST, Row, Steps, saved

ENGINES = ("slots", "reference")


class Rig:
    """An adapted model with its engine.

    Args:
        kind: of the model.
        targets: names of the linear layers that get factors.
        rank: of the factors.
        dtype: of the frozen weights.
        slots: clients that train together.
        engine: slots, or reference, which ignores `slots`.
        device: where the model lies.
        folder: of the model, where it is not a saved one.
        tokens: of one forward pass, at most; None: what a run would use.
    """

    def __init__(
        self, kind: str, targets: Sequence[str], *, rank: int = 8, dtype: str = "float32", slots: int = 8,
        engine: str = "slots", device: str = "cpu", folder: Path | None = None, tokens: int | None = None,
    ) -> None:  # fmt: skip
        self.model = ModelConfig(name=str(folder or saved(kind)), dtype=dtype, device=device)  # type: ignore[arg-type]
        self.base = load_model(self.model, longest=LONGEST)
        self.adapted = adapt(self.base, LoraConfig(rank=rank, alpha=ALPHA, targets=list(targets)), 7)
        self.tokenizer = load_tokenizer(self.model)
        self.layout = self.adapted.layout
        self.engine = self._engine(engine, slots, tokens)

    def _engine(self, name: str, slots: int, tokens: int | None) -> Any:
        if name == "reference":
            return Reference(self.adapted, self.tokenizer, (END,))
        budget = tokens or default_tokens(self.base.device, self.base.parameters)
        way: Any = "plain" if self.base.attention == "eager" else "fused"
        return Slots(
            self.adapted, self.tokenizer, (END,), slots=slots, tokens_per_step=budget, attention=way
        )  # fmt: skip

    def factors(self, x: Params) -> dict[str, Tensor]:
        """By the names of `Plain`."""
        return dict(self.layout.views(x))

    def somewhere(self) -> Params:
        """A point where no factor is zero, as after some training."""
        return self.adapted.start + 0.01 * torch.randn(self.layout.size, generator=torch.Generator().manual_seed(5))

    def ask(self, steps: Sequence[Sequence[Encoded]], start: Params, gradient: bool = False) -> Descend:
        return Descend(
            start, self.layout, steps, [LR] * len(steps), OptimizerConfig(), CLIP, 1, 11, "client", gradient=gradient
        )

    def train(self, work: Sequence[Sequence[Sequence[Encoded]]], start: Params | None = None) -> list[Trained]:
        """One client-round each, all waiting at once."""
        x = self.adapted.start if start is None else start
        return self._driven([self.ask(steps, x) for steps in work])

    def _driven(self, asked: Sequence[Descend]) -> list[Trained]:
        async def local(client: int, request: Descend) -> Trained:
            return await Call(client, request)

        replies = list(drive(((i, local(i, request)) for i, request in enumerate(asked)), self.engine))
        assert all(isinstance(reply, Trained) for _, reply in replies), replies
        return [reply for _, reply in replies if isinstance(reply, Trained)]

    def gradient(self, rows: Sequence[Encoded], x: Params) -> Tensor:
        """[P]: raw gradient of one batch at `x`."""
        (reply,) = self._driven([self.ask([rows], x, gradient=True)])
        assert reply.gradient is not None
        return reply.gradient


def encoded(steps: Steps) -> list[list[Encoded]]:
    """The rows as fedloom holds them."""
    return [[example(row) for row in rows] for rows in steps]


def example(row: Row) -> Encoded:
    return Encoded(row.ids, row.labels, row.ids[: row.prompt], "", None)


class Federation:
    """FedAvg over clients with these rows, round by round: cohort, messages, training, averaging, bookkeeping."""

    def __init__(self, rig: Rig, work: Sequence[Sequence[Sequence[Encoded]]], window: int = 64) -> None:
        self.page = FedAvg(Factors(rig.layout))
        rows = [[row for step in steps for row in step] for steps in work]
        local = LocalConfig(steps=len(work[0]), batch_size=len(work[0][0]), lr=LR)
        tasks = Tasks(self.page)
        site = Site(
            tasks=tasks, engine=rig.engine, store=Store(InMemory()), data=lambda i: Held(rows[i]), root=0,
            profile=lambda i: Profile(i, f"client-{i:03d}", rig.layout), plan=lambda i: LocalPlan(local, 1000),
            window=window,
        )  # fmt: skip
        link = InProcess(site)
        self.hub = Hub(
            link=link, home=link, tasks=tasks, clients=range(len(rows)), cohort=len(rows), root=0,
            profile=lambda i: Profile(i, f"client-{i:03d}", rig.layout),
        )  # fmt: skip
        self.state = self.page.init(rig.adapted.start)

    def round(self) -> None:
        self.state = one_round(self.page, self.state, self.hub, 0)
        self.hub.round += 1
        self.hub.commit(self.hub.round - 1, self.hub.round)


class Held:
    """A client's rows."""

    def __init__(self, rows: Sequence[Encoded]) -> None:
        self.rows = rows

    def get(self, split: str) -> Sequence[Encoded]:
        return self.rows
