"""Results that are kept, so that a broken-off evaluation goes on where it stopped and nothing is computed twice.

A result is used again only where everything it depends on is the same: the files of model and adapter, the rows, the
task, lm-eval's version and the settings. Batch size and device are left out: they change scores by rounding alone.
"""

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any, Final

from fedloom import atomic
from fedloom.errors import UserError
from fedloom.evaluate.job import Entrant, Result, Settings
from fedloom.evaluate.tasks import OWN, Task
from fedloom.models.load import location

_WHOLE: Final = 256 << 20
"""Bytes up to which a file is read whole; of larger ones, PIECES of PIECE bytes at even distances."""
_PIECES: Final = 256
_PIECE: Final = 1 << 16
_OF_MODEL: Final = (".safetensors", ".json", ".model", ".txt", ".jinja")
_FORMAT: Final = 1


class Kept:
    """Reads and writes results beside a run, by what they depend on.

    Args:
        settings: of the evaluation.
        data_root: where the rows are; None: on the hub, whose revisions are not looked at.
    """

    def __init__(self, settings: Settings, data_root: Path | None) -> None:
        self.settings, self.data_root = settings, data_root
        self._digests: dict[tuple[Path, bool], str] = {}

    def find(self, entrant: Entrant, task: Task) -> Result | None:
        """The result, if it is there.

        Raises:
            UserError: its file is damaged.
        """
        path = self._path(entrant, task)
        if not path.is_file():
            return None
        try:
            return Result.model_validate_json(json.dumps(json.loads(path.read_text(encoding="utf-8"))["result"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); remove it, and the task is evaluated again") from None

    def put(self, entrant: Entrant, task: Task, result: Result) -> None:
        """Write a result."""
        written = {"of": self._depends(entrant, task), "result": result.model_dump(mode="json")}
        atomic.write_text(self._path(entrant, task), json.dumps(written, indent=1) + "\n")

    def _path(self, entrant: Entrant, task: Task) -> Path:
        text = json.dumps(self._depends(entrant, task), sort_keys=True)
        key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return Path(entrant.home) / "results" / f"{task.name}-{key}.json"

    def _depends(self, entrant: Entrant, task: Task) -> dict[str, Any]:
        said = self.settings.model_dump(mode="json", exclude={"batch_size", "device", "allow_code", "merge"})
        own_template = self.settings.template == "own" and entrant.template is not None
        return {
            "format": _FORMAT,
            "model": self.model(entrant),
            "adapter": None if entrant.adapter is None else self._digest(Path(entrant.adapter)),
            "merged": entrant.adapter is not None and self.settings.merge,
            "template": entrant.template.model_dump(mode="json") if own_template and entrant.template else None,
            "task": task.name,
            "own": self._digest(Path(__file__).parent / OWN, everything=True) if task.place == OWN else None,
            "rows": self._rows(task),
            "lm_eval": importlib.metadata.version("lm_eval"),
            "settings": said,
        }

    def model(self, entrant: Entrant) -> str:
        """What tells one base from another: the content of its folder, or id and revision on the hub."""
        where = Path(location(entrant.base.name))
        layers = "" if entrant.base.layers is None else f" layers {entrant.base.layers}"
        if where.is_dir():
            return self._digest(where) + layers
        return f"{entrant.base.name}@{entrant.base.revision}{layers}"

    def _rows(self, task: Task) -> str:
        return "hub" if self.data_root is None else self._digest(self.data_root / task.data, everything=True)

    def _digest(self, folder: Path, everything: bool = False) -> str:
        if (folder, everything) not in self._digests:
            self._digests[folder, everything] = digest(folder, everything)
        return self._digests[folder, everything]


def digest(folder: Path, everything: bool = False) -> str:
    """Sixteen hex digits over names and content of a folder's files.

    Args:
        folder: of a model, an adapter, or rows.
        everything: all files, also in folders below; else those a model consists of.
    """
    found = hashlib.blake2b(digest_size=8)
    paths = folder.rglob("*") if everything else folder.iterdir()
    for path in sorted(p for p in paths if p.is_file() and "__pycache__" not in p.parts):
        if everything or path.suffix in _OF_MODEL:
            found.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
            _add(found, path)
    return found.hexdigest()


def _add(found: Any, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            while block := file.read(_PIECE):
                found.update(block)
            return
        for piece in range(_PIECES):
            file.seek(piece * (size - _PIECE) // (_PIECES - 1))
            found.update(file.read(_PIECE))
