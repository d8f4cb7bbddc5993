"""The numbers of the default preset do not move unnoticed."""

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
