"""fedloom against other ways to train the same clients, in an environment of its own.

`python benchmarks/peers.py install` makes `benchmarks/.venv-peers` from `requirements-peers.txt` with pip's registry;
`python benchmarks/peers.py [trl|flower ...]` measures there and writes its sections of `results/peers.json`.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
HOME = HERE / ".venv-peers"
PYTHON = HOME / "bin" / "python"
NAMES = ("trl", "flower")
MISSING = (
    "peers: skipped; TRL, Flower and Ray live in an environment of their own. Make it with "
    "`python benchmarks/peers.py install` (2 GiB, minutes)"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"install, {', '.join(NAMES)}; default: all measures")
    parser.add_argument("--engine", choices=("slots", "reference"), default="slots")
    parser.add_argument("--try", dest="toy", action="store_true", help="a toy model, one turn, nothing written")
    asked = parser.parse_args()
    if unknown := sorted({*asked.names} - {"install", *NAMES}):
        parser.error(f"nothing is called {', '.join(unknown)}; there are install, {', '.join(NAMES)}")
    if "install" in asked.names:
        install()
    if not PYTHON.exists():
        print(MISSING)
        return 0
    chosen = [name for name in asked.names or NAMES if name != "install"]
    more = ["--engine", asked.engine, *(["--try"] if asked.toy else [])]
    env = {**os.environ, **SETTINGS}
    ends = [subprocess.call([str(PYTHON), str(HERE / f"against_{name}.py"), *more], env=env) for name in chosen]
    return max(ends, default=0)


SETTINGS = {
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0", "TRL_EXPERIMENTAL_SILENCE": "1",
}  # fmt: skip


def install() -> None:
    """The environment, with fedloom itself as it stands here."""
    if not PYTHON.exists():
        subprocess.check_call([sys.executable, "-m", "venv", str(HOME)])
        (HOME / ".gitignore").write_text("*\n")
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.check_call([*pip, "torch==2.13.0"])  # alone: only so an index may choose the build for a CPU
    subprocess.check_call([*pip, "-r", str(HERE / "requirements-peers.txt"), "-e", str(HERE.parent)])


if __name__ == "__main__":
    sys.exit(main())
