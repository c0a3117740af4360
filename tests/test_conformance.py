"""The conformance command: the defects of public aggregation code, made again here, are flagged and named."""

import inspect
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedloom
from fedloom.conformance import Base, Factors, Update, check
from fedloom.conformance.answers import MalformedError, effective
from fedloom.conformance.cells import AXES, SHAPE, case, grid, sharing
from fedloom.conformance.command import load, main
from fedloom.conformance.looks import suspects
from fedloom.conformance.own import through
from fedloom.conformance.rows import component_means, rows, without_drift
from fedloom.conformance.table import findings, grid_table
from fedloom.errors import UserError
from fedloom.spaces.products import Products
from fedloom.spaces.stack import Stack
from fedloom.spaces.stacked import Stacked

SRC = str(Path(fedloom.__file__).parents[1])
HERE = Path(__file__).parent
CELL = next(cell for cell in grid() if (cell.clients, cell.weights, cell.drift) == (5, "unequal", "high"))


# -- aggregation functions: right ones, and the same with one defect each


def shares(clients):
    weights = np.array([client.weight for client in clients])
    return weights / weights.sum()


def uniform(clients):
    return np.full(len(clients), 1 / len(clients))


def mean(shares, matrices):
    return sum(share * matrix for share, matrix in zip(shares, matrices, strict=True))


def stored(matrix, base):
    return matrix.T if base.transposed else matrix


def one_rank(clients):
    if len({client.rank for client in clients}) > 1:
        raise NotImplementedError("factors of different ranks have no mean")


def dense(clients, base):
    return Update(stored(mean(shares(clients), [c.scale * c.b @ c.a for c in clients]), base))


def stacking(clients, base):
    p = shares(clients)
    a = np.concatenate([share * client.a for share, client in zip(p, clients, strict=True)])
    return Factors(a, np.concatenate([client.scale * client.b for client in clients], axis=1), 1.0)


def stacking_without_scale(clients, base):
    p = shares(clients)
    a = np.concatenate([share * client.a for share, client in zip(p, clients, strict=True)])
    return Factors(a, np.concatenate([client.b for client in clients], axis=1), 1.0)


def running_sum(clients, base):
    one_rank(clients)
    for i, (share, client) in enumerate(zip(shares(clients), clients, strict=True)):
        if i == 0:
            total = share * client.b @ client.a
        else:
            total = total + share * client.b @ client.a
    return Update(stored(clients[0].scale * total, base))


def running_sum_misspelt(clients, base):
    one_rank(clients)
    for i, (share, client) in enumerate(zip(shares(clients), clients, strict=True)):
        if i == 0:
            a, b = share * client.a, share * client.b
        else:
            aa, bb = a + share * client.a, b + share * client.b  # noqa: F841
    return Factors(a, b, clients[0].scale)


def averaged_apart(clients, base):
    one_rank(clients)
    p = shares(clients)
    return Factors(mean(p, [c.a for c in clients]), mean(p, [c.b for c in clients]), clients[0].scale)


def with_residual(clients, base, *, means=shares, kept=shares, scaled=True, turned=None):
    one_rank(clients)
    a, b = ([getattr(c, name) for c in clients] for name in "ab")
    residual = mean(shares(clients), [y @ x for x, y in zip(a, b, strict=True)])
    residual = residual - mean(means(clients), b) @ mean(means(clients), a)
    residual = residual * (clients[0].scale if scaled else 1.0)
    residual = stored(residual, base) if turned is None else residual.T
    return Factors(mean(kept(clients), a), mean(kept(clients), b), clients[0].scale, residual)


def residual_always_transposed(clients, base):
    return with_residual(clients, base, turned=True)


def residual_without_scale(clients, base):
    return with_residual(clients, base, scaled=False)


def residual_of_other_means(clients, base):
    return with_residual(clients, base, means=uniform)


def decomposed(clients, base):
    u, s, vt = np.linalg.svd(stored(dense(clients, base).delta, base), full_matrices=False)
    return u, s, vt


def svd(clients, base):
    u, s, vt = decomposed(clients, base)
    return Factors(np.sqrt(s)[:, None] * vt, u * np.sqrt(s), 1.0)


def svd_cut(clients, base):
    whole, rank = svd(clients, base), max(client.rank for client in clients)
    return Factors(whole.a[:rank], whole.b[:, :rank], 1.0)


def svd_root_lost(clients, base):
    u, s, vt = decomposed(clients, base)
    return Factors(vt, u * np.sqrt(s), 1.0)


def svd_cut_root_lost(clients, base):
    whole, rank = svd_root_lost(clients, base), max(client.rank for client in clients)
    return Factors(whole.a[:rank], whole.b[:, :rank], 1.0)


def svd_transposed(clients, base):
    whole = svd(clients, base)
    return Factors(whole.b.T, whole.a.T, 1.0)


def svd_cut_transposed(clients, base):
    whole = svd_cut(clients, base)
    return Factors(whole.b.T, whole.a.T, 1.0)


def delta_never_turned(clients, base):
    return Update(mean(shares(clients), [c.scale * c.b @ c.a for c in clients]))


# -- further answers


def single_precision(clients, base):
    return Update(dense(clients, base).delta.astype(np.float32))


def whole_weight(clients, base):
    return Update(base.weight + dense(clients, base).delta)


def difference_of_weights(clients, base):
    return Update(whole_weight(clients, base).delta - base.weight)


def writes_into_its_arguments(clients, base):
    for share, client in zip(shares(clients), clients, strict=True):
        client.b[...] = (share * client.scale) * client.b
    base.weight[...] = 0
    return Update(stored(sum(client.b @ client.a for client in clients), base))


def equal_weights(clients, base):
    return Update(stored(mean(uniform(clients), [c.scale * c.b @ c.a for c in clients]), base))


def weights_twice(clients, base):
    return Update(stored(mean(shares(clients) ** 2, [c.scale * c.b @ c.a for c in clients]), base))


def plain_scaling(clients, base):
    return Update(stored(mean(shares(clients), [c.alpha / c.rank * c.b @ c.a for c in clients]), base))


def not_a_number(clients, base):
    delta = dense(clients, base).delta.copy()
    delta[0, 0] = np.nan
    return Update(delta)


def nothing_at_all(clients, base):
    return Update(np.zeros_like(base.weight))


def breaks(clients, base):
    if len(clients) == 5:
        raise KeyError("lora_A.default.weight")
    return dense(clients, base)


def a_bare_array(clients, base):
    return dense(clients, base).delta


def another_size(clients, base):
    return Update(np.zeros((3, 3)))


def a_vector(clients, base):
    return Update(np.zeros(7))


def words(clients, base):
    return Factors("a", "b", 1.0)


def no_answer(clients, base):
    return None


def refuses(clients, base):
    raise NotImplementedError("not today")


def one_argument(clients):
    return None


A_NUMBER = 3


def run(capsys, function, *options):
    code = main([f"{__name__}:{function}", *options])
    shown = capsys.readouterr()
    for line in (shown.out + shown.err).splitlines():
        assert len(line) <= 80, line
    return code, shown.out, shown.err


def flat(text):
    return " ".join(text.split())


# -- the five public defects


@pytest.mark.parametrize(
    "function, options, looks, first, only",
    [
        ("running_sum_misspelt", [], "only the first client counted", "2 clients", "2 or 5 clients"),
        ("residual_always_transposed", [], "the residual is transposed", "linear 24x24", "linear layers"),
        ("stacking_without_scale", [], "the scale left out", "1 client", ""),
        ("residual_without_scale", [], "the residual without the scale", "2 clients", "2 or 5 clients"),
        ("residual_of_other_means", [], "uniform and weighted means mixed", "unequal weights", "unequal weights"),
        ("svd_root_lost", [], "a square root of the singular values lost", "1 client", ""),
        ("svd_cut_root_lost", ["--truncated"], "a square root of the singular values lost", "1 client", ""),
        ("svd_transposed", [], "the transpose of the right answer", "1 client", ""),
        ("svd_cut_transposed", ["--truncated"], "the transpose of the right answer", "1 client", ""),
    ],
)
def test_a_public_defect_is_flagged_with_its_cell_and_its_name(capsys, function, options, looks, first, only):
    code, out, err = run(capsys, function, *options)
    assert (code, err) == (1, "")
    found = re.search(r"^first failure: (.*?)relative error (\S+)\nlooks like: +(.*)", out, flags=re.DOTALL | re.M)
    assert found, out
    assert first in flat(found[1])
    assert float(found[2]) > 1e-4
    assert flat(found[3]).startswith(looks)
    assert f"fails only in: {only}" in out if only else "fails only in:" not in out
    assert "FAIL" in out


@pytest.mark.parametrize(
    "function, options",
    [
        ("dense", []),
        ("stacking", []),
        ("running_sum", []),
        ("with_residual", []),
        ("svd", []),
        ("svd", ["--truncated"]),
        ("svd_cut", ["--truncated"]),
        ("difference_of_weights", []),
        ("writes_into_its_arguments", []),
    ],
)
def test_the_right_version_passes(capsys, function, options):
    code, out, err = run(capsys, function, *options)
    assert (code, err) == (0, ""), out
    assert "FAIL" not in out
    assert re.search(r"^\d+ cells pass, 0 fail, (0|128) refused\.$", out, flags=re.M)


def test_a_square_layer_alone_hides_no_transposition():
    report = check(delta_never_turned)
    failing = {(outcome.cell.layer, outcome.cell.shape) for outcome in report.failed}
    assert failing == {("conv1d", "square"), ("conv1d", "oblong")}
    assert report.looks == (("the transpose of the right answer", len(report.failed)),)


@pytest.mark.parametrize(
    "function, looks",
    [
        ("averaged_apart", "the factors averaged apart (FedIT), without the residual"),
        ("svd_cut", "the best answer of its rank (right for FlexLoRA: --truncated)"),
        ("equal_weights", "uniform weights, not those given"),
        ("weights_twice", "weights that count twice"),
        ("plain_scaling", "alpha / r for rank-stabilised scaling"),
        ("whole_weight", "the base weight itself is in the update (answer the difference)"),
        ("nothing_at_all", "zero: nothing is added to the layer"),
        ("single_precision", "arithmetic in a coarser number format than the input's"),
    ],
)
def test_other_defects_have_names_that_explain_every_failing_cell(function, looks):
    report = check(globals()[function])
    assert report.looks == ((looks, len(report.failed)),)
    assert looks in flat(findings(report))


def combined(weigh, turn=False):
    """A sum of the clients' plain products with weights of its own."""

    def aggregate(clients, base):
        delta = mean(weigh(shares(clients), clients), [c.b @ c.a for c in clients])
        return Update(stored(delta, replace(base, transposed=base.transposed != turn)))

    return aggregate


def scales(clients):
    return np.array([client.scale for client in clients])


def alone(which):
    return lambda p, cs: scales(cs) * np.eye(len(cs))[which]


def spectral(change):
    def aggregate(clients, base):
        double = [replace(c, a=c.a.astype(np.float64), b=c.b.astype(np.float64)) for c in clients]
        u, s, vt = decomposed(double, base)
        return Factors(change(s)[:, None] * vt, u, 1.0)

    return aggregate


@pytest.mark.parametrize(
    "aggregate, looks",
    [
        (combined(lambda p, cs: p), "the scale left out"),
        (combined(lambda p, cs: p * scales(cs) ** 2), "the scale counted twice"),
        (combined(lambda p, cs: p * scales(cs)[0]), "the first client's scale for everybody"),
        (combined(lambda p, cs: uniform(cs)), "uniform weights, and the scale left out"),
        (combined(lambda p, cs: p**2), "weights that count twice, and the scale left out"),
        (combined(lambda p, cs: p**2 / sum(p**2) * scales(cs)), "weights that count twice, renormalised"),
        (combined(lambda p, cs: [c.weight * c.scale for c in cs]), "weights that are not normalised"),
        (combined(lambda p, cs: [c.weight for c in cs]), "weights not normalised, and the scale left out"),
        (combined(lambda p, cs: scales(cs)), "a sum over clients, not a mean"),
        (combined(lambda p, cs: np.ones(len(cs))), "a sum over clients, and the scale left out"),
        (combined(lambda p, cs: p * scales(cs) / len(cs)), "a mean that is divided by the number of clients again"),
        (combined(lambda p, cs: -p * scales(cs)), "the opposite sign"),
        (combined(lambda p, cs: p * [c.alpha / c.rank**0.5 for c in cs]), "alpha / sqrt(r) for plain scaling"),
        (combined(lambda p, cs: 0.125 * p * scales(cs)), "0.125 times the right answer"),
        (combined(lambda p, cs: p, turn=True), "transposed, and the scale left out"),
        (combined(alone(0)), "only the first client counted"),
        (combined(alone(-1)), "only the last client counted"),
        (spectral(np.square), "singular values counted twice"),
        (spectral(lambda s: (s > 1e-6 * s[0]) * 1.0), "the singular values left out"),
    ],
)
def test_every_defect_of_the_page_is_told_from_the_others(aggregate, looks):
    report = check(aggregate)
    assert report.looks == ((looks, len(report.failed)),)


def test_two_defects_are_both_named():
    def aggregate(clients, base):
        return delta_never_turned(clients, base) if base.transposed else equal_weights(clients, base)

    names = dict(check(aggregate).looks)
    assert names == {"the transpose of the right answer": 192, "uniform weights, not those given": 64}


# -- answers that cannot be compared


def test_an_answer_that_is_not_finite_fails(capsys):
    code, out, _ = run(capsys, "not_a_number")
    assert code == 1
    assert "the answer holds NaN or infinity" in out
    assert "0 cells pass, 384 fail" in out


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "number, says",
    [
        (np.inf, "the answer holds NaN or infinity"),
        (np.nan, "the answer holds NaN or infinity"),
        (1e200, "the answer holds numbers as large as"),
        (1j, "a holds complex numbers"),
    ],
)
def test_impossible_numbers_are_told_without_warnings(number, says):
    def impossible(clients, base):
        right = svd(clients, base)
        return Factors(right.a * number, right.b, 1.0)

    report = check(impossible, cells=[CELL])
    assert [outcome.verdict for outcome in report.outcomes] == ["fail"]
    assert says in report.failed[0].words


def test_a_function_that_raises_fails_in_those_cells_only(capsys):
    code, out, _ = run(capsys, "breaks")
    assert code == 1
    assert "it raised KeyError: 'lora_A.default.weight'" in out
    assert "fails only in: 5 clients" in out
    assert "256 cells pass, 128 fail, 0 refused." in out


def test_refused_cells_do_not_fail(capsys):
    code, out, _ = run(capsys, "with_residual")
    assert code == 0
    assert "pass, 16 refused" in out
    assert "refused:       128 cells: factors of different ranks have no mean" in out


@pytest.mark.parametrize(
    "function, says",
    [
        ("a_bare_array", "the answer is of type numpy.ndarray"),
        ("no_answer", "the answer is None"),
        ("another_size", "delta is (3, 3), the base weight is stored (24, 24)"),
        ("a_vector", "delta has shape (7,); it must be a matrix"),
        ("words", "not an array of real numbers"),
        ("refuses", "it refused every cell: not today"),
        ("one_argument", "cannot be called as function(clients, base)"),
        ("A_NUMBER", "is of type int, not a function"),
        ("svd_cutt", "Did you mean svd_cut?"),
        ("", "names no function"),
    ],
)
def test_what_cannot_be_checked_is_said_in_words(capsys, function, says):
    code, out, err = run(capsys, function)
    assert (code, out) == (2, "")
    assert says in flat(err)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "There is no module badly_written"),
        ("import no_such_library", "it needs the module no_such_library, not found"),
        ("def aggregate(:", "Importing badly_written failed: SyntaxError"),
        ("raise SystemExit('no display')", "Importing badly_written failed: SystemExit: no display"),
    ],
)
def test_a_module_that_cannot_be_imported_is_said_in_words(capsys, tmp_path, monkeypatch, content, says):
    if content is not None:
        (tmp_path / "badly_written.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["badly_written:aggregate"]) == 2
    shown = capsys.readouterr()
    assert (shown.out, says in flat(shown.err)) == ("", True), shown.err


@settings(deadline=None)
@given(st.text(max_size=20), st.text(max_size=20))
def test_any_name_is_answered_in_words(module, function):
    with pytest.raises(UserError):
        load(f"no_such_module_{module}:{function}")


# -- as a process


def program(cwd, *arguments):
    environment = {**os.environ, "PYTHONPATH": SRC}
    command = [sys.executable, "-m", "fedloom.conformance", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=120)


def test_the_exit_code_reaches_the_shell_from_the_folder_of_the_project(tmp_path):
    functions = (shares, mean, stored, dense, decomposed, svd, svd_transposed)
    imports = "import numpy as np\nfrom fedloom.conformance import Factors, Update\n"
    (tmp_path / "their_merge.py").write_text(imports + "".join(map(inspect.getsource, functions)))
    done = program(tmp_path, "their_merge:svd_transposed")
    assert (done.returncode, done.stderr) == (1, "")
    assert "looks like:    the transpose of the right answer" in done.stdout
    done = program(tmp_path, "their_merge:dense")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("384 cells pass, 0 fail, 0 refused.\n")
    done = program(tmp_path, "their_merge:dens")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "their_merge has no dens. Did you mean dense?\n"


def test_nothing_heavy_is_imported(tmp_path):
    heavy = ("transformers", "peft", "datasets", "matplotlib", "pydantic")
    code = f"import sys, fedloom.conformance.rows\nprint([name for name in {heavy} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": SRC}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "[]\n"


# -- the parts


def test_the_grid_has_every_combination_once():
    cells = list(grid())
    assert len(set(cells)) == len(cells) == math.prod(len(values) for values in AXES.values())
    assert len({str(cell) for cell in cells}) == len(cells)


def test_cases_are_what_their_cells_say():
    for cell in grid():
        it = case(cell)
        outputs, inputs = SHAPE[cell.shape]
        assert it.base.weight.shape == ((inputs, outputs) if cell.layer == "conv1d" else (outputs, inputs))
        assert it.base.transposed == (cell.layer == "conv1d")
        assert len(it.clients) == cell.clients
        for c in it.clients:
            assert (c.a.shape, c.b.shape) == ((c.rank, inputs), (outputs, c.rank))
            assert (
                c.a.dtype == c.b.dtype == it.base.weight.dtype == {"fp64": np.float64, "fp32": np.float32}[cell.dtype]
            )
            assert c.scale == pytest.approx(c.alpha / (c.rank if cell.scaling == "alpha/r" else math.sqrt(c.rank)))
            assert c.scale != 1, "a scale of 1 would hide that it is left out"
        if cell.clients > 1:
            assert (len({c.rank for c in it.clients}) > 1) == (cell.ranks == "mixed")
            assert (len({c.weight for c in it.clients}) > 1) == (cell.weights == "unequal")


@pytest.mark.parametrize("factor", ["A", "B"])
def test_shared_factors_are_shared_and_the_others_are_not(factor):
    for cell in sharing(factor):
        for name in "ab":
            first, *others = (getattr(client, name) for client in case(cell).clients)
            assert all((other == first).all() == (name == factor.lower()) for other in others)


def test_drift_is_low_and_high():
    costs = {"low": set(), "high": set()}
    for cell, outcome in ((o.cell, o) for o in check(averaged_apart).failed):
        costs[cell.drift].add(outcome.error)
    assert max(costs["low"]) < 0.01 < 0.1 < min(costs["high"])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.1, 10), min_size=5, max_size=5))
def test_unknown_client_shares_are_found_by_their_numbers(found):
    it = case(CELL)
    names = suspects(it, mean(found, it.products), it.target)
    text = next((name for name in names if name.startswith("client shares")), None)
    if text is None:  # a multiple of the right shares
        assert np.ptp(np.array(found) / it.p) < 1e-2 * np.max(found / it.p)
    else:
        numbers = [float(part) for part in text.removeprefix("client shares ").split(", not ")[0].split()]
        assert numbers == pytest.approx(found, rel=0.01)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(list(grid())), st.floats(1e-3, 1e3), st.integers(1, 12))
def test_all_forms_of_one_answer_mean_the_same(cell, factor, rank):
    base = case(cell).base
    outputs, inputs = SHAPE[cell.shape]
    numbers = np.random.Generator(np.random.Philox(rank))
    b, a, rest = (numbers.standard_normal(shape) for shape in ((outputs, rank), (rank, inputs), (outputs, inputs)))
    dense = factor * b @ a + rest
    assert effective(Update(stored(dense, base)), base) == pytest.approx(dense)
    assert effective(Factors(a, b, factor, stored(rest, base)), base) == pytest.approx(dense)
    assert effective(Factors(a, factor * b, 1.0), base) == pytest.approx(dense - rest)


def test_a_transposed_answer_keeps_its_numbers_for_the_diagnosis():
    base = Base(np.zeros((40, 16)), transposed=False)
    delta = np.arange(640.0).reshape(16, 40)
    with pytest.raises(MalformedError, match=r"delta is \(16, 40\), the base weight is stored \(40, 16\)") as caught:
        effective(Update(delta), base)
    assert (caught.value.turned == delta).all()


def test_an_answer_cut_below_the_largest_client_is_not_excused():
    def too_small(clients, base):
        answer = svd_cut(clients, base)
        return Factors(answer.a[:1], answer.b[:, :1], 1.0)

    report = check(too_small, truncated=True)
    assert len(report.failed) == len(report.outcomes)
    assert report.failed[0].words == "the answer has rank 1, the largest client 4"


def test_an_update_is_truncated_by_its_own_rank():
    def cut(clients, base):
        answer = svd_cut(clients, base)
        return Update(stored(answer.b @ answer.a, base))

    assert check(cut, truncated=True).passed
    assert not check(cut).passed


def test_the_table_shows_the_worst_of_its_cells():
    report = check(equal_weights)
    rows = [row.split() for row in grid_table(report).splitlines()[1:]]
    assert len(rows) == 16
    for ranks, scaling, layer, shape, count, fp64, fp32, *_ in rows:
        group = [
            outcome
            for outcome in report.outcomes
            if (outcome.cell.ranks, outcome.cell.scaling, outcome.cell.layer, outcome.cell.shape)
            == (ranks, scaling, layer, shape)
        ]
        assert int(count) == len(group)
        for shown, dtype in ((fp64, "fp64"), (fp32, "fp32")):
            assert float(shown) == pytest.approx(max(o.error for o in group if o.cell.dtype == dtype), rel=0.06)


def test_long_and_unprintable_reasons_stay_readable():
    def breaks(clients, base):
        raise ValueError("\x1b[31m" + "shape mismatch " * 200)

    text = findings(check(breaks, cells=[CELL]))
    assert "\x1b" not in text
    assert len(text.splitlines()) < 12
    assert max(map(len, text.splitlines())) <= 80


# -- fedloom's own spaces


def test_fedlooms_own_spaces_keep_their_promises(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    lines = out.split("\n\n")[-1].splitlines()[1:]
    assert len(lines) == len(rows())
    assert all(line.endswith("  pass") for line in lines), out
    assert max(map(len, out.splitlines())) <= 80


def test_a_broken_promise_is_an_exit_code_and_a_finding(capsys, monkeypatch):
    promise = next(row for row in rows() if row.target is without_drift)
    monkeypatch.setattr("fedloom.conformance.rows.rows", lambda: [replace(promise, target=None)])
    assert main([]) == 1
    out = capsys.readouterr().out
    assert "FAIL 128" in out
    assert "looks like:    the factors averaged apart (FedIT), without the residual" in out


def test_every_promise_is_checked_where_the_clients_differ():
    for row in rows():
        cells = list(row.cells())
        assert {"high"} <= {cell.drift for cell in cells}
        assert {"conv1d", "linear"} == {cell.layer for cell in cells}
        assert max(cell.clients for cell in cells) == 5


@dataclass(frozen=True)
class Unscaled(Products):
    def lift(self, y, layout, phase):
        plain, left, right = super().lift(y, layout, phase)
        return plain, left / layout.leaves[0].scale, right


@dataclass(frozen=True)
class Forgetful(Stacked):
    def close(self, shared, carry, term, round):
        return super().close(shared, (), term, round)


@dataclass(frozen=True)
class Unweighted(Products):
    rule: Any = Stack(uniform=True)


@pytest.mark.parametrize(
    "make, looks",
    [
        (lambda layout: Unscaled(layout), "the scale left out"),
        (lambda layout: Unweighted(layout), "uniform weights, not those given"),
    ],
)
def test_a_broken_space_is_flagged(make, looks):
    report = check(through(make, rank="full"))
    assert report.looks == ((looks, len(report.failed)),)
    assert report.failed


def test_a_space_that_loses_what_was_carried_is_flagged():
    assert check(through(lambda layout: Stacked(layout, 0)), cells=[CELL]).passed
    assert check(through(lambda layout: Forgetful(layout, 0)), cells=[CELL]).failed


def test_the_identity_of_fedit_is_the_product_of_the_means():
    for cell in sharing("A"):
        assert without_drift(case(cell)) == pytest.approx(case(cell).target)
    it = case(CELL)
    answer = averaged_apart(it.clients, it.base)
    assert without_drift(it) == pytest.approx(answer.scale * answer.b @ answer.a)
    assert np.linalg.norm(without_drift(it) - it.target) > 0.1 * np.linalg.norm(it.target)


def test_component_means_are_dW_at_equal_ranks_and_more_at_mixed_ones():
    for cell in grid():
        it = case(cell)
        ratio = np.linalg.norm(component_means(it) - it.target) / np.linalg.norm(it.target)
        assert (ratio < 1e-12) == (cell.ranks == "equal" or cell.clients == 1)


# -- the page


def test_the_example_of_the_page_says_what_the_page_says(tmp_path):
    page = (HERE.parent / "docs" / "conformance.md").read_text(encoding="utf-8")
    wrapper, in_a_test = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "wrapper.py").write_text(wrapper)
    (tmp_path / "their_project").mkdir()
    (tmp_path / "their_project" / "server.py").write_text(
        "def merge_adapters(states, counts):\n"
        "    for i, (state, count) in enumerate(zip(states, counts, strict=True)):\n"
        "        part = {name: tensor * (count / sum(counts)) for name, tensor in state.items()}\n"
        "        if i == 0:\n"
        "            merged = part\n"
        "        else:\n"
        "            megred = {name: merged[name] + part[name] for name in part}\n"
        "    return merged\n"
    )
    done = program(tmp_path, "wrapper:aggregate")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.endswith(shown)
    namespace = {"aggregate": dense}
    exec(in_a_test, namespace)
    namespace["test_aggregation_is_exact"]()
    namespace["aggregate"] = stacking_without_scale
    with pytest.raises(AssertionError, match="the scale left out"):
        namespace["test_aggregation_is_exact"]()


def test_the_page_names_every_axis_and_every_space_that_is_checked():
    page = (HERE.parent / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\w+) \| ", page.split("| exit code")[0], flags=re.M)[1:] == list(AXES)
    spaces = re.findall(r"^\| (\w+) \| ", page.split("## fedloom's own spaces")[1], flags=re.M)[1:]
    assert list(dict.fromkeys(spaces)) == list(dict.fromkeys(row.name for row in rows()))
