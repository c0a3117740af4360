"""The two programs `against_flower.py` compares, each run in processes of its own: the same clients, rows and rounds.

Its functions are found by Ray's actors under this module's name, so that it must not be the program itself.
"""

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from models import QUERY_VALUE, STEPS, Steps, client, saved, text

CLIENTS, ROUNDS, BATCH = 10, 10, 4


# -- Flower


def flower(kind: str) -> dict[str, Any]:
    from flwr.client import ClientApp
    from flwr.common import Context, ndarrays_to_parameters
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation
    from plain import Plain

    torch.set_num_threads(1)
    first, marks = Plain(saved(kind), QUERY_VALUE).take(), list[float]()

    def noted(metrics: Any) -> dict[str, Any]:
        marks.extend(float(one["begun"]) for _, one in metrics)
        return {}

    def server(context: Context) -> ServerAppComponents:
        strategy = FedAvg(
            fraction_fit=1.0, fraction_evaluate=0.0, min_fit_clients=CLIENTS, min_available_clients=CLIENTS,
            initial_parameters=ndarrays_to_parameters([value.numpy() for value in first.values()]),
            on_fit_config_fn=lambda turn: {"round": turn}, fit_metrics_aggregation_fn=noted,
        )  # fmt: skip
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=ROUNDS))

    def one(context: Context) -> Any:
        return flower_client(kind, int(context.node_config["partition-id"]))

    begun = time.time()
    run_simulation(
        server_app=ServerApp(server_fn=server), client_app=ClientApp(client_fn=one), num_supernodes=CLIENTS,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )  # fmt: skip
    return {"start s": round(min(marks) - begun, 2), "trained": len(marks)}


LOADED: dict[str, Any] = {}
"""The model of an actor's process; loading it once per actor is the best a user could do."""


def flower_client(kind: str, number: int) -> Any:
    from flwr.client import NumPyClient
    from plain import Plain

    torch.set_num_threads(1)
    plain = LOADED.get(kind) or LOADED.setdefault(kind, Plain(saved(kind), QUERY_VALUE))

    class Client(NumPyClient):
        def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
            begun = time.time()
            start = dict(zip(plain.tensors, map(torch.from_numpy, parameters), strict=True))
            steps = shuffled(kind, number, int(config["round"]))
            found = plain.train(start, steps)
            return [value.numpy() for value in found.values()], sum(map(len, steps)), {"begun": begun}

    return Client().to_client()


def shuffled(kind: str, number: int, turn: int) -> Steps:
    """A client's rows in the order of a round."""
    rows = [row for step in client(number, kind, STEPS[kind], BATCH) for row in step]
    random.Random(turn).shuffle(rows)
    return [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]


# -- ours


def ours(dtype: str, kind: str, engine: str) -> dict[str, Any]:
    from peft import get_peft_model  # noqa: F401  # what every program of this kind imports is no start of ours
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

    import fedloom.assembly
    from fedloom import load, run
    from fedloom.events import Event, RoundFinished, RoundStarted

    marks, loaded, trained = dict[str, float](), fedloom.assembly.load_model, [0]
    begun = time.perf_counter()

    def timed(*arguments: Any, **named: Any) -> Any:
        before = time.perf_counter()
        found = loaded(*arguments, **named)
        marks["loading"] = time.perf_counter() - before
        return found

    def sink(event: Event) -> None:
        if isinstance(event, RoundStarted):
            marks.setdefault("start", time.perf_counter() - begun)
        if isinstance(event, RoundFinished):
            trained[0] += CLIENTS

    fedloom.assembly.load_model = timed
    with tempfile.TemporaryDirectory() as folder:
        config = load(
            "quickstart",
            [
                f"model.name={saved(kind)}", f"model.dtype={dtype}", f"data.source={written(Path(folder), kind)}",
                'data.template="{instruction} "', "data.test=0.05", "partition={method: natural}",
                "data.max_length=256", f"federation.cohort={CLIENTS}", f"federation.rounds={ROUNDS}",
                f"local.steps={STEPS[kind]}", f"local.batch_size={BATCH}", "local.lr=1e-3",
                "local.schedule={name: constant}", "adapter.rank=8", "adapter.alpha=16",
                f"adapter.targets=[{', '.join(QUERY_VALUE)}]", "aggregate.server_optimizer={name: sgd}",
                "evaluate.every=0", "evaluate.forgetting=false", "evaluate.metrics=[loss]", "evaluate.clients=1",
                "evaluate.rows_per_client=1", f"run.folder={folder}/runs", f"engine.name={engine}",
            ],
        )  # fmt: skip
        run(config, [sink])
    return {"start s": round(marks["start"] - marks["loading"], 2), "trained": trained[0]}


def written(folder: Path, kind: str) -> Path:
    """The clients' rows and two of each for the test at the end; each row's last token comes from the template."""
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for number in range(CLIENTS):
            rows = [row for step in client(number, kind, STEPS[kind], BATCH) for row in step]
            for row in rows + rows[:2]:
                said = {"instruction": text(row.ids[: row.prompt]), "output": text(row.ids[row.prompt : -1])}
                file.write(json.dumps({**said, "client": f"c{number:02d}"}) + "\n")
    return path
