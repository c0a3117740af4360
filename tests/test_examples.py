"""Every example runs as a process of its own, made small by arguments; what the documents show works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fedloom
from fedloom.config import load

ROOT = Path(__file__).parents[1]
SMALL = ["local.steps=1", "local.batch_size=2", "federation.rounds=1", "adapter.rank=2", "model.dtype=float32"]
PLAYGROUND = ["data.playground.rows=4", "data.playground.test_rows=1", "evaluate.max_new_tokens=2"]
EXAMPLES = {
    "new_algorithm.py": (PLAYGROUND, ["round 1: 3 clients, training loss", "after round 1: loss", "finished: "]),
    "own_data.py": (["evaluate.max_new_tokens=2"], ["after round 1: exact match berlin", "osaka", "run folder: "]),
    "run_from_python.py": (PLAYGROUND, ["round 1: training loss", "after round 1: loss", "finished: ", "tuned:"]),
}
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def test_every_example_is_tested() -> None:
    assert sorted(path.name for path in (ROOT / "examples").glob("*.py")) == sorted(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name: str, tmp_path: Path) -> None:
    overrides, wanted = EXAMPLES[name]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(fedloom.__file__).parents[1]),
        "TMPDIR": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(ROOT / "examples" / name), *SMALL, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    for words in wanted:
        assert words in done.stdout


def test_the_recipes_of_the_readme_are_valid(tmp_path: Path) -> None:
    found = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(found) == 2
    for number, recipe in enumerate(found):
        path = tmp_path / f"{number}.yaml"
        path.write_text(recipe, encoding="utf-8")
        load(str(path))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_index_names_every_page_of_docs() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in text, page.name
