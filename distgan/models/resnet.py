"""SNGAN's residual networks, and SAGAN's, which are these with self-attention and a spectral generator."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from distgan.config import Config
from distgan.models.ladder import Ladder, head_problems, misfits
from distgan.schema import option

_GENERATOR_WIDTH, _DISCRIMINATOR_WIDTH = 256, 128
# Channels at the default widths. 32 and 128 are the paper's (tables 4 and 5), 48 and 64 those that Mimicry (Lee and Town 2020)
# made usual for STL-10 and CelebA; 16, for digits, is ours.
LADDERS = {
    ladder.resolution: ladder
    for ladder in (
        Ladder(4, (256, 256, 256), (128, 128, 128), 2),
        Ladder(4, (256, 256, 256, 256), (128, 128, 128, 128), 2),
        Ladder(6, (512, 256, 128, 64), (64, 128, 256, 512, 1024), 4),
        Ladder(4, (1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024), 5),
        Ladder(4, (1024, 1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024, 1024), 5),
    )
}


@dataclasses.dataclass(frozen=True)
class Resnet:
    """SNGAN's ResNet (Miyato et al. 2018, appendix B.4), conditional as in Miyato and Koyama 2018.

    With `attention`, `spectral_generator` and a projection head it is SAGAN (Zhang et al. 2019); with
    `discriminator_norm=none` and `pool=mean` WGAN-GP's (Gulrajani et al. 2017). Kernels begin as Xavier's with gain sqrt 2 in a
    block's 3x3 convolutions and 1 elsewhere.
    """

    latent_size: int = option(128, "dimensions of the latent", minimum=1)
    generator_width: int = option(_GENERATOR_WIDTH, "256 is the papers', at every resolution", minimum=1)
    discriminator_width: int = option(_DISCRIMINATOR_WIDTH, "128 is the papers', at every resolution", minimum=1)
    depth: int = option(1, "residual blocks of each width; the papers' is 1", minimum=1)
    attention: int = option(0, "side of the feature maps with self-attention in both networks; 0 is none", minimum=0)
    spectral_generator: bool = option(False, "spectral norm in the generator too, as in SAGAN")
    discriminator_norm: str = option(
        "spectral", "of the discriminator: its kernels, its maps or nothing", choices=("spectral", "batch", "none")
    )
    head: str = option(
        "none",
        "what the discriminator does with the class (--model.conditional): project on it, or tell it (AC-GAN)",
        choices=("none", "projection", "auxiliary"),
    )
    pool: str = option("sum", "over the places of the discriminator's last map", choices=("sum", "mean"))
    batch_norm_momentum: float = option(0.9, "of the moving statistics", minimum=0, maximum=1)
    batch_norm_epsilon: float = option(1e-4, "added to the variance", above=0)

    @property
    def batch_dependent(self) -> bool:
        """Whether the discriminator's logits of one image depend on the others of its batch."""
        return self.discriminator_norm == "batch"

    def fits(self, image_shape: tuple[int, int, int]) -> Iterator[str]:
        """Yields what is wrong with images [H, W, C] for this model."""
        return misfits(LADDERS, image_shape, self.attention, "resnet")

    def requires(self, config: Config) -> Iterator[str]:
        """Yields what is wrong with the combination."""
        return head_problems(self.head, config.model.conditional)

    def generator(self, image_shape: tuple[int, int, int], num_classes: int, name: str) -> Any:
        """Latents float32 [N, Z], labels int32 [N] -> images float32 [N, H, W, C] in [-1, 1]; 0 classes is unconditional.

        Conditional, each class has gains and biases of its own in the blocks' batch norms. They begin as 1 and 0, and are never
        spectral.
        """
        from distgan.models.layers import BatchNorm, Chain, ConditionalBatchNorm
        from distgan.models.residual import first_map, to_image, up_stages
        from distgan.models.spectral import Embedding, Kernels

        ladder = LADDERS[image_shape[0]]
        first, *widths = (_scale(each, self.generator_width, _GENERATOR_WIDTH) for each in ladder.generator)
        kernels = Kernels(self.spectral_generator)
        settings = {"momentum": self.batch_norm_momentum, "epsilon": self.batch_norm_epsilon}

        def plain(name: str) -> Any:
            return BatchNorm(name=name, **settings)

        def table(channels: int, name: str) -> Any:
            return Embedding(num_classes, channels, initializer="zeros", name=name)

        def norm(name: str) -> Any:
            return ConditionalBatchNorm(table, name=name, **settings) if num_classes else plain(name)

        stages = up_stages(ladder, widths, kernels, norm, self.attention, self.depth)
        layers = [*first_map(ladder.side, first, kernels), *itertools.chain(*stages)]
        return Chain([*layers, *to_image(image_shape[-1], kernels, plain)], name)

    def discriminator(self, image_shape: tuple[int, int, int], num_classes: int, name: str) -> Any:
        """Images float32 [N, H, W, C] in [-1, 1], labels int32 [N] -> logits float32 [N, 1], or [N, 1 + K] (`Head`).

        Batch norm, if asked for, stands before each ReLU of the blocks.
        """
        from distgan.models.layers import BatchNorm, Chain
        from distgan.models.residual import Head, down_stages
        from distgan.models.spectral import Kernels

        ladder = LADDERS[image_shape[0]]
        widths = [_scale(each, self.discriminator_width, _DISCRIMINATOR_WIDTH) for each in ladder.discriminator]
        kernels = Kernels(self.discriminator_norm == "spectral")

        def norm(name: str) -> Any:
            return BatchNorm(self.batch_norm_momentum, self.batch_norm_epsilon, name=name)

        normalized = norm if self.batch_dependent else None
        blocks = down_stages(ladder, widths, image_shape[-1], kernels, self.attention, self.depth, norm=normalized)
        return Chain([*blocks, Head(self.head, num_classes, kernels, self.pool)], name)


def _scale(channels: int, width: int, default: int) -> int:
    return max(1, channels * width // default)
