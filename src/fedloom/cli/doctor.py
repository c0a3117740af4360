"""`fedloom doctor`: whether this machine can train, and with what; how much memory a recipe will need."""

import importlib.metadata
import math
import platform
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from fedloom.cli.configuring import Overrides, loaded

if TYPE_CHECKING:
    from fedloom.planning import MemoryPlan

LIBRARIES: Final = ("torch", "transformers", "peft", "datasets", "tokenizers", "safetensors", "pydantic")
_LITTLE_DISK: Final = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    state: Literal["ok", "note", "bad"]
    text: str


def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="Say what this recipe needs instead.", show_default=False),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check the installation, the device and the disk; or how much memory a recipe needs, before anything loads."""
    if recipe is not None:
        needs(recipe, overrides)
        return
    bad = False
    for finding in examine():
        typer.echo(textwrap.fill(finding.text, 79, initial_indent=f"{finding.state:<6}", subsequent_indent=" " * 6))
        bad = bad or finding.state == "bad"
    if bad:
        raise typer.Exit(1)


def needs(recipe: str, overrides: list[str] | None) -> None:
    """Print a recipe's memory at its peak, part by part."""
    config = loaded("doctor", recipe, overrides)
    from fedloom.planning import plan

    found = plan(config)
    for line in needed(found):
        typer.echo(line)
    if found.total > found.free:
        raise typer.Exit(1)


def needed(found: "MemoryPlan") -> Iterator[str]:
    """A memory plan in lines."""
    for item in found.items:
        yield f"{item.name:<15}{size(item.bytes):>10}   {item.why}"
    known = math.isfinite(found.free)
    there = f"of {size(found.free)}" if known else "of an amount this system does not tell"
    yield f"{'at the peak':<15}{size(found.total):>10}   {there} on this machine's {found.device}"
    if found.slots > 1:
        yield (
            f"{found.slots} clients side by side, {found.tokens} tokens a pass; each further client needs "
            f"{size(found.each)}, each further token {size(found.per_token)}"
            + (f"; {found.fitting} clients would fit" if known else "")
        )
    else:
        yield f"one client at a time, {found.tokens} tokens a pass; each further token needs {size(found.per_token)}"
    if found.total > found.free:
        yield (
            "This does not fit: lower engine.tokens_per_step, engine.slots or local.batch_size, or set "
            "model.gradient_checkpointing=true, model.dtype=bfloat16 or model.quantize=nf4."
        )


def size(count: float) -> str:
    """Bytes in words."""
    unit, name = next(
        (unit, name)
        for unit, name in ((2**30, "GB"), (2**20, "MB"), (2**10, "kB"), (1, "B"))
        if count >= unit or unit == 1
    )
    return f"{count / unit:.3g} {name}" if count < 1000 * unit else f"{count / unit:.0f} {name}"


def examine() -> Iterator[Finding]:
    """Everything worth knowing, quick things first."""
    from fedloom import __version__

    yield Finding("ok", f"fedloom {__version__}, python {platform.python_version()}, {platform.platform(terse=True)}")
    yield from _versions()
    yield from _devices()
    free = shutil.disk_usage(Path.cwd()).free
    state: Literal["ok", "note"] = "note" if free < _LITTLE_DISK else "ok"
    yield Finding(state, f"{free / 2**30:.1f} GB free on the disk of {Path.cwd()}")
    yield from _embedded_model()


def _versions() -> Iterator[Finding]:
    found, absent = [], []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    yield Finding("ok", ", ".join(found))
    for name in absent:
        yield Finding("bad", f"{name} is missing; install fedloom again: pip install fedloom")


def _devices() -> Iterator[Finding]:
    import torch

    from fedloom.models.picking import fast_bfloat16, pick_device

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(i).total_memory / 2**30
            yield Finding("ok", f"cuda:{i} {torch.cuda.get_device_name(i)}, {memory:.0f} GB")
    else:
        yield Finding("note", "no CUDA device: models are trained on the CPU, small ones in minutes")
    threads = torch.get_num_threads()
    yield Finding("ok", f"cpu with {threads} thread{'s' * (threads > 1)}, {torch.backends.cpu.get_cpu_capability()}")
    device = pick_device("auto")
    bf16 = fast_bfloat16(device)
    speed = (
        f"fast on this {device.type}; model.dtype=auto uses it" if bf16 else "slow here; model.dtype=auto uses float32"
    )
    yield Finding("ok" if bf16 else "note", f"bfloat16 is {speed}")


def _embedded_model() -> Iterator[Finding]:
    """Load it, which tries torch, transformers and the package's own files together."""
    from fedloom.errors import UserError
    from fedloom.models.config import ModelConfig
    from fedloom.models.load import load_model, load_tokenizer

    config = ModelConfig()
    try:
        load_tokenizer(config)
        base = load_model(config)
    except (UserError, OSError, ImportError) as error:
        yield Finding("bad", f"the embedded model `nano` does not load: {error}")
    else:
        yield Finding("ok", f"the embedded model `nano` loads ({base.parameters / 1e6:.1f} M numbers)")
        yield _neighbours(base.module)


def _neighbours(module: Any) -> Finding:
    """Whether clients that share a pass change each other's last bits here."""
    import torch

    from fedloom.engine.choice import row_invariant

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        same = row_invariant(module, torch.float32)
    finally:
        torch.set_num_threads(threads)
    if same:
        return Finding("ok", "clients trained side by side keep their bits, in float32 with one thread")
    return Finding("note", "clients trained side by side change each other's last digits (kernels differ by size)")
