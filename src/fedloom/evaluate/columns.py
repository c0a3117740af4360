"""Which models stand side by side: those of a run, of other runs, and any folder of transformers or peft.

A column that was asked for and is not there is an error: no model is ever evaluated in place of another.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fedloom.adapters import readme
from fedloom.adapters.classifiers import is_classifier
from fedloom.adapters.config import FullConfig
from fedloom.config import Config, load
from fedloom.errors import UserError, nearest
from fedloom.evaluate.job import Entrant, Template
from fedloom.folder import REQUIRED, RunFolder
from fedloom.models.config import ModelConfig

OF_RUN: Final = ("before", "final", "best", "personal")
"""Columns a run may have: its base, its last and best shared model, and every client's own."""
_ALSO: Final = ("local", "centralized", "after")


def entrants(target: str, wanted: Sequence[str] | None, beside: Sequence[str], out: Path) -> list[Entrant]:
    """All models of the table, in the order of its columns.

    Args:
        target: a run folder, a folder of peft or transformers, `nano`, or a Hugging Face id.
        wanted: columns of the target; None: before and after, as far as it has them.
        beside: LABEL=WHAT or WHAT, further columns: another run's final model (or its clients' own), or a folder.
        out: where results of models that are not of a run are kept.

    Raises:
        UserError: something is not there, or two columns have one name.
    """
    found = _of_target(target, wanted, out)
    for one in beside:
        found += _beside(one, out)
    names = Counter(dict.fromkeys((e.column, e.home, e.adapter if not e.who else None) for e in found))
    columns = Counter(column for column, _, _ in names)
    twice = [name for name, count in columns.items() if count > 1]
    if twice:
        raise UserError(f"two columns are called {twice[0]}; name them: --beside LABEL=RUN")
    return found


def _of_target(target: str, wanted: Sequence[str] | None, out: Path) -> list[Entrant]:
    path = Path(target).expanduser()
    if is_run(path):
        run = _Run(path)
        return [one for column in (run.usual if wanted is None else wanted) for one in run.column(column, column)]
    if (path / "adapter_config.json").is_file():
        columns = ("before", "final") if wanted is None else wanted
        _known(columns, ("before", "final"), target)
        adapter = _of_folder(path, "final", out)
        base = adapter.model_copy(update={"column": "before", "adapter": None})
        return [base if column == "before" else adapter for column in columns]
    _known(wanted or (), ("model",), target)
    return [_of_model(target, "model", out)]


def _beside(one: str, out: Path) -> list[Entrant]:
    label, _, what = one.rpartition("=")
    path = Path(what).expanduser()
    if is_run(path):
        run = _Run(path)
        return run.column("final" if run.final.is_dir() else "personal", label or run.folder.name)
    if (path / "adapter_config.json").is_file():
        return [_of_folder(path, label or path.name, out)]
    return [_of_model(what, label or Path(what).name, out)]


def is_run(path: Path) -> bool:
    """Whether a folder looks like a run's."""
    return all((path / name).is_file() for name in REQUIRED)


def _known(columns: Sequence[str], there: Sequence[str], target: str) -> None:
    for column in columns:
        if column not in there:
            raise UserError(
                f"--columns: {target} is no run and has no {column!r}.{nearest(column, there)} "
                "Other models stand beside it with --beside LABEL=WHAT"
            )


class _Run:
    """The models a run folder holds."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.folder = RunFolder(self.path)
        self.config: Config = load(self.path / "config.yaml")
        if self.config.objective.rows == "labels":
            raise UserError(
                f"{path} tuned a classifier, which scores texts and writes none; its accuracy is in its metrics.csv "
                "and report.html. fedloom eval compares language models"
            )
        self.final, self.best = self.path / "adapters" / "final", self.path / "checkpoints" / "best"
        self.clients = self.path / "adapters" / "clients"
        said = self.folder.env().get("template")
        self.template = Template(data=self.config.data, name=str(said)) if said else None
        self.base = _placed(self.config.model)

    @property
    def usual(self) -> tuple[str, ...]:
        """Before and after: the shared model if there is one, else the clients' own."""
        return ("before", "final" if self.final.is_dir() or not self.clients.is_dir() else "personal")

    def column(self, word: str, name: str) -> list[Entrant]:
        """The models of one column."""
        if word == "before":
            return [self._entrant(name, None)]
        if word == "personal":
            return self._personal(name)
        if word not in OF_RUN:
            other = f" To compare with another run: --beside {word}=RUN" if word in _ALSO else ""
            raise UserError(f"--columns: a run has no column {word!r}.{nearest(word, OF_RUN)}{other}")
        folder = self.final if word == "final" else self.best
        if not folder.is_dir():
            raise UserError(f"--columns: {self.path} has no {word} model: {self._why(word)}")
        return [self._entrant(name, folder)]

    def _why(self, word: str) -> str:
        if word == "best":
            return "checkpoints/best is written where evaluate.best names a metric that was evaluated"
        if self.clients.is_dir():
            return f"its clients share none. Ask for their own: --columns before,personal ({self.clients})"
        return f"finish the run with fedloom resume {self.path}"

    def _personal(self, name: str) -> list[Entrant]:
        folders = sorted(one for one in self.clients.iterdir() if one.is_dir()) if self.clients.is_dir() else []
        if not folders:
            raise UserError(
                f"--columns: {self.path} has no models of its clients' own in {self.clients}; methods that keep some "
                "write them when the run ends (fedloom list algorithms)"
            )
        return [self._entrant(name, folder, folder.name) for folder in folders]

    def _entrant(self, column: str, folder: Path | None, who: str = "") -> Entrant:
        base, adapter = self.base, None if folder is None else str(folder)
        if folder is not None and isinstance(self.config.adapter, FullConfig):
            base = base.model_copy(update={"name": str(folder), "revision": None, "layers": None})
            adapter = None
        elif folder is not None and not (folder / "adapter_config.json").is_file():
            raise UserError(f"{folder} holds no adapter: adapter_config.json is not there")
        home = str(self.path / "evaluation")
        return Entrant(column=column, who=who, base=base, adapter=adapter, template=self.template, home=home)


def _of_folder(path: Path, column: str, out: Path) -> Entrant:
    """An adapter as peft writes it."""
    if is_classifier(path):
        raise UserError(f"{path} holds a classifier, which writes no text; fedloom eval compares language models")
    try:
        name = str(json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / 'adapter_config.json'} is damaged: {error}") from None
    base = _placed(ModelConfig(name=name, layers=readme.layers(path)))
    return Entrant(column=column, base=base, adapter=str(path.resolve()), home=str(out))


def _of_model(what: str, column: str, out: Path) -> Entrant:
    path = Path(what).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(
            f"{what} is neither a run (config.yaml, env.json), nor an adapter (adapter_config.json), nor a model "
            "(config.json)"
        )
    if is_classifier(path):
        raise UserError(f"{what} holds a classifier, which writes no text; fedloom eval compares language models")
    return Entrant(column=column, base=_placed(ModelConfig(name=what)), home=str(out))


def _placed(model: ModelConfig) -> ModelConfig:
    """With the whole path of a folder: the evaluation runs somewhere else."""
    path = Path(model.name).expanduser()
    return model.model_copy(update={"name": str(path.resolve())}) if path.is_dir() else model
