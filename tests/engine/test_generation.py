"""Greedy answers in batches, against one prompt at a time without cache or filling."""

import json

import pytest
import torch

import tiny
from fedloom.engine.generation import answers
from fedloom.errors import UserError

PROMPTS = [tiny.example(length, 40 + length).ids for length in (11, 3, 17, 5, 8, 1)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tiny.saved(tmp_path_factory.mktemp(name), name) for name in tiny.FAMILIES}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.byte_tokenizer()


def greedy(model, prompt, steps, stops=()):
    """The likeliest token, again and again; the stop token is not part of the answer."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in stops:
                break
            ids.append(token)
    return ids[len(prompt) :]


def text(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("size", [1, 4, 64])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_batch_answers_as_each_prompt_alone_in_the_order_asked(folders, tokenizer, family, size):
    module, reference = tiny.loaded(folders[family]).module, tiny.plain(folders[family])
    wanted = [text(tokenizer, greedy(reference, prompt, 9, {tiny.END})) for prompt in PROMPTS]
    assert answers(module, tokenizer, PROMPTS, [tiny.END], size, 9) == wanted
    assert len(set(wanted)) > 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_answer_ends_before_the_first_of_the_stop_tokens(folders, tokenizer, family):
    """Stops are chosen from what the model says: the third token of one answer, the first of another."""
    reference = tiny.plain(folders[family])
    free = [greedy(reference, prompt, 9) for prompt in PROMPTS]
    stops = [free[0][2], free[2][0]]
    wanted = [text(tokenizer, greedy(reference, prompt, 9, set(stops))) for prompt in PROMPTS]
    assert wanted[2] == ""
    assert wanted != [text(tokenizer, ids) for ids in free]
    module = tiny.loaded(folders[family]).module
    assert answers(module, tokenizer, PROMPTS, stops, 6, 9) == wanted
    assert answers(module, tokenizer, PROMPTS, stops, 2, 9) == wanted


@pytest.mark.parametrize("longest", [1, 2, 7])
def test_no_answer_is_longer_than_asked(folders, tokenizer, longest):
    module, reference = tiny.loaded(folders["llama"]).module, tiny.plain(folders["llama"])
    found = answers(module, tokenizer, PROMPTS, [tiny.END], 3, longest)
    assert found == [text(tokenizer, greedy(reference, prompt, longest, {tiny.END})) for prompt in PROMPTS]


def test_control_tokens_are_not_part_of_the_text(folders, tokenizer):
    """Token 3 opens a turn; an answer that contains it (and goes on) is read without it."""
    reference = tiny.plain(folders["llama"])
    prompt = PROMPTS[0]
    ids = greedy(reference, prompt, 3)
    model = tiny.loaded(folders["llama"]).module
    with torch.no_grad():  # exchange the first answer token with token 3 everywhere in the model
        for weight in (model.lm_head.weight, model.model.embed_tokens.weight):
            weight[[ids[0], 3]] = weight[[3, ids[0]]]
    assert 3 not in prompt
    assert ids[0] not in prompt
    swapped = greedy(model, prompt, 3)
    assert swapped[0] == 3
    assert answers(model, tokenizer, [prompt], [tiny.END], 1, 3) == [text(tokenizer, swapped[1:])]


def test_nobody_asks(folders, tokenizer):
    assert answers(tiny.loaded(folders["llama"]).module, tokenizer, [], [tiny.END], 4, 5) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
        {"repetition_penalty": 1.7},
        {"num_beams": 3},
        {"min_new_tokens": 6},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(100, 200))},
        {"max_length": 4},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_greedy_is_greedy_whatever_the_model_s_own_generation_settings(tmp_path, tokenizer, settings):
    """Instruction models ship a generation_config.json (Qwen: repetition_penalty 1.05). It must not leak into scores:
    a repetition penalty even counts filling, so that answers would depend on the batch."""
    folder = tiny.saved(tmp_path, "llama")
    reference = tiny.plain(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "pad_token_id": 0, **settings}))
    stops = {greedy(reference, PROMPTS[0], 3)[2]}
    wanted = [text(tokenizer, greedy(reference, prompt, 9, stops)) for prompt in PROMPTS]
    module = tiny.loaded(folder).module
    own = module.generation_config.to_dict()
    assert answers(module, tokenizer, PROMPTS, list(stops), 6, 9) == wanted
    assert module.generation_config.to_dict() == own  # a tuned model is saved with the settings its base came with


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_prompt_near_the_last_position_is_answered_briefly_or_refused_in_words(tmp_path, tokenizer, family):
    """GPT-2 and OPT have a table of positions. `data.max_length` may be all of them, so an answer may not fit."""
    key = "n_positions" if family == "gpt2" else "max_position_embeddings"
    folder = tiny.saved(tmp_path, family, **{key: 16})
    prompts = [tiny.example(14, 1).ids, tiny.example(4, 2).ids]
    module, reference = tiny.loaded(folder).module, tiny.plain(folder)
    try:
        found = answers(module, tokenizer, prompts, [tiny.END], 2, 8)
    except UserError as refused:
        assert "max_new_tokens" in str(refused)  # noqa: PT017  # either of two good ends
        return
    assert found[0] in [text(tokenizer, greedy(reference, prompts[0], fits, {tiny.END})) for fits in range(4)]
    assert found[1] == text(tokenizer, greedy(reference, prompts[1], 8, {tiny.END}))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_nothing_global_is_drawn_and_the_model_is_left_evaluating(folders, tokenizer, family):
    module = tiny.loaded(folders[family]).module.train()
    before = tiny.randomness()
    answers(module, tokenizer, PROMPTS, [tiny.END], 3, 4)
    assert tiny.randomness() == before
    assert not module.training
