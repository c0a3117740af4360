"""What a server tells its clients, and what must be equal."""

import pytest

from fedloom.config import Config, parse
from fedloom.deployment import agreed
from fedloom.deployment.agreed import Agreement
from fedloom.errors import UserError
from fedloom.runtime.letters import Ready

NAMES = {"clinic-north": 0, "clinic-south": 1}
RECIPE = """
run: {name: secret-project, folder: /srv/private}
algorithm: flexlora
data: {source: /srv/private/rows.jsonl, root: /srv/private, limit: 7, max_length: 64}
partition: {method: iid, clients: 2}
clients:
  clinic-south: {rank: 2}
federation: {holdout: [clinic-north], cohort: 100%, sampling: {name: fixed, clients: [clinic-south]}}
evaluate: {global_source: /srv/private/test.jsonl}
deploy: {clients: 2, round_timeout: 17}
"""


def sent(text: str = RECIPE) -> Config:
    return parse(agreed.sendable(parse(text), NAMES, cohort=1))


def test_no_name_and_no_path_of_others_is_sent() -> None:
    text = agreed.sendable(parse(RECIPE), NAMES, cohort=1)
    for word in ("clinic", "private", "secret"):
        assert word not in text


def test_where_the_servers_own_things_lie_is_not_sent() -> None:
    teacher = "algorithm: {name: fedkd, teacher: {name: /srv/private/teacher}}"
    text = RECIPE.replace("algorithm: flexlora", teacher).replace("limit: 7", "public_source: /srv/private/rows")
    changed = text.replace("{rank: 2}", "{lr: 0.1}")
    sent = agreed.sendable(parse(changed), NAMES, cohort=1)
    assert "private" not in sent
    assert parse(sent).algorithm.name == "fedkd"


def test_what_is_computed_stays_as_it_was() -> None:
    before, after = parse(RECIPE), sent()
    for section in ("model", "adapter", "algorithm", "aggregate", "local", "objective", "channel", "seed"):
        assert getattr(after, section) == getattr(before, section), section
    assert after.data.max_length == 64
    assert after.clients["1"].rank == 2
    assert after.federation.cohort == 1


def test_timeouts_change_nothing_that_is_sent() -> None:
    other = RECIPE.replace("round_timeout: 17", "round_timeout: 18, join_timeout: 5")
    assert agreed.sendable(parse(RECIPE), NAMES, 1) == agreed.sendable(parse(other), NAMES, 1)


def ready(**traits: str) -> Ready:
    known = {"fedloom": "1", "layout": "aa", "base": "bb", "frame": "ff", "template": "chat"}
    return Ready("t", known | traits, {"train": 3})


def test_the_first_client_settles_what_the_server_cannot_know() -> None:
    agreement = Agreement({"fedloom": "1", "layout": "aa"})
    assert agreement("a", ready()) is None
    assert agreement.known["base"] == "bb"
    assert agreement("b", ready()) is None


@pytest.mark.parametrize(
    ("trait", "words"),
    [
        ("fedloom", "its fedloom is version zz, the server's is 1"),
        ("layout", "another layout"),
        ("base", "weights are not those of the others"),
        ("frame", "base model is not that of the others"),
        ("template", "by the template zz, here it is chat"),
    ],
)
def test_who_differs_is_told_in_what(trait: str, words: str) -> None:
    agreement = Agreement({"fedloom": "1", "layout": "aa"})
    assert agreement("a", ready()) is None
    assert words in str(agreement("b", ready(**{trait: "zz"})))
    assert agreement("a", ready()) is None, "a client that does not fit settles nothing"


def test_quantised_weights_are_compared_with_their_like() -> None:
    agreement = Agreement({"fedloom": "1", "layout": "aa"})
    assert agreement("a", ready()) is None
    assert agreement("b", ready(base="cc@nf4")) is None
    assert agreement("c", ready(base="cc@nf4")) is None
    assert "theirs cc@nf4" in str(agreement("d", ready(base="dd@nf4")))
    assert "theirs bb" in str(agreement("e", ready(base="cc")))
    assert agreement("f", ready(base="ee@nf4", frame="gg")) is not None


def test_a_first_client_that_is_refused_settles_nothing() -> None:
    agreement = Agreement({"fedloom": "1", "layout": "aa", "template": "chat"})
    assert agreement("a", ready(base="zz", template="plain")) is not None
    assert agreement("b", ready()) is None
    assert agreement.known["base"] == "bb"


def test_a_client_that_says_nothing_of_itself_does_not_fit() -> None:
    assert Agreement({"fedloom": "1", "layout": "aa"})("a", Ready("t", {}, {})) is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["deploy.clients=null"], "Set deploy.clients"),
        (["objective=classify"], "objective.labels is not set, and in a deployment nobody sees all rows"),
        (["attack.name=gaussian"], "for simulations"),
        (["algorithm=centralized"], "all rows in one place"),
        (["federation.min_replies=2", "deploy.clients=1"], "the run begins with deploy.clients=1"),
    ],
)
def test_what_a_deployment_cannot_do_is_refused(changes: list[str], words: str) -> None:
    config = parse("partition: {method: iid, clients: 3}\ndeploy: {clients: 3}", changes)
    with pytest.raises(UserError, match=words):
        agreed.check(config)
