"""Who is asked: exact counts, right chances, and nothing that depends on what was drawn before."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fedloom import rng
from fedloom.errors import UserError
from fedloom.runtime.sampling import BySize, Cyclic, Fixed, Poisson, Sampler, Trace, Uniform, holdout, resolve, sampler
from fedloom.runtime.sampling_config import (
    BySizeConfig,
    CyclicConfig,
    FixedConfig,
    PoissonConfig,
    SamplingConfig,
    SomeClients,
    TraceConfig,
    UniformConfig,
)

LAW = settings(deadline=None, derandomize=True, max_examples=60)
NAMES = ["ada", "bob", "cyd", "dan", "eve", "fay"]
MANY = 100_000


def key(round: int, attempt: int = 0, seed: int = 0) -> int:
    return rng.key(seed, "cohort", round, attempt)


def make(config: Any, names: Sequence[str] = NAMES, sizes: Any = lambda i: i + 1, **more: Any) -> Sampler:
    return sampler(config, names, sizes, **{"count": 1, "seed": 0, **more})


def of(*rows: int) -> BySize:
    return BySize(np.array(rows, dtype=np.int64))


def every(total: int) -> dict[str, Sampler]:
    """One of each, over `total` clients; all are eligible in each of them."""
    return {
        "uniform": Uniform(),
        "size": of(*(i % 7 + 1 for i in range(total))),
        "fixed": Fixed(tuple(reversed(range(total)))),
        "cyclic": make(CyclicConfig(), [f"c{i}" for i in range(total)]),
        "trace": Trace({1: frozenset(range(total)), 2: frozenset(range(total))}),
        "poisson": Poisson(total, total),
    }


KINDS = sorted(every(1))
COUNTED = [kind for kind in KINDS if kind != "poisson"]


# -- what all of them promise


@pytest.mark.parametrize("kind", COUNTED)
@LAW
@given(st.data())
def test_a_cohort_is_so_many_eligible_clients_in_order(kind, data):
    total = data.draw(st.integers(1, 30))
    clients = sorted(data.draw(st.sets(st.integers(0, total - 1))))
    count, round = data.draw(st.integers(0, total)), data.draw(st.integers(0, 50))
    drawn = every(total)[kind].draw(clients, count, key(round), round)
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(clients)
    assert len(drawn) == min(count, len(clients))


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_is_a_function_of_its_arguments(kind):
    one, other = every(12)[kind], every(12)[kind]
    drawn = [one.draw(range(12), 4, key(t), t) for t in range(8)]
    assert [other.draw(list(range(12)), 4, key(t), t) for t in reversed(range(8))] == drawn[::-1]


@pytest.mark.parametrize("kind", ["uniform", "size", "trace", "poisson"])
def test_other_keys_draw_otherwise(kind):
    """Another round, attempt or seed."""
    made = every(40)[kind]
    keys = [key(0), key(1), key(0, attempt=1), key(0, seed=1)]
    assert len({tuple(made.draw(range(40), 10, one, 0)) for one in keys}) == 4


@pytest.mark.parametrize("kind", ["fixed", "cyclic"])
def test_a_round_tried_again_asks_the_same(kind):
    made = every(40)[kind]
    assert made.draw(range(40), 10, key(3), 3) == made.draw(range(40), 10, key(3, attempt=1), 3)


@pytest.mark.parametrize("kind", ["size", "fixed", "cyclic", "poisson"])
@LAW
@given(gone=st.sets(st.integers(0, 19)), round=st.integers(0, 9))
def test_leaving_some_out_keeps_the_others(kind, gone, round):
    made = every(20)[kind]
    whole = made.draw(range(20), 6, key(round), round)
    rest = made.draw([i for i in range(20) if i not in gone], 6, key(round), round)
    assert set(whole) - gone <= set(rest)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_is_drawn_where_nobody_is_eligible(kind):
    assert every(5)[kind].draw([], 3, key(0), 0) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_clients(kind):
    """Every third one is busy; a coin's cohort has mean 667 and standard deviation 26."""
    clients = [i for i in range(MANY) if i % 3]
    drawn = every(MANY)[kind].draw(clients, 1000, key(5), 5)
    assert drawn == sorted(set(drawn))
    assert all(type(i) is int and 0 <= i < MANY and i % 3 for i in drawn)
    assert 500 < len(drawn) < 830 if kind == "poisson" else len(drawn) == 1000


# -- uniform


def test_uniform_takes_the_first_of_a_permutation():
    """The permutation of key(0, "cohort", 0, 0) begins 0 6 7 4 (see test_rng)."""
    assert Uniform().draw(range(8), 3, key(0), 0) == [0, 6, 7]
    assert Uniform().draw(range(10, 18), 4, key(0), 0) == [10, 14, 16, 17]


# -- by size


def chance(rows: Sequence[int], count: int) -> dict[tuple[int, ...], float]:
    """Of every cohort, when one client after the other is drawn in proportion to what is left: all orders summed."""
    found: Counter[tuple[int, ...]] = Counter()
    for order in permutations(range(len(rows)), count):
        probability, left = 1.0, sum(rows)
        for client in order:
            probability *= rows[client] / left
            left -= rows[client]
        found[tuple(sorted(order))] += probability
    return dict(found)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_sizes_are_chances(count):
    rows, draws = (1, 2, 3, 10), 4000
    drawn = Counter(tuple(of(*rows).draw(range(4), count, key(t), t)) for t in range(draws))
    expected = chance(rows, count)
    assert sum(expected.values()) == pytest.approx(1)
    for cohort, p in expected.items():
        assert abs(drawn[cohort] - draws * p) < 4.5 * (draws * p * (1 - p)) ** 0.5 + 1, cohort


@LAW
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30), st.integers(0, 30), st.integers(0, 99))
def test_they_are_the_largest_keys_of_the_paper(rows, count, round):
    """u^(1/w), in logarithms, with u = exp(-e)."""
    e = rng.numbers(key(round)).standard_exponential(len(rows))
    ranked = sorted(range(len(rows)), key=lambda i: -e[i] / rows[i], reverse=True)
    assert of(*rows).draw(range(len(rows)), count, key(round), round) == sorted(ranked[:count])


def test_sizes_of_any_range():
    """A client with a thousandth of a billionth of the rows is there when all are wanted, and hardly else."""
    made = of(10**12, 1, 10**12)
    assert made.draw(range(3), 3, key(0), 0) == [0, 1, 2]
    assert all(made.draw(range(3), 2, key(t), t) == [0, 2] for t in range(50))


def test_clients_without_rows_are_never_drawn():
    made = of(0, 5, 0, 5)
    assert made.draw(range(4), 4, key(0), 0) == [1, 3]
    assert made.draw([0, 2], 2, key(0), 0) == []


@pytest.mark.parametrize("sizes", [lambda i: [0, 3, 0, 4][i], {0: 0, 1: 3, 2: 0, 3: 4}])
def test_sizes_may_be_a_function_or_a_mapping(sizes):
    assert make(BySizeConfig(), "abcd", sizes).draw(range(4), 4, key(0), 0) == [1, 3]


def test_too_few_clients_with_rows():
    with pytest.raises(UserError, match=r"asks for 3 .* 2 of the clients that may train have rows .* lower it to 2"):
        make(BySizeConfig(), "abcd", [0, 3, 0, 4].__getitem__, count=3)


# -- fixed


def test_fixed_is_the_list_by_name_number_and_range():
    made = make(FixedConfig(clients=["eve", "0", "2-3"]), count=4)
    assert [made.draw(range(6), 4, key(t), t) for t in range(3)] == [[0, 2, 3, 4]] * 3


def test_fixed_takes_the_first_of_a_longer_list_and_the_next_for_one_who_cannot():
    made = make(FixedConfig(clients=["eve", "ada", "cyd"]), count=2)
    assert made.draw(range(6), 2, key(0), 0) == [0, 4]
    assert made.draw([0, 1, 2, 3], 2, key(0), 0) == [0, 2]
    assert made.draw([1, 2, 3], 2, key(0), 0) == [2]


def test_fixed_lists_that_cannot_fill_a_cohort():
    with pytest.raises(UserError, match="is empty; name the clients"):
        make(FixedConfig())
    with pytest.raises(UserError, match=r"asks for 3 clients a round, but .* names 2 that may train; lower it to 2"):
        make(FixedConfig(clients=["ada", "bob", "0"]), count=3)  # ada is number 0
    with pytest.raises(UserError, match="names 1 that may train"):
        make(FixedConfig(clients=["ada", "bob"]), count=2, holdouts={1})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("bop", "federation.sampling.clients: no client is called 'bop'. Did you mean bob?"),
        ("zzz", "no client is called 'zzz'. Choose one of: ada, bob"),
        ("-1", "no client is called '-1'"),
        ("6", "6 does not exist; the 6 clients are 0 to 5"),
        ("4-6", "4-6 does not exist"),
        ("3-1", "3-1 is a range from 3 down to 1; write 1-3"),
        ("9" * 5000, "no client is called"),
        ("²", "no client is called"),
    ],
)
def test_clients_that_do_not_exist(entry, message):
    with pytest.raises(UserError) as caught:
        make(FixedConfig(clients=[entry]))
    assert message in str(caught.value)


def test_of_many_clients_a_message_names_a_few():
    with pytest.raises(UserError, match=r"called site-0, site-1, site-2, \.\.\.; numbers from 0 to 999 will do too"):
        resolve(["zzz"], [f"site-{i}" for i in range(1000)], "here")


def test_names_win_over_numbers_and_ranges():
    assert resolve(["2", "0-1", "1"], ["2", "1", "0-1"], "here") == (0, 2, 1)


# -- cyclic


def test_in_turn_by_number():
    """Five clients, two a round: the third round goes on at the beginning."""
    made = make(CyclicConfig(shuffle=False), "abcde", count=2)
    drawn = [made.draw(range(5), 2, key(t), t) for t in range(6)]
    assert drawn == [[0, 1], [2, 3], [0, 4], [1, 2], [3, 4], [0, 1]]


@LAW
@given(st.integers(1, 25), st.integers(1, 25), st.integers(0, 60), st.integers(1, 40), st.booleans(), st.data())
def test_everybody_in_turn_whether_or_not_the_count_divides(total, count, first, rounds, shuffle, data):
    held = data.draw(st.sets(st.integers(0, total - 1), max_size=total - 1))
    clients = [i for i in range(total) if i not in held]
    count = min(count, len(clients))
    made = make(CyclicConfig(shuffle=shuffle), [f"c{i}" for i in range(total)], count=count, holdouts=held)
    asked = Counter(i for t in range(first, first + rounds) for i in made.draw(clients, count, key(t), t))
    times = [asked[i] for i in clients]
    assert sum(times) == rounds * count == asked.total()
    assert max(times) - min(times) <= 1


def test_everybody_once_before_anybody_twice():
    made = make(CyclicConfig(), [f"c{i}" for i in range(12)], count=4)
    for first in (0, 3, 6):
        drawn = [i for t in range(first, first + 3) for i in made.draw(range(12), 4, key(t), t)]
        assert sorted(drawn) == list(range(12))


def test_who_is_busy_in_its_turn_is_skipped():
    made = make(CyclicConfig(shuffle=False), count=2)
    assert made.draw([0, 1, 3, 4, 5], 2, key(1), 1) == [3, 4]
    assert made.draw([0, 2], 2, key(1), 1) == [0, 2]


def test_the_order_is_the_seeds():
    orders = [
        [tuple(make(CyclicConfig(), "abcdefghij", seed=seed).draw(range(10), 1, key(t), t)) for t in range(10)]
        for seed in range(3)
    ]
    assert len(set(map(tuple, orders))) == 3
    assert all(sorted(order) == [(i,) for i in range(10)] for order in orders)


def test_a_ring_of_nobody():
    assert Cyclic(np.array([], dtype=np.int64)).draw([0, 1], 1, key(0), 0) == []


# -- poisson


def test_coins_fall_by_themselves():
    """Eight clients, two on average: sizes are binomial, and pairs meet as often as independence says."""
    rounds, made = 3000, make(PoissonConfig(), "abcdefgh", count=2)
    drawn = [made.draw(range(8), 2, key(t), t) for t in range(rounds)]

    def near(found: int, p: float) -> bool:
        return abs(found - rounds * p) < 4.5 * (rounds * p * (1 - p)) ** 0.5

    assert near(sum(not cohort for cohort in drawn), 0.75**8)
    assert all(near(sum(i in cohort for cohort in drawn), 0.25) for i in range(8))
    assert all(near(sum({i, i + 1} <= set(cohort) for cohort in drawn), 0.25**2) for i in range(7))


def test_the_coin_knows_who_may_train_and_not_who_is_busy():
    """Of eight clients four are held out: two of four is a half, also for the one who is left when others are busy."""
    made = make(PoissonConfig(), "abcdefgh", count=2, holdouts=range(4))
    assert made == Poisson(8, 4)
    whole = [made.draw(range(4, 8), 2, key(t), t) for t in range(400)]
    alone = [made.draw([5], 2, key(t), t) for t in range(400)]
    assert alone == [[i for i in cohort if i == 5] for cohort in whole]
    assert 150 < sum(map(len, alone)) < 250  # mean 200, standard deviation 10


def test_a_coin_that_always_falls_their_way():
    assert all(Poisson(4, 4).draw(range(4), 4, key(t), t) == [0, 1, 2, 3] for t in range(50))


# -- trace


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def _write(text: str | bytes) -> Path:
        path = tmp_path / "who.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return _write


def trace(path: Path, **more: Any) -> Sampler:
    return make(TraceConfig(file=path.name), folder=path.parent, **more)


def test_a_trace_says_who_is_there_and_begins_again(write):
    made = trace(write("round,client\n1,ada\n1,eve\n2,2-4\n4,0\n"))
    drawn = [made.draw(range(6), 6, key(t), t) for t in range(6)]
    assert drawn == [[0, 4], [2, 3, 4], [], [0], [0, 4], [2, 3, 4]]


def test_a_cohort_is_drawn_uniformly_among_those_there(write):
    made = trace(write("round,client\n1,0-3\n"))
    drawn = Counter(tuple(made.draw(range(6), 2, key(t), t)) for t in range(1200))
    assert len(drawn) == 6
    assert all(130 < times < 270 for times in drawn.values())  # 200 each, standard deviation 13


def test_who_is_there_and_cannot_be_asked_is_not(write):
    made = trace(write("round,client\n1,0-3\n"), holdouts=[0])
    assert made.draw([1, 3, 5], 3, key(0), 0) == [1, 3]


@pytest.mark.parametrize(
    "text",
    [
        b'\xef\xbb\xbfRound, Client\r\n\r\n2 , ada\r\n1,"bob"\r\n1,bob\r\n',
        b"round,client\n02,0\n1,1",
    ],
    ids=["as a spreadsheet writes it", "plain"],
)
def test_forms_of_a_trace(write, text):
    assert trace(write(text)) == Trace({1: frozenset({1}), 2: frozenset({0})})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header is ''; a trace begins with the line round,client"),
        ("client,round\nada,1\n", "line 1: the header is 'client,round'"),
        ("round,client\n", "no client is available in any round"),
        ("round,client\n1,ada\n\n2\n", "line 4: 1 fields; a line is a round and a client, such as 1,ada"),
        ("round,client\n1,ada,bob\n", "line 2: 3 fields"),
        ("round,client\n0,ada\n", "line 2: round is '0'; rounds are whole numbers from 1"),
        ("round,client\n1.5,ada\n", "line 2: round is '1.5'"),
        ("round,client\n1,ada\n-1,ada\n", "line 3: round is '-1'"),
        ("round,client\n1,adda\n", "line 2: no client is called 'adda'. Did you mean ada?"),
        ("round,client\n1,6\n", "line 2: 6 does not exist; the 6 clients are 0 to 5"),
        ("round,client\n1,\n", "line 2: no client is called ''"),
        ('round,client\n1,"ada\n', "line 2: unexpected end of data; check the double quotes"),
        (b"round,client\n1,\xff\n", "is not UTF-8 text"),
    ],
)
def test_traces_that_cannot_be_read(write, text, message):
    path = write(text)
    with pytest.raises(UserError) as caught:
        trace(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_traces_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no\.csv does not exist"):
        make(TraceConfig(file="no.csv"), folder=tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        make(TraceConfig(file="."), folder=tmp_path)
    with pytest.raises(UserError, match=r"federation\.sampling\.file is not given"):
        make(TraceConfig())


def test_a_trace_of_held_out_clients_alone(write):
    path = write("round,client\n1,ada\n2,bob\n")
    assert trace(path, holdouts=[0]).draw(range(1, 6), 1, key(1), 1) == [1]
    with pytest.raises(UserError, match="nobody would ever be asked"):
        trace(path, holdouts=[0, 1])


# -- those who never train


def test_so_many_or_such_a_share_are_held_out():
    assert holdout(0, NAMES, 0) == holdout("0%", NAMES, 0) == holdout([], NAMES, 0) == frozenset()
    assert [len(holdout(n, NAMES, 0)) for n in (1, 5)] == [1, 5]
    assert [len(holdout(share, NAMES, 0)) for share in ("1%", "50%", "80%")] == [1, 3, 5]
    assert holdout(["fay", "0", "2-3"], NAMES, 0) == {0, 2, 3, 5}


def test_who_is_held_out_is_the_seeds_and_more_are_the_same_and_others():
    names = [f"c{i}" for i in range(50)]
    assert len({holdout(10, names, seed) for seed in range(5)}) == 5
    drawn = [holdout(n, names, 3) for n in range(50)]
    assert all(few < more for few, more in pairwise(drawn))
    assert [len(one) for one in drawn] == list(range(50))
    assert holdout("20%", names, 3) == drawn[10]


@pytest.mark.parametrize("value", [6, 7, "100%", "95%", ["0-5"], ["ada", "1", "2-5"]])
def test_not_everybody_is_held_out(value):
    with pytest.raises(UserError, match=r"federation\.holdout leaves none of 6 clients to train; hold out at most 5"):
        holdout(value, NAMES, 0)


def test_a_cohort_must_fit_into_those_who_train():
    with pytest.raises(UserError, match=r"asks for 5 clients a round, but 4 of 6 clients may train .* lower it to 4"):
        make(UniformConfig(), count=5, holdouts=[0, 1])
    assert make(UniformConfig(), count=4, holdouts=[0, 1]) == Uniform()


# -- the settings


def test_a_list_of_clients_may_hold_numbers():
    read = TypeAdapter(SamplingConfig).validate_python({"name": "fixed", "clients": [0, "3-5", "bob"]})
    assert read == FixedConfig(clients=["0", "3-5", "bob"])
    assert TypeAdapter(SamplingConfig).validate_json(read.model_dump_json()) == read
    for wrong in ([True], [1.5], "bob", [None]):
        with pytest.raises(ValidationError):
            TypeAdapter(SamplingConfig).validate_python({"name": "fixed", "clients": wrong})


def test_some_clients_are_a_number_a_share_or_a_list():
    some = TypeAdapter(SomeClients)
    assert [some.validate_python(v, strict=True) for v in (3, "12.5%", [1, "a"])] == [3, "12.5%", ["1", "a"]]
    for wrong in (-1, "101%", "half", 0.5, True):
        with pytest.raises(ValidationError):
            some.validate_python(wrong, strict=True)
