"""Ditto, pFedMe, FedPer and FedRep against numbers worked out without this package."""

from dataclasses import replace

import pytest
import torch

from algorithms.scalar import LAYOUT, ORACLES, PAIR, Engine, Pairs, Scalars, advance, number, owns, trajectory, world
from fedloom.algorithms.ditto import Ditto
from fedloom.algorithms.fedavg import FedAvg
from fedloom.algorithms.fedper import FedPer
from fedloom.algorithms.fedrep import FedRep
from fedloom.algorithms.local import LocalOnly
from fedloom.algorithms.pfedme import PFedMe
from fedloom.contracts import Model
from fedloom.engine.config import OptimizerConfig
from fedloom.spaces.factors import Factors

SPACE = Factors(LAYOUT)
FEDAVG = FedAvg(SPACE)


def watched(page, hub, rounds, start, clients=(0, 1)):
    """(shared model, what each client would use) after each round."""
    state, seen = page.init(start), []
    for _ in range(rounds):
        state = page.round(state, hub)
        hub.round += 1
        model = page.model(state)
        seen.append((model, owns(hub, model, clients)))
    return seen


def scalars(seen):
    """The same of one number."""
    return [(float(model.x), [float(own.x) for own in mine]) for model, mine in seen]


# -- Ditto


def test_ditto_in_numbers():
    inputs, want = ORACLES["ditto"]["inputs"], ORACLES["ditto"]["outputs"]["rounds"]
    page = Ditto(space=SPACE, lam=inputs["lam"])
    for (w, v), expected in zip(scalars(watched(page, world(inputs).hub(page), 3, number(0.0))), want, strict=True):
        assert w == pytest.approx(expected["w"], abs=1e-8)
        assert v == pytest.approx(expected["v"], abs=1e-8)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("lam", [0.0, 0.1, 3.0])
def test_dittos_shared_model_is_fedavgs_bit_for_bit(name, lam):
    """Batches of 4 rows out of many that differ: the private training must not disturb who draws what."""
    federation = Scalars(spread=0.05, batch=4, steps=5, optimizer=OptimizerConfig(name=name))
    page = Ditto(space=SPACE, lam=lam)
    assert trajectory(page, federation.hub(page), 4)[0] == trajectory(FEDAVG, federation.hub(FEDAVG), 4)[0]


def test_ditto_without_a_pull_is_local_training():
    """Full batches: exactly the path of a client that trains alone."""
    ditto, alone = Ditto(space=SPACE, lam=0.0), LocalOnly()
    federation = Scalars(cohorts=((0, 1), (0,), (0, 1)))
    mine = [v for _, v in scalars(watched(ditto, federation.hub(ditto), 3, number(0.0)))]
    assert mine == [v for _, v in scalars(watched(alone, federation.hub(alone), 3, number(0.0)))]


def test_ditto_whoever_takes_part():
    """v of who is absent waits; the pull is towards the shared model its round began with."""
    w = Scalars(cohorts=((0, 1), (0,), (1,), (0, 1)), steps=3)
    page, x, v, want = Ditto(space=SPACE, lam=0.8), 0.2, [0.2, 0.2], []
    for cohort in w.cohorts:
        ys = {}
        for i in cohort:
            y = x
            for _ in range(3):
                y -= w.lr * w.h[i] * (y - w.m[i])
                v[i] -= w.lr * (w.h[i] * (v[i] - w.m[i]) + 0.8 * (v[i] - x))
            ys[i] = y
        x = sum(w.n[i] * y for i, y in ys.items()) / sum(w.n[i] for i in cohort)
        want += [x, *v]
    seen = scalars(watched(page, w.hub(page), 4, number(0.2)))
    assert [value for x, own in seen for value in (x, *own)] == pytest.approx(want, abs=1e-12)


def test_who_never_trained_with_ditto_uses_the_shared_model():
    page = Ditto(space=SPACE, lam=0.5)
    [(x, own)] = scalars(watched(page, Scalars(cohorts=((0,),)).hub(page), 1, number(0.0)))
    assert own[1] == x
    assert own[0] != x


# -- pFedMe


def pfedme(inputs, **changes):
    known = {
        "lam": inputs["lam"], "rounds": inputs["local_rounds"], "steps": inputs.get("K", 200), "lr": inputs["lr"],
        "personal_lr": inputs.get("personal_lr", 0.1), "beta": inputs["beta"],
    }  # fmt: skip
    return PFedMe(**{**known, **changes})


@pytest.mark.parametrize("name", ["pfedme_beta1", "pfedme_beta0.5", "pfedme_exact_prox"])
def test_pfedme_in_numbers(name):
    """What a client uses is theta. 200 steps reach the exact proximal point: the distance shrinks by .7 a step."""
    inputs, want = ORACLES[name]["inputs"], ORACLES[name]["outputs"]["rounds"]
    page = pfedme(inputs)
    for (w, theta), expected in zip(scalars(watched(page, world(inputs).hub(page), 2, number(0.0))), want, strict=True):
        assert w == pytest.approx(expected["w"], abs=1e-8)
        assert theta == pytest.approx(expected["theta_i"], abs=1e-8)


def test_pfedme_at_lam_eta_one_takes_the_personal_model():
    """w_i = theta_i, so the shared model is their mean."""
    page = PFedMe(lam=2.0, rounds=3, steps=4, lr=0.5, personal_lr=0.1, beta=1.0)
    for x, theta in scalars(watched(page, Scalars().hub(page), 3, number(0.7))):
        assert x == pytest.approx(sum(theta) / 2, abs=1e-12)


def test_pfedme_with_one_round_follows_the_moreau_envelope():
    """x moves by -eta lam mean(x - theta_i)."""
    page, x = PFedMe(lam=1.5, rounds=1, steps=6, lr=0.2, personal_lr=0.1, beta=1.0), 0.7
    for new, theta in scalars(watched(page, Scalars().hub(page), 3, number(x))):
        assert new == pytest.approx(x - 0.2 * 1.5 * (x - sum(theta) / 2), abs=1e-12)
        x = new


def test_pfedme_whoever_takes_part():
    """Uniform over those who replied; theta goes on from one local round to the next."""
    w = Scalars(n=(30, 10, 20), h=(1.0, 2.0, 0.5), m=(1.0, -1.0, 3.0), cohorts=((0, 1, 2), (0, 2), (1,)))
    page, x, want = PFedMe(lam=1.2, rounds=3, steps=2, lr=0.3, personal_lr=0.15, beta=0.8), 0.1, []
    for cohort in w.cohorts:
        own = []
        for i in cohort:
            theta = local = x
            for _ in range(3):
                for _ in range(2):
                    theta -= 0.15 * (w.h[i] * (theta - w.m[i]) + 1.2 * (theta - local))
                local -= 0.3 * 1.2 * (local - theta)
            own.append(local)
        x = 0.2 * x + 0.8 * sum(own) / len(own)
        want.append(x)
    assert trajectory(page, w.hub(page), 3, 0.1)[0] == pytest.approx(want, abs=1e-12)


def test_pfedme_solves_each_proximal_problem_on_one_batch():
    """Within a local round every step sees the same rows; another local round sees others."""
    page, engine = PFedMe(lam=1.0, rounds=3, steps=4, lr=0.1, personal_lr=0.1, beta=1.0), Engine()
    federation = Scalars(spread=0.05, batch=4, cohorts=((0,),))
    trajectory(page, federation.hub(page, engine), 1)
    seen = [[[row.m for row in batch] for batch in run.batches] for _, run, _ in engine.served]
    assert [len(batches) for batches in seen] == [4, 4, 4]
    assert all(batch == batches[0] for batches in seen for batch in batches)
    assert seen[0][0] != seen[1][0]


# -- FedPer and FedRep: a part of the model stays at home


def start(u=1.0, v=0.5):
    return torch.tensor([u, v], dtype=torch.float64)


def split_pages():
    fedper = FedPer(layout=PAIR, private=("v",))
    return {"fedper": fedper, "fedrep": FedRep(layout=PAIR, private=("v",), head_steps=2, body_steps=1)}


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_a_private_part_in_numbers(name):
    """u, the mean of what clients made of it; v, each client's own."""
    oracle, page = ORACLES[name], split_pages()[name]
    inputs = oracle["inputs"]
    federation = Pairs(t=tuple(inputs["t"]), lr=inputs["lr"], steps=inputs.get("joint_steps", 99))
    for (model, own), expected in zip(
        watched(page, federation.hub(page), 2, start(inputs["u0"], inputs["v0"][0])), oracle["outputs"]["rounds"],
        strict=True,
    ):  # fmt: skip
        assert [float(m.x[0]) for m in own] == pytest.approx([expected["u"]] * 2, abs=1e-8)
        assert [float(m.x[1]) for m in own] == pytest.approx(expected["v"], abs=1e-8)
        assert not model.whole
        assert all(m.whole for m in own)


def reference(name, w, rounds, u=1.0, v0=0.5):
    v, seen = [v0] * len(w.n), []
    for cohort in w.cohorts[:rounds]:
        weights, us = [], []
        for i in cohort:
            own = u
            if name == "fedper":
                for _ in range(w.steps):
                    e = own * v[i] - w.t[i]
                    own, v[i] = own - w.lr * e * v[i], v[i] - w.lr * e * own
            else:
                for _ in range(2):
                    v[i] -= w.lr * (own * v[i] - w.t[i]) * own
                own -= w.lr * (own * v[i] - w.t[i]) * v[i]
            us.append(own)
            weights.append(w.n[i])
        u = sum(a * b for a, b in zip(weights, us, strict=True)) / sum(weights)
        seen += [value for own in v for value in (u, own)]
    return seen


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_the_private_part_of_who_is_absent_is_kept(name):
    """Somebody never asked has the first private part and the newest shared one."""
    w = Pairs(n=(30, 10, 20), t=(1.0, -1.0, 2.0), steps=3, cohorts=((0, 1), (0,), (0,), (0, 1)), weighting="dataset")
    page = split_pages()[name]
    seen = watched(page, w.hub(page), 4, start(), (0, 1, 2))
    assert [float(x) for _, own in seen for m in own for x in m.x] == pytest.approx(reference(name, w, 4), abs=1e-12)
    assert [float(own[2].x[1]) for _, own in seen] == [0.5] * 4


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_the_private_part_does_not_travel(name):
    """One number of two goes up; a client's own v never meets the server."""
    page = split_pages()[name]
    hub = Pairs().hub(page)
    state = page.round(page.init(start()), hub)
    kept = [float(value) for value in hub.memory(0).values() if isinstance(value, torch.Tensor)]
    assert len(kept) == 1
    assert float(page.model(state).x[1]) in (0.5, 0.0)
    assert kept[0] not in [float(x) for x in page.model(state).x]


@pytest.mark.parametrize("private", [("*",), ("nothing*",), ()])
@pytest.mark.parametrize("kind", ["fedper", "fedrep"])
def test_both_parts_must_hold_something(kind, private):
    make = {"fedper": FedPer, "fedrep": FedRep}[kind]
    more = {} if kind == "fedper" else {"head_steps": 1, "body_steps": 1}
    with pytest.raises(ValueError, match="private"):
        make(layout=PAIR, private=private, **more)


def test_fedrep_trains_the_head_first_and_one_part_at_a_time():
    engine, page = Engine(), split_pages()["fedrep"]
    advance(page, Pairs(cohorts=((0,),)).hub(page, engine), 1, start())
    assert [(tuple(run.train), len(run.lrs)) for _, run, _ in engine.served] == [(("v",), 2), (("u",), 1)]


# -- all of them


@pytest.mark.parametrize("name", ["ditto", "pfedme", "fedper", "fedrep"])
def test_single_precision_stays_single_and_close(name):
    pages = {
        "ditto": Ditto(space=SPACE, lam=0.5),
        "pfedme": PFedMe(lam=2.0, rounds=2, steps=3, lr=0.05, personal_lr=0.1, beta=1.0),
        **split_pages(),
    }
    page, federation, begin = pages[name], Scalars(), number(0.3)
    if name in split_pages():
        federation, begin = Pairs(), start()
    exact = watched(page, federation.hub(page), 2, begin)[-1][1]
    single = watched(page, federation.hub(page), 2, begin.float())[-1][1]
    for a, b in zip(exact, single, strict=True):
        assert b.x.dtype == torch.float32
        assert b.x.tolist() == pytest.approx(a.x.tolist(), abs=1e-6)


@pytest.mark.parametrize("page", [Ditto(space=SPACE, lam=0.5), *split_pages().values()], ids=lambda p: type(p).__name__)
def test_clients_end_with_models_of_their_own(page):
    assert page.needs.personal


def test_asking_for_personal_models_changes_nothing():
    """Watched or not, the run is the same."""
    page, federation = Ditto(space=SPACE, lam=0.5), replace(Scalars(), steps=3)
    quiet = trajectory(page, federation.hub(page), 3)[0]
    assert [x for x, _ in scalars(watched(page, federation.hub(page), 3, number(0.0)))] == quiet
    assert owns(federation.hub(page), Model(number(9.0)))[0].x.item() == 9.0
