"""Methods as a user runs them, on the embedded model: other spaces, ranks, personal models, samplers, attackers.

What a method computes is tested beside its page; here it is that nothing of it is lost between recipe, model, second
process, checkpoint and exported folder.
"""

import csv
import json

import peft
import pytest
import torch
from safetensors.torch import load_file

from fedloom import experiment
from fedloom.assembly import Parts
from fedloom.config import load
from fedloom.errors import UserError
from fedloom.events import ClientTrained, Event, RoundFinished
from fedloom.models.load import load_model
from test_experiment import TINY, killed_at, same, weights

MIXED = ("clients.0-2.rank=1", "clients.3.rank={q_proj: 1}")
METHODS = {
    "flexlora": MIXED,
    "raflora": MIXED,
    "flora": MIXED,
    "fedex": (),
    "fedsvd": (),
    "rolora": ("aggregate.server_optimizer.momentum=0.5",),
    "ffa": (),
    "slora": ("aggregate.space.rounds=2", "aggregate.space.residual=carry", "adapter.sparse=0.05"),
    "hetlora": (*MIXED, "adapter.scale=shared", "algorithm.gamma=0.5"),
    "lora_a2": ("algorithm.rank=1",),
    "fedsa": (),
    "fedrep": ("algorithm.private=['*layers.1*']", "algorithm.head_steps=1", "algorithm.body_steps=1"),
    "dual": (),
    "ditto": (),
    "diloco": (),
    "scaffold": (),
    "fedbuff": ("algorithm.buffer=2", "clients.0-2.speed=3"),
    "fedmezo": ("algorithm.rate=model_diff",),
    "fedkseed": ("algorithm.pro=true", "algorithm.pool=64"),
    "decomfl": ("algorithm.steps=2", "algorithm.log=2"),
    "ferret": ("algorithm.bases=64", "algorithm.server_lr=0.01", "algorithm.log=2"),
}
PLAIN = ("evaluate.metrics=[loss]", "aggregate.server_optimizer.lr=1", "aggregate.server_optimizer.momentum=0")


def config(tmp_path, name, *overrides):
    given = [*TINY, *PLAIN, f"run.folder={tmp_path / 'runs'}", f"algorithm={name}", *METHODS.get(name, ()), *overrides]
    return load("quickstart", given)


@pytest.mark.parametrize("name", METHODS)
def test_killed_resumed_and_in_a_second_process_it_is_the_same_run(tmp_path, name):
    whole = experiment.run(config(tmp_path, name)).folder
    cfg = config(tmp_path / "broken", name)
    broken = killed_at(cfg, lambda seen: sum(isinstance(e, ClientTrained) for e in seen) == 5)
    experiment.resume(broken)
    same(whole, broken)
    if name in ("flexlora", "fedex", "slora", "dual", "fedkseed"):
        there = experiment.run(config(tmp_path, name, "runtime=loopback")).folder
        assert weights(there) == weights(whole)


@pytest.mark.parametrize(
    "name", ["flexlora", "flora", "fedex", "slora", "ffa", "fedsa", "dual", "hetlora", "decomfl", "ferret"]
)
def test_what_is_exported_is_what_was_evaluated(tmp_path, name):
    """Every folder loads in plain peft and gives the logits of the model inside the run."""
    seen: list[Event] = []
    cfg = config(tmp_path, name, "federation.cohort=100%")
    parts, kept = Parts(cfg), {}
    save = experiment.adapters.save

    def remembering(adapted, section, model, layout, base, folder):
        kept[folder.name.removesuffix(".part")] = (model, layout)
        return save(adapted, section, model, layout, base, folder)

    experiment.adapters.save = remembering  # type: ignore[assignment]
    try:
        run = experiment.run(cfg, sinks=[seen.append])
    finally:
        experiment.adapters.save = save  # type: ignore[assignment]
    folders = [path.parent for path in run.folder.glob("adapters/**/adapter_config.json")]
    assert folders
    ids = torch.arange(5, 25)[None]
    for folder in folders:
        model, layout = next(value for key, value in kept.items() if folder.name in key)
        if model.drift is not None:
            parts.adapted.stand(model.drift, layout)
        else:
            parts.adapted.load(model.x, layout, model.carry)
        with torch.no_grad():
            ours = parts.adapted.module.eval()(input_ids=ids).logits
            base = load_model(cfg.model, trained_whole=False, longest=64).module.float()
            plain = base(input_ids=ids).logits
            theirs = peft.PeftModel.from_pretrained(base, str(folder)).eval()(input_ids=ids).logits
        assert torch.allclose(ours, theirs, atol=2e-4)
        assert not torch.allclose(plain, theirs, atol=1e-3)


def test_clients_of_smaller_ranks_send_less_and_figures_are_noted(tmp_path):
    seen: list[Event] = []
    run = experiment.run(config(tmp_path, "flexlora"), sinks=[seen.append])
    rounds = [e for e in seen if isinstance(e, RoundFinished)]
    assert all(set(e.figures) == {"drift", "aggregation_error"} for e in rounds)
    assert all(e.figures["drift"] > 0 for e in rounds)
    with (run.folder / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["drift"]) for row in rows] == [e.figures["drift"] for e in rounds]
    parts = Parts(config(tmp_path, "flexlora"))
    sizes = {parts.profile(i).layout.size for i in range(5)}
    assert len(sizes) == 3
    assert max(sizes) == parts.adapted.layout.size


@pytest.mark.parametrize(
    "name, exact", [("flora", True), ("fedex", True), ("ffa", True), ("fedit", False), ("scaffold", False)]
)
def test_the_aggregation_error_says_which_spaces_are_exact(tmp_path, name, exact):
    seen: list[Event] = []
    extra = [] if name != "fedex" else ["aggregate.weighting=uniform"]
    experiment.run(config(tmp_path, name, *extra), sinks=[seen.append])
    errors = [e.figures["aggregation_error"] for e in seen if isinstance(e, RoundFinished)]
    assert (max(errors) < 1e-6) == exact


def test_held_out_clients_never_train_but_are_scored(tmp_path):
    seen: list[Event] = []
    run = experiment.run(
        config(tmp_path, "fedavg", "federation.holdout=[0-3]", "federation.cohort=100%"), sinks=[seen.append]
    )
    trained = {e.client for e in seen if isinstance(e, ClientTrained)}
    everybody = set(range(len(json.loads((run.folder / "partition.json").read_text())["clients"])))
    assert trained == everybody - {0, 1, 2, 3}
    with (run.folder / "clients.csv").open() as file:
        assert len({row["client"] for row in csv.DictReader(file)}) == len(everybody)


def test_the_pooled_baseline_does_not_see_held_out_rows(tmp_path):
    parts = Parts(config(tmp_path, "centralized", "federation.holdout=[0-4]"))
    held = sum(client.sizes["train"] for client in parts.data.clients[:5])
    assert len(parts.home.get("train")) == sum(client.sizes["train"] for client in parts.data.clients) - held


def test_ranks_of_clients_that_never_train_are_known_too(tmp_path):
    """The largest rank is held out: the shared adapter still has it, and every rule can hold the shared point."""
    ranks = ("clients.0-8.rank=1", "clients.9.rank=2", "federation.holdout=[9]")
    run = experiment.run(config(tmp_path, "raflora", *ranks, "aggregate.rule=norm_bound", "algorithm=raflora"))
    assert run.status == "finished"


def test_attackers_change_what_is_learned_and_only_in_their_run(tmp_path):
    honest = experiment.run(config(tmp_path, "fedavg")).folder
    for attack in ("sign_flip", "gaussian", "scaled", "label_flip"):
        attacked = experiment.run(config(tmp_path, "fedavg", f"attack={attack}", "attack.clients=100%")).folder
        assert weights(attacked) != weights(honest)
    again = experiment.run(config(tmp_path, "fedavg", "attack=none")).folder
    assert weights(again) == weights(honest)


def test_a_trace_decides_who_trains(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("round,client\n1,0\n1,1\n3,2\n")
    seen: list[Event] = []
    experiment.run(
        config(tmp_path, "fedavg", "federation.sampling=trace", f"federation.sampling.file={trace}"),
        sinks=[seen.append],
    )
    trained = [(e.round, e.client) for e in seen if isinstance(e, ClientTrained)]
    assert trained == [(1, 0), (1, 1), (3, 2)]
    assert [e.round for e in seen if isinstance(e, RoundFinished)] == [
        1,
        2,
        3,
    ]  # a round without anybody changes nothing


@pytest.mark.parametrize(
    "overrides, said",
    [
        (("clients.0.rank={nonsense: 2}",), "no adapted module is called"),
        (("clients.0.rank=4000",), "too large for"),
        (("federation.holdout=100%",), "none of"),
        (("attack=sign_flip", "attack.clients=[nobody]"), "attack.clients"),
    ],
)
def test_what_only_data_or_model_can_tell_is_told_before_the_first_round(tmp_path, overrides, said):
    with pytest.raises(UserError, match=said):
        experiment.run(config(tmp_path, "flexlora", *overrides))
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    "name, more, said",
    [
        ("fedrep", "algorithm.private=['*.Q']", "no trained tensor has such a name"),
        ("fedsa", "adapter.freeze=A", "nothing is left to share"),
    ],
)
def test_what_a_page_cannot_do_with_this_adapter_is_a_users_mistake(tmp_path, name, more, said):
    with pytest.raises(UserError, match=said):
        experiment.run(config(tmp_path, name, more))


def test_inner_state_is_kept_by_each_client(tmp_path):
    """DiLoCo: AdamW goes on from its moments, so keeping them changes the second round and not the first."""
    kept, fresh = list[Event](), list[Event]()
    one = experiment.run(config(tmp_path, "diloco"), sinks=[kept.append]).folder
    experiment.run(config(tmp_path, "diloco", "algorithm.keep_inner=false"), sinks=[fresh.append])
    losses = [[e.loss for e in seen if isinstance(e, ClientTrained) and e.round == 1] for seen in (kept, fresh)]
    assert losses[0] == losses[1]
    files = list((one / "clients").rglob("*.safetensors"))
    assert any(len(load_file(file)) > 4 for file in files)
