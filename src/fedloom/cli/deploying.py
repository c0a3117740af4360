"""The commands of a deployment: server, invite, revoke, client, status, stop, deploy-check."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fedloom.cli.configuring import Overrides, RecipeArgument, loaded
from fedloom.cli.running import AsJson, Quiet, Report, watched
from fedloom.errors import UserError

if TYPE_CHECKING:
    from fedloom.deployment.given import Given
    from fedloom.deployment.home import Home

PORT: Final = 9092
HomeOption = Annotated[Path, typer.Option("--home", help="The server's own folder: keys, invitations, status.")]
HOME: Final = Path("fedloom-server")
DEPLOYED: Final = ("partition=natural", "data.source=each client's own", "data.limit=null")
"""What a recipe says of one machine's data means nothing to a server."""
NEEDED: Final = "a deployment needs Flower: pip install 'fedloom[deploy]'"


def server(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    home: HomeOption = HOME,
    address: Annotated[
        list[str] | None,
        typer.Option(help="Where clients reach this server, HOST or HOST:PORT; may be repeated. Without: this machine "
                     "only.", show_default=False),
    ] = None,
    port: Annotated[int | None, typer.Option(help=f"Port to listen at; at first {PORT}.", show_default=False)] = None,
    host: Annotated[
        str | None, typer.Option(help="Network address to listen at; at first all, if --address is given.",
                                 show_default=False)
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Your own certificate (PEM) in place of one that is made.", show_default=False)
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key (PEM).", show_default=False)] = None,
    ca: Annotated[Path | None, typer.Option(help="The authority it is signed by (PEM).", show_default=False)] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without TLS: on this machine, or behind a tunnel, only.")
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="Leave an unfinished run and begin another.")] = False,
    status_port: Annotated[
        int, typer.Option(help="Of the status page on this machine; 0: a free one, -1: no page.")
    ] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
    report: Report = True,
) -> None:  # fmt: skip
    """Lead a run over clients on other machines; the same command again goes on with it."""
    config = loaded("server", recipe, [*(overrides or []), *DEPLOYED])
    _needed()
    from fedloom.deployment.server import Server

    given = _given(certificate, key, ca)
    folder = _home(home, address or [], host, port, given, insecure)

    def say(words: str) -> None:
        if not as_json:
            typer.echo(words)

    _end_on_sigterm()

    def train(sinks: list[Callable[..., None]]) -> object:
        return Server(config, folder, say, sinks, new, None if status_port < 0 else status_port).go()

    watched(train, quiet, as_json, report, again="the same command goes on from there")  # type: ignore[arg-type]


def invite(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the client will be called.", show_default=False)],
    home: HomeOption = HOME,
    output: Annotated[
        Path | None, typer.Option(help="Write the join file there, readable by its owner only.", show_default=False)
    ] = None,
) -> None:
    """Print the join file of one client: fedloom invite site-a > site-a.join."""
    _needed()
    from fedloom.deployment import joining
    from fedloom.deployment.home import Home

    server = Home.open(home)
    if output is not None and output.exists():
        raise UserError(f"{output} exists, and is not overwritten; name another file")
    join = server.invite(name)
    if output is None:
        typer.echo(join.text, nl=False)
    else:
        joining.write(output, join)
    where = output or f"{name}.join"
    typer.echo(
        f"{name} is invited. The file holds its private key: hand it over by a safe way, then on that machine:\n"
        f"  fedloom client {where} --data YOUR.jsonl",
        err=True,
    )


def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An invited client.", show_default=False)],
    home: HomeOption = HOME,
) -> None:
    """Let a client take part no longer; a running server notices by itself."""
    _needed()
    from fedloom.deployment.home import Home

    Home.open(home).revoke(name)
    typer.echo(f"{name} is revoked; its key opens nothing any more")


def client(
    join: Annotated[
        list[Path], typer.Argument(metavar="JOIN...", help="Join files, mostly one.", show_default=False)
    ],
    data: Annotated[
        list[Path], typer.Option("--data", help="This client's text: a file or folder; once for each join file.",
                                 show_default=False)
    ],
    folder: Annotated[Path, typer.Option(help="Where clients keep what they must remember.")] = Path("fedloom-client"),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="This machine's own: model.name, model.device, "
                     "offsite.emulator, engine.*, data.columns.*; may be repeated.", show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """Take part in a server's run with text that stays here; waits, reconnects, ends with the run."""
    _needed()
    from fedloom.deployment import joining
    from fedloom.deployment.client import Place, take_part

    if len(data) != len(join):
        raise UserError(f"{len(join)} join files and {len(data)} --data are given; give one --data for each")
    places = []
    for file, text in zip(join, data, strict=True):
        found = joining.read(file)
        places.append(Place(found, text, folder / found.name))
    many = len(places) > 1

    def say(name: str, words: str) -> None:
        typer.echo(f"{name}: {words}" if many and name else words)

    _end_on_sigterm()
    for place in places:
        say("", f"{place.join.name} connects to {', '.join(place.join.addresses)}; Ctrl-C leaves")
    take_part(places, settings or [], say)


def status(
    home: HomeOption = HOME,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Say what the server does: round, who is in, last seen, losses."""
    import json

    from fedloom.deployment import picture, show

    if as_json:
        typer.echo(json.dumps(picture.read(home), indent=1))
        return
    typer.echo(show.status(home))


def stop(home: HomeOption = HOME) -> None:
    """Let the server end after its round; the same server command goes on later."""
    from fedloom.deployment import show

    typer.echo(show.stop(home, typer.echo))


def deploy_check(
    join: Annotated[
        Path | None, typer.Argument(metavar="[JOIN]", help="On a client's machine: its join file.", show_default=False)
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The client's text.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="The base model, as model.name.", show_default=False)] = None,
    home: HomeOption = HOME,
    address: Annotated[
        str | None, typer.Option(help="On the server: where clients will reach it.", show_default=False)
    ] = None,
) -> None:
    """Test address, port, certificate, clock, disk, data and model, before anything runs."""
    _needed()
    from fedloom.deployment import checks

    rows = checks.check_server(home, address, model) if join is None else checks.check_client(join, data, model)
    typer.echo(checks.table(rows))
    code = checks.exit_code(rows)
    if code:
        raise typer.Exit(code)


def _end_on_sigterm() -> None:
    """Let a service manager's request to end be what Ctrl-C is: say goodbye, keep what was reached."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _needed() -> None:
    """Raise a UserError where Flower is not installed."""
    from importlib.util import find_spec

    if find_spec("flwr") is None or find_spec("cryptography") is None:
        raise UserError(NEEDED)


def _given(certificate: Path | None, key: Path | None, ca: Path | None) -> "Given | None":
    from fedloom.deployment.given import Given

    found = [one for one in (certificate, key, ca) if one is not None]
    if not found:
        return None
    if certificate is None or key is None or ca is None:
        raise UserError("a certificate of your own needs all three: --certificate, --key and --ca")
    return Given(certificate, key, ca)


def _home(
    path: Path, addresses: list[str], host: str | None, port: int | None, given: "Given | None", insecure: bool
) -> "Home":
    """The server's folder, made at the first start."""
    from fedloom.deployment.home import Home

    if not Home.exists(path):
        listens = host or ("0.0.0.0" if addresses else "127.0.0.1")
        home = Home.create(path, addresses or ["127.0.0.1"], listens, port or PORT, given, insecure=insecure)
        typer.echo(f"made the server's folder {path}", err=True)
        return home
    home = Home.open(path)
    where = home.settings
    if (host or where.host, port or where.port) != (where.host, where.port) or (insecure and home.secure):
        raise UserError(
            f"{path} was made for {where.host}:{where.port}"
            + ("" if home.secure else ", without TLS")
            + "; leave out --host, --port and --insecure, or name another folder: --home"
        )
    for words in home.update(addresses, given):
        typer.echo(words, err=True)
    return home
