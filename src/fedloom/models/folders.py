"""Whether a folder holds a model, said before a library is asked, whose words would be about something else."""

import json
from pathlib import Path

from fedloom.errors import UserError

_TOKENIZERS = {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json"}


def check_folder(where: str, weights: bool = True) -> None:
    """A folder must hold a model's files; a name that is no folder must be a Hugging Face id.

    Args:
        where: a folder or an id.
        weights: whether the files of the weights are needed.

    Raises:
        UserError: it is neither, or files are missing or damaged.
    """
    path = Path(where).expanduser()
    if not path.exists():
        if where.startswith((".", "/", "~")) or where.count("/") != 1:
            raise UserError(f"model.name={where}: there is no such folder, and it is no Hugging Face id (owner/name)")
        return
    if not path.is_dir():
        raise UserError(f"model.name={where} is a file; give the folder that holds config.json")
    present = {p.name for p in path.iterdir()}
    lacking = [n for n in ("config.json",) if n not in present]
    if weights and not any(n.endswith((".safetensors", ".safetensors.index.json")) for n in present):
        lacking.append("*.safetensors")
    if not present & _TOKENIZERS:
        lacking.append("tokenizer.json")
    if lacking:
        raise UserError(
            f"model folder {where} is incomplete: {', '.join(lacking)} missing (found {len(present)} files)"
        )
    if weights:
        _check_shards(path, present)


def _check_shards(path: Path, present: set[str]) -> None:
    """Every file that an index names must be there."""
    for index in path.glob("*.safetensors.index.json"):
        try:
            named = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"model folder {path} is damaged: {index.name} cannot be read ({error})") from None
        if named - present:
            raise UserError(f"model folder {path} is incomplete: {', '.join(sorted(named - present)[:3])} missing")
