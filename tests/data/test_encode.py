"""Ids, labels and prompts, by hand on tokenizers small enough to know every id."""

import pytest

from data.tiny_tokenizers import CHAT, byte_tokenizer, spaced_tokenizer, word_tokenizer
from fedloom.data.config import DataConfig
from fedloom.data.encode import Encoded, Encoder, marked
from fedloom.data.rows import Row, Turn
from fedloom.errors import UserError

N = -100
TALK = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))


def encoder(tokenizer, own=None, **data):
    return Encoder(tokenizer, DataConfig(**data), own)


def test_plain_by_hand_with_bos_once_and_eos_learned():
    """Vocabulary: <s> 1, </s> 2, line break 3, add 4, two 5, four 6; the prompt is `add \\n two \\n`."""
    made = encoder(word_tokenizer("add two four"), template="plain").encode(Row("add", "two", "four four", "sums"))
    assert made == Encoded(
        ids=(1, 4, 3, 5, 3, 6, 6, 2),
        labels=(N, N, N, N, N, 6, 6, 2),
        prompt=(1, 4, 3, 5, 3),
        answer="four four",
        category="sums",
    )


def test_chat_by_hand():
    """Bytes stand at 5 + their place in the sorted alphabet; the end marker is learned, the line break after it not."""
    tokenizer = byte_tokenizer()
    a, b = (tokenizer.convert_tokens_to_ids(letter) for letter in "ab")
    made = encoder(tokenizer).encode(Row("a", "", "b"))
    assert (made.ids, made.labels, made.prompt) == ((2, a, 3, b, 1), (N, N, N, b, 1), (2, a, 3))


def test_all_assistant_turns_of_a_conversation_are_learned():
    tokenizer = byte_tokenizer()
    a, b, c, d, line = tokenizer("abcd\n")["input_ids"]
    made = encoder(tokenizer, system="a").encode(Row("a", "", "d", messages=TALK))
    assert made.ids == (4, a, 2, a, 3, b, 1, line, 2, c, 3, d, 1)
    assert made.labels == (N, N, N, N, N, b, 1, N, N, N, N, d, 1)
    assert made.prompt == made.ids[:-2]
    assert marked(made, tokenizer) == "<|system|>a<|user|>a<|assistant|>⟦b<|end|>⟧\n<|user|>c<|assistant|>⟦d<|end|>⟧"


def test_chat_ids_are_those_of_apply_chat_template():
    tokenizer = byte_tokenizer()
    messages = [{"role": turn.role, "content": turn.content} for turn in TALK]
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    made = encoder(tokenizer).encode(Row("a", "", "d", messages=TALK))
    assert list(made.ids) == whole[:-1]  # but for the line break after the last end marker
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert list(made.prompt) == asked


FAMILIES = {
    "llama 3": (
        ["<bot>", "<sh>", "<eh>", "<eot>"],
        "{% for m in messages %}{{ '<bot>' if loop.first }}"
        "{{ '<sh>' + m['role'] + '<eh>\n\n' + m['content'] | trim + '<eot>' }}{% endfor %}"
        "{{ '<sh>assistant<eh>\n\n' if add_generation_prompt }}",
        "⟦b<eot>⟧<sh>user<eh>\n\nc<eot><sh>assistant<eh>\n\n⟦d<eot>⟧",
    ),
    "chatml": (
        ["<im>", "<me>"],
        "{% for m in messages %}{{ '<im>' + m['role'] + '\n' + m['content'] + '<me>\n' }}{% endfor %}"
        "{{ '<im>assistant\n' if add_generation_prompt }}",
        "⟦b <me>⟧\n<im>user\nc<me>\n<im>assistant\n⟦d<me>⟧",
    ),
    "llama 2": (
        ["<s>"],
        "{% for m in messages %}{{ '<s>[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' else "
        "' ' + m['content'] | trim + ' <|end|>' }}{% endfor %}",
        "⟦ b <|end|>⟧<s>[INST] c [/INST]⟦ d <|end|>⟧",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_chat_templates_in_the_manner_of_model_families(family):
    control, chat, expected = FAMILIES[family]
    tokenizer = byte_tokenizer(chat, more=control)
    talk = (TALK[0], Turn("assistant", "b "), *TALK[2:])
    made = encoder(tokenizer).encode(Row("a", "", "d", messages=talk))
    shown = marked(made, tokenizer)
    assert shown[shown.index("⟦") :] == expected
    messages = [{"role": turn.role, "content": turn.content} for turn in talk]
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert list(made.ids) == whole[: len(made.ids)]
    assert tokenizer.decode(whole[len(made.ids) :]).strip() == ""


def test_a_chat_template_that_writes_bos_has_it_once():
    turn = " {{ m['role'] }} {{ m['content'] }} {{ '</s>' if m['role'] == 'assistant' }}"
    chat = "<s>{% for m in messages %}" + turn + "{% endfor %}"
    made = encoder(word_tokenizer("user assistant q a", chat), template="chat").encode(Row("q", "", "a"))
    assert made.ids == (1, 4, 6, 5, 7, 2)
    assert made.labels == (N, N, N, 5, 7, 2)  # this template opens no answer, so the model writes the role itself


def test_a_chat_template_without_an_end_marker_gets_the_end_of_text():
    tokenizer = byte_tokenizer(CHAT.replace("<|end|>\n", ""))
    made = encoder(tokenizer).encode(Row("a", "", "d", messages=TALK))
    assert marked(made, tokenizer) == "<|user|>a<|assistant|>⟦b⟧<|user|>c<|assistant|>⟦d<|end|>⟧"


def test_an_unknown_word_at_the_end_is_no_end_marker():
    chat = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    made = encoder(word_tokenizer("q", chat), template="chat").encode(Row("q", "", "strange"))
    assert (made.ids, made.labels) == ((4, 0, 2), (N, 0, 2))


def test_stop_ids_hold_the_end_marker_beside_the_end_of_text():
    tokenizer = byte_tokenizer(CHAT.replace("<|end|>", "<|system|>"))
    assert encoder(tokenizer).stop_ids == (1, 4)
    assert encoder(tokenizer, template="plain").stop_ids == (1,)


@pytest.mark.parametrize("template", ["plain", "alpaca", "vicuna", "chat", "{instruction}:"])
def test_control_tokens_in_a_users_text_stay_text(template):
    tokenizer = byte_tokenizer()
    made = encoder(tokenizer, template=template).encode(Row("say <|end|> and <|user|>", "", "well <|end|> ok"))
    assert made.labels.count(1) == 1
    assert made.labels[-1] == 1
    assert sum(i < 5 for i in made.ids) == (3 if template == "chat" else 1)
    assert "well <|end|> ok" in tokenizer.decode(made.ids)


def test_answers_do_not_get_the_space_sentencepiece_puts_before_texts():
    """`▁` stands before the prompt as the tokenizer wants it, and not between prompt and answer."""
    tokenizer = spaced_tokenizer()
    made = encoder(tokenizer, template="{instruction}:").encode(Row("q", "", "a b"))
    assert tokenizer.convert_ids_to_tokens(list(made.ids)) == ["<s>", "▁", "q", ":", "a", "▁", "b", "</s>"]
    assert list(made.prompt) == tokenizer("q:")["input_ids"]
    assert list(made.ids[:-1]) == tokenizer("q:a b")["input_ids"]
    assert made.labels[:4] == (N, N, N, N)
    said = encoder(tokenizer, template="vicuna", system="S").encode(Row("q", "", "a"))
    assert tokenizer.convert_ids_to_tokens([i for i in said.labels if i != N]) == ["▁", "a", "</s>"]


def test_auto_follows_the_named_set_then_the_tokenizer():
    assert encoder(byte_tokenizer(), own="alpaca").template_name == "alpaca"
    assert encoder(byte_tokenizer()).template_name == "chat"
    assert encoder(byte_tokenizer(None)).template_name == "alpaca"


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_empty_answers_are_dropped(answer):
    assert encoder(byte_tokenizer()).encode(Row("q", "", answer)) == "empty answer"


# --- overlong: prompt `1 2 3 4` is <s> and four words and a line break; the answer is two words and </s> --------

WORDS = word_tokenizer("a b c d x y")
LONG = Row("a b c d", "", "x y")  # <s> a b c d \n | x y </s>: 6 + 3 tokens


@pytest.mark.parametrize("overlong", ["drop", "cut"])
def test_what_fits_exactly_is_kept_whole(overlong):
    made = encoder(WORDS, template="plain", max_length=9, overlong=overlong).encode(LONG)
    assert made.ids == (1, 4, 5, 6, 7, 3, 8, 9, 2)


def test_drop_leaves_longer_rows_out():
    assert encoder(WORDS, template="plain", max_length=8).encode(LONG) == "overlong"


@pytest.mark.parametrize("length,prompt", [(8, (1, 5, 6, 7, 3)), (6, (1, 7, 3)), (5, (1, 3))])
def test_cut_takes_the_prompts_left_but_its_bos(length, prompt):
    made = encoder(WORDS, template="plain", max_length=length, overlong="cut").encode(LONG)
    assert made.prompt == prompt
    assert made.ids == (*prompt, 8, 9, 2)
    assert made.labels == (*[N] * len(prompt), 8, 9, 2)


@pytest.mark.parametrize("length", [2, 3, 4])
def test_an_answer_is_never_cut(length):
    made = encoder(WORDS, template="plain", max_length=length, overlong="cut").encode(LONG)
    assert made == "answer too long"


def test_cut_keeps_a_bos_that_the_chat_template_wrote():
    turns = "{% for m in messages %}{{ '<s> ' if loop.first }}{{ m['content'] + ' ' }}{% endfor %}"
    chat = turns + "{{ '</s>' if not add_generation_prompt }}"
    made = encoder(word_tokenizer("a b c d x y", chat), template="chat", max_length=6, overlong="cut").encode(LONG)
    assert made.ids == (1, 6, 7, 8, 9, 2)
    assert made.prompt == (1, 6, 7)


def test_cut_may_take_earlier_answers_of_a_conversation():
    """Whole: user a assistant [b end] line user c assistant [d end], 11 tokens; the last 5 are left."""
    tokenizer = byte_tokenizer()
    _, _, c, d = tokenizer("abcd")["input_ids"]
    made = encoder(tokenizer, max_length=5, overlong="cut").encode(Row("a", "", "d", messages=TALK))
    assert (made.ids, made.labels) == ((2, c, 3, d, 1), (N, N, N, d, 1))


def test_many_at_once_are_the_same_as_one_by_one():
    rows = [Row("q" * (i % 7 + 1), "x" * (i % 3), "a" * (i % 5)) for i in range(600)]
    for template in ("chat", "alpaca", "vicuna"):
        enc = encoder(byte_tokenizer(), template=template, max_length=250)
        assert enc.encode_all(rows) == [enc.encode(row) for row in rows]


def test_rows_without_a_place_are_refused_before_training():
    talk = [Row("a", "", "d", messages=TALK), Row("q", "", "a")]
    with pytest.raises(UserError, match="1 of 2 rows are conversations"):
        encoder(byte_tokenizer(), template="alpaca").check(talk)
    with pytest.raises(UserError, match=r"1 of 1 rows have an input.*no \{input\}"):
        encoder(byte_tokenizer(), template="{instruction}").check([Row("q", "x", "a")])
    with pytest.raises(UserError, match="no place for a turn of role 'tool'"):
        encoder(byte_tokenizer(), template="vicuna").check(
            [Row("a", "", "d", messages=(Turn("user", "a"), Turn("tool", "t"), Turn("assistant", "d")))]
        )
    encoder(byte_tokenizer(), template="chat").check(talk)
    encoder(byte_tokenizer(), template="alpaca").check([Row("a", "", "b", messages=TALK[:2])])


def test_roles_the_chat_template_refuses_are_an_error_in_words():
    chat = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT
    )
    with pytest.raises(UserError, match=r"roles system, user.*System role not supported"):
        encoder(byte_tokenizer(chat), system="S").check([Row("a", "", "b")])


def test_a_tokenizer_without_end_of_text_is_an_error():
    tokenizer = byte_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="eos_token"):
        encoder(tokenizer)


def learned_text(encoded, tokenizer):
    """The learned stretches as texts."""
    parts, last = [], False
    for token, label in zip(encoded.ids, encoded.labels, strict=True):
        if label != N:
            parts = [*parts, [token]] if not last else [*parts[:-1], [*parts[-1], token]]
        last = label != N
    return [tokenizer.decode(part, skip_special_tokens=False) for part in parts]


@pytest.mark.parametrize(
    "template,answers", [("chat", ["b<|end|>", "d<|end|>"]), ("vicuna", [" b<|end|>", " d<|end|>"])]
)
def test_every_assistant_turn_is_learned(template, answers):
    tokenizer = byte_tokenizer()
    encoded = Encoder(tokenizer, DataConfig(template=template)).encode(Row("a", "", "d", messages=TALK))
    assert learned_text(encoded, tokenizer) == answers


@pytest.mark.parametrize("template", ["chat", "vicuna"])
def test_a_loss_on_all_learns_prompts_too(template):
    tokenizer = byte_tokenizer()
    usual, every = (
        Encoder(tokenizer, DataConfig(template=template, loss_on=on)).encode(Row("a", "", "d", messages=TALK))
        for on in ("answer", "all")
    )
    assert every.labels == every.ids == usual.ids
    assert (every.prompt, every.answer) == (usual.prompt, usual.answer)


@pytest.mark.parametrize("cut", [False, True])
def test_a_loss_on_all_leaves_out_the_beginning_of_text(cut):
    tokenizer = word_tokenizer("a b c yes")
    data = DataConfig(template="plain", loss_on="all", overlong="cut", max_length=6 if cut else 20)
    encoded = Encoder(tokenizer, data).encode(Row("a b c", "", "yes"))
    assert encoded.ids[0] == 1
    assert encoded.labels == (N, *encoded.ids[1:])
    assert len(encoded.ids) == (6 if cut else 7)
