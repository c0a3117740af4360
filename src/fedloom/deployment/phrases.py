"""A server's picture in words, the same on the page and on the terminal."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fedloom.deployment.picture import Picture
from fedloom.report import words

NONE: Final = "–"
_SPREADS: Final = ("_mean", "_std", "_worst_decile")
STATES: Final[Mapping[str, str]] = {
    "invited": "not yet joined",
    "joined": "joined",
    "working": "working",
    "idle": "idle",
    "away": "away",
    "refused": "refused",
    "revoked": "revoked",
}
COLUMNS: Final = ("client", "state", "last seen", "rounds", "missing", "sent", "received", "loss")


@dataclass(frozen=True)
class Row:
    """One member as text; `cells` stand under COLUMNS."""

    cells: tuple[str, ...]
    state: str
    """The state's own name."""
    remark: str
    """Why it was turned away; mostly empty."""


def doing(picture: Picture) -> str:
    """What is going on."""
    round, replies, joined = picture["round"], picture["replies"], picture["joined"]
    rounds = picture["run"]["rounds"] if picture["run"] is not None else 0
    behind = f"{round['finished']} of {rounds}"
    match picture["phase"]:
        case "starting":
            return f"starting: {behind} rounds are behind us" if round["finished"] else "starting"
        case "waiting":
            verb = "has" if joined["here"] == 1 else "have"
            return f"waiting for clients: {joined['here']} of {joined['wanted']} {verb} joined"
        case "round":
            again = f", attempt {round['attempt'] + 1}" if round["attempt"] else ""
            return f"round {round['number']} of {rounds}{again}: {replies['came']} of {replies['asked']} replies"
        case "evaluating":
            return f"evaluating after round {behind}" if round["finished"] else "evaluating before the first round"
        case "finished":
            return f"{picture['why'] or 'finished'} after round {behind}"
        case _:
            after = f"stopped after round {behind}" if rounds else "stopped"
            why = picture["why"].removeprefix("stopped, ")
            return f"{after}: {why}" if why else after


def rows(picture: Picture, now: float) -> list[Row]:
    """The members in the order they were invited."""
    return [_row(one, now) for one in picture["members"]]


def facts(picture: Picture) -> list[tuple[str, str, str]]:
    """Name, value and note of what is worth a place of its own."""
    run, last = picture["run"], picture["last_round"]
    if run is None:
        return []
    found = [("Rounds finished", f"{picture['round']['finished']} of {run['rounds']}", _left(picture))]
    if last is not None:
        found.append(("Training loss", value("loss", last["loss"]), f"in round {last['round']}"))
        found.append(("Last round took", words.duration(last["seconds"]), _counted(last)))
        moved = f"{words.amount(last['bytes_down'])} down, {words.amount(last['bytes_up'])} up"
        found.append(("Traffic of a round", words.amount(last["bytes_down"] + last["bytes_up"]), moved))
    return found


def scores(picture: Picture) -> list[tuple[str, list[tuple[str, str]]]]:
    """Where and when it was evaluated last, with metrics and values; spreads over clients are left to the report."""
    found = []
    for split, one in picture["evaluation"].items():
        shown = {name: number for name, number in one["metrics"].items() if not name.endswith(_SPREADS)}
        values = [(words.metric_name(name), value(name, number)) for name, number in shown.items()]
        if values:
            found.append((f"On {words.split_name(split)}, {_after(one['round'])}", values))
    return found


def done(picture: Picture) -> tuple[float, float]:
    """The share of rounds that are finished, and of that which is under way (0 to 1 each)."""
    if picture["run"] is None or not picture["run"]["rounds"]:
        return 0.0, 0.0
    rounds, finished, replies = picture["run"]["rounds"], picture["round"]["finished"], picture["replies"]
    begun = picture["phase"] == "round" and replies["asked"] > 0
    return min(1.0, finished / rounds), replies["came"] / replies["asked"] / rounds if begun else 0.0


def value(metric: str, number: float | str | None) -> str:
    """A metric's value; the texts "inf" and "nan" are numbers too."""
    return words.value(metric, None if number is None else float(number))


def ago(seconds: float) -> str:
    """How long ago something was, in its largest unit; a clock that was set back makes it now."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (2, "s")):
        if seconds >= size:
            return f"{seconds // (1 if unit == 's' else size):.0f}{words.NBSP}{unit} ago"
    return "now"


def moment(at: float) -> str:
    """The time of day here, with the date."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _row(one: Mapping[str, Any], now: float) -> Row:
    state = one["state"]
    missing = ", ".join(f"{count} {reason}" for reason, count in sorted(one["missing"].items()))
    cells = (
        one["name"],
        STATES.get(state, state),
        NONE if one["seen"] is None else ago(now - one["seen"]),
        str(one["rounds"]),
        missing or "0",
        words.amount(one["bytes_down"]),
        words.amount(one["bytes_up"]),
        value("loss", one["loss"]),
    )
    return Row(cells, state, one["refusal"] if state in ("refused", "revoked") else "")


def _left(picture: Picture) -> str:
    left = picture["seconds_left"]
    return f"about {words.duration(left)} left" if left else ""


def _counted(last: Mapping[str, Any]) -> str:
    missing = f", {last['missing']} missing" if last["missing"] else ""
    return f"{last['clients']} {'reply' if last['clients'] == 1 else 'replies'} counted{missing}"


def _after(round: int) -> str:
    return f"after round {round}" if round else "before the first round"
