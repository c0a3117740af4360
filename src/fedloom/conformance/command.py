"""`python -m fedloom.conformance [module:function] [--truncated]`.

Exit codes: 0 all cells that were not refused pass; 1 a cell fails; 2 nothing could be checked, a message says why.
"""

import argparse
import importlib
import inspect
import sys
from collections.abc import Sequence
from typing import Final

from fedloom.conformance.answers import Aggregate
from fedloom.conformance.judge import Report, check
from fedloom.conformance.table import ALLOWED, fill, findings, grid_table, line, line_head
from fedloom.errors import UserError, nearest

PASSED: Final = 0
FAILED: Final = 1
ASKED_WRONG: Final = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    asked = _parser().parse_args(argv)
    try:
        if asked.function is None:
            return _own()
        return _foreign(asked.function, asked.truncated)
    except UserError as error:
        print(fill(str(error)), file=sys.stderr)
        return ASKED_WRONG


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fedloom.conformance",
        description="Compare an aggregation function of LoRA adapters with the exact update, the weighted mean of the "
        "clients' scaled products, over a grid of cells. Without a function: fedloom's own spaces.",
        epilog="Exit codes: 0 all pass, 1 a cell fails, 2 nothing could be checked. How to wrap a function: "
        "docs/conformance.md.",
    )
    parser.add_argument(
        "function", nargs="?", metavar="module:function", help="def function(clients, base) -> Factors | Update"
    )
    parser.add_argument(
        "--truncated",
        action="store_true",
        help="an answer of rank k is right when it is the best of that rank (FlexLoRA cut to the largest rank)",
    )
    return parser


def _foreign(name: str, truncated: bool) -> int:
    report = check(load(name), truncated=truncated, name=name)
    if report.unusable is not None:
        raise UserError(
            f"{name} could not be checked: {report.unusable}. An aggregation function takes (clients, base) and "
            "answers Factors or Update; see docs/conformance.md."
        )
    target = "the best answer of its rank" if truncated else "the sum of p_i s_i B_i A_i"
    print(fill(f"{name} against {target}."), fill(ALLOWED), "", grid_table(report), "", sep="\n")
    print(_summary(report))
    if words := findings(report):
        print("", words, sep="\n")
    return PASSED if report.passed else FAILED


def _summary(report: Report) -> str:
    failed, refused = len(report.failed), len(report.refused)
    passed = len(report.outcomes) - failed - refused
    return f"{passed} cells pass, {failed} fail, {refused} refused."


def _own() -> int:
    import torch

    from fedloom.conformance.rows import rows  # brings in the spaces; a foreign function needs none of them

    print(fill("fedloom's own spaces, each where it promises to be exact."), fill(ALLOWED), "", line_head(), sep="\n")
    failed, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are tiny: waiting for each other takes threads ten times as long
    try:
        for row in rows():
            report = row.check()
            print(line(row.name, row.equals, report), flush=True)
            if not report.passed:
                failed.append((row, report))
    finally:
        torch.set_num_threads(threads)
    for row, report in failed:
        print("", f"{row.name}, {row.equals}:", findings(report) or report.unusable, sep="\n")
    return FAILED if failed else PASSED


def load(name: str) -> Aggregate:
    """The function `module:function` names.

    Raises:
        UserError: there is none, or it does not take two arguments.
    """
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        raise UserError(f"{name!r} names no function. Write module:function, for example my_project.merge:aggregate.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UserError(
                f"There is no module {error.name}. Run this from the folder that holds it, or put that folder into "
                "PYTHONPATH; a file is named without .py."
            ) from error
        raise UserError(f"Importing {module_name} failed: it needs the module {error.name}, not found.") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"Importing {module_name} failed: {type(error).__name__}: {error}") from error
    found = module
    for part in path.split("."):
        if not hasattr(found, part):
            names = [key for key in dir(found) if callable(getattr(found, key, None)) and not key.startswith("_")]
            raise UserError(f"{module_name} has no {path}.{nearest(part, names)}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{name} is of type {type(found).__name__}, not a function.")
    try:
        inspect.signature(found).bind((), None)
    except TypeError as error:
        raise UserError(f"{name} cannot be called as function(clients, base): {error}.") from error
    except ValueError:
        pass  # a function written in C has no signature to look at
    return found
