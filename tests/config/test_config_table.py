"""docs/configuration.md is made from the schema and up to date."""

import importlib.util
from pathlib import Path

from fedloom.config import shape

TOOL = Path(__file__).parents[2] / "tools" / "config_table.py"


def tool():
    spec = importlib.util.spec_from_file_location("config_table", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date():
    made = tool()
    assert made.TARGET.read_text(encoding="utf-8") == made.page(), "run: python tools/config_table.py"


def test_the_page_has_every_key():
    page = tool().page()
    for entry in shape.entries():
        if shape.variants(entry.field.annotation) or shape.named_sections(entry.field.annotation):
            continue
        if shape.tag(entry.section) == entry.path[-1] and shape.tag_values(entry.section):
            continue
        assert f"`{'.'.join(entry.path).replace('*', 'NAME')}`" in page


def test_every_key_is_described():
    for entry in shape.entries():
        is_section = shape.variants(entry.field.annotation)
        is_tag = shape.tag(entry.section) == entry.path[-1] and shape.tag_values(entry.section)
        assert is_section or is_tag or entry.field.description, ".".join(entry.path)
