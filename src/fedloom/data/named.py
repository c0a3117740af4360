"""The data sets the field tunes on, by name: where they are, how their columns are called, under which licence.

Facts only; no rows of any set are part of fedloom. A set is read from `data.root` where a copy lies there, in hub
layout (`<root>/<org>/<name>`) or as the plain file named here, and from the Hugging Face hub otherwise. Licences are
those the authors state; read them before use.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fedloom.data.config import ColumnsConfig


@dataclass(frozen=True)
class LocalCopy:
    """Plain files below `data.root`, and their columns where they differ from the hub's."""

    files: Mapping[str, str]
    """Split to path, relative to the root."""
    columns: ColumnsConfig | None = None


@dataclass(frozen=True)
class NamedSet:
    """One data set of the field."""

    title: str
    hub: str | None
    """Its id on the Hugging Face hub; None: it is not there."""
    licence: str
    columns: ColumnsConfig
    local: tuple[LocalCopy, ...] = ()
    """Looked for in this order."""
    subset: str | None = None
    template: str = "alpaca"
    home: str = ""
    """Where its files are published, for sets that are not on the hub."""
    category_ends: str | None = None
    """What is cut from the end of a category (a regular expression), where sources number their categories."""
    note: str = ""

    def category_of(self, raw: str | None) -> str | None:
        """The category without what the source appends to it."""
        return re.sub(self.category_ends + r"\Z", "", raw) if raw and self.category_ends else raw


def _columns(
    instruction: str = "instruction",
    output: str = "output",
    *,
    input: str | None = None,
    category: str | None = None,
    client: str | None = None,
) -> ColumnsConfig:
    return ColumnsConfig(instruction=instruction, input=input, output=output, category=category, client=client)


def _copies(
    *folders: str, train: str = "train", columns: ColumnsConfig | None = None, **splits: str
) -> tuple[LocalCopy, ...]:
    """Copies called <folder>/<split>.jsonl, gzipped or not."""
    names = {"train": train, **splits}
    return tuple(
        LocalCopy({split: f"{folder}/{name}.jsonl" for split, name in names.items()}, columns) for folder in folders
    )


_ALPACA: Final = _columns(input="input")

NAMED: Final[Mapping[str, NamedSet]] = MappingProxyType(
    {
        "alpaca": NamedSet(
            "Stanford Alpaca, 52k instructions (Taori et al. 2023)",
            "tatsu-lab/alpaca",
            "CC BY-NC 4.0",
            _ALPACA,
            _copies("alpaca"),
        ),
        "alpaca_cleaned": NamedSet(
            "Alpaca with repaired rows (gururise/AlpacaDataCleaned)",
            "yahma/alpaca-cleaned",
            "CC BY 4.0",
            _ALPACA,
            _copies("alpaca_cleaned", "alpaca-cleaned"),
        ),
        "alpaca_gpt4": NamedSet(
            "Alpaca's instructions answered by GPT-4 (Peng et al. 2023)",
            "vicgalle/alpaca-gpt4",
            "CC BY-NC 4.0",
            _ALPACA,
            _copies("alpaca_gpt4", "alpaca-gpt4"),
        ),
        "dolly": NamedSet(
            "databricks-dolly-15k, 8 categories (Conover et al. 2023)",
            "databricks/databricks-dolly-15k",
            "CC BY-SA 3.0",
            _columns(input="context", output="response", category="category"),
            _copies(
                "dolly",
                test="test",
                columns=_columns(input="context", output="response", category="category"),
            ),
        ),
        "gsm8k": NamedSet(
            "Grade-school mathematics (Cobbe et al. 2021, arXiv 2110.14168); no categories",
            "openai/gsm8k",
            "MIT",
            _columns("question", "answer"),
            (
                *_copies("gsm8k", test="test"),
                LocalCopy({"train": "gsm8k/train.jsonl", "test": "gsm8k/test_part1.jsonl"}),
            ),
            subset="main",
        ),
        "code_alpaca": NamedSet(
            "Code Alpaca, 20k instructions (Chaudhary 2023)",
            "sahil2801/CodeAlpaca-20k",
            "CC BY-NC 4.0 (its repository; the hub's card says CC BY 4.0)",
            _ALPACA,
            (
                *_copies("code_alpaca"),
                *_copies("codealpaca"),
                LocalCopy({"train": "codealpaca/new_codealpaca.jsonl", "test": "codealpaca/code_alpaca_2k.jsonl"}),
            ),
        ),
        "rosetta_alpaca": NamedSet(
            "Rosetta Code as instructions; the input is the programming language and the category",
            None,
            "CC BY-NC 4.0 (its repository)",
            _columns(input="input", category="input"),
            (LocalCopy({"train": "rosetta_alpaca.json"}), *_copies("rosetta_alpaca")),
            home="github.com/sahil280114/codealpaca, data/rosetta_alpaca.json",
        ),
        "code_search_net": NamedSet(
            "CodeSearchNet, functions for docstrings in six languages (Husain et al. 2019, arXiv 1909.09436)",
            "code-search-net/code_search_net",
            "each function that of its repository",
            _columns("func_documentation_string", "func_code_string", input="language", category="language"),
            (
                *_copies("code_search_net", "codesearchnet", validation="validation", test="test"),
                LocalCopy(
                    {"train": "codesearchnet/python_raw_train_sample.jsonl"},
                    _columns("docstring", "code", input="language", category="language"),
                ),
            ),
            subset="all",
        ),
        "natural_instructions": NamedSet(
            "Super-NaturalInstructions (Wang et al. 2022, arXiv 2204.07705); one client per task",
            "Muennighoff/natural-instructions",
            "Apache-2.0; the tasks' texts come from many sets with licences of their own",
            _columns("definition", "targets", input="inputs", client="task_name"),
            _copies(
                "natural_instructions",
                test="eval",
                columns=_columns(input="input", category="category", client="client_id"),
            ),
            category_ends=r"\s+\d+(\.json)?",
            note="natural clients: partition.method=natural",
        ),
        "finance_alpaca": NamedSet(
            "Alpaca, FiQA and generated questions on finance",
            "gbharti/finance-alpaca",
            "MIT",
            _ALPACA,
            _copies("finance_alpaca", "finance-alpaca"),
        ),
        "fingpt_sentiment": NamedSet(
            "Sentiment of financial news as instructions (FinGPT; Yang et al. 2023, arXiv 2306.06031)",
            "FinGPT/fingpt-sentiment-train",
            "none stated",
            _ALPACA,
            _copies("fingpt_sentiment", "fingpt-sentiment-train"),
        ),
        "medical_flashcards": NamedSet(
            "Medical Meadow flashcards (Han et al. 2023, arXiv 2304.08247); the card is in the column input",
            "medalpaca/medical_meadow_medical_flashcards",
            "CC (no version stated)",
            _columns("input"),
            _copies("medical_flashcards"),
            note="the column instruction says the same in every row and is left out, as OpenFedLLM does",
        ),
        "math_instruct": NamedSet(
            "MathInstruct (Yue et al. 2023, arXiv 2309.05653); the category is the source of the problem",
            "TIGER-Lab/MathInstruct",
            "MIT (parts under licences of their own)",
            _columns(category="source"),
            _copies("math_instruct", "MathInstruct"),
        ),
        "evol_instruct": NamedSet(
            "WizardLM's evolved instructions, 70k (Xu et al. 2023, arXiv 2304.12244)",
            "WizardLMTeam/WizardLM_evol_instruct_70k",
            "MIT (the hub's card)",
            _columns(),
            _copies("evol_instruct", "WizardLM_evol_instruct_70k"),
        ),
    }
)
"""Every named set; `fedloom list sources` prints them."""
