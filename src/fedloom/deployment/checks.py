"""`fedloom deploy-check`: what must be in order on a machine before a server or a client is started there.

Each check is one row that says what is and what to do; nothing raises. Rows that cannot be had because of an earlier
one are left out.
"""

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, get_args

from fedloom.deployment.addresses import is_loopback, parse_address
from fedloom.deployment.home import Home
from fedloom.deployment.joining import JoinFile
from fedloom.deployment.joining import read as read_join
from fedloom.deployment.network import Check, connect, dates, free, look, resolve
from fedloom.errors import UserError

PRIVATE: Final = ("server.key", "ca.key", "token")
_LITTLE: Final = 2 * 10**9
"""Free bytes below which a disk is worth a warning."""
_NOTHING: Final = 2 * 10**8
"""Free bytes below which nothing can be kept there."""


def check_client(
    join: Path, data: Path | None = None, model: str | None = None, folder: Path | None = None
) -> list[Check]:
    """Whether a client can take part from this machine.

    Args:
        join: its join file.
        data: its own rows, a file or folder; None: not looked at.
        model: name or folder of the base model; None: not looked at.
        folder: where the client keeps its memory; None: the current folder.
    """
    rows: list[Check] = []
    try:
        found = read_join(join)
    except UserError as error:
        rows.append(Check("join file", "fail", str(error)))
    else:
        rows.append(_joined(join, found))
        rows += _ways(found)
    rows.append(disk(folder or Path.cwd()))
    rows += [_guarded("data", lambda: _rows_of(data))] if data is not None else []
    rows += [_guarded("model", lambda: _model(model))] if model is not None else []
    return rows


def check_server(home: Path, address: str | None = None, model: str | None = None) -> list[Check]:
    """Whether a server can be started with its folder, or the running one is well.

    Args:
        home: its folder.
        address: `host:port` as clients will use it; None: those of the folder.
        model: name or folder of the base model; None: not looked at.
    """
    rows: list[Check] = []
    try:
        opened = Home.open(home)
        settings = opened.settings
    except UserError as error:
        rows.append(Check("folder", "fail", str(error)))
    else:
        rows.append(_folder(home))
        for one in [address] if address is not None else settings.addresses:
            rows += _address(opened, one)
        if opened.secure:
            rows += [_lasts("certificate", opened.certificate), _lasts("authority", opened.ca)]
        rows.append(_port(opened, settings.host, settings.port))
    rows.append(disk(home))
    rows += [_guarded("model", lambda: _model(model))] if model is not None else []
    return rows


def exit_code(rows: Iterable[Check]) -> int:
    """1 if a check failed, else 0."""
    return int(any(row.state == "fail" for row in rows))


def table(rows: Iterable[Check]) -> str:
    """The rows as lines for a terminal: state, name, words."""
    rows = list(rows)
    wide = max((len(row.name) for row in rows), default=0)
    return "\n".join(f"{row.state:<6}{row.name:<{wide}}  {row.words}" for row in rows)


def disk(folder: Path) -> Check:
    """Free space where a folder is, or will be made."""
    there = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), Path.cwd())
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Check("disk", "fail", f"{there} cannot be looked at: {error.strerror or error}")
    words = f"{free / 1e9:.1f} GB free where {folder} is"
    if not os.access(there, os.W_OK):
        return Check("disk", "fail", f"{words}, but this user may not write to {there}; choose another folder")
    if free < _LITTLE:
        why = f"only {words}; checkpoints and memories of clients are kept there: make room"
        return Check("disk", "fail" if free < _NOTHING else "warn", why)
    return Check("disk", "ok", words)


def _joined(path: Path, join: JoinFile) -> Check:
    words = f"{join.name} at {', '.join(join.addresses)}"
    loose = _loose(path, 0o077)
    if loose:
        return Check("join file", "warn", f"{words}; others can read the private key in it: chmod 600 {path}")
    if not join.ca:
        return Check("join file", "warn", f"{words}; without TLS, so the address must be a tunnel or this machine")
    return Check("join file", "ok", words)


def _ways(join: JoinFile) -> list[Check]:
    """All addresses; a client tries one after the other, so where one works the others are no failures."""
    ways = [look(address, join.ca) for address in join.addresses]
    works = any(exit_code(way) == 0 for way in ways)
    rows = [row for way in ways for row in way]
    return [replace(row, state="warn") if works and row.state == "fail" else row for row in rows]


def _folder(home: Path) -> Check:
    """Only the server's own user may look inside."""
    loose = [name for name in PRIVATE if (home / name).exists() and _loose(home / name, 0o077)]
    if loose:
        files = " ".join(str(home / name) for name in loose)
        return Check("folder", "fail", f"others can read {', '.join(loose)}: chmod 600 {files}, and think who did")
    if _loose(home, 0o077):
        return Check("folder", "warn", f"others can look into {home}: chmod 700 {home}")
    return Check("folder", "ok", f"{home}, for this user only")


def _loose(path: Path, forbidden: int) -> bool:
    """Whether others have rights to a file; systems without such rights have none to take away."""
    try:
        return sys.platform != "win32" and bool(stat.S_IMODE(path.stat().st_mode) & forbidden)
    except OSError:
        return False


def _address(home: Home, address: str) -> Iterator[Check]:
    """Whether clients find this machine by a name, and take its certificate for it."""
    from fedloom.deployment.certificates import covers, names_of

    try:
        where = parse_address(address, home.settings.port)
        found, check = resolve(where.host)
        if found and not where.loopback and all(is_loopback(ip) for ip in found):
            words = f"{where.host} is this machine itself here ({', '.join(found)}); other machines need another answer"
            check = Check("address", "warn", words)
        yield check
        if home.secure:
            pem = home.certificate.read_text(encoding="utf-8")
            good = covers(pem, where.host)
            words = f"the certificate is for {', '.join(names_of(pem))}"
            advice = "" if good else f", not for {where.host}: start the server with --address {address}"
            yield Check("names", "ok" if good else "fail", words + advice)
    except (UserError, OSError, ValueError) as error:
        yield Check("address", "fail", str(error))


def _lasts(name: str, path: Path) -> Check:
    """How long the first certificate of a file is still good."""
    from fedloom.deployment.certificates import begins, expires

    try:
        pem = path.read_text(encoding="utf-8")
        return dates(name, begins(pem), expires(pem), datetime.now(UTC), path.name)
    except (OSError, ValueError) as error:
        return Check(name, "fail", f"{path} cannot be read: {error}")


def _port(home: Home, host: str, port: int) -> Check:
    """Free, or in use by the server of this very folder."""
    pid = home.holder()
    if pid is None:
        return free(host, port)
    near = "127.0.0.1" if host in ("0.0.0.0", "", "::") else host
    took, error = connect(near, port)
    who = f"process {pid}" if pid else "a process"
    if took is None:
        return Check("port", "warn", f"a server runs with this folder ({who}), but {port} does not answer yet: {error}")
    return Check("port", "ok", f"{port} is in use by the server of this folder ({who})")


def _rows_of(path: Path) -> Check:
    """How many rows there are, and whether their columns are known without being named."""
    from fedloom.data import sources
    from fedloom.data.config import DataConfig
    from fedloom.data.files import read_file, read_folder
    from fedloom.data.rows import Kind

    if not path.exists():
        return Check("data", "fail", f"{path} does not exist; give the file or folder of this client's rows")
    count = len(read_folder(path, "train").records if path.is_dir() else read_file(path))
    config, errors = DataConfig(source=str(path.absolute())), []
    for kind in get_args(Kind):  # what the recipe learns from rows is not known yet
        try:
            found = sources.load(config, 0, kind)
            break
        except UserError as error:
            errors.append(error)
    else:
        return Check("data", "warn", f"{count} rows in {path}; the recipe must name their columns: {errors[0]}")
    fewer = f" ({count - len(found.rows)} of {count} are skipped)" if len(found.rows) < count else ""
    return Check("data", "ok", f"{len(found.rows)} rows in {path}{fewer}")


def _model(name: str) -> Check:
    """The model's configuration and tokenizer; its weights are not read."""
    from transformers import AutoConfig

    from fedloom.models.config import ModelConfig
    from fedloom.models.load import load_tokenizer, location

    tokenizer = load_tokenizer(ModelConfig(name=name))
    settings = AutoConfig.from_pretrained(location(name))
    return Check("model", "ok", f"{name} is a {settings.model_type} with {len(tokenizer)} tokens")


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """The check's row; an error of any kind is a failed one, since a check must not raise."""
    try:
        return check()
    except UserError as error:
        return Check(name, "fail", str(error))
    except Exception as error:
        return Check(name, "fail", f"{type(error).__name__}: {error}")
