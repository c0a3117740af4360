"""The process that evaluates one model: a job on stdin, answers on stdout, all that libraries say on stderr.

    python -P -m fedloom.evaluate.worker < job.json

`-P`: the working folder, where the data lie, is no place to import from.
"""

import os
import sys
from typing import IO

from fedloom.errors import UserError
from fedloom.evaluate.job import Answer, Job


def main() -> int:
    """Evaluate; 0: every task has its line, 2: a line says what cannot work."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print where they like; only answers go to whoever asked
    try:
        evaluate(Job.model_validate_json(sys.stdin.buffer.read()), answers)
    except UserError as error:
        _say(answers, Answer(mistake=str(error)))
        return 2
    return 0


def evaluate(job: Job, answers: IO[str]) -> None:
    """Load the model once, and write a line for each task."""
    from fedloom.evaluate import harness, loading

    lm = loading.language_model(job.entrant, job.settings)
    for name in job.tasks:
        _say(answers, Answer(result=harness.score(lm, name, job.settings)))


def _say(answers: IO[str], answer: Answer) -> None:
    answers.write(answer.model_dump_json() + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
