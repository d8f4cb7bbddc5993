"""The primary's judgement: who is lost, who is behind, and who may take their time."""

import pytest

from distgan.runtime.hub import PATIENCE, Position, judge

LIMIT = 30.0
NOW = 1000.0


def at(step, since=0.0, heard=1.0, doing="training", patient=False):
    """A worker that began `since` seconds ago what it does, and was heard `heard` seconds ago."""
    return Position(f"host{step}", doing, step, patient, 1, NOW - since, NOW - heard)


def test_all_is_well():
    assert judge(NOW, {}, LIMIT) is None
    assert judge(NOW, {0: at(7), 1: at(7, since=LIMIT)}, LIMIT) is None


def test_a_silent_worker():
    text = judge(NOW, {0: at(7), 1: at(6, heard=LIMIT + 1)}, LIMIT)
    assert text.startswith("not heard from for 31 s: rank 1 on host6 (last at step 6, training)")
    assert "--runtime.hang_timeout_seconds=30" in text


def test_those_who_wait_for_a_silent_worker_are_not_to_blame():
    text = judge(NOW, {0: at(7, since=LIMIT + 1), 1: at(6, since=LIMIT - 1, heard=LIMIT - 1)}, LIMIT)
    assert text.startswith("not heard from for 29 s: rank 1 on host6")


def test_who_is_behind():
    late = LIMIT + 1
    text = judge(NOW, {0: at(8, late), 1: at(7, late, doing="between two calls"), 2: at(8, late)}, LIMIT)
    assert text.startswith("no step ended within 30 s")
    assert "behind: rank 1 on host7 at step 7, between two calls; ahead: rank 0, 2" in text


@pytest.mark.parametrize("rank", [0, 1])
def test_long_work_has_patience(rank):
    """While one compiles, saves or evaluates, those who wait for it are not stuck."""
    others = {0: at(8, LIMIT + 1), 1: at(8, LIMIT + 1)}
    assert judge(NOW, others | {rank: at(8, LIMIT * PATIENCE, patient=True)}, LIMIT) is None
    assert "no step ended" in judge(NOW, others | {rank: at(8, LIMIT * PATIENCE + 1, patient=True)}, LIMIT)
