"""How well classes are told apart: accuracy, F1 and Matthews correlation, computed by scikit-learn from counts.

Classes are those that occur among the rows, as truth or as the model's word; one that does not occur says nothing about
the model and enters no mean. Where a definition divides by nothing, the value is 0: F1 of a class that is never said,
and Matthews correlation where all rows are of one class or the model says the same of all. A client with a single class
is therefore no error: its accuracy is what it is, its Matthews correlation 0. Rows of which the model said no class at
all (-1) are wrong, and -1 is not a class of any mean.

Sources: F1: van Rijsbergen 1979, Information Retrieval; Matthews 1975, Biochimica et Biophysica Acta 405, and for more
than two classes Gorodkin 2004, Computational Biology and Chemistry 28.
"""

from typing import Final, Literal

NO_CLASS: Final = -1
"""What a model says that gives numbers which are not finite."""


def score(
    name: Literal["accuracy", "f1", "f1_weighted", "f1_micro", "matthews"], confusion: tuple[tuple[int, int, int], ...]
) -> float:
    """One metric of counts (true class, said class, rows), at least one row; 0..1, matthews -1..1.

    accuracy: share of rows whose class was said. f1: mean over classes (macro). f1_weighted: mean over classes by their
    true rows. f1_micro: of all decisions together; the accuracy, as long as every row was given a class. matthews:
    correlation of truth and word over rows.
    """
    import numpy as np
    from sklearn import metrics  # slow to import, and not needed unless classes are told

    truth, said, rows = np.array(confusion, dtype=np.int64).T
    if name == "accuracy":
        return float(metrics.accuracy_score(truth, said, sample_weight=rows))
    if name == "matthews":
        if len(set(truth.tolist())) == 1 or len(set(said.tolist())) == 1:
            return 0.0  # nothing varies, so nothing varies together
        return float(metrics.matthews_corrcoef(truth, said, sample_weight=rows))
    average = {"f1": "macro", "f1_weighted": "weighted", "f1_micro": "micro"}[name]
    present = sorted({*truth.tolist(), *said.tolist()} - {NO_CLASS})
    value = metrics.f1_score(truth, said, labels=present, average=average, sample_weight=rows, zero_division=0.0)
    return float(value)
