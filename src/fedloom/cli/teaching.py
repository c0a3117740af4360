"""The command that trains a teacher before a run: pretrain-teacher."""

from pathlib import Path
from typing import Annotated

import typer

from fedloom.cli.configuring import Overrides, RecipeArgument, loaded


def pretrain_teacher(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")] = Path("teacher"),
) -> None:
    """Train the teacher of a recipe (algorithm=fedkd) on its public rows, and write it as a folder.

    algorithm.pretrain_epochs says how long. Runs then begin with it: algorithm.teacher.name=FOLDER
    algorithm.pretrain_epochs=0
    """
    config = loaded("pretrain-teacher", recipe, overrides)
    from fedloom import teaching

    steps, loss = teaching.pretrain(config, out)
    typer.echo(f"teacher: {out} ({steps} steps, mean loss {loss:.4f})")
    typer.echo(f"use it with: algorithm.teacher.name={out} algorithm.pretrain_epochs=0")
