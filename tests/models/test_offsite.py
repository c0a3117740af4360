import json
from pathlib import Path

import pytest

from fedloom.errors import UserError
from fedloom.models.offsite import Plan, plan, spaced
from fedloom.models.offsite_config import OffsiteConfig

TABLE = [  # blocks, kept, rounded (Offsite-Tuning), cut down (FederatedScope-LLM)
    (4, 2, [0, 3], [0, 3]),
    (6, 3, [0, 2, 5], [0, 2, 5]),
    (7, 4, [0, 2, 4, 6], [0, 2, 4, 6]),
    (8, 4, [0, 2, 5, 7], [0, 2, 4, 7]),
    (20, 8, [0, 3, 5, 8, 11, 14, 16, 19], [0, 2, 5, 8, 10, 13, 16, 19]),
    (22, 10, [0, 2, 5, 7, 9, 12, 14, 16, 19, 21], [0, 2, 4, 7, 9, 11, 14, 16, 18, 21]),
    (28, 14, [0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25, 27], [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 27]),
]


@pytest.mark.parametrize("blocks, count, rounded, down", TABLE)
def test_kept_blocks_are_those_of_both_projects(blocks, count, rounded, down):
    assert spaced(blocks, count) == rounded
    assert spaced(blocks, count, "fs_llm") == down


def test_the_reference_tables():
    file = Path(__file__).parents[1] / "oracles_offsite.json"
    tables = json.loads(file.read_text())["offsite_uniform_drop"]["outputs"]
    assert len(tables) == 8
    for name, rules in tables.items():
        blocks, count = (int(part[1:]) for part in name.split("_"))
        assert spaced(blocks, count) == rules["official_round"]
        assert spaced(blocks, count, "fs_llm") == rules["fs_llm_int"]


def test_one_kept_block_is_the_first():
    assert spaced(5, 1) == spaced(5, 1, "fs_llm") == [0]


def test_a_plan_names_blocks_on_both_sides():
    found = plan(OffsiteConfig(head_layers=1, tail_layers=2, drop_ratio=0.5), 11)
    assert found == Plan(11, 1, 2, (1, 3, 6, 8))
    assert found.layers == (0, 1, 3, 6, 8, 9, 10)
    assert found.middle == tuple(range(1, 9))
    assert found.adapter == (0, 5, 6)
    assert found.emulated == (1, 2, 3, 4)
    assert [found.home(i) for i in found.adapter] == [0, 9, 10]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"head_layers": 0, "tail_layers": 0}, "no block is left"),
        ({"head_layers": 3, "tail_layers": 2}, "has 5 blocks, so 0 would stay"),
        ({"head_layers": 9, "tail_layers": 9}, "so 0 would stay"),
        ({"drop_ratio": 0.0}, "gives the owner's model away"),
        ({"drop_ratio": 1.0}, "leaves no emulator"),
        ({"drop_ratio": -0.5}, "drop_ratio=-0.5"),
        ({"drop_ratio": 0.1}, "keeps all of them"),
        ({"drop_ratio": 0.9}, "keeps none of them"),
    ],
)
def test_bounds_outside_the_model_are_refused_in_words(settings, words):
    with pytest.raises(UserError, match=words):
        plan(OffsiteConfig(**settings), 5)
