"""What a run's facts mean, in a sentence, a few numbers and remarks."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedloom.metrics.summary import better, direction
from fedloom.report import words
from fedloom.report.facts import Change, Facts, Spread, points, total

_GO_ON = "`fedloom resume .` in its folder goes on."


@dataclass(frozen=True)
class Verdict:
    """The first thing one sees."""

    metric: str
    before: str | None
    """None where there is only one value."""
    after: str
    sentence: str


@dataclass(frozen=True)
class Tile:
    """A number with its name and what belongs to it."""

    name: str
    value: str
    note: str = ""


def _worst_tenth(worst_first: Sequence[float]) -> float:
    return statistics.fmean(worst_first[: math.ceil(len(worst_first) / 10)])


_RANKS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "Best client": lambda worst_first: worst_first[-1],
    "Median": statistics.median,
    "Mean over clients": statistics.fmean,
    "Mean of the worst tenth": _worst_tenth,
    "Worst client": lambda worst_first: worst_first[0],
}


def verdict(facts: Facts) -> Verdict:
    """Before and after of the metric that speaks for the run, else of the training loss, else that nothing is known."""
    change = facts.headline()
    if change is None:
        return _verdict_of_training(facts)
    name = words.metric_name(change.metric)
    after = words.value(change.metric, change.last[1])
    if len(change.points) == 1:
        return Verdict(name, None, after, f"On {words.split_name(change.split)}, {_when(change.last[0])}.")
    sentence = f"On {words.split_name(change.split)}, {_when(change.first[0])} and {_when(change.last[0])}. "
    return Verdict(name, words.value(change.metric, change.first[1]), after, sentence + _judged(change))


def tiles(facts: Facts) -> list[Tile]:
    """The run's size and cost, and the metrics that are not in the verdict."""
    up, down = total(facts.rounds, "bytes_up"), total(facts.rounds, "bytes_down")
    found = [*_metric_tiles(facts), _rounds_tile(facts), _clients_tile(facts)]
    if facts.rounds:
        found.append(
            Tile("Traffic", words.amount(up + down), f"{words.amount(up)} up, {words.amount(down)} down, all clients")
        )
        evaluating = total(facts.metrics, "seconds")
        note = f"{words.duration(evaluating)} of it evaluating" if evaluating else ""
        found.append(Tile("Time", words.duration(facts.seconds), note))
    return found


def remarks(facts: Facts) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = list(_remarks_on_status(facts))
    change = facts.headline()
    if change is not None and change.best[0] < change.last[0] and change.best[1] != change.last[1]:
        value = words.value(change.metric, change.best[1])
        found.append(f"{words.metric_name(change.metric)} was best {_when(change.best[0])}: {value}.")
    lost = len(facts.rounds) - len(facts.train_loss())
    if lost:
        found.append(f"{words.count(lost, 'round has', 'rounds have')} no finite training loss.")
    return [*found, *facts.notes]


def spread_table(spread: Spread) -> list[tuple[str, str, str]]:
    """(name, first, last) of what the spread over clients comes to."""
    lower = direction(spread.metric) == "lower"
    sides = [sorted(side.values(), reverse=lower) for side in (spread.first, spread.last)]
    return [
        (name, words.value(spread.metric, rank(sides[0])), words.value(spread.metric, rank(sides[1])))
        for name, rank in _RANKS.items()
    ]


def replies(facts: Facts) -> list[Tile]:
    """What did not count, by reason; empty if everything did."""
    found = [
        Tile(reason, words.count(number, "reply", "replies"), words.REASONS.get(reason, ""))
        for reason, number in sorted(facts.missing.items())
    ]
    skipped = total(facts.rounds, "skipped")
    if skipped:
        steps = words.count(skipped, "step", "steps")
        found.append(Tile("skipped", steps, "the loss or gradient was not finite, or there was nothing to learn"))
    if facts.retries:
        again = words.count(facts.retries, "round", "rounds")
        found.append(Tile("begun again", again, "too few replies counted, so another cohort was asked"))
    return found


def holdings(facts: Facts) -> str:
    """How the training rows are spread over clients, in a sentence."""
    sizes = [int(client["train"]) for client in facts.holdings]
    rows, clients = (
        words.count(sum(sizes), "training row", "training rows"),
        words.count(len(sizes), "client", "clients"),
    )
    if min(sizes) == max(sizes):
        return f"{rows} at {clients}, {sizes[0]:,} each."
    return f"{rows} at {clients}, from {min(sizes):,} to {max(sizes):,}, half of them with {_half(sizes):,} or more."


def about(facts: Facts, method: str | None = None) -> list[str]:
    """Method (else the algorithm), model, trained numbers and engine, for the line under the title."""
    start: Mapping[str, Any] = facts.started
    algorithm = method or start.get("algorithm")
    model = start.get("model", facts.config.get("model", {}).get("name"))
    found = [str(part) for part in (algorithm, model) if part]
    if "trainable_parameters" in start:
        share = start["trainable_parameters"] / max(1, start["base_parameters"])
        found.append(f"{start['trainable_parameters']:,} trained numbers, {share:.2%} of the base")
    if "device" in start:
        found.append(f"{start['device']}, {start.get('dtype', '')}".rstrip(", "))
    return found


def _verdict_of_training(facts: Facts) -> Verdict:
    curve = facts.train_loss()
    if not curve:
        return Verdict("Nothing measured", None, "–", "No round has finished and nothing was evaluated yet.")
    (first, before), (last, after) = curve[0], curve[-1]
    sentence = f"No evaluation was recorded; this is the mean loss in training, round {first:.0f} and round {last:.0f}."
    shown = words.value("loss", before) if first < last else None
    return Verdict("Training loss", shown, words.value("loss", after), sentence)


def _half(sizes: Sequence[int]) -> int:
    """The size that at least half of the clients reach."""
    return sorted(sizes, reverse=True)[(len(sizes) - 1) // 2]


def _judged(change: Change) -> str:
    if change.first[1] == change.last[1]:
        return "No change."
    return "Better." if better(change.metric, change.last[1], change.first[1]) else "Worse."


def _metric_tiles(facts: Facts) -> Iterator[Tile]:
    headline = facts.headline()
    if headline is None:
        return
    worst = facts.worst_tenth(headline)
    if worst:
        yield Tile(
            "Worst tenth",
            words.value(headline.metric, worst[-1][1]),
            f"of clients; was {words.value(headline.metric, worst[0][1])}",
        )
    for metric in (*words.CURVES, "loss"):
        change = facts.change(metric)
        if change is not None and metric != headline.metric:
            was = f"was {words.value(metric, change.first[1])}"
            yield Tile(words.metric_name(metric), words.value(metric, change.last[1]), was)


def _rounds_tile(facts: Facts) -> Tile:
    planned = facts.rounds_planned
    of = "" if planned is None or planned == facts.rounds_done else f" of {planned:,}"
    examples = total(facts.rounds, "examples")
    note = f"{words.count(examples, 'example', 'examples')} seen in training" if examples else ""
    return Tile("Rounds", f"{facts.rounds_done:,}{of}", note)


def _clients_tile(facts: Facts) -> Tile:
    cohort = facts.started.get("cohort")
    if cohort is None:
        note = ""
    elif facts.started.get("algorithm") == "fedbuff":  # nobody waits: a round counts those who come first
        note = f"{cohort:,} at work at once"
    else:
        note = "all in every round" if cohort >= facts.client_count else f"{cohort:,} in a round"
    return Tile("Clients", f"{facts.client_count:,}", note)


def _remarks_on_status(facts: Facts) -> Iterator[str]:
    done, planned = facts.rounds_done, facts.rounds_planned
    of = f" of {planned}" if planned is not None and done < planned else ""
    where = f"after round {done}{of}" if done else "before the first round ended"
    match facts.status:
        case "finished":
            pass
        case "early_stopped":
            yield f"The run stopped early {where}: its metric no longer improved."
        case "interrupted":
            yield f"The run was interrupted {where}. {_GO_ON}"
        case _:
            yield f"The run has not ended: it is going on, or was killed {where}. {_GO_ON}"
    late = [x for x, _ in points(facts.metrics, "seconds")]
    if late and done > max(late):
        yield f"The last evaluation is from {_when(max(late))}, {done - max(late):.0f} before the last finished round."


def _when(round: float) -> str:
    return f"after round {round:,.0f}" if round else "before training"
