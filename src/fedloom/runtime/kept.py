"""What a client of a deployment remembers of a run on its own disk: the recipe it joined with, and its last answer."""

import json
from pathlib import Path

from fedloom import atomic
from fedloom.channel.codec import CodecError
from fedloom.runtime import letters
from fedloom.runtime.letters import Answer, Ready, Recipe, TaskLetter

LONGEST = 200
"""Bytes of a run's name."""


class Kept:
    """A client's folder; what another version wrote in it counts as not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, run: str) -> Path:
        """The folder of a run.

        Raises:
            CodecError: its name is none.
        """
        short = 0 < len(run.encode(errors="replace")) <= LONGEST
        if not short or run[0] == "." or not all(c.isalnum() or c in "-_." for c in run):
            raise CodecError(f"a run cannot be named {run[:40]!r}")
        return self.folder / "runs" / run

    def keep_recipe(self, recipe: Recipe, ready: Ready) -> None:
        """Remember what was joined, and what this client said of itself."""
        text = json.dumps({"recipe": letters.head(recipe), "traits": dict(ready.traits)})
        atomic.write_text(self.place(recipe.run) / "recipe.json", text)

    def recipe(self, run: str) -> tuple[Recipe, dict[str, str]] | None:
        """What was joined, with this client's traits then; None: nothing that could be read."""
        path = self.place(run) / "recipe.json"
        if not path.exists():
            return None
        try:
            kept = json.loads(path.read_text())
            recipe, traits = letters.read_letter(kept["recipe"]), dict(kept["traits"])
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
        return (recipe, traits) if isinstance(recipe, Recipe) else None

    def keep_answer(self, task: TaskLetter, answer: Answer, body: bytes) -> None:
        """Remember an answer before it is given; one that says that something failed may be another one next time."""
        if answer.missing is None:
            head = {**_key(task), "answer": letters.head(answer)}
            atomic.write_bytes(self._answer(task), json.dumps(head).encode() + b"\n" + body)

    def answer(self, task: TaskLetter) -> tuple[Answer, bytes] | None:
        """The last answer, if this is the task it was to, on the same memory."""
        path = self._answer(task)
        if not path.exists():
            return None
        head, _, body = path.read_bytes().partition(b"\n")
        try:
            kept = json.loads(head)
            if {name: kept[name] for name in _key(task)} != _key(task):
                return None
            said = letters.read_reply(kept["answer"])
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
        return (said, body) if isinstance(said, Answer) else None

    def _answer(self, task: TaskLetter) -> Path:
        return self.place(task.run) / f"answer-{task.client}"


def _key(task: TaskLetter) -> dict[str, int | str]:
    return {"number": task.number, "memory": task.memory, "digest": task.digest}
