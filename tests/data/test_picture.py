"""The picture of a partition."""

from xml.etree import ElementTree

import pytest

from fedloom.data.picture import partition_svg


def holdings(clients, categories):
    return [
        {
            "name": f"client-{i:03d}",
            "train": 3 + i % 5,
            "validation": 0,
            "test": 0,
            "categories": {f"kind {i % categories} <$&": 3, f"kind {(i + 1) % categories} <$&": i % 5},
        }
        for i in range(clients)
    ]


@pytest.mark.parametrize("clients,categories", [(1, 1), (10, 10), (60, 2), (61, 10), (1613, 40)])
def test_it_is_whole_the_same_every_time_and_names_what_it_shows(clients, categories):
    svg = partition_svg(holdings(clients, categories))
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert svg == partition_svg(holdings(clients, categories))
    assert len(svg) < 200_000
    text = " ".join(root.itertext())
    assert ("client-000" in text) is (clients <= 60)
    assert (f"{clients} clients, largest first" in text) is (clients > 60)
    if categories > 12 and clients > 12:
        assert "other" in text


def test_clients_without_categories_are_drawn():
    assert partition_svg([{"name": "a", "train": 2, "validation": 0, "test": 0, "categories": {"(none)": 2}}])
