"""Runs benchmarks by name, all of them by default, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

NAMES = (
    "overhead", "quickstart", "registered", "real_data", "aggregation", "geometry", "stateful", "attacks",
    "study", "engine", "peers", "deployment", "hostile", "soak", "dpo", "preferences", "classify", "zeroth",
    "adapters", "memory", "offsite", "quantised",
)  # fmt: skip
HERE = Path(__file__).parent


def main() -> int:
    chosen = sys.argv[1:] or NAMES
    unknown = [name for name in chosen if name not in NAMES]
    if unknown:
        print(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
        return 2
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return max(subprocess.call([sys.executable, str(HERE / f"{name}.py")], env=env) for name in chosen)


if __name__ == "__main__":
    sys.exit(main())
