"""The benchmarks: where their rows come from, under which licence, what is scored, and what guessing would score.

Most are defined by lm-eval itself; those whose `place` is OWN are ours, in files of lm-eval's form. A group is scored
member by member and is the mean over rows, as lm-eval computes it. Facts only; no rows of any set are part of fedloom.
Numbers of rows and licences are those the authors state.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fedloom.errors import UserError, nearest
from fedloom.evaluate.members import BBH, MATH, MEDICAL, MMLU

OWN: Final = "own"


@dataclass(frozen=True)
class Score:
    """One number a task is published with; all are shares, 0..1, more is better."""

    name: str
    key: str
    """lm-eval's name of it: metric and filter."""
    chance: float | None = None
    """What guessing among the choices scores on average; None: answers are written, or it depends on the rows."""


@dataclass(frozen=True)
class Task:
    """One benchmark, or a group of them."""

    name: str
    title: str
    data: str
    """Id of its data set on the Hugging Face hub, and its folder below `--data-root`."""
    licence: str
    scores: tuple[Score, ...]
    """The first is the one that is compared."""
    rows: int | None
    """Rows scored without `--limit`; None: not known here."""
    place: str
    """Folder of its definition: below lm-eval's tasks, or OWN."""
    shots: int = 0
    """Worked examples before the question, in lm-eval's definition."""
    members: tuple[str, ...] = ()
    """Tasks of a group."""
    code: bool = False
    """Programs that the model writes are run."""
    called: str | None = None
    """Its name in its definition, where that is another one."""

    @property
    def main(self) -> Score:
        """The score that is compared."""
        return self.scores[0]


def _mc(choices: int, *, normed: bool = False) -> tuple[Score, ...]:
    """Scores of a multiple choice: the likeliest answer, and the likeliest for its length in bytes."""
    plain = Score("accuracy", "acc,none", 1 / choices)
    return (plain, Score("accuracy per byte", "acc_norm,none", 1 / choices)) if normed else (plain,)


_NUMBER: Final = (
    Score("exact match", "exact_match,strict-match"),
    Score("last number", "exact_match,flexible-extract"),
)
_SENTIMENT: Final = (
    Score("accuracy", "acc,none", 1 / 3),
    Score("F1 weighted", "f1_weighted,none"),
    Score("F1 macro", "f1_macro,none"),
    Score("F1 micro", "f1_micro,none"),
    Score("names a class", "named,none"),
)
_PASS: Final = "pass@1"


def _sentiment(name: str, title: str, data: str, licence: str, rows: int) -> Task:
    return Task(name, title, data, licence, _SENTIMENT, rows, OWN)


_SINGLE: Final = (
    Task("gsm8k", "Grade-school mathematics (Cobbe et al. 2021)", "openai/gsm8k", "MIT", _NUMBER, 1319, "gsm8k", 5),
    Task(
        "gsm8k_cot",
        "the same, eight examples thought through (Wei et al. 2022)",
        "openai/gsm8k",
        "MIT",
        _NUMBER,
        1319,
        "gsm8k",
        8,
    ),
    Task(
        "drop",
        "Reading with arithmetic (Dua et al. 2019)",
        "EleutherAI/drop",
        "CC BY-SA 4.0",
        (Score("F1", "f1,none"), Score("exact match", "em,none")),
        9536,
        "drop",
    ),
    Task(
        "crass",
        "CRASS, what would have been (Frohberg and Binder 2022), BIG-bench's items",
        "hails/bigbench",
        "Apache-2.0",
        _mc(4),
        44,
        "bigbench/multiple_choice",
        called="bigbench_crass_ai_multiple_choice",
    ),
    Task(
        "humaneval",
        "Python functions by docstring (Chen et al. 2021)",
        "openai/openai_humaneval",
        "MIT",
        (Score(_PASS, "pass@1,create_test"),),
        164,
        "humaneval",
        code=True,
    ),
    Task(
        "mbpp",
        "Python functions by a sentence and tests (Austin et al. 2021)",
        "google-research-datasets/mbpp",
        "CC BY 4.0",
        (Score(_PASS, "pass_at_1,none"),),
        500,
        "mbpp",
        3,
        code=True,
    ),
    Task(
        "medqa_4options",
        "MedQA, US licensing examination (Jin et al. 2021)",
        "GBaker/MedQA-USMLE-4-options-hf",
        "MIT",
        _mc(4, normed=True),
        1273,
        "medqa",
    ),
    Task(
        "medmcqa",
        "Indian medical entrance examinations (Pal et al. 2022)",
        "openlifescienceai/medmcqa",
        "MIT",
        _mc(4, normed=True),
        4183,
        "medmcqa",
    ),
    Task(
        "pubmedqa",
        "yes, no or maybe by an abstract (Jin et al. 2019)",
        "bigbio/pubmed_qa",
        "MIT",
        _mc(3),
        500,
        "pubmedqa",
    ),
    _sentiment(
        "fpb",
        "Financial PhraseBank, as FinGPT scores it (Malo et al. 2014)",
        "takala/financial_phrasebank",
        "CC BY-NC-SA 3.0",
        1212,
    ),
    _sentiment(
        "fiqa_sa",
        "FiQA 2018 task 1, as FinGPT scores it (Maia et al. 2018)",
        "pauri32/fiqa-2018",
        "none stated",
        275,
    ),
    _sentiment(
        "tfns",
        "Twitter financial news sentiment, as FinGPT scores it",
        "zeroshot/twitter-financial-news-sentiment",
        "MIT",
        2388,
    ),
    _sentiment(
        "nwgi",
        "News labelled by GPT, as FinGPT scores it (Yang et al. 2023)",
        "oliverwang15/news_with_gpt_instructions",
        "none stated",
        4047,
    ),
    Task(
        "advbench",
        "AdvBench, share of harmful requests refused (Zou et al. 2023)",
        "walledai/AdvBench",
        "MIT",
        (Score("refused", "refused,none"), Score("refused, list as printed", "refused_as_printed,none")),
        520,
        OWN,
    ),
    Task(
        "natural_instructions",
        "Super-NaturalInstructions, unseen rows (Wang et al. 2022)",
        "Muennighoff/natural-instructions",
        "Apache-2.0",
        (Score("ROUGE-L", "rouge_l,none"),),
        None,
        OWN,
    ),
)


def _mmlu(name: str, subjects: Iterable[str], what: str, rows: int) -> Task:
    members = tuple(f"mmlu_{subject}" for subject in subjects)
    title = f"{what} (Hendrycks et al. 2021)"
    return Task(name, title, "cais/mmlu", "MIT", _mc(4), rows, "mmlu/default", members=members)


_MATH: Final = Score("exact match", "exact_match,none")
_BBH: Final = Score("exact match", "exact_match,get-answer")
_GROUPS: Final = (
    _mmlu("mmlu", (one for some in MMLU.values() for one in some), "MMLU, 57 subjects: mmlu_SUBJECT", 14042),
    _mmlu("mmlu_stem", MMLU["stem"], "MMLU, 19 of science", 3153),
    _mmlu("mmlu_other", MMLU["other"], "MMLU, 13 others", 3107),
    _mmlu("mmlu_social_sciences", MMLU["social_sciences"], "MMLU, 12 of society", 3077),
    _mmlu("mmlu_humanities", MMLU["humanities"], "MMLU, 13 of humanities", 4705),
    _mmlu("mmlu_medical", MEDICAL, "MMLU, six of medicine", 1089),
    Task(
        "hendrycks_math",
        "MATH, seven parts: hendrycks_math_PART (Hendrycks et al. 2021)",
        "EleutherAI/hendrycks_math",
        "MIT",
        (_MATH,),
        5000,
        "hendrycks_math",
        members=tuple(f"hendrycks_math_{part}" for part in MATH),
    ),
    Task(
        "bbh",
        "BIG-bench hard, 27 tasks thought through: bbh_cot_fewshot_TASK (Suzgun et al. 2022)",
        "SaylorTwift/bbh",
        "MIT",
        (_BBH,),
        6511,
        "bbh/cot_fewshot",
        3,
        members=tuple(f"bbh_cot_fewshot_{part}" for part in BBH),
    ),
)
TABLE: Final[Mapping[str, Task]] = MappingProxyType({task.name: task for task in (*_SINGLE, *_GROUPS)})
"""Every task that is listed; members of groups can be asked for by their own names too."""


def find(name: str) -> Task:
    """The task of this name.

    Raises:
        UserError: there is none.
    """
    if name in TABLE:
        return TABLE[name]
    for group in _GROUPS:
        if name in group.members:
            title = f"{name}, a part of {group.name}"
            return Task(name, title, group.data, group.licence, group.scores, None, group.place, group.shots)
    known = [*TABLE, *(member for group in _GROUPS for member in group.members)]
    hint = nearest(name, known) if len(name) > 2 else ""
    raise UserError(f"--tasks: there is no task {name!r}.{hint if 'Did you' in hint else ' See: fedloom list tasks'}")


def single(names: Iterable[str]) -> list[Task]:
    """The tasks of these names with groups taken apart, each once."""
    found = [find(name) for name in names]
    return [find(one) for one in dict.fromkeys(one for task in found for one in (task.members or (task.name,)))]


def described(task: Task) -> str:
    """One line for the list: what it is, its data and licence, what is scored, what guessing scores."""
    scored = ", ".join(score.name for score in task.scores)
    parts = [task.title, f"{task.data}, {task.licence}", scored]
    if task.rows is not None:
        parts.append(f"{task.rows} rows")
    if task.main.chance is not None:
        parts.append(f"guessing {100 * task.main.chance:.0f} %")
    if task.code:
        parts.append("runs programs: --allow-code")
    return "; ".join(parts)
