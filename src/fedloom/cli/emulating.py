"""The commands about emulators: emulator build, emulator show, emulator report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.cli import wording
from fedloom.cli.configuring import Overrides, RecipeArgument, loaded
from fedloom.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from fedloom.metrics.likeness import Likeness
    from fedloom.models.emulator import Facts

HELP = "Make an emulator of a model that stays with its owner, look at one, measure what it gives away."
ROWS = ("auto", "global", "clients", "own")


def build(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")] = Path("emulator"),
) -> None:
    """Make the emulator of a recipe's model (section offsite), and write it as a folder to hand to clients.

    Runs then use it: offsite.emulator=FOLDER
    """
    config = loaded("emulator build", recipe, overrides)
    from fedloom import emulating

    made = emulating.build(config, out)
    typer.echo(f"emulator: {out}")
    for line in described(made.facts):
        typer.echo(line)
    typer.echo(f"weights: {wording.count(made.bytes)} bytes, the owner's {wording.count(made.base_bytes)}")
    typer.echo(f"use it with: offsite.emulator={out}")


def show(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An emulator's folder.", show_default=False)],
) -> None:
    """Print what an emulator was made from, and which of its blocks stand for which."""
    from rich.console import Console

    from fedloom.models.emulator import read

    facts = read(folder)
    for line in described(facts):
        typer.echo(line)
    size = sum((folder / name).stat().st_size for name in facts.files)
    typer.echo(f"files: {len(facts.files)}, {wording.count(size)} bytes")
    typer.echo()
    Console(markup=False, highlight=False, emoji=False).print(blocks(facts))


def report(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    emulator: Annotated[
        Path | None, typer.Option("--emulator", help="The emulator's folder.", show_default="offsite.emulator")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="A finished run on it, to score what it tuned.", show_default=False)
    ] = None,
    attack_steps: Annotated[
        int | None,
        typer.Option("--attack-steps", min=0, help="Of the attacker; 0: none.", show_default="offsite.align.steps"),
    ] = None,
    rows: Annotated[
        str, typer.Option("--rows", help="What is scored: global (evaluate.global_source), clients, own, or auto.")
    ] = "auto",
    out: Annotated[Path, typer.Option("--out", help="The JSON file to write.")] = Path("emulator-report.json"),
) -> None:
    """Measure how close an emulator is to its owner's model, and how much of it the emulator alone gives away.

    Both are scored by the recipe's metrics: as they are, with what a run tuned, and the emulator after an attacker has
    tuned all of it on the owner's or public rows.
    """
    config = loaded("emulator report", recipe, overrides)
    chosen = next((word for word in ROWS if word == rows), None)
    if chosen is None:
        raise UserError(f"--rows {rows}: choose one of {', '.join(ROWS)}")
    from rich.console import Console

    from fedloom import likeness
    from fedloom.emulating import section
    from fedloom.metrics.likeness import check_new

    named = section(config).emulator
    folder = Path(named).expanduser() if emulator is None and named is not None else emulator
    if folder is None:
        raise UserError("which emulator? Name its folder: --emulator DIR, or offsite.emulator=DIR")
    check_new(out)
    found = likeness.report(config, folder, run, attack_steps, chosen)  # type: ignore[arg-type]
    found.write(out)
    Console(markup=False, highlight=False, emoji=False).print(scores(found))
    for line in summary(found):
        typer.echo(line)
    typer.echo(out)


def described(facts: "Facts") -> list[str]:
    """An artefact in a few lines."""
    plan, share = facts.plan, facts.parameters / max(1, facts.base_parameters)
    how = "some of its middle blocks as they are" if facts.method == "drop" else "some of its middle blocks, aligned"
    lines = [
        f"fingerprint {facts.fingerprint}: {how} ({facts.method}), of {facts.base} (fingerprint {facts.base_kin})",
        f"blocks: {len(plan.kept)} in place of {len(plan.middle)}; clients may train {len(plan.adapter)} more "
        f"({plan.head} before, {plan.tail} behind)",
        f"{wording.count(facts.parameters)} numbers, the owner's model {wording.count(facts.base_parameters)} "
        f"({100 * share:.1f} %)",
    ]
    if facts.align is not None:
        a = facts.align
        lines.append(
            f"aligned in {a.steps} steps on {a.rows} rows: distance {a.kd_before:.4f} before, {a.kd_after:.4f} after "
            f"(on {a.held} other rows)"
        )
    return lines


def blocks(facts: "Facts") -> "Table":
    """A line for each of the emulator's blocks."""
    from rich.table import Table

    plan = facts.plan
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("emulator's", "owner's"):
        table.add_column(name, justify="right")
    table.add_column("")
    middle = f"with {len(plan.kept)} in place of {plan.middle[0]} to {plan.middle[-1]}"
    for block, home in enumerate(plan.layers):
        table.add_row(str(block), str(home), "the clients'" if block in plan.adapter else f"fixed: {middle}")
    return table


def scores(found: "Likeness") -> "Table":
    """A line for each model and moment."""
    from rich.table import Table

    names = list(found.scores[0].metrics)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "model"):
        table.add_column(name)
    for name in names:
        table.add_column(name, justify="right")
    before = ""
    for one in found.scores:
        cells = [wording.number(name, one.metrics[name]) if name in one.metrics else "" for name in names]
        table.add_row("" if one.moment == before else one.moment, one.model, *cells)
        before = one.moment
    return table


def summary(found: "Likeness") -> list[str]:
    """What the numbers mean, in a few lines."""
    lines = [
        f"scored: {found.rows} rows ({found.source})",
        f"per token: KL {found.kl:.4f} nats, {100 * found.agreement:.1f} % the same likeliest word "
        f"({wording.count(found.tokens)} tokens)",
    ]
    attack = found.attack
    if attack is not None:
        tuned = " as tuned" if any(one.moment == "after tuning" for one in found.scores) else ""
        way = f"the emulator's loss was not above that of the owner's model{tuned} to begin with"
        if attack.closed is not None:
            way = f"{100 * attack.closed:.1f} % of the way from the emulator's loss to that of the owner's model{tuned}"
        lines.append(f"attacker: {attack.steps} steps on {attack.rows} rows ({attack.source}); {way}")
    return lines
