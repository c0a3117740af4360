"""Speeds as bars, with a mark where each target stands: `results/engine.svg`, from `engine.json` and `peers.json`."""

import json
from typing import Any

import matplotlib

matplotlib.use("svg")
from machine import RESULTS
from matplotlib import pyplot

MET, MISSED, MARK = "#4c78a8", "#d98b3a", "#222222"


def draw() -> None:
    bars = [bar for name in ("engine", "peers") for bar in speeds(name)]
    if not bars:
        return
    with pyplot.rc_context({"svg.hashsalt": "fedloom", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.27 * len(bars)), layout="constrained")
        for place, (_, measured, target) in enumerate(bars):
            axes.barh(place, measured, color=MET if measured >= target else MISSED, height=0.7)
            axes.plot([target, target], [place - 0.42, place + 0.42], color=MARK, linewidth=2)
            axes.text(max(measured, target) + 0.04, place, f"{measured:.2f}", va="center")
        axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
        axes.invert_yaxis()
        axes.axvline(1, color="#999999", linewidth=0.8, zorder=0)
        axes.set_xlim(0, 1.1 * max(max(measured, target) for _, measured, target in bars))
        axes.set_xlabel("times faster than a plain loop, or than what is named\nblue: aim met; black line: the aim")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.savefig(RESULTS / "engine.svg", metadata={"Date": None})
        pyplot.close(figure)


def speeds(name: str) -> list[tuple[str, float, float]]:
    """Label, times faster, target; a share of somebody's time is turned round."""
    path = RESULTS / f"{name}.json"
    parts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found = []
    for one in (one for part in parts.values() for one in part["targets"] if one.get("bar")):
        sign, target = one["target"].split()
        pair = one["measured"], float(target)
        times, aim = pair if sign == ">=" else (1 / pair[0], 1 / pair[1])
        found.append((one["bar"], times, aim))
    return found


if __name__ == "__main__":
    draw()
