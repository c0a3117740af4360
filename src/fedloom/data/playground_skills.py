"""The playground's skills as data: `BASE` is what the embedded model was trained on, `HELD` what it has never met.

A skill is a few phrasings and a `make` that draws one argument and its only right answer. Held-back skills share their
mechanics with base skills (drop the first letter: drop the first two; shout: upper case and a full stop), so a small
adapter learns them in seconds, yet their phrasings and answers are new, so the base model scores near zero on them.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedloom.data.playground_words import (
    ADJECTIVES,
    BAD,
    CAPITALS,
    CONSONANTS,
    COUNTABLE,
    DAYS,
    GOOD,
    KINDS,
    MONTHS,
    NAMES,
    NUMBER_WORDS,
    OBJECTS,
    OPPOSITES,
    SEASONS,
    SOUNDS,
    SYMBOLS,
    THING_COLOURS,
    THINGS,
    TOPICS,
    VERBS,
    VOWELS,
    YOUNG,
    distinct_words,
    foreign,
    graded,
    ing,
    past,
    plural,
    stem,
    story,
    symbols,
    word,
)

Maker = Callable[[random.Random], tuple[str, str]]
Words = Sequence[str]
Ints = Sequence[int]


@dataclass(frozen=True)
class Skill:
    """One kind of question.

    Attributes:
        name: the key in `BASE` or `HELD`.
        category: the label rows carry; the skill's own, so that a partition by category separates skills.
        phrasings: ways to ask, each with one `{}` for the argument.
        make: draws (argument, answer).
        facts: a short fixed list of arguments, so that only whole prompts (argument and phrasing) can be held out.
    """

    name: str
    category: str
    phrasings: tuple[str, ...]
    make: Maker
    facts: bool = False


# --- makers: how an argument is drawn and answered -------------------------------------------------------------------


def _word(answer: Callable[[str], str], low: int = 3, high: int = 8) -> Maker:
    def make(rng: random.Random) -> tuple[str, str]:
        w = word(rng, low, high)
        return w, answer(w)

    return make


def _words(answer: Callable[[Words], str], few: int = 2, many: int = 4, low: int = 2, high: int = 5) -> Maker:
    def make(rng: random.Random) -> tuple[str, str]:
        ws = distinct_words(rng, rng.randint(few, many), low, high)
        return " ".join(ws), answer(ws)

    return make


def _ints(answer: Callable[[Ints], str], few: int, many: int, top: int, join: str = " ") -> Maker:
    """`few`..`many` different numbers 0..top, half of the time single digits."""

    def make(rng: random.Random) -> tuple[str, str]:
        ns = rng.sample(range((9 if rng.random() < 0.5 else top) + 1), rng.randint(few, many))
        return join.join(map(str, ns)), answer(ns)

    return make


def _stem(real: Sequence[str], answer: Callable[[str], str]) -> Maker:
    def make(rng: random.Random) -> tuple[str, str]:
        w = stem(rng, real)
        return w, answer(w)

    return make


def _table(pairs: Mapping[str, str] | Sequence[tuple[str, str]]) -> Maker:
    rows = sorted(pairs.items()) if isinstance(pairs, Mapping) else list(pairs)
    return lambda rng: rng.choice(rows)


def _cycle(items: Sequence[str], step: int) -> Maker:
    return _table([(item, items[(i + step) % len(items)]) for i, item in enumerate(items)])


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _letter(form: str, answer: Callable[[str, str], str], present: float = 0.5) -> Maker:
    """A word and a letter (`form` with `{c}` and `{w}`), the letter taken from the word with chance `present`."""

    def make(rng: random.Random) -> tuple[str, str]:
        w = word(rng, 3, 7)
        c = rng.choice(w) if rng.random() < present else rng.choice(string.ascii_lowercase)
        return form.format(c=c, w=w), answer(c, w)

    return make


def _edge_letter(form: str, at: int) -> Maker:
    def make(rng: random.Random) -> tuple[str, str]:
        w = word(rng, 3, 7)
        c = w[at] if rng.random() < 0.5 else rng.choice(w + string.ascii_lowercase)
        return form.format(c=c, w=w), _yes(w[at] == c)

    return make


def _count_letter(rng: random.Random) -> tuple[str, str]:
    c = rng.choice(string.ascii_lowercase)
    w = "".join(c if rng.random() < 0.4 else rng.choice(CONSONANTS + VOWELS) for _ in range(rng.randint(3, 7)))
    return f"{c} in {w}", str(w.count(c))


def _replace(rng: random.Random) -> tuple[str, str]:
    w = word(rng, 3, 7)
    old, new = rng.choice(w), rng.choice(string.ascii_letters + SYMBOLS)
    return f"{old} with {new} in {w}", w.replace(old, new)


def _nth(rng: random.Random) -> tuple[str, str]:
    ws, i = distinct_words(rng, rng.randint(3, 5)), rng.randrange(3)
    return f"{('first', 'second', 'third')[i]} of {' '.join(ws)}", ws[i]


def _sum(rng: random.Random) -> tuple[str, str]:
    top = 9 if rng.random() < 0.15 else 99
    a, b = rng.randint(0, top), rng.randint(0, 9 if rng.random() < 0.3 else top)
    return f"{a} + {b}", str(a + b)


def _difference(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 99), rng.randint(0, 99 if rng.random() < 0.7 else 9)
    return f"{max(a, b)} - {min(a, b)}", str(abs(a - b))


def _same(rng: random.Random) -> tuple[str, str]:
    a = word(rng, 3, 6)
    b = a
    if rng.random() < 0.5:
        i = rng.randrange(len(a))
        b = a[:i] + rng.choice(string.ascii_lowercase) + a[i + 1 :]
    return f"{a} {b}", _yes(a == b)


def _symbol_run(rng: random.Random) -> tuple[str, str]:
    c, n = rng.choice(SYMBOLS + string.ascii_letters), rng.randint(1, 9)
    return f"{c} {n} times", c * n


def _count_symbols(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(1, 9)
    return rng.choice(SYMBOLS) * n, str(n)


def _unwrap(rng: random.Random) -> tuple[str, str]:
    w, (left, right) = word(rng, 3, 6), rng.choice(("()", "{}", "<>", "[]", "**", '""', "''", "##", "||"))
    return f"{word(rng, 2, 4)} {left}{w}{right} {word(rng, 2, 4)}", w


def _glued(glue: str, answer: Callable[[Words], str]) -> Maker:
    def make(rng: random.Random) -> tuple[str, str]:
        ws = distinct_words(rng, rng.randint(2, 4))
        return glue.join(ws), answer(ws)

    return make


def _noisy_number(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(0, 9999)
    return f"{word(rng, 2, 5)} {n} {word(rng, 2, 5)}", str(n)


def _pairs(rng: random.Random, left: Sequence[str], right: Sequence[str]) -> list[tuple[str, str]]:
    count = rng.randint(2, 3)
    return list(zip(rng.sample(left, count), rng.sample(right, count), strict=True))


def _read(statement: str, question: str, left: Sequence[str], right: Sequence[str], ask_right: bool = True) -> Maker:
    """Two or three statements about (left, right) pairs, then a question about one of them."""

    def make(rng: random.Random) -> tuple[str, str]:
        pairs = _pairs(rng, left, right)
        a, b = rng.choice(pairs)
        text = " ".join(statement.format(a=x, b=y) for x, y in pairs)
        return f"{text} {question.format(a=a, b=b)}", b if ask_right else a

    return make


def _lookup(rng: random.Random) -> tuple[str, str]:
    keys = distinct_words(rng, rng.randint(2, 4), 2, 4)
    table = {k: word(rng, 2, 5) if rng.random() < 0.6 else str(rng.randint(0, 99)) for k in keys}
    key = rng.choice(keys)
    return "\n".join(f"{k}={v}" for k, v in table.items()) + f"\n{key}", table[key]


def _gain(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(1, 20), rng.randint(1, 9)
    name, thing, gains = rng.choice(NAMES), plural(rng.choice(OBJECTS)), rng.random() < 0.5
    a = a if gains else max(a, b)
    return f"{name} has {a} {thing} and {'gets' if gains else 'loses'} {b}.", str(a + b if gains else a - b)


def _judged(good: str, bad: str, forms: Sequence[str]) -> Maker:
    def make(rng: random.Random) -> tuple[str, str]:
        positive = rng.random() < 0.5
        text = rng.choice(forms).format(t=rng.choice(THINGS), w=rng.choice(GOOD if positive else BAD))
        return text, good if positive else bad

    return make


def _topic(rng: random.Random) -> tuple[str, str]:
    topic = rng.choice(sorted(TOPICS))
    return rng.choice(TOPICS[topic]).format(rng.choice(KINDS["place"] + OBJECTS)), topic


def _kind(rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(sorted(KINDS))
    return rng.choice(KINDS[kind]), kind


def _is_kind(rng: random.Random) -> tuple[str, str]:
    kinds = sorted(KINDS)
    kind, asked = rng.choice(kinds), rng.choice(kinds)
    asked = kind if rng.random() < 0.5 else asked
    return f"{rng.choice(KINDS[kind])} / {asked}", _yes(kind == asked)


def _odd_one(rng: random.Random) -> tuple[str, str]:
    kind, other = rng.sample(sorted(KINDS), 2)
    odd = rng.choice(KINDS[other])
    ws = [*rng.sample(KINDS[kind], 2), odd]
    rng.shuffle(ws)
    return " ".join(ws), odd


def _question(rng: random.Random) -> tuple[str, str]:
    asks = rng.random() < 0.5
    text = rng.choice(("where is the {}", "who has the {}", "what is a {}", "why do you like the {}") if asks else
                      ("here is the {}", "i have the {}", "this is a {}", "you like the {}"))  # fmt: skip
    return text.format(rng.choice(OBJECTS + KINDS["animal"] + KINDS["food"])), "question" if asks else "statement"


def _tense(rng: random.Random) -> tuple[str, str]:
    who, verb, thing = rng.choice(NAMES), rng.choice(VERBS), rng.choice(OBJECTS)
    tense = rng.choice(("past", "future", "now"))
    forms = {"past": f"{who} did {verb} the {thing}", "future": f"{who} will {verb} the {thing}"}
    return forms.get(tense, f"{who} is {ing(verb)} the {thing}"), tense


def _negate(rng: random.Random) -> tuple[str, str]:
    a, b = rng.choice(OBJECTS + KINDS["animal"]), rng.choice(ADJECTIVES)
    return f"the {a} is {b}", f"the {a} is not {b}"


def _series(rng: random.Random) -> tuple[str, str]:
    start, step = rng.randint(0, 30), rng.choice((1, 2, 3, 5, 10))
    return " ".join(str(start + step * i) for i in range(3)), str(start + 3 * step)


def _count_up(rng: random.Random) -> tuple[str, str]:
    a, n = rng.randint(0, 60), rng.randint(2, 5)
    return f"{a} to {a + n}", " ".join(map(str, range(a, a + n + 1)))


def _count_down(rng: random.Random) -> tuple[str, str]:
    a, n = rng.randint(0, 60), rng.randint(2, 4)
    return f"{a + n} to {a}", " ".join(map(str, range(a + n, a - 1, -1)))


def _date(rng: random.Random) -> tuple[str, str]:
    day, month, year = rng.randint(1, 28), rng.randrange(12), rng.randint(1950, 2049)
    return f"{day} {MONTHS[month]} {year}", f"{year}-{month + 1:02}-{day:02}"


def _two_unequal(rng: random.Random) -> tuple[str, str]:
    a, b = word(rng, 3, 8), word(rng, 3, 8)
    while len(a) == len(b):
        b = word(rng, 3, 8)
    return f"{a} {b}", max(a, b, key=len)


def _affix(form: str, front: bool) -> Maker:
    def make(rng: random.Random) -> tuple[str, str]:
        w, c = word(rng, 3, 6), rng.choice(string.ascii_lowercase + string.digits + SYMBOLS)
        return form.format(c=c, w=w), c + w if front else w + c

    return make


def _to_do(rng: random.Random) -> tuple[str, str]:
    key, value = word(rng, 2, 5), rng.choice((word(rng, 2, 5), str(rng.randint(0, 99))))
    return f"{key} is {value}", f'{{"{key}": "{value}"}}'


def _free(draw: Callable[[random.Random], str]) -> Maker:
    def make(rng: random.Random) -> tuple[str, str]:
        text = draw(rng)
        return text, text

    return make


def _skill(name: str, make: Maker, *phrasings: str, facts: bool = False) -> Skill:
    return Skill(name, name, phrasings, make, facts)


def _with_vowels(w: str, change: Callable[[str], str]) -> str:
    return "".join(change(c) if c in VOWELS else c for c in w)


def _index(*skills: Skill) -> Mapping[str, Skill]:
    return {skill.name: skill for skill in skills}


# --- what the embedded model was trained on --------------------------------------------------------------------------

BASE: Final[Mapping[str, Skill]] = _index(
    # one word
    _skill("copy_word", _word(str), "copy: {}", "repeat after me: {}", "write the word {}", "say {}"),
    _skill("upper", _word(str.upper), "uppercase: {}", "write {} in capitals", "make this upper case: {}",
           "turn {} into big letters"),
    _skill("lower", lambda r: (lambda w: (w.upper(), w))(word(r)), "lowercase: {}", "write {} in small letters",
           "make this lower case: {}"),
    _skill("upper_last", _word(lambda w: w[:-1] + w[-1].upper()), "uppercase the final letter: {}",
           "big letter at the end: {}", "write {} with a big tail"),
    _skill("upper_vowels", _word(lambda w: _with_vowels(w, str.upper)), "uppercase the vowels: {}",
           "make the vowels big: {}", "write {} with big vowels"),
    _skill("reverse", _word(lambda w: w[::-1], 3, 7), "reverse: {}", "spell {} backwards", "write {} in reverse",
           "turn {} around"),
    _skill("first_letter", _word(lambda w: w[0]), "first letter of {}", "what does {} start with?",
           "which letter begins {}?"),
    _skill("second_letter", _word(lambda w: w[1]), "second letter of {}", "letter number two of {}",
           "what is the 2nd letter of {}?"),
    _skill("last_letter", _word(lambda w: w[-1]), "last letter of {}", "what does {} end with?",
           "which letter ends {}?"),
    _skill("first_two", _word(lambda w: w[:2]), "first two letters of {}", "how does {} begin?", "start of {}"),
    _skill("last_two", _word(lambda w: w[-2:]), "last two letters of {}", "how does {} end?", "end of {}"),
    _skill("cut_two", _word(lambda w: w[2:], 4, 8), "cut the first two letters: {}", "{} without its first two",
           "skip two letters: {}"),
    _skill("cut_last_two", _word(lambda w: w[:-2], 4, 8), "cut the last two letters: {}", "{} without its last two",
           "stop two letters early: {}"),
    _skill("length", _word(lambda w: str(len(w)), 2, 9), "how long is {}?", "count the letters: {}",
           "number of letters in {}", "length of {}"),
    _skill("spell", _word("-".join, 3, 6), "spell {}", "spell out {}", "put dashes between the letters of {}"),
    _skill("space_out", _word(" ".join, 3, 6), "space out {}", "put spaces between the letters of {}",
           "write {} letter by letter"),
    _skill("unspell", lambda r: (lambda w: (" ".join(w), w))(word(r, 3, 6)), "join the letters: {}",
           "write as one word: {}", "close up: {}"),
    _skill("undash", lambda r: (lambda w: ("-".join(w), w))(word(r, 3, 6)), "remove the dashes: {}",
           "which word is {}?", "no dashes: {}"),
    _skill("twice", _word(lambda w: f"{w} {w}", 2, 5), "say twice: {}", "repeat two times: {}", "{} two times"),
    _skill("thrice", _word(lambda w: f"{w} {w} {w}", 2, 4), "say three times: {}", "repeat three times: {}",
           "{} three times"),
    _skill("slash_twice", _word(lambda w: f"{w}/{w}", 2, 5), "slash pair: {}", "write {} on both sides of a slash",
           "{} over itself"),
    _skill("no_vowels", _word(lambda w: _with_vowels(w, lambda _: "") or "none"), "remove the vowels: {}",
           "drop vowels from {}", "only the consonants of {}"),
    _skill("hash_consonants", _word(lambda w: "".join(c if c in VOWELS else "#" for c in w)),
           "hash the consonants: {}", "put # for each consonant of {}", "cover the consonants: {}"),
    _skill("sort_letters", _word(lambda w: "".join(sorted(w)), 3, 6), "sort the letters: {}",
           "put the letters of {} in order", "letters of {} from a to z"),
    _skill("last_to_front", _word(lambda w: w[-1] + w[:-1], 3, 7), "last letter to the front: {}",
           "move the tail of {} to the front", "roll {} to the right"),
    _skill("echo_first", _word(lambda w: w[0] + w, 3, 7), "say the first letter again: {}",
           "echo the first letter of {}", "start {} twice"),
    _skill("swap_case", lambda r: (lambda w: (w, w.swapcase()))("".join(r.choice((c, c.upper())) for c in word(r))),
           "swap the case: {}", "flip big and small: {}", "invert the case of {}"),
    _skill("parens", _word(lambda w: f"({w})"), "put {} in round brackets", "parentheses around {}",
           "wrap in parentheses: {}"),
    _skill("angles", _word(lambda w: f"<{w}>"), "make a tag: {}", "angle brackets around {}", "tag {}"),
    _skill("stars", _word(lambda w: f"*{w}*"), "make bold: {}", "put stars around {}", "{} between stars"),
    _skill("append", _affix("{c} to {w}", False), "append {}", "add {} at the end", "attach {}"),
    _skill("prepend", _affix("{c} to {w}", True), "prepend {}", "add {} at the front", "put before: {}"),
    _skill("ask", _words(lambda ws: " ".join(ws) + "?", 1, 3), "make it a question: {}", "question mark after: {}",
           "ask: {}"),
    _skill("stop", _words(lambda ws: " ".join(ws) + ".", 1, 3), "end with a full stop: {}", "full stop after: {}",
           "close the sentence: {}"),
    # letters in a word
    _skill("has_letter", _letter("{c} in {w}", lambda c, w: _yes(c in w)), "is {}?", "is the letter {}?",
           "can you find {}?"),
    _skill("starts_with", _edge_letter("{w} start with {c}", 0), "does {}?", "true or not, does {}?",
           "check: does {}?"),
    _skill("ends_with", _edge_letter("{w} end with {c}", -1), "does {}?", "true or not, does {}?", "check: does {}?"),
    _skill("count_letter", _count_letter, "count {}", "how many {}?", "how often is {}?", "number of {}"),
    _skill("replace", _replace, "replace {}", "change {}", "swap letter {}", "put in place: {}"),
    _skill("delete", _letter("{c} from {w}", lambda c, w: w.replace(c, "") or "none", 1.0), "delete {}", "take {}",
           "erase {}"),
    _skill("begins", _word(lambda w: "open" if w[0] in VOWELS else "shut"), "open or shut: {}", "sound of {}",
           "is {} open or shut?"),
    _skill("article", _stem(COUNTABLE + OBJECTS, lambda w: ("an " if w[0] in VOWELS else "a ") + w), "a or an: {}",
           "put the article before {}", "article for {}"),
    # symbols
    _skill("copy_symbols", _free(lambda r: symbols(r, 1, 12)), "copy: {}", "copy exactly: {}", "type this: {}",
           "repeat after me: {}"),
    _skill("copy_foreign", _free(lambda r: foreign(r, 1, 5)), "copy: {}", "copy exactly: {}", "type this: {}"),
    _skill("reverse_symbols", lambda r: (lambda s: (s, s[::-1]))(symbols(r, 2, 5)), "reverse: {}",
           "read from the right: {}", "mirror {}"),
    _skill("symbol_run", _symbol_run, "write {}", "type {}", "make a row: {}"),
    _skill("count_symbols", _count_symbols, "how many symbols: {}", "length of the row {}", "count these: {}"),
    _skill("unwrap", _unwrap, "what is inside: {}", "find the marked word: {}", "unwrap: {}"),
    # several words
    _skill("copy_words", _words(" ".join, 2, 6), "copy the words: {}", "say this: {}", "repeat the line: {}"),
    _skill("copy_text", _free(lambda r: story(r, r.randint(1, 2))), "copy the text: {}", "write again: {}",
           "repeat the line: {}"),
    _skill("swap_words", _words(lambda ws: f"{ws[1]} {ws[0]}", 2, 2), "swap the words: {}", "exchange: {}",
           "the other way round: {}"),
    _skill("nth_word", _nth, "pick the {}", "take the {}", "give me the {}"),
    _skill("first_word", _words(lambda ws: ws[0]), "first word of {}", "which word comes first: {}",
           "leading word: {}"),
    _skill("last_word", _words(lambda ws: ws[-1]), "last word of {}", "which word comes last: {}", "closing word: {}"),
    _skill("but_first", _words(lambda ws: " ".join(ws[1:])), "all but the first word: {}", "without the first word: {}",
           "skip one word: {}"),
    _skill("initials", _words(lambda ws: "".join(w[0] for w in ws)), "initials of {}", "take the first letters: {}",
           "acronym of {}"),
    _skill("join", _words(lambda ws: "".join(ws), 2, 3), "join {}", "glue {}", "stick together: {}"),
    _skill("count_words", _words(lambda ws: str(len(ws)), 1, 7), "how many words: {}", "count the words: {}",
           "number of words in {}"),
    _skill("slashes", _words("/".join), "put slashes between: {}", "slash list: {}", "separate by slashes: {}"),
    _skill("pluses", _words(" + ".join), "put plus signs between: {}", "plus list: {}", "write as a sum: {}"),
    _skill("and_list", _words(" and ".join, 2, 3), "put and between: {}", "link with and: {}", "and list: {}"),
    _skill("at_tags", _words(lambda ws: " ".join("@" + w for w in ws), 1, 3), "mention: {}", "put @ before each: {}",
           "at signs: {}"),
    _skill("from_slashes", _glued("/", " ".join), "spaces for slashes: {}", "split at the slashes: {}",
           "plain words: {}"),
    _skill("lines", _words("\n".join), "one word per line: {}", "write as lines: {}", "break into lines: {}"),
    _skill("bullets", _words(lambda ws: "\n".join("- " + w for w in ws), 2, 3), "bullet list: {}", "make bullets: {}",
           "write as a list with bullets: {}"),
    _skill("longer_word", _two_unequal, "which is longer: {}", "longer word: {}", "word with more letters: {}"),
    _skill("same", _same, "are these the same: {}", "do these match: {}", "equal or not: {}"),
    _skill("upper_second", _words(lambda ws: f"{ws[0]} {ws[1].upper()}", 2, 2), "uppercase the second word: {}",
           "shout only the second: {}", "second word in capitals: {}"),
    # numbers
    _skill("add", _sum, "{}", "what is {}?", "compute {}", "{} ="),
    _skill("subtract", _difference, "{}", "what is {}?", "compute {}", "{} ="),
    _skill("times", lambda r: (lambda a, b: (f"{a} * {b}", str(a * b)))(r.randint(0, 10), r.randint(0, 10)), "{}",
           "what is {}?", "compute {}", "{} =", facts=True),
    _skill("bigger", _ints(lambda n: str(max(n)), 2, 2, 99), "which is bigger: {}", "larger of {}",
           "the higher one: {}", "bigger number: {}"),
    _skill("smaller", _ints(lambda n: str(min(n)), 2, 2, 99), "which is smaller: {}", "lesser of {}",
           "the lower one: {}", "smaller number: {}"),
    _skill("is_bigger", _ints(lambda n: _yes(n[0] > n[1]), 2, 2, 99, " > "), "is {}?", "true or not: {}", "check: {}"),
    _skill("parity", lambda r: (lambda n: (str(n), "odd" if n % 2 else "even"))(r.randint(0, 999)),
           "is {} even or odd?", "parity of {}", "even or odd: {}"),
    _skill("sort_numbers", _ints(lambda n: " ".join(map(str, sorted(n))), 2, 4, 99), "sort: {}", "order the numbers {}",
           "from small to large: {}"),
    _skill("reverse_numbers", _ints(lambda n: " ".join(map(str, n[::-1])), 2, 4, 99), "reverse the numbers: {}",
           "read the numbers backwards: {}", "last number first: {}"),
    _skill("number_after", lambda r: (lambda n: (str(n), str(n + 1)))(r.randint(0, 999)), "number after {}",
           "add one to {}", "which number follows {}?"),
    _skill("series", _series, "what comes next: {}", "continue: {}", "next number: {}"),
    _skill("count_up", _count_up, "count from {}", "numbers from {}", "go from {}"),
    _skill("gain", _gain, "{} how many now?", "{} what is left?", "story: {} count?"),
    _skill("find_number", _noisy_number, "find the number: {}", "which number is in: {}", "only the digits: {}"),
    _skill("date", _date, "iso date: {}", "write the date with numbers: {}", "date of {}"),
    _skill("json", _to_do, "as json: {}", "write json: {}", "make a json object: {}"),
    # reading
    _skill("who_has", _read("{a} has the {b}.", "Who has the {b}?", NAMES, OBJECTS, False), "{}", "read: {}",
           "answer: {}"),
    _skill("what_colour", _read("the {a} is {b}.", "which colour is the {a}?", OBJECTS, KINDS["colour"]), "{}",
           "read: {}", "answer: {}"),
    _skill("where_is", _read("{a} is at the {b}.", "Where is {a}?", NAMES, KINDS["place"]), "{}", "read: {}",
           "answer: {}"),
    _skill("how_many", _read("{b} {a}.", "how many {a}?", [plural(o) for o in OBJECTS],
                                [str(i) for i in range(2, 100)]), "{}", "read: {}", "answer: {}"),
    _skill("lookup", _lookup, "{}", "look up:\n{}", "table:\n{}"),
    _skill("good_bad", _judged("good", "bad", ("the {t} was {w}", "what a {w} {t}", "i found the {t} {w}",
                                               "a {w} {t} indeed", "that {t} is {w}", "we had a {w} {t}")),
           "good or bad: {}", "was it good? {}", "judge: {}"),
    _skill("topic", _topic, "topic: {}", "what is this about: {}", "subject of: {}"),
    _skill("question", _question, "question or statement: {}", "what sort of sentence: {}", "sentence type: {}"),
    _skill("tense", _tense, "when: {}", "past, now or future: {}", "time of: {}"),
    _skill("negate", _negate, "negate: {}", "say that it is not so: {}", "deny: {}"),
    _skill("odd_one", _odd_one, "odd one out: {}", "which does not fit: {}", "find the stranger: {}"),
    # word forms
    _skill("plural", _stem(COUNTABLE, plural), "plural of {}", "more than one {}",
           "many: {}"),
    _skill("ing", _stem(VERBS, ing), "ing form of {}", "right now i am doing: {}", "participle of {}"),
    _skill("he_does", _stem(VERBS, lambda w: "he " + plural(w)), "he form of {}", "what does he do: {}",
           "third person of {}"),
    _skill("will_do", _stem(VERBS, lambda w: "will " + w), "future of {}", "tomorrow: {}", "will form of {}"),
    _skill("doer", _stem(VERBS, lambda w: graded(w, "er")), "doer of {}", "who does this: {}", "person noun of {}"),
    _skill("un", _stem(ADJECTIVES, lambda w: "un" + w), "not {}", "un form of {}", "negative of {}"),
    _skill("ness", _stem(ADJECTIVES, lambda w: (w[:-1] + "i" if w.endswith("y") else w) + "ness"), "noun of {}",
           "ness form of {}", "being {}"),
    # facts
    _skill("letter_after", _cycle(string.ascii_lowercase, 1), "letter after {}", "what comes after {}?",
           "next letter: {}", facts=True),
    _skill("day_after", _cycle(DAYS, 1), "day after {}", "what day follows {}?", "next day: {}", "tomorrow of {}",
           facts=True),
    _skill("month_after", _cycle(MONTHS, 1), "month after {}", "what month follows {}?", "next month: {}", facts=True),
    _skill("opposite", _table([*OPPOSITES, *((b, a) for a, b in OPPOSITES)]), "opposite of {}", "antonym of {}",
           "the contrary of {}", facts=True),
    _skill("kind", _kind, "what kind of thing is {}?", "category of {}", "sort of thing: {}", facts=True),
    _skill("is_kind", _is_kind, "is it one? {}", "does it belong: {}", "right kind? {}"),
    _skill("number_word", _table([(str(i), w) for i, w in enumerate(NUMBER_WORDS)]), "write {} as a word",
           "spell the number {}", "number word for {}", facts=True),
    _skill("word_number", _table([(w, str(i)) for i, w in enumerate(NUMBER_WORDS)]), "write {} as a number",
           "digits for {}", "which number is {}?", facts=True),
    _skill("sound", _table(SOUNDS), "sound of a {}", "what does a {} say?", "noise of the {}", facts=True),
    _skill("young", _table(YOUNG), "baby of a {}", "young {}", "what is a small {} called?", facts=True),
    _skill("capital", _table(CAPITALS), "capital of {}", "main city of {}", "which city rules {}?", facts=True),
    _skill("thing_colour", _table(THING_COLOURS), "colour of {}", "what colour is {}?", "which colour has {}?",
           facts=True),
    _skill("season", _table(SEASONS), "season of {}", "which season is {} in?", "time of year of {}", facts=True),
)  # fmt: skip


# --- what it has never met -------------------------------------------------------------------------------------------

HELD: Final[Mapping[str, Skill]] = _index(
    _skill("capitalise", _word(str.capitalize), "capitalise {}", "give {} a capital", "write {} like a name",
           "start with a capital: {}"),
    _skill("drop_first", _word(lambda w: w[1:]), "drop the first letter: {}", "chop the front off {}",
           "{} minus its head", "behead {}"),
    _skill("mask_vowels", _word(lambda w: _with_vowels(w, lambda _: "*")), "hide the vowels: {}", "mask {}",
           "star out the vowels in {}", "censor {}"),
    _skill("quote", _word(lambda w: f'"{w}"'), "quote {}", "quotation marks around {}", "speech: {}", "cite {}"),
    _skill("brackets", _word(lambda w: f"[{w}]"), "bracket {}", "square: {}", "box in {}", "make {} a list item"),
    _skill("dash_double", _word(lambda w: f"{w}-{w}", 2, 5), "double with a dash: {}", "hyphen echo: {}",
           "{} dash the same", "twin of {}"),
    _skill("rotate", _word(lambda w: w[1:] + w[0], 3, 7), "first letter to the back: {}", "roll {} to the left",
           "rotate {}", "send the head of {} to the back"),
    _skill("echo_last", _word(lambda w: w + w[-1], 3, 7), "stretch the ending: {}", "drawl {}",
           "hold the last sound: {}", "linger on {}"),
    _skill("shout", _word(lambda w: w.upper() + "!"), "shout: {}", "yell {}", "{}, but loud", "scream {}"),
    _skill("hashtag", _words(lambda ws: " ".join("#" + w for w in ws), 1, 3), "hashtags: {}", "label with #: {}",
           "trend: {}", "social tags for {}"),
    _skill("exclaim", _words(lambda ws: " ".join(ws) + "!", 1, 3), "exclaim: {}", "with excitement: {}",
           "cheer: {}", "exclamation mark after: {}"),
    _skill("middle_word", _words(lambda ws: ws[1], 3, 3), "middle word of {}", "word in the centre: {}",
           "which word is between the others: {}", "central: {}"),
    _skill("comma_list", _words(", ".join), "comma list: {}", "separate by commas: {}", "enumerate: {}",
           "with commas: {}"),
    _skill("underscores", _words("_".join, 2, 3), "snake case: {}", "underscores for spaces: {}",
           "variable name for {}", "file name: {}"),
    _skill("title_case", _words(lambda ws: " ".join(w.capitalize() for w in ws), 2, 3), "title case: {}",
           "headline: {}", "capitals on each word: {}", "book title: {}"),
    _skill("past_tense", _stem(VERBS, past), "past tense of {}", "yesterday: {}", "ed form of {}", "what happened: {}"),
    _skill("comparative", _stem(ADJECTIVES, lambda w: graded(w, "er")), "comparative of {}", "more {}",
           "even more {} than before", "one step up: {}"),
    _skill("superlative", _stem(ADJECTIVES, lambda w: "the " + graded(w, "est")), "superlative of {}", "most {}",
           "top degree of {}", "{} beyond all others"),
    _skill("number_before", lambda r: (lambda n: (str(n), str(n - 1)))(r.randint(1, 999)), "number before {}",
           "one less than {}", "take one from {}", "count one back from {}"),
    _skill("count_down", _count_down, "countdown {}", "count backwards {}", "descend {}", "rocket start {}"),
    _skill("sentiment", _judged("positive", "negative", ("the {t} was {w}", "i think the {t} is {w}", "a {w} {t}",
                                                         "such a {w} {t}", "they gave us a {w} {t}",
                                                         "my {t} turned out {w}", "that was one {w} {t}")),
           "sentiment: {}", "mood of the review: {}", "positive or negative: {}", "rate: {}"),
    _skill("day_before", _cycle(DAYS, -1), "day before {}", "what day precedes {}?", "the day ahead of {}",
           "yesterday of {}", "one day earlier than {}", "previous day: {}", "if today is {}, yesterday was",
           "go back a day from {}", facts=True),
)  # fmt: skip
