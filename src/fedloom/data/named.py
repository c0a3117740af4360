"""The data sets the field tunes on, by name: where they are, how their columns are called, under which licence.

Facts only; no rows of any set are part of fedloom. A set is read from `data.root` where a copy lies there, in hub
layout (`<root>/<org>/<name>`) or as the plain file named here, and from the Hugging Face hub otherwise. Licences are
those the authors state; read them before use.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fedloom.data.named_more import CLASSES, PREFERENCES
from fedloom.data.named_set import LocalCopy, NamedSet, columns_of, copies

_ALPACA: Final = columns_of(input="input")

NAMED: Final[Mapping[str, NamedSet]] = MappingProxyType(
    {
        "alpaca": NamedSet(
            "Stanford Alpaca, 52k instructions (Taori et al. 2023)",
            "tatsu-lab/alpaca",
            "CC BY-NC 4.0",
            _ALPACA,
            copies("alpaca"),
        ),
        "alpaca_cleaned": NamedSet(
            "Alpaca with repaired rows (gururise/AlpacaDataCleaned)",
            "yahma/alpaca-cleaned",
            "CC BY 4.0",
            _ALPACA,
            copies("alpaca_cleaned", "alpaca-cleaned"),
        ),
        "alpaca_gpt4": NamedSet(
            "Alpaca's instructions answered by GPT-4 (Peng et al. 2023)",
            "vicgalle/alpaca-gpt4",
            "CC BY-NC 4.0",
            _ALPACA,
            copies("alpaca_gpt4", "alpaca-gpt4"),
        ),
        "dolly": NamedSet(
            "databricks-dolly-15k, 8 categories (Conover et al. 2023)",
            "databricks/databricks-dolly-15k",
            "CC BY-SA 3.0",
            columns_of(input="context", output="response", category="category"),
            copies(
                "dolly",
                test="test",
                columns=columns_of(input="context", output="response", category="category"),
            ),
        ),
        "gsm8k": NamedSet(
            "Grade-school mathematics (Cobbe et al. 2021, arXiv 2110.14168); no categories",
            "openai/gsm8k",
            "MIT",
            columns_of("question", "answer"),
            (
                *copies("gsm8k", test="test"),
                LocalCopy({"train": ("gsm8k/train.jsonl",), "test": ("gsm8k/test_part1.jsonl",)}),
            ),
            subset="main",
        ),
        "code_alpaca": NamedSet(
            "Code Alpaca, 20k instructions (Chaudhary 2023)",
            "sahil2801/CodeAlpaca-20k",
            "CC BY-NC 4.0 (its repository; the hub's card says CC BY 4.0)",
            _ALPACA,
            (
                *copies("code_alpaca"),
                *copies("codealpaca"),
                LocalCopy(
                    {"train": ("codealpaca/new_codealpaca.jsonl",), "test": ("codealpaca/code_alpaca_2k.jsonl",)}
                ),
            ),
        ),
        "rosetta_alpaca": NamedSet(
            "Rosetta Code as instructions; the input is the programming language and the category",
            None,
            "CC BY-NC 4.0 (its repository)",
            columns_of(input="input", category="input"),
            (LocalCopy({"train": ("rosetta_alpaca.json",)}), *copies("rosetta_alpaca")),
            home="github.com/sahil280114/codealpaca, data/rosetta_alpaca.json",
        ),
        "code_search_net": NamedSet(
            "CodeSearchNet, functions for docstrings in six languages (Husain et al. 2019, arXiv 1909.09436)",
            "code-search-net/code_search_net",
            "each function that of its repository",
            columns_of("func_documentation_string", "func_code_string", input="language", category="language"),
            (
                *copies("code_search_net", "codesearchnet", validation="validation", test="test"),
                LocalCopy(
                    {"train": ("codesearchnet/python_raw_train_sample.jsonl",)},
                    columns_of("docstring", "code", input="language", category="language"),
                ),
            ),
            subset="all",
        ),
        "natural_instructions": NamedSet(
            "Super-NaturalInstructions (Wang et al. 2022, arXiv 2204.07705); one client per task",
            "Muennighoff/natural-instructions",
            "Apache-2.0; the tasks' texts come from many sets with licences of their own",
            columns_of("definition", "targets", input="inputs", client="task_name"),
            copies(
                "natural_instructions",
                test="eval",
                columns=columns_of(input="input", category="category", client="client_id"),
            ),
            category_ends=r"\s+\d+(\.json)?",
            note="natural clients: partition.method=natural",
        ),
        "finance_alpaca": NamedSet(
            "Alpaca, FiQA and generated questions on finance",
            "gbharti/finance-alpaca",
            "MIT",
            _ALPACA,
            copies("finance_alpaca", "finance-alpaca"),
        ),
        "fingpt_sentiment": NamedSet(
            "Sentiment of financial news as instructions (FinGPT; Yang et al. 2023, arXiv 2306.06031)",
            "FinGPT/fingpt-sentiment-train",
            "none stated",
            _ALPACA,
            copies("fingpt_sentiment", "fingpt-sentiment-train"),
        ),
        "medical_flashcards": NamedSet(
            "Medical Meadow flashcards (Han et al. 2023, arXiv 2304.08247); the card is in the column input",
            "medalpaca/medical_meadow_medical_flashcards",
            "CC (no version stated)",
            columns_of("input"),
            copies("medical_flashcards"),
            note="the column instruction says the same in every row and is left out, as OpenFedLLM does",
        ),
        "math_instruct": NamedSet(
            "MathInstruct (Yue et al. 2023, arXiv 2309.05653); the category is the source of the problem",
            "TIGER-Lab/MathInstruct",
            "MIT (parts under licences of their own)",
            columns_of(category="source"),
            copies("math_instruct", "MathInstruct"),
        ),
        "evol_instruct": NamedSet(
            "WizardLM's evolved instructions, 70k (Xu et al. 2023, arXiv 2304.12244)",
            "WizardLMTeam/WizardLM_evol_instruct_70k",
            "MIT (the hub's card)",
            columns_of(),
            copies("evol_instruct", "WizardLM_evol_instruct_70k"),
        ),
        **CLASSES,
        **PREFERENCES,
    }
)
"""Every named set; `fedloom list sources` prints them."""
