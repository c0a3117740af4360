"""The program `fedloom`: every command in one table."""

from collections.abc import Callable, Mapping
from typing import Final

import typer
import typer.core

from fedloom.cli import configuring, deploying, doctor, emulating, evaluating, listing, results, rows, running, teaching
from fedloom.cli.exits import guarded

typer.core.HAS_RICH = False  # help is plain text; typer before 0.21, as Flower wants it, escapes brackets all the same
app = typer.Typer(
    name="fedloom",
    help="Federated fine-tuning of language models. Begin with: fedloom run quickstart",
    epilog="Settings are given as key=value: fedloom run quickstart local.lr=1e-3 federation.rounds=20",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def version() -> None:
    """Print the version."""
    from fedloom import __version__

    typer.echo(f"fedloom {__version__}")


COMMANDS: Final[Mapping[str, Callable[..., None]]] = {
    "run": running.run,
    "resume": running.resume,
    "validate": configuring.validate,
    "show": configuring.show,
    "partition": rows.partition,
    "pretrain-teacher": teaching.pretrain_teacher,
    "emulator build": emulating.build,
    "emulator show": emulating.show,
    "emulator report": emulating.report,
    "recipes": configuring.recipes,
    "copy": configuring.copy,
    "list": listing.listing,
    "eval": evaluating.evaluate,
    "report": results.report,
    "cite": results.cite,
    "chat": results.chat,
    "export": results.export,
    "server": deploying.server,
    "invite": deploying.invite,
    "revoke": deploying.revoke,
    "client": deploying.client,
    "status": deploying.status,
    "stop": deploying.stop,
    "deploy-check": deploying.deploy_check,
    "doctor": doctor.doctor,
    "version": version,
}
GROUPS: Final[Mapping[str, str]] = {"emulator": emulating.HELP}
"""Words that begin several commands, and what these are about."""
_SETTINGS: Final = {"ignore_unknown_options": True}
"""For commands that take settings: an unknown --flag reaches us as an argument, and is answered with key=value."""

_groups = {name: typer.Typer(help=words, no_args_is_help=True, rich_markup_mode=None) for name, words in GROUPS.items()}
for _name, _command in COMMANDS.items():
    _group, _, _word = _name.rpartition(" ")
    _home = _groups[_group] if _group else app
    _home.command(_word, context_settings=_SETTINGS if _name in configuring.FLAGS else None)(guarded(_command))
for _name, _home in _groups.items():
    app.add_typer(_home, name=_name)


def entry() -> None:
    """Run the command line."""
    app(prog_name="fedloom")
