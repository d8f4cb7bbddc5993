"""The numbers of the default preset, and what steps cost a GPU, do not move unnoticed."""

import json

import pytest
from golden import make


def test_first_twenty_steps(tmp_path):
    make.train(tmp_path)
    make.check(tmp_path)


@pytest.mark.parametrize("name", make.GRAPHS)
def test_graphs(name):
    """Nothing that a step launches, waits for, computes and moves grows; what became less is to be noted, too."""
    assert make.graph_counts(make.GRAPHS[name]) == json.loads(make.GRAPHS_FILE.read_text())[name]
