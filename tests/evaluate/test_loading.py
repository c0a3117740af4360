"""What is evaluated is what was trained: logits against plain peft and transformers, and adapters that do not fit."""

import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from fedloom.data.encode import Encoder
from fedloom.data.rows import Row
from fedloom.errors import UserError
from fedloom.evaluate.columns import entrants
from fedloom.evaluate.job import Settings
from fedloom.evaluate.loading import WEIGHTS
from fedloom.finish import export
from fedloom.models.load import NANO

pytest.importorskip("lm_eval", reason="needs the extra `eval`")
from fedloom.evaluate.loading import language_model

IDS = torch.tensor([[5, 60, 200, 33, 9, 120, 77], [8, 8, 31, 250, 14, 6, 99]])
CPU = Settings(device="cpu")


def logits(module):
    with torch.no_grad():
        return module(input_ids=IDS).logits


def plainly(run):
    final = run / "adapters" / "final"
    if (final / "adapter_config.json").exists():
        return peft.PeftModel.from_pretrained(tiny.plain(NANO), str(final)).eval()
    return tiny.plain(final)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("kind", ["shared", "head", "full"])
def test_the_final_model_is_the_trained_one(finished, tmp_path, kind, merge):
    """`head` adapts an output layer that is tied to the embedding, which lm-eval would tie again."""
    before, final = entrants(str(finished(kind)), None, [], tmp_path)
    found = language_model(final, CPU.model_copy(update={"merge": merge}))
    expected = logits(plainly(finished(kind)))
    assert torch.allclose(logits(found.model), expected, atol=1e-4 if merge else 1e-6)
    base = language_model(before, CPU)
    assert torch.equal(logits(base.model), logits(tiny.plain(NANO)))
    assert not torch.allclose(expected, logits(base.model), atol=1e-2)  # guards the lines above


def test_answers_and_likelihoods_are_those_of_plain_lm_eval(finished, tmp_path):
    """Every bit of them, from the merged run and from its export in lm-eval's own loader; scores follow from these."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    run = finished("shared")
    ours = language_model(entrants(str(run), ["final"], [], tmp_path)[0], CPU.model_copy(update={"merge": True}))
    plain = HFLM(pretrained=str(export(run, tmp_path / "merged", True)), device="cpu", batch_size=8)
    prompts = [f"Write the word {word} in capital letters." for word in ("garden", "sea", "harbour", "mill")]
    prompts.append("x" * 3000)  # longer than the model: cut from the left

    def asked(lm):
        pairs = [(prompt, f" {choice}") for prompt in prompts for choice in ("A", "GARDEN")]
        likely = lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
        how = {"until": [], "max_gen_toks": 12, "do_sample": False}
        asking = [Instance("generate_until", {}, (prompt, dict(how)), 0) for prompt in prompts]
        return likely, lm.generate_until(asking, disable_tqdm=True)

    likely, answers = asked(ours)
    assert (likely, answers) == asked(plain)
    assert len({value for value, _ in likely}) == 10
    assert any(answers)


def test_what_stands_before_the_text_cannot_be_merged(finished, tmp_path):
    final = entrants(str(finished("prompt")), ["final"], [], tmp_path)[0]
    assert language_model(final, CPU).model.active_peft_config.is_prompt_learning
    with pytest.raises(UserError, match="leave --merge out"):
        language_model(final, CPU.model_copy(update={"merge": True}))


def changed(finished, tmp_path, change):
    """The shared run's adapter with other tensors in its file."""
    folder = shutil.copytree(finished("shared") / "adapters" / "final", tmp_path / "adapter")
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
    return entrants(str(folder), ["final"], [], tmp_path)[0]


def test_an_adapter_with_a_tensor_less_or_more_is_refused(finished, tmp_path):
    def less(tensors):
        return dict(sorted(tensors.items())[1:])

    with pytest.raises(UserError, match="does not fit its model: 1 tensors are missing and 0 have no place"):
        language_model(changed(finished, tmp_path / "less", less), CPU)

    def more(tensors):
        return {**tensors, "base_model.model.model.layers.99.q_proj.lora_A.weight": torch.zeros(1)}

    with pytest.raises(UserError, match="0 tensors are missing and 1 have no place"):
        language_model(changed(finished, tmp_path / "more", more), CPU)


def test_an_adapter_without_weights_or_of_another_shape(finished, tmp_path):
    def bent(tensors):
        return {name: tensor[:, :-1].contiguous() for name, tensor in tensors.items()}

    with pytest.raises(UserError, match="cannot be loaded"):
        language_model(changed(finished, tmp_path, bent), CPU)
    entrant = entrants(str(tmp_path / "adapter"), ["final"], [], tmp_path)[0]
    (tmp_path / "adapter" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"no whole adapter: adapter_model\.safetensors"):
        language_model(entrant, CPU)


def test_the_runs_own_template_writes_the_prompt_of_training(finished, tmp_path):
    entrant = entrants(str(finished("shared")), ["before"], [], tmp_path)[0]
    asked = [{"role": "user", "content": "How many pears?"}]
    own = CPU.model_copy(update={"template": "own"})
    for name in ("alpaca", "vicuna", "plain", "chat"):
        template = entrant.template.model_copy(update={"name": name})
        lm = language_model(entrant.model_copy(update={"template": template}), own)
        data = template.data.model_copy(update={"template": name})
        trained = Encoder(lm.tokenizer, data).encode(Row("How many pears?", "", "x")).prompt
        assert tuple(lm.tok_encode(lm.apply_chat_template(asked))) == trained, name
    begun = [*asked, {"role": "assistant", "content": "There are"}]
    template = entrant.template.model_copy(update={"name": "plain"})
    lm = language_model(entrant.model_copy(update={"template": template}), own)
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == "How many pears?\nThere are"
