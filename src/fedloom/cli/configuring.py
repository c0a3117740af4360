"""The commands about recipes: validate, show, recipes, copy."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fedloom.errors import ConfigError, UserError

if TYPE_CHECKING:
    from fedloom.config import Config

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name or a YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that win over the recipe.", show_default=False),
]
FLAGS: Final = {
    "run": ("--quiet", "--json", "--report", "--no-report", "--debug", "--help"),
    "server": (
        "--home",
        "--address",
        "--port",
        "--host",
        "--certificate",
        "--key",
        "--ca",
        "--insecure",
        "--new",
        "--status-port",
        "--quiet",
        "--json",
        "--report",
        "--no-report",
        "--debug",
        "--help",
    ),
    "validate": ("--debug", "--help"),
    "doctor": ("--debug", "--help"),
    "show": ("--example", "--comments", "--debug", "--help"),
    "partition": ("--svg", "--debug", "--help"),
    "pretrain-teacher": ("--out", "--debug", "--help"),
    "emulator build": ("--out", "--debug", "--help"),
    "emulator report": ("--emulator", "--run", "--attack-steps", "--rows", "--out", "--debug", "--help"),
}
"""Options of the commands that take settings, to recognise mistyped ones."""


def loaded(command: str, recipe: str, overrides: list[str] | None) -> "Config":
    """The configuration of a recipe and overrides.

    Raises:
        UserError: it has mistakes, or no recipe was named first.
    """
    from fedloom.config import load
    from fedloom.config.overrides import parse_override

    given = overrides or []
    if recipe.startswith("-"):
        _, problem = parse_override(recipe, FLAGS[command])
        raise ConfigError([f"{recipe}  {problem}"])
    if "=" in recipe:
        raise UserError(f"{recipe} stands where the recipe goes. Write: fedloom {command} RECIPE {recipe}")
    return load(recipe, given, FLAGS[command])


def validate(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Check a recipe and name all its mistakes at once."""
    loaded("validate", recipe, overrides)
    typer.echo(f"{recipe}: no mistakes found")


def show(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print one example as the model sees it, the learned part marked.")
    ] = False,
    comments: Annotated[bool, typer.Option("--comments", help="Say what each setting means.")] = False,
) -> None:
    """Print a recipe with every setting, defaults included."""
    config = loaded("show", recipe, overrides)
    if example:
        from fedloom.cli.rows import print_example

        print_example(config)
        return
    from fedloom.config import dump

    typer.echo(dump(config, comments), nl=False)


def recipes() -> None:
    """Print the recipes that ship with fedloom."""
    from fedloom import recipes as shipped
    from fedloom.cli.listing import print_pairs

    print_pairs([(name, shipped.summary(name)) for name in shipped.names()])


def copy(
    recipe: RecipeArgument,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The file to write.", show_default=False)],
) -> None:
    """Copy a recipe, to edit it; never overwrites."""
    from fedloom.config.load import read

    _, text = read(recipe)
    path = dest / f"{Path(recipe).stem}.yaml" if dest.is_dir() else dest
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"{path} exists, and is not overwritten. Choose another name.") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} cannot be made: there is no folder {path.parent}.") from error
    typer.echo(f"{path}  (check it with: fedloom validate {path})")
