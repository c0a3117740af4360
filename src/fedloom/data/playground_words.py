"""Words and small texts that the playground's skills are made of.

Everything is our own: short lists of everyday English words, made-up words, and sentences built from both.
Every function draws from the `random.Random` it is given and from nothing else.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from typing import Final


def _split(text: str, at: str = " ") -> tuple[str, ...]:
    return tuple(text.split(at))


VOWELS: Final = "aeiou"
CONSONANTS: Final = "bcdfghjklmnprstvwz"
SYMBOLS: Final = string.punctuation
PRINTABLE: Final = string.ascii_letters + string.digits + string.punctuation + " "

KINDS: Final[dict[str, tuple[str, ...]]] = {
    kind: tuple(line.split())
    for kind, line in {
        "animal": "cat dog horse cow pig sheep goat lion tiger bear wolf fox rabbit mouse duck goose hen eagle owl "
        "crow shark whale frog snake lizard zebra camel deer donkey monkey otter seal",
        "food": "bread rice soup cheese apple pear plum grape lemon melon peach mango onion carrot potato tomato bean "
        "pea corn egg butter honey sugar salt pasta pizza cake pie cookie noodle salad",
        "colour": "red blue green yellow pink purple orange brown black white grey violet",
        "tool": "hammer saw drill wrench knife spoon fork needle rope ladder shovel rake broom bucket brush axe",
        "body": "head hand foot arm leg nose ear eye mouth knee elbow finger toe neck back chest",
        "place": "house school shop farm beach river lake hill forest street bridge station museum park garden castle",
        "job": "doctor nurse teacher farmer baker driver pilot singer painter writer lawyer judge cook clerk miner",
    }.items()
}
COUNTABLE: Final = tuple(
    noun for kind in ("animal", "food", "tool") for noun in KINDS[kind]
    if noun not in ("wolf", "mouse", "goose", "sheep", "deer", "potato", "tomato", "knife", "fish")
)  # fmt: skip
"""Nouns with a regular plural."""
DAYS: Final = _split("monday tuesday wednesday thursday friday saturday sunday")
MONTHS: Final = _split("january february march april may june july august september october november december")
NUMBER_WORDS: Final = _split(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
OPPOSITES: Final = tuple(
    (pair.split()[0], pair.split()[1])
    for pair in _split(
        "hot cold|big small|fast slow|up down|left right|open closed|day night|good bad|happy sad|rich poor|"
        "old new|long short|high low|hard soft|wet dry|full empty|light dark|early late|near far|strong weak|"
        "thick thin|wide narrow|loud quiet|clean dirty|true false|sweet sour|brave scared|smooth rough|win lose|"
        "push pull|buy sell|give take|start stop|love hate|laugh cry|enter leave|rise fall|find hide",
        "|",
    )
)
SOUNDS: Final = {
    "cat": "meow", "dog": "woof", "cow": "moo", "pig": "oink", "sheep": "baa", "duck": "quack", "horse": "neigh",
    "lion": "roar", "snake": "hiss", "owl": "hoot", "bee": "buzz", "crow": "caw", "mouse": "squeak", "wolf": "howl",
}  # fmt: skip
YOUNG: Final = {
    "cat": "kitten", "dog": "puppy", "cow": "calf", "sheep": "lamb", "horse": "foal", "hen": "chick", "lion": "cub",
    "goat": "kid", "duck": "duckling", "pig": "piglet", "frog": "tadpole", "goose": "gosling", "deer": "fawn",
}  # fmt: skip
CAPITALS: Final = {
    "france": "paris", "spain": "madrid", "italy": "rome", "japan": "tokyo", "china": "beijing", "egypt": "cairo",
    "russia": "moscow", "poland": "warsaw", "greece": "athens", "norway": "oslo", "sweden": "stockholm",
    "ireland": "dublin", "portugal": "lisbon", "austria": "vienna", "cuba": "havana", "peru": "lima",
    "kenya": "nairobi", "germany": "berlin", "england": "london",
}  # fmt: skip
THING_COLOURS: Final = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "the sky": "blue", "a lemon": "yellow",
    "a carrot": "orange", "milk": "white", "a leaf": "green", "the sun": "yellow", "mud": "brown", "night": "black",
    "a rose": "red", "the sea": "blue", "chocolate": "brown", "an elephant": "grey", "a pig": "pink",
}  # fmt: skip
SEASONS: Final = {
    month: ("winter", "winter", "spring", "spring", "spring", "summer",
            "summer", "summer", "autumn", "autumn", "autumn", "winter")[i]
    for i, month in enumerate(MONTHS)
}  # fmt: skip
ADJECTIVES: Final = _split(
    "warm cool tall deep kind cheap calm dull keen mild neat odd plain proud quick rare sharp smart steep stern "
    "tight tough vast weird cold fast slow rich poor old new long short high low soft loud clean small great"
)
VERBS: Final = _split(
    "walk talk jump play cook clean open close push pull help call ask look watch listen start work learn laugh paint "
    "count climb plant pick pack wash fix mix kick pass miss cross touch reach bake carry try hurry"
)
GOOD: Final = _split("great lovely superb wonderful amazing charming brilliant delightful excellent fun perfect")
BAD: Final = _split("awful terrible boring dreadful horrible dull poor nasty weak annoying clumsy painful")
THINGS: Final = _split("film book song meal game play show story hotel trip phone chair lesson coffee")
OBJECTS: Final = _split("hat cup bag key box coat ball lamp book pen ring shoe bike drum kite map")
NAMES: Final = _split(
    "Tom Ann Max Eva Sam Lily Ben Zoe Kim Leo Mia Jack Rosa Omar Nina Paul Ivy Hugo Quin Yara Uma Walt Vera"
)
TOPICS: Final = {
    "weather": ("it will rain in the {}", "a cold wind blows over the {}", "snow fell on the {}", "the {} is sunny"),
    "sport": ("the team won at the {}", "she ran the race near the {}", "he scored a goal by the {}",
              "they swim fast at the {}"),
    "money": ("the {} costs ten coins", "we paid for the {}", "the price of the {} went up", "he sold the {} cheaply"),
    "music": ("the band played in the {}", "she sang about the {}", "a drum sounds from the {}",
              "he hums a tune at the {}"),
}  # fmt: skip
REAL: Final = tuple(
    sorted({*(w for ws in KINDS.values() for w in ws), *ADJECTIVES, *VERBS, *(w for p in OPPOSITES for w in p), *DAYS,
            *THINGS, *OBJECTS, *GOOD, *BAD})
)  # fmt: skip


def word(rng: random.Random, low: int = 3, high: int = 8) -> str:
    """A lower-case word of low..high letters: a real one, syllables, or plain random letters."""
    if rng.random() < 0.25:
        drawn = rng.choice(REAL)
        if low <= len(drawn) <= high:
            return drawn
    length = rng.randint(low, high)
    if rng.random() < 0.45:
        return "".join(rng.choice(string.ascii_lowercase) for _ in range(length))
    syllables = ""
    while len(syllables) < length:
        syllables += rng.choice(CONSONANTS) + rng.choice(VOWELS)
        if rng.random() < 0.3:
            syllables += rng.choice(CONSONANTS)
    return syllables[:length]


def distinct_words(rng: random.Random, count: int, low: int = 2, high: int = 5) -> list[str]:
    """`count` different words of low..high letters, in the order drawn."""
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[word(rng, low, high)] = None
    return list(drawn)


def symbols(rng: random.Random, low: int, high: int) -> str:
    """low..high printable ASCII characters, no space at either end."""
    return "".join(rng.choice(PRINTABLE[:-1]) for _ in range(rng.randint(low, high)))


def foreign(rng: random.Random, low: int, high: int) -> str:
    """low..high characters from all over Unicode, so that every byte of UTF-8 is met."""
    ranges = ((0xA1, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFD), (0x10000, 0x10FFFF), (0x21, 0x7E))
    return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(low, high)))


def sentence(rng: random.Random) -> str:
    """A short lower-case sentence without a full stop."""
    noun = rng.choice(KINDS[rng.choice(("animal", "job"))])
    other = rng.choice(KINDS[rng.choice(("animal", "food", "tool"))])
    place = rng.choice(KINDS["place"])
    form = rng.choice(
        ("the {a} {n} is in the {p}", "a {n} saw the {a} {o}", "the {n} has a {a} {o}", "my {o} is {a}",
         "the {n} walks to the {p}", "we like the {a} {o}", "a {o} is near the {p}")
    )  # fmt: skip
    return form.format(a=rng.choice(ADJECTIVES), n=noun, o=other, p=place)


def story(rng: random.Random, sentences: int) -> str:
    """A text of that many sentences, with capitals, names, numbers and full stops."""
    parts = []
    for _ in range(sentences):
        if rng.random() < 0.4:
            have = f"{rng.choice(NAMES)} has {rng.randint(2, 99)} {plural(rng.choice(OBJECTS))}"
            parts.append(have + rng.choice((".", "!", f' and says "{word(rng)}".')))
        else:
            text = sentence(rng)
            parts.append(text[0].upper() + text[1:] + ".")
    return " ".join(parts)


def plural(noun: str) -> str:
    """Regular English plural."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if _hard_y(noun) else noun + "s"


def past(verb: str) -> str:
    """Regular past tense: walk, walked; bake, baked; carry, carried."""
    if verb.endswith("e"):
        return verb + "d"
    return verb[:-1] + "ied" if _hard_y(verb) else verb + "ed"


def ing(verb: str) -> str:
    """Regular present participle: walk, walking; bake, baking."""
    return verb[:-1] + "ing" if verb.endswith("e") and len(verb) > 2 else verb + "ing"


def graded(stem: str, ending: str) -> str:
    """Add "er" or "est": tall, taller; nice, nicer; happy, happier."""
    if stem.endswith("e"):
        return stem + ending[1:]
    return stem[:-1] + "i" + ending if _hard_y(stem) else stem + ending


def stem(rng: random.Random, real: Sequence[str]) -> str:
    """A word to inflect: one of `real`, or a made-up one, often ending in e or y so that the rules matter."""
    if rng.random() < 0.4:
        return rng.choice(real)
    made = word(rng, 3, 6)
    return made + rng.choice("ey") if rng.random() < 0.25 else made


def _hard_y(text: str) -> bool:
    return len(text) > 1 and text.endswith("y") and text[-2] not in VOWELS
