"""The report's charts, each with a heading and a description in words.

Every function is pure: the same numbers give the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedloom.metrics.summary import direction
from fedloom.report import words
from fedloom.report.canvas import COLOURS, FILL, INK, PALE, RULE, Axes, chart, legend, percent_axis, rounds_axis, steps
from fedloom.report.facts import Points, Spread

_STYLES = ("-", "--", ":", "-.")
_NAMED_CLIENTS = 30
"""With more clients than this the spread is drawn as a curve without names."""


@dataclass(frozen=True)
class Line:
    """A curve with its look."""

    label: str
    points: Points
    colour: str
    style: str = "-"


@dataclass(frozen=True)
class Picture:
    """A chart with its heading and the sentence beneath it."""

    title: str
    svg: str
    caption: str = ""


def run_look(index: int) -> tuple[str, str]:
    """Colour and line style of the index-th run; 32 looks before they repeat."""
    return COLOURS[index % len(COLOURS)], _STYLES[index // len(COLOURS) % len(_STYLES)]


def curves(title: str, metric: str, lines: Sequence[Line], with_legend: bool = True) -> Picture:
    """A metric over rounds; `metric` decides the scale (shares as percent from 0 to 100)."""
    share = metric in words.SHARES
    factor = 100.0 if share else 1.0

    def draw(axes: Axes) -> None:
        for line in lines:
            dots = len(line.points) == 1 or (with_legend and len(line.points) <= 25)
            axes.plot(
                [x for x, _ in line.points],
                [factor * y for _, y in line.points],
                label=line.label,
                color=line.colour,
                linestyle=line.style,
                marker="o" if dots else "",
                markersize=3,
                linewidth=1.6,
            )
        rounds_axis(axes)
        if share:
            percent_axis(axes.yaxis, axes.set_ylim)
        if with_legend:
            legend(axes)

    told = [f"{line.label}: {_told(metric, line.points)}." for line in lines]
    return Picture(title, chart(title, " ".join([f"{title} over rounds.", *told]), draw))


def spread(found: Spread) -> Picture:
    """Every client's metric at the first and the last evaluation, worst at one end."""
    name = words.metric_name(found.metric)
    title = f"{name} of every client"
    values = list(found.last.values())
    told = (
        f"{words.count(len(values), 'client', 'clients')} after round {found.last_round:.0f}: from "
        f"{words.value(found.metric, min(values))} to {words.value(found.metric, max(values))}."
    )
    if len(found.first.keys() | found.last.keys()) <= _NAMED_CLIENTS:
        return Picture(
            title, _named_spread(title, told, found), "One line per client, the best at the last evaluation on top."
        )
    last = Line(_after(found.last_round), sorted_values(found.last), COLOURS[0])
    lines = [Line(_after(found.first_round), sorted_values(found.first), PALE), last]
    return sorted_clients(title, found.metric, lines if found.first_round < found.last_round else [last])


def sorted_clients(title: str, metric: str, lines: Sequence[Line], with_legend: bool = True) -> Picture:
    """Curves of (share of clients in percent, value), each sorted by itself."""

    def draw(axes: Axes) -> None:
        factor = 100.0 if metric in words.SHARES else 1.0
        for line in lines:
            axes.plot(
                [x for x, _ in line.points],
                [factor * y for _, y in line.points],
                label=line.label,
                color=line.colour,
                linestyle=line.style,
                linewidth=1.6,
            )
        axes.set_xlabel("clients, sorted")
        percent_axis(axes.xaxis, axes.set_xlim)
        if metric in words.SHARES:
            percent_axis(axes.yaxis, axes.set_ylim)
        if with_legend:
            legend(axes)

    told = [
        f"{line.label}: lowest {words.value(metric, line.points[0][1])}, "
        f"highest {words.value(metric, line.points[-1][1])}."
        for line in lines
        if line.points
    ]
    caption = "Clients from the lowest to the highest value, each curve sorted by itself."
    return Picture(title, chart(title, " ".join([f"{title}.", caption, *told]), draw), caption)


def traffic(up: Points, down: Points) -> Picture:
    """Bytes of each round: up above the line, down beneath it."""
    size, unit = words.scale(max((y for _, y in (*up, *down)), default=0))

    def draw(axes: Axes) -> None:
        steps(axes, up, 1 / size, COLOURS[0], "clients to server")
        steps(axes, down, -1 / size, COLOURS[1], "server to clients")
        axes.axhline(0, color=INK, linewidth=0.7)
        axes.set_ylabel(unit)
        axes.yaxis.set_major_formatter(lambda y, _: f"{abs(y):g}")
        rounds_axis(axes)
        legend(axes)

    last_up, last_down = (_last(points) for points in (up, down))
    told = f"In the last round {words.amount(last_up)} went to the server and {words.amount(last_down)} to clients."
    return Picture("Traffic per round", chart("Traffic per round", told, draw), "Up above the line, down beneath it.")


def traffic_in_all(up: Points, down: Points) -> Picture:
    """Running sums of bytes, those to the clients on top of those to the server."""
    ups, downs = dict(running(up)), dict(running(down))
    rounds = sorted(ups.keys() & downs.keys())
    most = max((ups[x] + downs[x] for x in rounds), default=0.0)
    size, unit = words.scale(most)

    def draw(axes: Axes) -> None:
        x = [0.0, *rounds]
        lower = [0.0, *(ups[x] / size for x in rounds)]
        upper = [0.0, *((ups[x] + downs[x]) / size for x in rounds)]
        axes.fill_between(x, lower, color=COLOURS[0], alpha=FILL, linewidth=0, label="clients to server")
        axes.fill_between(x, lower, upper, color=COLOURS[1], alpha=FILL, linewidth=0, label="server to clients")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        rounds_axis(axes)
        legend(axes)

    told = f"{words.amount(most)} up and down."
    return Picture("Traffic in all", chart("Traffic in all", told, draw), "Up and down on top of each other.")


def cumulative(title: str, lines: Sequence[Line]) -> Picture:
    """Running sums of bytes over rounds, one curve per run; the page has the legend."""
    sums = [Line(line.label, running(line.points), line.colour, line.style) for line in lines]
    size, unit = words.scale(max((_last(line.points) for line in sums), default=0))

    def draw(axes: Axes) -> None:
        for line in sums:
            x, y = [0.0, *(x for x, _ in line.points)], [0.0, *(y / size for _, y in line.points)]
            axes.plot(x, y, color=line.colour, linestyle=line.style, label=line.label, linewidth=1.6)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        rounds_axis(axes)

    told = [f"{line.label}: {words.amount(_last(line.points))} in all." for line in sums]
    return Picture(title, chart(title, " ".join(told), draw))


def seconds(training: Points, evaluation: Points) -> Picture:
    """Seconds of each round, and of the evaluations after it on top."""
    below = dict(training)

    def draw(axes: Axes) -> None:
        steps(axes, training, 1, COLOURS[0], "round")
        steps(axes, evaluation, 1, COLOURS[1], "evaluation", below)
        axes.set_ylabel("seconds")
        axes.set_ylim(bottom=0)
        rounds_axis(axes)
        legend(axes)

    typical = sorted(y for _, y in training)[len(training) // 2] if training else 0.0
    told = f"A typical round took {words.duration(typical)}."
    return Picture("Time per round", chart("Time per round", told, draw), told)


def running(points: Points) -> Points:
    """The sum of all values up to each round."""
    done, found = 0.0, []
    for x, y in points:
        done += y
        found.append((x, done))
    return tuple(found)


def _named_spread(title: str, told: str, found: Spread) -> str:
    """One horizontal line per client from its first to its last value."""
    names = sorted(found.first.keys() | found.last.keys())
    worst_first = direction(found.metric) == "lower"  # a high loss goes to the bottom
    names.sort(key=lambda name: found.last.get(name, found.first.get(name, 0.0)), reverse=worst_first)
    factor = 100.0 if found.metric in words.SHARES else 1.0
    moved = found.first_round < found.last_round

    def draw(axes: Axes) -> None:
        rows = {name: row for row, name in enumerate(names)}
        for name in found.first.keys() & found.last.keys():
            ends = [factor * found.first[name], factor * found.last[name]]
            axes.plot(ends, [rows[name]] * 2, color=RULE, linewidth=2.5, solid_capstyle="round", zorder=1)
        sides = [(found.first, PALE, found.first_round), (found.last, COLOURS[0], found.last_round)]
        for values, colour, round in sides if moved else sides[1:]:
            x, y = [factor * value for value in values.values()], [rows[name] for name in values]
            axes.plot(x, y, "o", color=colour, markersize=5, label=_after(round), zorder=2)
        axes.set_yticks(range(len(names)), [words.shorten(name) for name in names], color=INK)
        axes.set_ylim(-0.7, len(names) - 0.3)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        if found.metric in words.SHARES:
            percent_axis(axes.xaxis, axes.set_xlim)
        legend(axes)

    return chart(title, told, draw, height=max(1.6, 0.8 + 0.21 * len(names)))


def sorted_values(values: Mapping[str, float]) -> Points:
    """(share of clients in percent, value), from the lowest value to the highest."""
    last = max(1, len(values) - 1)
    return tuple((100 * i / last, y) for i, y in enumerate(sorted(values.values())))


def _after(round: float) -> str:
    return f"after round {round:.0f}" if round else "before training"


def _last(points: Points) -> float:
    return points[-1][1] if points else 0.0


def _told(metric: str, points: Points) -> str:
    if not points:
        return "no values"
    (first, before), (last, after) = points[0], points[-1]
    return f"{words.value(metric, before)} at round {first:.0f}, {words.value(metric, after)} at round {last:.0f}"
