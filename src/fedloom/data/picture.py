"""Who holds what, as one SVG: stacked bars for few clients, sizes and categories for many.

The same holdings give the same bytes: no date, and identifiers from a fixed salt.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

_FEW: Final = 60  # clients whose bars can be told apart
_COLOURS: Final = 12  # categories with a colour of their own; further ones share the last
_POINTS: Final = 200  # of the curve of sizes
_REST: Final = "other"


def partition_svg(holdings: list[dict[str, Any]], category: str = "category") -> str:
    """Draw train rows per client and category.

    Args:
        holdings: per client name, train and categories, as `partition.holdings` gives them.
        category: what categories are called, such as label where rows have a class.

    Returns:
        An <svg> element as text, ready to stand in a page or, as it is, in a file.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": "fedloom", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
    with mpl.rc_context({**style, "axes.spines.right": False}):
        if len(holdings) <= _FEW:
            figure = Figure(figsize=(8, max(2.2, 0.9 + 0.22 * len(holdings))), layout="constrained")
            _bars(figure, holdings, category)
        else:
            figure = Figure(figsize=(8, 3.4), layout="constrained")
            _curves(figure, holdings)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def _bars(figure: Any, holdings: Sequence[Mapping[str, Any]], title: str) -> None:
    """One horizontal bar per client, its categories stacked."""
    axes = figure.subplots()
    names = [client["name"] for client in holdings]
    left = [0] * len(holdings)
    shown = _shown(holdings)
    for place, category in enumerate(shown):
        widths = [_count(client, category, shown) for client in holdings]
        axes.barh(range(len(names)), widths, left=left, height=0.8, label=_short(category), color=_colour(place))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("training rows")
    if len(shown) > 1:
        figure.legend(loc="outside right upper", title=title, frameon=False)


def _curves(figure: Any, holdings: Sequence[Mapping[str, Any]]) -> None:
    """Sizes from the largest client to the smallest, and rows of each category."""
    sizes, categories = figure.subplots(1, 2)
    rows = sorted((client["train"] for client in holdings), reverse=True)
    places = sorted({round(i * (len(rows) - 1) / (_POINTS - 1)) for i in range(_POINTS)})  # enough for the eye
    places_from_1, heights = [place + 1 for place in places], [rows[place] for place in places]
    sizes.fill_between(places_from_1, heights, color=_colour(0), alpha=0.35)
    sizes.plot(places_from_1, heights, color=_colour(0))
    sizes.set_ylim(bottom=0)
    sizes.set_xlabel(f"{len(rows)} clients, largest first")
    sizes.set_ylabel("training rows")
    shown = _shown(holdings)
    totals = [sum(_count(client, category, shown) for client in holdings) for category in shown]
    categories.barh(range(len(shown)), totals, height=0.8, color=[_colour(i) for i in range(len(shown))])
    categories.set_yticks(range(len(shown)), [_short(category) for category in shown])
    categories.invert_yaxis()
    categories.set_xlabel("training rows of all clients")


def _shown(holdings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Categories with a colour of their own, the largest first; the rest together."""
    totals: Counter[str] = Counter()
    for client in holdings:
        totals.update(client["categories"])
    ranked = sorted(totals, key=lambda name: (-totals[name], name))
    return ranked if len(ranked) <= _COLOURS else [*ranked[: _COLOURS - 1], _REST]


def _count(client: Mapping[str, Any], category: str, shown: Sequence[str]) -> int:
    held: Mapping[str, int] = client["categories"]
    if category == _REST and category == shown[-1]:
        return sum(count for name, count in held.items() if name == _REST or name not in shown)
    return held.get(category, 0)


def _colour(place: int) -> str:
    """Colours that stay apart in print and for most colour-blind eyes (after Okabe and Ito, and Tol)."""
    palette = (
        *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"),
        *("#F0E442", "#332288", "#999933", "#882255", "#44AA99", "#BBBBBB"),
    )
    return palette[place % len(palette)]


def _short(name: str) -> str:
    """A label that leaves room for the picture; `$` would start a formula."""
    label = name if len(name) <= 28 else f"{name[:27]}…"
    return label.replace("$", r"\$").lstrip("_") or "(empty)"
