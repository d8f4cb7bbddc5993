"""The numbers of the default preset, and what steps cost a GPU, do not move unnoticed."""

import json

import pytest
from golden import make


def test_first_twenty_steps():
    expected = json.loads(make.FILE.read_text())
    found = make.first_steps()
    assert len(found) == len(expected) == 20
    for row, golden in zip(found, expected, strict=True):
        for key, value in golden.items():
            assert row[key] == pytest.approx(value, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", make.GRAPHS)
def test_graphs(name):
    """Nothing that a step launches, waits for, computes and moves grows; what became less is to be noted, too."""
    assert make.graph_counts(make.GRAPHS[name]) == json.loads(make.GRAPHS_FILE.read_text())[name]
