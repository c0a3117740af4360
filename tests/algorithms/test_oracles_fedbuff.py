"""FedBuff: stale replies, a buffer, and a clock in which clients differ in speed."""

import pytest

from algorithms.scalar import LAYOUT, ORACLES, Engine, Scalars, trajectory
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.fedbuff import FedBuff
from fedloom.spaces.factors import Factors

INPUTS, OUTPUTS = ORACLES["fedbuff"]["inputs"], ORACLES["fedbuff"]["outputs"]
FRESH, SLOW, LATE = 4, 5, 6
"""The three clients the numbers are about, beside four quick ones."""
SPEEDS = (1.0, 1.0, 1.0, 1.0, 1.0, 1 / 3.75, 1 / 1.5)
COHORTS = ((0, 1, 2, 3, SLOW), (0, 1, 2), (0, 1, LATE), (0, 1, FRESH), ())
"""Who is sent for at each version, five at work. Every buffer takes the first three by time, then by number:

version 0: 0, 1, 2 return at 1 (3 too, but it waits)   version 1: 3, then 0, 1 at 2 (2 waits)
version 2: 2, then 0, 1 at 3                            version 3: LATE at 3.5, SLOW at 3.75, then 0, 1, FRESH at 4
"""


def buffered(**settings):
    known = {"buffer": 3, "concurrency": 5, "exponent": INPUTS["exponent"], "server_lr": INPUTS["server_lr"]}
    return FedBuff(**{**known, **settings})


def timeline(page, deltas, rounds=4, cohorts=COHORTS):
    """x after each version; a client's difference counts from version 3 on, quick clients never move."""
    federation = Scalars(
        n=(1,) * 7, h=(1.0,) * 7, m=(0.0,) * 7, steps=1, speeds=SPEEDS, cohorts=cohorts, weighting="uniform"
    )
    engine = Engine(deltas=lambda client: deltas.get(client, 0.0) if hub.round >= 3 else 0.0)
    hub = federation.hub(page, engine)
    return trajectory(page, hub, rounds, INPUTS["x0"])[0]


def test_staleness_in_numbers():
    """Staleness 0, 3 and 1, told by the clock: s = 1, 1/2, 1/sqrt 2; divided by the buffer, not by their sum."""
    cohorts = (*COHORTS[:3], (FRESH,), ())  # nobody quick in the last buffer
    moves = dict(zip((FRESH, SLOW, LATE), INPUTS["deltas_y_minus_x"], strict=True))
    x = timeline(buffered(), moves, cohorts=cohorts)
    assert x[:3] == [1.0, 1.0, 1.0]
    assert x[3] == pytest.approx(OUTPUTS["x_mean_over_K"], abs=1e-8)
    assert x[3] != pytest.approx(OUTPUTS["x_renormalised"], abs=1e-3)


@pytest.mark.parametrize(("client", "staleness"), [(FRESH, 0), (SLOW, 3), (LATE, 1)])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_each_weight_alone(client, staleness, exponent):
    cohorts = (*COHORTS[:3], (FRESH,), ())
    x = timeline(buffered(exponent=exponent, server_lr=1.0), {client: 0.3}, cohorts=cohorts)
    assert x[3] - x[2] == pytest.approx((1 + staleness) ** -exponent * 0.3 / 3, abs=1e-12)


def test_who_is_too_stale_takes_no_place_in_the_buffer():
    """SLOW, 3 versions behind, is dropped: client 0 (a fresh .1, at time 4) takes its place, before client 1."""
    moves = {FRESH: 0.4, SLOW: -0.2, LATE: 0.3, 0: 0.1, 1: 99.0}
    cohorts = (*COHORTS[:3], (0, FRESH), ())
    x = timeline(buffered(max_staleness=2), moves, cohorts=cohorts)
    assert x[3] == pytest.approx(1 + 0.5 * (0.1 + 0.4 + 0.3 * 2**-0.5) / 3, abs=1e-12)


def reference(w, page, versions):
    """Clients train from the version they were sent; the next `buffer` by time, then by number, make a version."""
    x, clock, at_work, history, seen = 0.0, 0.0, {}, [0.0], []
    for t in range(versions):
        idle = [i for i in w.cohorts[t] if i not in at_work]
        for i in idle[: page.concurrency - len(at_work)]:
            at_work[i] = (clock + 1 / w.speeds[i], t)
        chosen = sorted(at_work, key=lambda i: (at_work[i][0], i))[: page.buffer]
        mean, step = sum(w.n[i] for i in chosen) / page.buffer, 0.0
        for i in chosen:
            clock, version = at_work.pop(i)
            y = history[version]
            for _ in range(w.steps):
                y -= w.lr * w.h[i] * (y - w.m[i])
            rows = w.n[i] / mean if page.weighted else 1.0
            step += rows * (1 + t - version) ** -page.exponent * (y - history[version]) / page.buffer
        x += page.server_lr * step
        history.append(x)
        seen.append(x)
    return seen


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("buffer", "concurrency", "exponent", "server_lr"), [(2, 4, 0.5, 1.0), (3, 5, 1.0, 0.7), (1, 6, 0.5, 1.0)]
)
def test_a_long_timeline(buffer, concurrency, exponent, server_lr, weighted):
    """Six clients whose speeds differ by up to nine times; training is real. Rows count only when asked for."""
    w = Scalars(
        n=(3, 1, 4, 1, 5, 9), h=(1.0, 2.0, 0.5, 1.5, 0.7, 1.2), m=(1.0, -1.0, 3.0, 0.5, -2.0, 2.0),
        speeds=(1.0, 0.31, 0.57, 0.11, 0.83, 0.43), cohorts=((0, 1, 2, 3, 4, 5),) * 12, weighting="dataset",
    )  # fmt: skip
    page = FedBuff(buffer=buffer, concurrency=concurrency, exponent=exponent, server_lr=server_lr, weighted=weighted)
    assert trajectory(page, w.hub(page), 12)[0] == pytest.approx(reference(w, page, 12), abs=1e-12)


def test_at_one_speed_with_a_buffer_of_all_it_is_uniform_fedavg():
    federation = Scalars(
        n=(30, 10, 20), h=(1.0, 2.0, 0.5), m=(1.0, -1.0, 3.0), steps=(2, 4, 3), cohorts=((0, 1, 2),) * 4,
        weighting="uniform",
    )  # fmt: skip
    page, fedavg = FedBuff(buffer=3, concurrency=3, exponent=0.5, server_lr=1.0), FedAvg(Factors(LAYOUT))
    plain, _ = trajectory(fedavg, federation.hub(fedavg), 4)
    assert trajectory(page, federation.hub(page), 4)[0] == pytest.approx(plain, abs=1e-12)


def test_nobody_counts_twice_in_a_buffer():
    """Client 0 is a hundred times faster than the other; still it waits for the version its reply went into."""
    federation = Scalars(speeds=(100.0, 1.0), weighting="uniform", cohorts=((0, 1),) * 2)
    page, engine = FedBuff(buffer=2, concurrency=2, exponent=0.5, server_lr=1.0), Engine()
    trajectory(page, federation.hub(page, engine), 2)
    assert [client for client, _, _ in engine.served] == [0, 1, 0, 1]
