"""Who shares the work: strategy and batch arithmetic."""

import pytest

from distgan.errors import UserError
from distgan.runtime import topology


@pytest.mark.parametrize(
    ("strategy", "gpus", "cpus", "expected"),
    [
        ("auto", 0, 1, ("single", 1)),
        ("auto", 1, 1, ("single", 1)),
        ("auto", 8, 1, ("mirrored", 8)),
        ("auto", 0, 4, ("mirrored", 4)),
        ("single", 8, 1, ("single", 1)),
        ("mirrored", 0, 1, ("mirrored", 1)),
        ("mirrored", 2, 4, ("mirrored", 2)),
    ],
)
def test_choose(strategy, gpus, cpus, expected):
    found = topology.choose(strategy, gpus, cpus)
    assert (found.strategy, found.num_replicas) == expected
    assert found.is_primary


def test_split_batch():
    assert topology.split_batch(256, 8, 2) == 16
    assert topology.describe_batch(256, 8, 2) == "global batch 256 = 8 replicas x 16 x 2 accumulation steps"
    with pytest.raises(UserError, match="nearest legal values are 96 or 104"):
        topology.split_batch(100, 8, 1)
    with pytest.raises(UserError, match="nearest legal values are 8$"):
        topology.split_batch(5, 8, 1)
