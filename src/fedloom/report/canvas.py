"""Axes that become inline SVG: text stays text, colours follow the page (light, dark, print).

Drawn by matplotlib's Figure, without pyplot's global state; the same calls give the same bytes.
"""

import html
import io
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from fedloom.report.facts import Points

Axes: TypeAlias = Any  # matplotlib has no types we follow

INK, QUIET, PALE, RULE = "#22262b", "#6b727b", "#a7adb5", "#dde1e6"
COLOURS = ("#2b6a99", "#d0722b", "#46875a", "#8a5b9f", "#b8434e", "#2d8a8f", "#8c7a2e", "#6d7fb3")
"""One per run or split; page colours --c0 to --c7."""
FILL = 0.78
"""Opacity of areas, so that they are no louder than lines."""
_VARIABLES = {colour: f"--c{i}" for i, colour in enumerate(COLOURS)} | {
    INK: "--ink",
    QUIET: "--quiet",
    PALE: "--pale",
    RULE: "--rule",
    "#000000": "--ink",  # matplotlib's own, of pictures that were not drawn on this canvas
    "#ffffff": "--paper",
}
_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a client may be called $x$
    "axes.unicode_minus": True,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.prop_cycle": "cycler('color', ['#22262b'])",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
}
WIDTH, HEIGHT = 4.9, 2.75  # inches of 72 points; the page shows a point as about 1.3 pixels


def chart(name: str, told: str, draw: Callable[[Axes], None], height: float = HEIGHT) -> str:
    """Draw on fresh axes and give the SVG element, described by `told` for those who cannot see it."""
    from matplotlib import style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    salt = f"fedloom {name}"  # ids are hashes with this salt; those of different charts must differ, they share a page
    with style.context(["default", {**_SETTINGS, "svg.hashsalt": salt}]):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return inline(file.getvalue(), name, told)


def inline(document: str, name: str, told: str) -> str:
    """The bare element of an SVG document: named, coloured by the page, without ids that nothing refers to."""
    body = document[document.index("<svg") :]
    view_box = re.search(r'viewBox="([^"]*)"', body)
    assert view_box, "matplotlib writes a viewBox"
    inner = body[body.index(">") + 1 : body.rindex("</svg>")]
    inner = re.sub(r"<metadata>.*?</metadata>", "", inner, flags=re.S)
    inner = re.sub(r'<g id="[^"]*"', "<g", inner)
    inner = re.sub(r'style="[^"]*"', lambda style: _page_colours(style.group()), inner)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" class="chart" role="img" '
        f'viewBox="{view_box.group(1)}" aria-label="{html.escape(f"{name}. {told}")}">{inner.strip()}</svg>'
    )


def steps(
    axes: Axes, points: Points, factor: float, colour: str, label: str, below: Mapping[float, float] | None = None
) -> None:
    """Filled steps, one round wide; a round without a value is a gap."""
    if not points:
        return
    known, below = dict(points), below or {}
    rounds = range(int(points[0][0]), int(points[-1][0]) + 1)
    base = [factor * below.get(x, 0.0) for x in rounds]
    tops = [b + factor * known.get(x, 0.0) for b, x in zip(base, rounds, strict=True)]
    edges = [rounds[0] - 0.5, *(x + 0.5 for x in rounds)]
    axes.stairs(tops, edges, baseline=base, fill=True, color=colour, label=label, linewidth=0, alpha=FILL)


def rounds_axis(axes: Axes) -> None:
    """Whole rounds only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axes.set_xlabel("round")


def percent_axis(axis: Any, limits: Callable[[float, float], object]) -> None:
    """From 0 to 100 percent, with room for the line's width at both ends."""
    limits(-3, 103)
    axis.set_ticks([0, 25, 50, 75, 100], ["0\u00a0%", "25\u00a0%", "50\u00a0%", "75\u00a0%", "100\u00a0%"])


def legend(axes: Axes) -> None:
    """Above the axes, in one row, so that it never lies on a curve."""
    labels = axes.get_legend_handles_labels()[1]
    if labels:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=3,
            borderaxespad=0.2,
            handlelength=1.4,
            columnspacing=1.4,
        )


def _page_colours(style: str) -> str:
    for colour, variable in _VARIABLES.items():
        style = style.replace(colour, f"var({variable})")
    return re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", style)
