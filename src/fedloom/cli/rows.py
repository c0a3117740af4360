"""The commands that look at data: partition, and one example as the model sees it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fedloom.cli.configuring import Overrides, RecipeArgument, loaded
from fedloom.errors import UserError

if TYPE_CHECKING:
    from fedloom.config import Config

_CLIENTS_SHOWN: Final = 30
_CATEGORIES_SHOWN: Final = 3


def partition(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    svg: Annotated[Path | None, typer.Option("--svg", help="Also draw it into this file.", show_default=False)] = None,
) -> None:
    """Print who holds what, without loading a model."""
    config = loaded("partition", recipe, overrides)
    from fedloom.data import partition as deal
    from fedloom.data import sources

    kind = config.objective.rows
    table = sources.load(config.data, config.seed, kind)
    plan = deal.plan(table, config.partition, config.data, config.seed)
    holdings = deal.holdings(table, plan)
    print_holdings(holdings)
    for note in (*table.notes, *plan.notes):
        typer.echo(f"note: {note}")
    if svg is not None:
        from fedloom import atomic
        from fedloom.data.picture import partition_svg

        atomic.write_text(svg, partition_svg(holdings, "label" if kind == "labels" else "category"))
        typer.echo(svg)


def print_holdings(holdings: list[dict[str, Any]]) -> None:
    """A line per client: rows of each split, and the categories it has most of."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("client")
    for split in ("train", "validation", "test"):
        table.add_column(split, justify="right")
    table.add_column("categories (training rows)", overflow="fold")
    for one in holdings[:_CLIENTS_SHOWN]:
        counts = [str(one[split]) for split in ("train", "validation", "test")]
        table.add_row(one["name"], *counts, _categories(one["categories"]))
    console.print(table)
    if len(holdings) > _CLIENTS_SHOWN:
        console.print(f"... and {len(holdings) - _CLIENTS_SHOWN} more clients")
    sizes = sorted(one["train"] for one in holdings)
    total = {split: sum(one[split] for one in holdings) for split in ("train", "validation", "test")}
    console.print(
        f"{len(holdings)} clients: {total['train']} training rows ({sizes[0]} to {sizes[-1]} each, "
        f"median {sizes[len(sizes) // 2]}), {total['validation']} for validation, {total['test']} for testing"
    )


def _categories(held: dict[str, int]) -> str:
    most = sorted(held.items(), key=lambda pair: (-pair[1], pair[0]))
    named = ", ".join(f"{name} {rows}" for name, rows in most[:_CATEGORIES_SHOWN])
    return f"{named}, {len(most) - _CATEGORIES_SHOWN} more" if len(most) > _CATEGORIES_SHOWN else named


def print_example(config: "Config") -> None:
    """The first client's first row, encoded; what is learned is marked."""
    from fedloom.data import federated
    from fedloom.models.load import load_tokenizer
    from fedloom.sides import wanted

    tokenizer = load_tokenizer(config.model)
    data = federated.build(config.data, config.partition, config.seed, tokenizer, wanted(config))
    client = next(one for one in data.clients if one.sizes["train"])
    examples = client.get("train")
    if not examples:
        left_out = ", ".join(f"{count} {reason}" for reason, count in client.dropped["train"].items())
        raise UserError(f"{client.name} has nothing to train on ({left_out}); raise data.max_length")
    typer.echo(f"{client.name}, template {data.template_name}: {_said(examples[0], data.labels, tokenizer)}")


def _said(example: Any, labels: Sequence[str] | None, tokenizer: Any) -> str:
    """An example in words, and its text."""
    from fedloom.data.encode import marked
    from fedloom.data.labelled import Labelled
    from fedloom.data.pairs import Judged, Pair

    if isinstance(example, Labelled):
        assert labels is not None
        text = tokenizer.decode(example.ids, skip_special_tokens=False)
        return f"{example.size} tokens, the label is {labels[example.label]} ({example.label})\n\n{text}"
    if isinstance(example, Pair):
        texts = [
            f"{name}:\n{marked(one, tokenizer)}"
            for name, one in (("chosen", example.chosen), ("rejected", example.rejected))
        ]
        return f"{example.size} tokens in two answers, those between ⟦ and ⟧ are compared\n\n" + "\n\n".join(texts)
    answer = example.answer if isinstance(example, Judged) else example
    learned = sum(label != -100 for label in answer.labels)
    judged = f", which is {'good' if example.good else 'bad'}" if isinstance(example, Judged) else ""
    words = "are the answer" if judged else "are learned"
    return f"{answer.size} tokens, the {learned} between ⟦ and ⟧ {words}{judged}\n\n{marked(answer, tokenizer)}"
