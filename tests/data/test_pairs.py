"""Pairs and judged answers as tokens: one shared prompt, answers whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tiny_tokenizers import byte_tokenizer, spaced_tokenizer, word_tokenizer
from fedloom.data.config import DataConfig, IidConfig
from fedloom.data.encode import IGNORED, Encoder
from fedloom.data.encoders import encoder_of
from fedloom.data.federated import build
from fedloom.data.rows import Row, Turn
from fedloom.data.wanted import Wanted
from fedloom.errors import UserError

PAIRS, JUDGED = Wanted("pairs"), Wanted("judged")


def pair(prompt="q", chosen="yes", rejected="no", **more):
    return Row(prompt, "", chosen, rejected=rejected, **more)


def encoder(wanted=PAIRS, tokenizer=None, **data):
    return encoder_of(tokenizer or byte_tokenizer(), DataConfig(**data), wanted)


@pytest.mark.parametrize("template", ["chat", "alpaca", "vicuna", "plain"])
@pytest.mark.parametrize("make", [byte_tokenizer, spaced_tokenizer])
def test_both_answers_are_written_as_an_answer_alone_is(template, make):
    if make is spaced_tokenizer and template == "chat":
        pytest.skip("no chat template")
    tokenizer = make()
    row = pair("what now", "yes I do", "yes I do not")
    made = encoder(tokenizer=tokenizer, template=template).encode_all([row])[0]
    alone = Encoder(tokenizer, DataConfig(template=template))
    assert made.chosen == alone.encode(row)
    assert made.rejected == alone.encode(row.answered("yes I do not"))
    assert made.prompt == made.chosen.prompt == made.rejected.prompt
    assert made.size == len(made.chosen.ids) + len(made.rejected.ids)


def test_only_the_last_answer_of_a_conversation_is_compared():
    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))
    tokenizer = byte_tokenizer()
    made = encoder(tokenizer=tokenizer).encode_all([Row("a", "", "d", messages=turns, rejected="e")])[0]
    for one, answer in ((made.chosen, "d<|end|>"), (made.rejected, "e<|end|>")):
        learned = [token for token, label in zip(one.ids, one.labels, strict=True) if label != IGNORED]
        assert tokenizer.decode(learned, skip_special_tokens=False) == answer
        assert tokenizer.decode(one.prompt, skip_special_tokens=False).endswith("<|user|>c<|assistant|>")


@pytest.mark.parametrize(
    "row,says",
    [
        (pair(chosen=" "), "empty answer"),
        (pair(rejected="\n"), "empty answer"),
        (pair(rejected=" yes "), "chosen equals rejected"),
        (Row("q", "", "a"), "no rejected answer"),
        (pair(prompt="long " * 20), "overlong"),
    ],
)
def test_what_cannot_be_compared_is_left_out_by_name(row, says):
    assert encoder(max_length=64).encode_all([pair(), row])[1] == says


def test_answers_that_the_tokenizer_cannot_tell_apart():
    tokenizer = word_tokenizer("q known")
    assert encoder(tokenizer=tokenizer, template="plain").encode_all([pair("q", "these", "those")]) == [
        "chosen equals rejected"
    ]


def test_prompts_lose_their_beginning_and_keep_the_start_token():
    tokenizer = word_tokenizer("a b c d e yes no")
    whole = encoder(tokenizer=tokenizer, template="plain").encode_all([pair("a b c d e")])[0]
    assert whole.prompt == (1, 4, 5, 6, 7, 8, 3)
    assert not whole.cut
    short = encoder(Wanted("pairs", max_prompt_length=4), tokenizer, template="plain").encode_all([pair("a b c d e")])[
        0
    ]
    assert short.prompt == (1, 7, 8, 3)
    assert short.chosen.ids == (1, 7, 8, 3, 9, 2)
    assert short.rejected.ids == (1, 7, 8, 3, 10, 2)
    assert short.cut
    least = encoder(Wanted("pairs", max_prompt_length=1), tokenizer, template="plain").encode_all([pair("a b")])[0]
    assert least.prompt == (1, 3)  # one token of text is always left


def test_the_longer_answer_decides_what_fits():
    tokenizer = word_tokenizer("a b c d e yes no")
    row = pair("a b c d e", "yes", "no no no")
    data = {"tokenizer": tokenizer, "template": "plain", "max_length": 8}
    assert encoder(**data).encode_all([row]) == ["overlong"]
    made = encoder(**data, overlong="cut").encode_all([row])[0]
    assert made.prompt == (1, 7, 8, 3)
    assert len(made.rejected.ids) == 8
    assert encoder(**data, overlong="cut").encode_all([pair("a", "yes", "no " * 7)]) == ["answer too long"]


@given(
    st.text("ab ", max_size=30),
    st.text("xy ", min_size=1, max_size=20),
    st.text("xy ", min_size=1, max_size=20),
    st.integers(4, 40),
    st.none() | st.integers(1, 20),
    st.sampled_from(["drop", "cut"]),
)
def test_a_pair_fits_shares_its_prompt_and_loses_no_answer(prompt, chosen, rejected, longest, most, overlong):
    tokenizer = byte_tokenizer()
    made = encoder(Wanted("pairs", None, most), tokenizer, template="plain", max_length=longest, overlong=overlong)
    (one,) = made.encode_all([pair(prompt, chosen, rejected)])
    if isinstance(one, str):
        return
    for part, answer in ((one.chosen, chosen), (one.rejected, rejected)):
        assert len(part.ids) <= longest
        assert part.ids[: len(one.prompt)] == one.prompt
        assert tokenizer.decode(part.ids[len(one.prompt) : -1]) == answer
        assert part.labels == (*[IGNORED] * len(one.prompt), *part.ids[len(one.prompt) :])
    assert most is None or len(one.prompt) <= most
    assert tokenizer.decode(one.prompt) == (f"{prompt}\n" if prompt else "")[-len(one.prompt) :]
    assert one.cut is (len(one.prompt) < len(f"{prompt}\n" if prompt else ""))


def test_judged_answers():
    made = encoder(JUDGED).encode_all(
        [Row("q", "", "a", "c", good=False), Row("q", "", " ", good=True), Row("q", "", "a")]
    )
    assert made[0].answer == Encoder(byte_tokenizer(), DataConfig()).encode(Row("q", "", "a", "c"))
    assert (made[0].good, made[0].category, made[0].size) == (False, "c", len(made[0].answer.ids))
    assert made[1:] == ["empty answer", "no judgement"]


def test_several_turns_need_a_template_with_a_place_for_them():
    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))
    with pytest.raises(UserError, match=r"use data.template=chat or vicuna"):
        encoder(template="alpaca").check([Row("a", "", "d", messages=turns, rejected="e")])


def test_only_answers_can_have_a_loss_on_all():
    with pytest.raises(UserError, match=r"data.loss_on=all is for objective=sft; objective=dpo"):
        encoder(loss_on="all")


@pytest.mark.parametrize("kind", ["pairs", "judged"])
def test_the_playground_has_preferences(kind):
    config = DataConfig(playground={"skills": ["capitalise", "shout"], "rows": 20, "test_rows": 5})
    data = build(config, IidConfig(clients=2), 0, byte_tokenizer(None), Wanted(kind, max_prompt_length=150))
    assert [client.sizes for client in data.clients] == [{"train": 20, "validation": 0, "test": 5}] * 2
    made = data.clients[0].get("train")
    assert len(made) == 20
    assert data.dropped()["client-000/train"] == {"the beginning of a long prompt": sum(one.cut for one in made)}
