"""What a row says of speed: from which calls."""

import math

import pytest

from distgan.runtime.base import Waits
from distgan.training.report import Clock


def test_calls_that_compile_count_where_no_others_came():
    clock = Clock()
    assert math.isnan(clock.all().per_step(1.0))
    clock.add(1, 30.0, None, fresh=True)
    assert clock.all().per_step(clock.all().seconds) == 30_000
    assert clock.limit() == 1
    clock.add(1, 0.25, None, fresh=False)
    clock.add(2, 0.25, None, fresh=False)
    assert clock.limit() == 4
    clock.add(1, 20.0, Waits(0.5, 0.0), fresh=True)
    assert clock.measured().per_step(clock.measured().waits.data) == 500
    clock.add(1, 0.5, Waits(0.01, 0.2), fresh=False)
    measured = clock.measured()
    assert measured.per_step(measured.seconds - measured.waits.others) == pytest.approx(300)
    assert measured.per_step(measured.waits.data) == pytest.approx(10)
    # All steps that did not compile, measured or not.
    assert clock.all().per_step(clock.all().seconds) == pytest.approx(250)
    assert clock.limit() == 4  # Measured steps, which come two by two, say nothing of how many fit.
    assert clock.steps == 6
    clock.start_report()
    assert clock.steps == 0
    assert clock.limit() == 4
