"""What is shown when a run has ended, and the commands that look at its folder: report, cite, chat, export."""

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from fedloom.cli import wording
from fedloom.cli.progress import plainly
from fedloom.errors import UserError
from fedloom.folder import RunFolder

_NO_WORST: Final = ("loss", "perplexity", "margin", "reward")
"""Metrics whose worst tenth is no line of its own."""
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]


def conclude(console: Console, folder: Path, report: Path | None) -> None:
    """Metrics before and after, the folder, and what to do next."""
    run = RunFolder(folder)
    rows = run.metrics()
    if rows:
        console.print()
        console.print(before_and_after(rows))
        console.print()
    plainly(console, f"{run.status.replace('_', ' ')}: {folder}")
    if report is not None:
        plainly(console, f"report: {report}")
    own = folder / "adapters" / "clients"
    if own.is_dir():
        plainly(console, f"the clients' own models: {own}")
    plainly(console, "next:")
    private = own.is_dir() and not (folder / "adapters" / "final").is_dir()
    writes = run.config().get("objective", {}).get("name") != "classify"
    chat, export = writes and not private, not private
    commands = {"chat {}": chat, "report {} OTHER-RUN": True, "export {} --merge --out DIR": export, "cite {}": True}
    for command in [command for command, fits in commands.items() if fits]:
        plainly(console, f"  fedloom {command.format(folder)}")


def before_and_after(rows: list[dict[str, float | str | None]]) -> Table:
    """First and last evaluation of every split; the spreads over clients only as the worst tenth."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("split", "metric"):
        table.add_column(name)
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for split in dict.fromkeys(str(row["split"]) for row in rows):
        of_split = [row for row in rows if row["split"] == split]
        first, last = of_split[0], of_split[-1]
        shown = [name for name in last if _worth_a_line(name, first.get(name), last[name])]
        for i, name in enumerate(shown):
            table.add_row(
                "" if i else split, name, _cell(name, first.get(name), first is last), _cell(name, last[name])
            )
    return table


def _worth_a_line(name: str, first: float | str | None, last: float | str | None) -> bool:
    if name in ("round", "split", "seconds") or (first is None and last is None):
        return False
    return not wording.is_spread(name) or (name.endswith("_worst_decile") and not name.startswith(_NO_WORST))


def _cell(name: str, value: float | str | None, absent: bool = False) -> str:
    return "" if absent or not isinstance(value, float) else wording.number(name, value)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One run, or several to compare.")],
    out: Annotated[Path | None, typer.Option("--out", help="The file to write.", show_default="report.html")] = None,
) -> None:
    """Write an HTML page about one run, or comparing several."""
    from fedloom.report import page

    typer.echo(page.write(runs, out))


def cite(run: RunArgument) -> None:
    """Print BibTeX of what a run rests on: fedloom, methods, data, metrics."""
    from fedloom import cite as references
    from fedloom.config import load

    folder = RunFolder(run)
    config = load(run / "config.yaml")
    typer.echo(references.bibtex(config, str(folder.env().get("fedloom", ""))), nl=False)


def chat(
    run: RunArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Answer this and stop.", show_default=False)] = None,
    base: Annotated[bool, typer.Option("--base", help="The model as it was before tuning.")] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 256,
) -> None:
    """Talk to the tuned model."""
    from fedloom import finish

    talk = finish.Chat(run, base=base, max_new_tokens=max_new_tokens)
    if prompt is not None:
        typer.echo(talk.reply([{"role": "user", "content": prompt}]))
        return
    typer.echo("Type a message and press Enter; an empty line or Ctrl-D ends. `/new` forgets the conversation.")
    messages: list[dict[str, str]] = []
    while text := _ask():
        if text == "/new":
            messages = []
            continue
        messages.append({"role": "user", "content": text})
        answer = talk.reply(messages)
        messages.append({"role": "assistant", "content": answer})
        typer.echo(answer)


def _ask() -> str:
    """A line from the person; empty when they are done."""
    try:
        return input("> ").strip()
    except EOFError:
        typer.echo()
        return ""


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", help="The folder to make.", show_default=False)],
    merge: Annotated[
        bool, typer.Option("--merge", help="A whole model, the adapter folded in; else the adapter alone.")
    ] = False,
) -> None:
    """Copy the tuned model out of a run, in Hugging Face layout."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; nothing is overwritten. Choose another --out.")
    from fedloom import finish

    typer.echo(finish.export(run, out, merge))
