"""Ratios inside one run, what was asked of them, and files that several parts of a benchmark write together."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from machine import RESULTS, machine, median, table


def interleaved(variants: Mapping[str, Callable[[], object]], times: int, warm: int = 1) -> dict[str, list[float]]:
    """CPU seconds of each variant, in turns, every other turn backwards; the first `warm` turns do not count."""
    return piecewise({name: lambda piece, work=work: work() for name, work in variants.items()}, 1, times, warm)  # type: ignore[misc]


def piecewise(
    variants: Mapping[str, Callable[[int], object]], pieces: int, times: int, warm: int = 1
) -> dict[str, list[float]]:
    """The same for work of several pieces: variants take turns at each, and a turn's time is the sum over pieces."""
    found: dict[str, list[float]] = {name: [0.0] * (warm + times) for name in variants}
    for turn in range(warm + times):
        for piece in range(pieces):
            for name in list(variants)[:: -1 if (turn + piece) % 2 else 1]:
                begun = time.process_time()
                variants[name](piece)
                found[name][turn] += time.process_time() - begun
    return {name: values[warm:] for name, values in found.items()}


def ratios(over: list[float], under: list[float]) -> list[float]:
    """Turn by turn, sorted."""
    return sorted(a / b for a, b in zip(over, under, strict=True))


def least(over: list[float], under: list[float]) -> float:
    """Of the quickest turns: other work on the machine can only add to a time."""
    return round(min(over) / min(under), 3)


def judged(what: str, measured: float, sign: str, target: float, bar: str = "") -> dict[str, Any]:
    """A line of the table of targets; `sign` is >= or <=, `bar` its name in the picture, where it is a speed."""
    met = measured >= target if sign == ">=" else measured <= target
    return {"what": what, "measured": round(measured, 4), "target": f"{sign} {target}", "met": met, "bar": bar}


def targets_table(targets: list[dict[str, Any]]) -> str:
    return table([{key: value for key, value in one.items() if key != "bar"} for one in targets]) if targets else ""


def merge(name: str, part: str, command: str, result: Mapping[str, Any]) -> Path:
    """Write one part of `results/<name>.json` and leave the others as they are."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[part] = {"command": command, "machine": machine(), **result}
    path.write_text(json.dumps(known, indent=1) + "\n")
    return path


def spread(values: list[float], digits: int = 2) -> str:
    return f"{min(values):.{digits}f} .. {max(values):.{digits}f}"


def middle(values: list[float], digits: int = 3) -> float:
    return round(median(values), digits)
