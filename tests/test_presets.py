"""Every preset: its config is whole, its networks fit its images, and a step of it runs at a small width on made-up images."""

import pytest
from replicas import train_variant

from distgan import config as configs
from distgan import presets, schema
from distgan.config import Config

SHAPES = {"digits": (16, 1), "mnist": (28, 1), "cifar10": (32, 3), "tfrecord": (128, 3), "stacked_digits": (16, 3)}


def small(name):
    """The preset's values on synthetic images of its shape, narrow and with a small batch."""
    values = presets.preset(name)
    side, channels = SHAPES[values["data.source"]]
    made_up = {"data.source": "synthetic", "data.resolution": side, "data.synthetic.num_images": 64}
    values |= made_up | {"data.synthetic.channels": channels, "train.global_batch": 4, "data.path": ""}
    widths = ("width",) if values.get("model.name", "dcgan") == "dcgan" else ("generator_width", "discriminator_width")
    # Tracing takes the most of a test: five discriminator updates are two here.
    values["train.discriminator_updates"] = min(2, values.get("train.discriminator_updates", 1))
    return values | {f"model.{width}": 8 for width in widths}


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


# The networks for 128x128 are built in test_networks.py; a step of them takes minutes to compile.
@pytest.mark.parametrize("name", sorted(presets.PRESETS.keys() - {"imagenet128-biggan"}))
def test_step(name):
    start, end = train_variant(small(name), (0, 1))
    for network in ("generator/", "discriminator/", "generator_ema/"):
        assert any((start[key] != end[key]).any() for key in start if key.startswith(network)), network
