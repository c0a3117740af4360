"""Flower 1.41.0 as its documentation shows it: a SuperLink, two SuperNodes, `flwr run` of an app that adds one.

Uses the programs of the peers' environment (`peers.py`). No TLS, no authentication, no training: its quickest case.
"""

import itertools
import os
import subprocess
import tempfile
import time
from pathlib import Path

from deployed import free_port
from peers import HOME

PROJECT = """\
[project]
name = "plusone"
version = "1.0.0"
dependencies = ["flwr==1.41.0"]
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "plusone:server"
clientapp = "plusone:client"
[tool.flwr.app.config]
numbers = 1
rounds = 1
log = ""
"""
APP = """
import time

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid, context):
    config = context.run_config

    def after(number, arrays):
        with open(config["log"], "a") as log:
            log.write(f"{number} {time.time()}\\n")

    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)
    start = ArrayRecord([np.zeros(config["numbers"], np.float32)])
    strategy.start(grid=grid, initial_arrays=start, num_rounds=config["rounds"], evaluate_fn=after)


@client.train()
def train(message, context):
    arrays = ArrayRecord([one + 1 for one in message.content["arrays"].to_numpy_ndarrays()])
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
"""


def there() -> bool:
    """Whether Flower's programs are."""
    return (HOME / "bin" / "flower-superlink").exists()


def rounds(payload: float, count: int) -> list[float]:
    """Seconds of each round with two clients and so many bytes each way."""
    with tempfile.TemporaryDirectory(prefix="fedloom-flower-") as folder:
        root, port = Path(folder), free_port()
        app = root / "app"
        app.mkdir()
        (app / "pyproject.toml").write_text(PROJECT)
        (app / "plusone.py").write_text(APP)
        (root / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        env = {
            **os.environ, "PATH": f"{HOME / 'bin'}:{os.environ['PATH']}", "FLWR_HOME": folder,
            "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }  # fmt: skip
        link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
        nodes = [
            ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--host", "127.0.0.1", "--port",
             str(free_port())]
            for _ in range(2)
        ]  # fmt: skip
        run = ["flwr", "run", str(app), "here", "--run-config",
               f'numbers={int(payload / 4)} rounds={count} log="{root / "log"}"']  # fmt: skip
        processes = []
        out = (root / "out").open("w")
        try:
            for command in (link, *nodes):
                processes.append(_started(command, env, out))
                time.sleep(8)
            subprocess.run([_program(run[0]), *run[1:]], env=env, stdout=out, stderr=out, check=True, timeout=120)
            return _seconds(root / "log", count, 60.0 * count)
        except (subprocess.SubprocessError, TimeoutError) as error:
            raise RuntimeError(f"{error}\n{(root / 'out').read_text()[-3000:]}") from error
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait(timeout=30)
            out.close()


def _started(command: list[str], env: dict[str, str], out: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([_program(command[0]), *command[1:]], env=env, stdout=out, stderr=out)  # type: ignore[call-overload]


def _program(name: str) -> str:
    return str(HOME / "bin" / name)


def _seconds(log: Path, count: int, patience: float) -> list[float]:
    """Differences between the marks of all rounds; the one of round 0 is the beginning."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        marks = [float(line.split()[1]) for line in log.read_text().splitlines()] if log.exists() else []
        if len(marks) > count:
            return [b - a for a, b in itertools.pairwise(marks)]
        time.sleep(0.5)
    raise TimeoutError(f"{count} rounds did not end")
