"""Which papers a setting's values rest on, by section."""

from collections.abc import Mapping
from typing import Final, TypeAlias

Table: TypeAlias = Mapping[str, tuple[str, ...]]
"""By the value of a setting; () is nobody's paper: a baseline, or common knowledge."""

ALGORITHMS: Final[Table] = {
    "fedavg": ("mcmahan2017fedavg",),
    "fedprox": ("li2020fedprox",),
    "scaffold": ("karimireddy2020scaffold",),
    "fednova": ("wang2020fednova",),
    "fedswa": ("caldarola2022swa",),
    "lookahead": ("liu2025fedswa",),
    "fedbuff": ("nguyen2022fedbuff",),
    "ditto": ("li2021ditto",),
    "pfedme": ("dinh2020pfedme",),
    "fedper": ("arivazhagan2019fedper",),
    "fedrep": ("collins2021fedrep",),
    "dual": ("yang2024dual",),
    "hetlora": ("cho2024hetlora",),
    "lora_a2": ("koo2025lora_a2",),
    "fedkd": ("wu2022fedkd",),
    "fedbiot": ("wu2024fedbiot",),
    "fedmezo": ("ling2024fedmezo", "malladi2023mezo"),
    "fedkseed": ("qin2024fedkseed", "malladi2023mezo"),
    "decomfl": ("li2025decomfl",),
    "ferret": ("shu2025ferret",),
    "local": (),
    "centralized": (),
}
NOT_FACTORS: Final = ("local", "centralized", "fedper", "fedrep", "hetlora", "lora_a2", "fedkseed", "decomfl", "ferret")
"""Algorithms that do not average the two factors of every pair."""
SPACES: Final[Table] = {
    "factors": ("zhang2023fedit",),
    "turns": ("chen2025rolora",),
    "products": ("bai2024flexlora",),
    "slices": ("wu2026raflora",),
    "stacked": ("wang2024flora",),
    "residual": ("singhal2025fedex",),
    "refactored": ("lee2025fedsvd",),
    "sparse": ("babakniya2023slora",),
}
RULES: Final[Table] = {
    "mean": (),
    "median": ("yin2018robust",),
    "trimmed_mean": ("yin2018robust",),
    "krum": ("blanchard2017krum",),
    "multi_krum": ("blanchard2017krum",),
    "bulyan": ("elmhamdi2018bulyan",),
    "norm_bound": ("sun2019backdoor",),
    "geometric_median": ("pillutla2022rfa",),
}
SERVERS: Final[Table] = {
    "sgd": (),
    "momentum": ("hsu2019fedavgm",),
    "nesterov": ("douillard2023diloco",),
    "adagrad": ("reddi2021adaptive",),
    "yogi": ("reddi2021adaptive",),
    "adam": ("reddi2021adaptive",),
}
ENCODINGS: Final[Table] = {"fp32": (), "fp16": (), "int8": ("seide2014onebit", "karimireddy2019feedback")}
ATTACKS: Final[Table] = {
    "none": (),
    "sign_flip": ("li2019rsa",),
    "gaussian": ("blanchard2017krum",),
    "scaled": ("bagdasaryan2020backdoor",),
    "label_flip": ("tolpegin2020poisoning",),
}
SAMPLINGS: Final[Table] = {
    "uniform": (),
    "size": ("efraimidis2006sampling",),
    "fixed": (),
    "cyclic": (),
    "trace": (),
    "poisson": (),
}
ADAPTERS: Final[Table] = {
    "lora": ("hu2021lora",),
    "full": (),
    "dora": ("liu2024dora",),
    "ia3": ("liu2022ia3",),
    "vera": ("kopiczko2023vera",),
    "prompt": ("lester2021prompt",),
    "p_tuning": ("liu2021ptuning",),
    "prefix": ("li2021prefix",),
    "adalora": ("zhang2023adalora",),
}
PARTITIONS: Final[Table] = {
    "iid": (),
    "dirichlet": ("hsu2019fedavgm",),
    "category": ("kuang2023fsllm",),
    "shards": ("mcmahan2017fedavg",),
    "quantity": ("li2022niid",),
    "natural": (),
}
OBJECTIVES: Final[Table] = {"sft": (), "classify": (), "dpo": ("rafailov2023dpo",), "kto": ("ethayarajh2024kto",)}
LOSSES: Final[Table] = {
    "sigmoid": (),
    "robust": ("chowdhury2024robust",),
    "ipo": ("azar2024ipo",),
    "hinge": ("zhao2023slic",),
    "slic": ("zhao2023slic",),
    "orpo": ("hong2024orpo",),
    "simpo": ("meng2024simpo",),
}
"""Of objective dpo, beside its own."""
METRICS: Final[Table] = {
    "loss": (),
    "perplexity": (),
    "exact_match": (),
    "rouge_l": ("lin2004rouge",),
    "accuracy": (),
    "f1": (),
    "f1_weighted": (),
    "f1_micro": (),
    "matthews": (),
    "preference_accuracy": (),
    "margin": (),
    "reward_chosen": (),
    "reward_rejected": (),
}
TEMPLATES: Final[Table] = {"alpaca": ("taori2023alpaca",), "vicuna": ("zheng2023vicuna",), "chat": (), "plain": ()}
SOURCES: Final[Table] = {
    "playground": (),
    "alpaca": ("taori2023alpaca",),
    "alpaca_cleaned": ("taori2023alpaca", "gururise2023cleaned"),
    "alpaca_gpt4": ("peng2023gpt4",),
    "dolly": ("conover2023dolly",),
    "gsm8k": ("cobbe2021gsm8k",),
    "code_alpaca": ("chaudhary2023codealpaca",),
    "rosetta_alpaca": ("chaudhary2023codealpaca",),
    "code_search_net": ("husain2019codesearchnet",),
    "natural_instructions": ("wang2022superni",),
    "finance_alpaca": (),
    "fingpt_sentiment": ("yang2023fingpt",),
    "medical_flashcards": ("han2023medalpaca",),
    "math_instruct": ("yue2023mammoth",),
    "evol_instruct": ("xu2023wizardlm",),
    "sst2": ("socher2013sst", "wang2018glue"),
    "cola": ("warstadt2019cola", "wang2018glue"),
    "fpb": ("malo2014fpb",),
    "fiqa": ("maia2018fiqa",),
    "hh_rlhf": ("bai2022hh",),
    "ultrafeedback": ("cui2023ultrafeedback",),
}
