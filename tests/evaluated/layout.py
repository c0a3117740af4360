"""Data sets as folders in hub layout: rows made up here, in the columns of the published sets, or read from a copy."""

import csv
import gzip
import json
from pathlib import Path


def write(root: Path, data: str, splits: dict[str, list[dict]], config: str | None = None) -> None:
    """One configuration of a data set; others that are there stay."""
    folder = root / data
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "configs.json"
    configs = json.loads(known.read_text()) if known.exists() else {}
    name = config or "default"
    configs[name] = {split: f"{name}/{split}.jsonl" for split in splits}
    for split, rows in splits.items():
        path = folder / name / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    known.write_text(json.dumps(configs))
    lines = ["---", "configs:"]
    for one, files in configs.items():
        lines += [f"- config_name: {one}", "  data_files:"]
        lines += [line for split, path in files.items() for line in (f"  - split: {split}", f"    path: {path}")]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def lines(path: Path) -> list[dict]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.split("\n") if line]


# -- published rows, from a copy in the layout of its own authors


def gsm8k(data: Path, root: Path, rows: int) -> None:
    test, train = lines(data / "gsm8k" / "test_part1.jsonl")[:rows], lines(data / "gsm8k" / "train.jsonl.gz")[:40]
    write(root, "openai/gsm8k", {"train": train, "test": test}, "main")


def mmlu(data: Path, root: Path, rows: int, *subjects: str) -> None:
    for subject in subjects:
        splits = {}
        for split in ("dev", "test"):
            with (data / "mmlu" / split / f"{subject}_{split}.csv").open(encoding="utf-8", newline="") as file:
                read = list(csv.reader(file))[:rows]
            splits[split] = [
                {"question": q, "subject": subject, "choices": choices, "answer": "ABCD".index(letter)}
                for q, *choices, letter in read
            ]
        write(root, "cais/mmlu", splits, subject)


def bbh(data: Path, root: Path, rows: int, *parts: str) -> None:
    everything = lines(data / "bbh" / "bbh.jsonl.gz")
    for part in parts:
        some = [{"input": r["input"], "target": r["target"]} for r in everything if r["task"] == part][:rows]
        write(root, "SaylorTwift/bbh", {"test": some}, part)


def medqa(data: Path, root: Path, rows: int) -> None:
    def one(number: int, row: dict) -> dict:
        endings = {f"ending{i}": row["options"]["ABCD"[i]] for i in range(4)}
        label = "ABCD".index(row["answer_idx"])
        return {"id": f"test-{number:05d}", "sent1": row["question"], "sent2": "", **endings, "label": label}

    read = lines(data / "medqa" / "us_4options_test.jsonl.gz")[:rows]
    made = [one(number, row) for number, row in enumerate(read)]
    write(root, "GBaker/MedQA-USMLE-4-options-hf", {"train": made[:2], "validation": made[:2], "test": made})


def medmcqa(data: Path, root: Path, rows: int) -> None:
    read = lines(data / "medmcqa" / "dev.jsonl.gz")[:rows]
    asked = ("id", "question", "opa", "opb", "opc", "opd")  # others are null in some rows
    made = [{**{key: str(row[key]) for key in asked}, "cop": int(row["cop"]) - 1} for row in read]
    write(root, "openlifescienceai/medmcqa", {"train": made[:2], "validation": made, "test": made[:2]})


def pubmedqa(data: Path, root: Path, rows: int) -> None:
    read = lines(data / "pubmedqa" / "test.jsonl.gz")[:rows]
    made = [{key: row[key] for key in ("QUESTION", "CONTEXTS", "final_decision")} for row in read]
    splits = {"train": made[:2], "validation": made[:2], "test": made}
    write(root, "bigbio/pubmed_qa", splits, "pubmed_qa_labeled_fold0_source")


def humaneval(data: Path, root: Path, rows: int) -> None:
    write(root, "openai/openai_humaneval", {"test": lines(data / "humaneval" / "HumanEval.jsonl.gz")[:rows]})


def fpb(data: Path, root: Path, rows: int) -> None:
    read = lines(data / "financial_phrasebank" / "all.jsonl.gz")[:rows]
    classes = ("negative", "neutral", "positive")
    made = [{"sentence": row["sentence"], "label": classes.index(row["label"])} for row in read]
    write(root, "takala/financial_phrasebank", {"train": made}, "sentences_50agree")


def natural_instructions(data: Path, root: Path, rows: int) -> None:
    read = lines(data / "natural_instructions" / "eval.jsonl.gz")[:rows]
    made = [{"definition": r["instruction"], "inputs": r["input"], "targets": r["output"]} for r in read]
    write(root, "Muennighoff/natural-instructions", {"test": made})


def advbench(data: Path, root: Path, rows: int) -> None:
    with (data / "open_ended_eval" / "advbench.csv").open(encoding="utf-8", newline="") as file:
        made = list(csv.DictReader(file))[:rows]
    write(root, "walledai/AdvBench", {"train": made})
