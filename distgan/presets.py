"""Named configs: each function returns what differs from the defaults of `config.py`, as flag names and values.

A preset is one recipe on one data set; its docstring says where the recipe comes from, what it costs and what it gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distgan import registry
from distgan.errors import UserError

DEFAULT = "digits-dcgan"


def digits_dcgan() -> dict[str, Any]:
    """The article's DCGAN on scikit-learn's 1,797 handwritten digits: learns on a laptop's CPU, offline.

    Source: the article's layers at half its width, with Adam's beta_1 and the LeakyReLU slope of Radford et al. 2016 and a
    learning rate of 5e-4, for a short run.
    Cost: 160 kimg, 3 minutes on 2 CPU cores. Run here: an SVC trained on the real digits finds each digit in at least 5 %
    of 1,000 samples, with a mean top probability of 0.78 (`tests/test_digits.py` asks for 3 % and 0.75).
    """
    return {
        "data.source": "digits",
        "data.resolution": 16,
        "model.width": 32,
        "model.leaky_slope": 0.2,
        "model.batch_norm_momentum": 0.9,
        "optimizer.learning_rate": 5e-4,
        "optimizer.beta_1": 0.5,
        "train.total_kimg": 160.0,
        "train.report_kimg": 2.0,
        "train.sample_kimg": 20.0,
        "checkpoint.every_kimg": 20.0,
    }


def digits_conditional() -> dict[str, Any]:
    """`digits-dcgan` that is told which digit to draw.

    Source: as `digits-dcgan`, with the class beside the latent and the pixels (Mirza and Osindero 2014).
    Cost: 160 kimg, under 2 minutes on 2 CPU cores. Run here: an SVC trained on the real digits agrees with the class asked
    for in 99 % of 1,000 samples (`tests/test_conditional.py` asks for 90 % after 40 kimg).
    """
    return {**digits_dcgan(), "model.conditional": True}


def mnist_dcgan() -> dict[str, Any]:
    """The article's DCGAN on MNIST at 28x28, batch 256 for 50 epochs as TensorFlow's DCGAN tutorial.

    Source: the article's networks and Adam 1e-4; it sets no batch, so the tutorial's is taken.
    Cost: 3,000 kimg, minutes on a GPU. Not run here: the download was out of reach.
    """
    return {
        "data.source": "mnist",
        "train.total_kimg": 3000.0,
        "train.global_batch": 256,
        "train.report_kimg": 10.0,
        "train.sample_kimg": 60.0,
        "checkpoint.every_kimg": 60.0,
    }


def cifar10_dcgan() -> dict[str, Any]:
    """The article's DCGAN on CIFAR-10 at 32x32, its networks and learning rate as they stand.

    Source: the article's networks and Adam 1e-4; it sets no batch: 256.
    Cost: 10,000 kimg, under an hour on a GPU. Not trained here (the download was out of reach); its step is measured by
    `distgan benchmark --preset=cifar10-dcgan`.
    """
    return {
        "data.source": "cifar10",
        "train.total_kimg": 10000.0,
        "train.global_batch": 256,
        "train.report_kimg": 10.0,
        "train.sample_kimg": 100.0,
        "checkpoint.every_kimg": 100.0,
    }


PRESETS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "digits-dcgan": digits_dcgan,
    "digits-conditional": digits_conditional,
    "mnist-dcgan": mnist_dcgan,
    "cifar10-dcgan": cifar10_dcgan,
}


def preset(name: str) -> dict[str, Any]:
    """The values of a named preset, its own name among them; raises UserError for an unknown one."""
    if name not in PRESETS:
        raise UserError(f"--preset={name} is unknown{registry.suggestion(name, PRESETS)}")
    return {"preset": name, **PRESETS[name]()}
