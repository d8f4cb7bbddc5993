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


def _cifar10(steps: int, discriminator_updates: int = 5, batch: int = 64) -> dict[str, Any]:
    """Data, clock and cadence of the recipes that count generator steps."""
    kimg = steps * discriminator_updates * batch / 1000
    return {
        "data.source": "cifar10",
        "train.total_kimg": kimg,
        "train.global_batch": batch,
        "train.update_order": "alternating",
        "train.discriminator_updates": discriminator_updates,
        "train.report_kimg": 32.0,
        "train.sample_kimg": kimg / 100,
        "checkpoint.every_kimg": kimg / 100,
        # A decay of 0.9999 a generator step, in images.
        "ema.halflife_kimg": round(6931 * discriminator_updates * batch / 1000, 1),
    }


def cifar10_wgan_gp() -> dict[str, Any]:
    """WGAN-GP's ResNet on CIFAR-10, unconditional (Gulrajani et al. 2017, section 5.3 and appendix F).

    `distgan train --preset=cifar10-wgan-gp`: 100,000 generator steps of batch 64, five discriminator updates each, the learning
    rate going to 0. Cost: 32,000 kimg, about a day on one GPU. Expected: an FID of 22.3 (50,000 fakes, 50,000 training images;
    Mimicry, Lee and Town 2020). Not trained here; its step runs in the tests at a small width.
    """
    return {
        **_cifar10(100_000),
        "model.name": "resnet",
        "model.discriminator_norm": "none",
        "model.pool": "mean",
        "objective.loss": "wasserstein",
        "objective.regularizers": "gradient_penalty",
        "optimizer.learning_rate": "linear:0.0002:0",
        "optimizer.beta_1": 0.0,
        "optimizer.beta_2": 0.9,
    }


def cifar10_sngan() -> dict[str, Any]:
    """SNGAN's ResNet on CIFAR-10, unconditional (Miyato et al. 2018, appendix B.4).

    `distgan train --preset=cifar10-sngan`: hinge loss, 100,000 generator steps of twice the batch of 64, five discriminator
    updates each, the learning rate going to 0. Cost: 32,000 kimg, about a day on one GPU. Expected: an FID of 16.8 (50,000
    fakes, 50,000 training images; Mimicry); the paper's 21.7 is of 10,000 and 5,000. Not trained here; its step runs in the
    tests.
    """
    return {
        **_cifar10(100_000),
        "model.name": "resnet",
        "objective.loss": "hinge",
        "optimizer.learning_rate": "linear:0.0002:0",
        "optimizer.beta_1": 0.0,
        "optimizer.beta_2": 0.9,
        "train.generator_batch_multiple": 2,
    }


def cifar10_sagan() -> dict[str, Any]:
    """SAGAN on CIFAR-10, conditional: `cifar10-sngan` with self-attention and spectral norm in both networks (Zhang et al. 2019).

    `distgan train --preset=cifar10-sagan`. Source: the settings of StudioGAN for CIFAR-10. Cost: 32,000 kimg, a day or so on one
    GPU. Expected: an FID of 14.0 (against the 10,000 test images; StudioGAN's log). Not trained here; its step runs in the tests.
    """
    return {
        **_cifar10(100_000),
        "data.flip": True,
        "model.name": "resnet",
        "model.conditional": True,
        "model.head": "projection",
        "model.attention": 16,
        "model.spectral_generator": True,
        "objective.loss": "hinge",
        "optimizer.learning_rate": 2e-4,
        "optimizer.beta_1": 0.5,
    }


def cifar10_biggan() -> dict[str, Any]:
    """BigGAN on CIFAR-10, conditional (Brock et al. 2019, in StudioGAN's settings).

    `distgan train --preset=cifar10-biggan`: 100,000 generator steps of batch 64, five discriminator updates each. Cost: 32,000
    kimg, 13 hours on one GPU by StudioGAN's log. Expected: an FID of 8.03 (against the 10,000 test images; the same log). Not
    trained here; its step runs in the tests.
    """
    return {
        **_cifar10(100_000),
        "data.flip": True,
        "model.name": "biggan",
        "model.conditional": True,
        "model.head": "projection",
        "model.attention": 16,
        "objective.loss": "hinge",
        "optimizer.learning_rate": 2e-4,
        "optimizer.beta_1": 0.5,
        "ema.statistics": "standing",
    }


def cifar10_biggan_diffaugment() -> dict[str, Any]:
    """`cifar10-biggan` with DiffAugment, for twice as long (Zhao et al. 2020).

    `distgan train --preset=cifar10-biggan-diffaugment`. Cost: 64,000 kimg, a day on one GPU. Expected: an FID of 7.16 (against
    the 10,000 test images; StudioGAN's log). Not trained here; its step runs in the tests.
    """
    return {
        **cifar10_biggan(),
        **_cifar10(200_000),
        "objective.augmentation": "diffaugment",
        "objective.diffaugment.policy": "translation,cutout",
    }


def cifar10_biggan_lecam() -> dict[str, Any]:
    """`cifar10-biggan` with LeCam's regularizer, for twice as long (Tseng et al. 2021).

    `distgan train --preset=cifar10-biggan-lecam`: weight 0.3, means with a decay of 0.99, from generator step 1,000 on. Cost:
    64,000 kimg, a day on one GPU. Expected: the paper reports 8.31 for BigGAN with it (10,000 test images). Not trained here; its
    step runs in the tests.
    """
    return {
        **cifar10_biggan(),
        **_cifar10(200_000),
        "objective.regularizers": "lecam",
        "objective.lecam.start_kimg": 320.0,
    }


def imagenet128_biggan() -> dict[str, Any]:
    """BigGAN on ImageNet at 128x128, conditional (Brock et al. 2019, appendix C, in StudioGAN's settings).

    `distgan prepare --data.source=folder --data.path=IMAGENET/train --data.resolution=128 --out=imagenet128`, then `distgan train
    --preset=imagenet128-biggan --data.path=imagenet128`: batch 2,048, two discriminator updates a step, 200,000 steps. Cost:
    819,200 kimg, weeks on 8 GPUs (--train.accumulation_steps where memory is short). Expected: the paper's FID of 8.7
    (50,000 fakes; batch 2,048). Not trained here; its networks are built in the tests.
    """
    return {
        **_cifar10(200_000, 2, 2048),
        "data.source": "tfrecord",
        "data.resolution": 128,
        "model.name": "biggan",
        "model.conditional": True,
        "model.head": "projection",
        "model.latent_size": 120,
        "model.attention": 64,
        "objective.loss": "hinge",
        "optimizer.learning_rate": 5e-5,
        "optimizer.discriminator_learning_rate": 2e-4,
        "optimizer.beta_1": 0.0,
        "train.report_kimg": 500.0,
        "ema.statistics": "standing",
    }


def _short_digits() -> dict[str, Any]:
    """For a few minutes on a laptop's CPU."""
    return {
        "data.source": "digits",
        "data.resolution": 16,
        "objective.loss": "hinge",
        "optimizer.learning_rate": 5e-4,
        "optimizer.beta_1": 0.0,
        "optimizer.beta_2": 0.9,
        "train.update_order": "alternating",
        "train.report_kimg": 2.0,
        "train.sample_kimg": 20.0,
        "checkpoint.every_kimg": 20.0,
    }


def digits_sngan() -> dict[str, Any]:
    """`cifar10-sngan` on scikit-learn's digits, narrow and short: learns on a laptop's CPU, offline.

    `distgan train --preset=digits-sngan`. Cost: 80 kimg, 3 minutes on 2 busy CPU cores. Run here: README's table of digits.
    """
    return {
        **_short_digits(),
        "model.name": "resnet",
        "model.generator_width": 32,
        "model.discriminator_width": 32,
        "train.total_kimg": 80.0,
    }


def digits_biggan() -> dict[str, Any]:
    """`cifar10-biggan` on scikit-learn's digits, narrow, short and without attention: told which digit to draw, on a CPU.

    `distgan train --preset=digits-biggan`. R1, which the paper does without, keeps each class from becoming one image on so few
    data, for a while: after 80 kimg it is. Cost: 40 kimg, 3 minutes on a busy CPU core. Run here: README's table of digits;
    `tests/test_conditional.py` asks that a support vector machine reads the digit that was asked for in 90 % of the samples,
    and in 80 % of each digit's.
    """
    return {
        **_short_digits(),
        "model.name": "biggan",
        "model.conditional": True,
        "model.head": "projection",
        "model.latent_size": 60,
        "model.embedding_size": 32,
        "model.generator_width": 12,
        "model.discriminator_width": 12,
        "objective.regularizers": "r1",
        "objective.r1.gamma": 1.0,
        "train.total_kimg": 40.0,
    }


def stacked_digits() -> dict[str, Any]:
    """Three digits as the planes of a colour image, 1,000 modes: `digits-sngan` on them.

    `distgan train --preset=stacked-digits`. Source: the experiment of stacked MNIST (Srivastava et al. 2017, "VEEGAN"). Cost: 380
    kimg, ten minutes on one CPU core. Run here: all 1,000 numbers among 26,000 samples, KL 0.14 nats (`python tests/scores.py
    RUN_DIR`).
    """
    return {
        **digits_sngan(),
        "data.source": "stacked_digits",
        "train.total_kimg": 380.0,
        "train.report_kimg": 10.0,
        "train.sample_kimg": 40.0,
        "checkpoint.every_kimg": 40.0,
    }


PRESETS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "digits-dcgan": digits_dcgan,
    "digits-conditional": digits_conditional,
    "mnist-dcgan": mnist_dcgan,
    "cifar10-dcgan": cifar10_dcgan,
    "cifar10-wgan-gp": cifar10_wgan_gp,
    "cifar10-sngan": cifar10_sngan,
    "cifar10-sagan": cifar10_sagan,
    "cifar10-biggan": cifar10_biggan,
    "cifar10-biggan-diffaugment": cifar10_biggan_diffaugment,
    "cifar10-biggan-lecam": cifar10_biggan_lecam,
    "imagenet128-biggan": imagenet128_biggan,
    "digits-sngan": digits_sngan,
    "digits-biggan": digits_biggan,
    "stacked-digits": stacked_digits,
}


def preset(name: str) -> dict[str, Any]:
    """The values of a named preset, its own name among them; raises UserError for an unknown one."""
    if name not in PRESETS:
        raise UserError(f"--preset={name} is unknown{registry.suggestion(name, PRESETS)}")
    return {"preset": name, **PRESETS[name]()}
