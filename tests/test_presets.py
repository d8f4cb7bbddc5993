"""Every preset: its config is whole, and its networks fit its images. `test_table.py` runs them."""

import pytest

from distgan import config as configs
from distgan import presets, schema
from distgan.config import Config

SHAPES = {"digits": (16, 1), "mnist": (28, 1), "cifar10": (32, 3), "tfrecord": (128, 3), "stacked_digits": (16, 3)}


@pytest.mark.parametrize("name", presets.PRESETS)
def test_config(name):
    config = schema.build(Config, presets.preset(name))
    assert not configs.problems(config)
    side, channels = SHAPES[config.data.source.name]
    assert not list(config.model.name.options.fits((side, side, channels)))
    assert not list(config.objective.augmentation.options.fits((side, side, channels)))
    # What a docstring promises of each.
    doc = " ".join(presets.PRESETS[name].__doc__.split())
    assert "kimg" in doc
    assert "ot trained here" in doc or "ot run here" in doc or "Run here" in doc
