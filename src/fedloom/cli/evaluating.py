"""`fedloom eval`: benchmarks on a run's models and on others beside them, in one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from fedloom.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from fedloom.evaluate.comparison import Cell

_MARKS: Final = {"below chance": " ↓", "like chance": " ≈", "": ""}
_MEANING: Final = {
    "below chance": "↓ less than guessing scores",
    "like chance": "≈ within two standard errors of guessing, or at it",
}


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FOLDER|MODEL", help="A run, a folder of peft or transformers, or a model.", show_default=False
        ),
    ],
    tasks: Annotated[str, typer.Option("--tasks", help="Names with commas: fedloom list tasks.", show_default=False)],
    columns: Annotated[
        str | None,
        typer.Option("--columns", help="Of a run: before, final, best, personal.", show_default="before and after"),
    ] = None,
    beside: Annotated[
        list[str] | None, typer.Option("--beside", metavar="[LABEL=]WHAT", help="Another run or model. Repeatable.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option("--data-root", help="Data in hub layout; no network.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Rows of each task.", show_default="all")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts in one pass.")] = 8,
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", min=2, help="Tokens of prompt and answer.", show_default="the model's"),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=1, help="Longest answer, tokens.", show_default="the task's"),
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=0, help="Worked examples.", show_default="the task's")
    ] = None,
    template: Annotated[
        Literal["none", "own"], typer.Option("--template", help="Questions alone, or written as in training.")
    ] = "none",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option("--dtype", help="Number format.")] = "float32",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    merge: Annotated[bool, typer.Option("--merge", help="Add adapters to the weights first.")] = False,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run programs the model writes, fenced in, without network.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Use no results that are kept.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write.", show_default="RUN/evaluation or evaluation")
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="Print the JSON file, not the table.")] = False,
) -> None:
    """Score a run's models on benchmarks, beside others."""
    from fedloom.evaluate import columns as models
    from fedloom.evaluate import tasks as table
    from fedloom.evaluate.job import Result, Settings
    from fedloom.evaluate.run import evaluate as run

    names = _split(tasks, "--tasks")
    for name in names:
        table.find(name)  # a mistyped one is said before a model is looked for
    path = Path(target).expanduser()
    if out is None:
        out = path / "evaluation" if models.is_run(path) else Path("evaluation")
    settings = Settings(
        limit=limit,
        batch_size=batch_size,
        max_length=max_length,
        max_new_tokens=max_new_tokens,
        shots=shots,
        template=template,
        dtype=dtype,
        device=device,
        merge=merge,
        allow_code=allow_code,
    )
    wanted = None if columns is None else _split(columns, "--columns")
    entrants = models.entrants(target, wanted, beside or [], out.resolve())

    def say(label: str, result: Result, kept: bool) -> None:
        main = table.find(result.task).main.name
        took = "kept" if kept else f"{result.seconds:.0f} s"
        value = f"{100 * result.scores[main].value:.1f} %"
        typer.echo(f"{label}: {result.task} {main} {value}, {result.rows} rows ({took})", err=json_lines)

    root = None if data_root is None else data_root.expanduser().resolve()
    made = run(entrants, names, settings, out.resolve(), root, fresh, say)
    if json_lines:
        typer.echo(made.path.read_text(encoding="utf-8"), nl=False)
        return
    _show(made.cells)
    typer.echo(made.path)


def _split(words: str, option: str) -> list[str]:
    found = [word.strip() for word in words.split(",") if word.strip()]
    if not found:
        raise UserError(f"{option} names nothing; give words with commas between them")
    return list(dict.fromkeys(found))


def _show(cells: "Sequence[Cell]") -> None:
    from rich.console import Console
    from rich.measure import Measurement

    console, table = Console(markup=False, highlight=False, emoji=False), drawn(cells)
    wide = console.options.update(max_width=10_000)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)  # no number is cut off
    console.print()
    console.print(table)
    for verdict, meaning in _MEANING.items():
        if any(cell.verdict == verdict for cell in cells):
            console.print(meaning)


def drawn(cells: "Sequence[Cell]") -> "Table":
    """Tasks and scores down, columns across, in per cent with one standard error."""
    from rich.table import Table

    columns = list(dict.fromkeys(cell.column for cell in cells))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "score"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "guess", *columns):
        table.add_column(name, justify="right")
    lines: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in cells:
        lines.setdefault((cell.task, cell.score.name), {})[cell.column] = cell
    before = ""
    for (task, score), line in lines.items():
        first = next(iter(line.values()))
        chance = "" if first.score.chance is None else f"{100 * first.score.chance:.1f}"
        values = [_written(line[column]) for column in columns]
        table.add_row("" if task == before else task, score, str(first.rows), chance, *values)
        before = task
    return table


def _written(cell: "Cell") -> str:
    error = "" if cell.stderr is None else f" ±{100 * cell.stderr:.1f}"
    return f"{100 * cell.value:.1f}{error}{_MARKS[cell.verdict]}"
