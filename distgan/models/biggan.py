"""BigGAN's residual networks: the latent and the class enter at every block, and all kernels are orthogonal and spectral."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from distgan.config import Config
from distgan.models.ladder import Ladder, head_problems, misfits
from distgan.schema import option

# In widths. 128 is the paper's (appendix B), 32 and 64 those of the authors' code; 16, for digits, is ours.
LADDERS = {
    ladder.resolution: ladder
    for ladder in (
        Ladder(4, (4, 4, 4), (2, 2, 2), 2),
        Ladder(4, (4, 4, 4, 4), (2, 2, 2, 2), 2),
        Ladder(4, (16, 16, 8, 4, 2), (1, 2, 4, 8, 16), 4),
        Ladder(4, (16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5),
    )
}


@dataclasses.dataclass(frozen=True)
class Biggan:
    """BigGAN (Brock et al. 2019), conditional or not.

    The latent is split: its first chunk makes the first map, each other one, beside an embedding of the class that the blocks
    share, gives the gains and biases of a block's batch norms. The defaults are CIFAR-10's; the paper's ImageNet at 128x128 has
    a latent of 120 and attention at 64. As in the authors' code, all kernels are spectral but the shared embedding, whose
    normalization they found to cripple the generator.
    """

    latent_size: int = option(
        80, "dimensions of the latent: a multiple of one more than the generator has blocks", minimum=1
    )
    embedding_size: int = option(128, "dimensions of the class embedding that the blocks share", minimum=1)
    generator_width: int = option(96, "in multiples of which the generator's channels are", minimum=1)
    discriminator_width: int = option(96, "in multiples of which the discriminator's channels are", minimum=1)
    depth: int = option(1, "residual blocks of each width; the papers' is 1", minimum=1)
    attention: int = option(0, "side of the feature maps with self-attention in both networks; 0 is none", minimum=0)
    head: str = option(
        "none",
        "what the discriminator does with the class (--model.conditional): project on it, or tell it (AC-GAN)",
        choices=("none", "projection", "auxiliary"),
    )
    batch_norm_momentum: float = option(0.9, "of the moving statistics", minimum=0, maximum=1)
    batch_norm_epsilon: float = option(1e-4, "added to the variance", above=0)

    def fits(self, image_shape: tuple[int, int, int]) -> Iterator[str]:
        """Yields what is wrong with images [H, W, C] for this model."""
        yield from misfits(LADDERS, image_shape, self.attention, "biggan")
        if image_shape[0] in LADDERS:
            chunks = len(LADDERS[image_shape[0]].generator)
            if self.latent_size % chunks:
                yield (
                    f"--model.latent_size={self.latent_size} does not split into {chunks} chunks, as many as {image_shape[0]}x"
                    f"{image_shape[0]} images need: use --model.latent_size={20 * chunks}, or another multiple of {chunks}"
                )

    def requires(self, config: Config) -> Iterator[str]:
        """Yields what is wrong with the combination."""
        return head_problems(self.head, config.model.conditional)

    def generator(self, image_shape: tuple[int, int, int], num_classes: int, name: str) -> Any:
        """Latents float32 [N, Z], labels int32 [N] -> images float32 [N, H, W, C] in [-1, 1]; 0 classes is unconditional."""
        from distgan.models.layers import BatchNorm, ConditionalBatchNorm
        from distgan.models.residual import SplitLatent, first_map, to_image, up_stages
        from distgan.models.spectral import Kernels

        ladder = LADDERS[image_shape[0]]
        first, *widths = (each * self.generator_width for each in ladder.generator)
        kernels = Kernels(spectral=True, orthogonal=True)
        settings = {"momentum": self.batch_norm_momentum, "epsilon": self.batch_norm_epsilon}

        def linear(channels: int, name: str) -> Any:
            return kernels.dense(channels, name, bias=False)

        def norm(name: str) -> Any:
            return ConditionalBatchNorm(linear, name=name, **settings)

        def plain(name: str) -> Any:
            return BatchNorm(name=name, **settings)

        tables = dataclasses.replace(kernels, spectral=False)
        return SplitLatent(
            embedding=tables.embedding(num_classes, self.embedding_size, "embedding") if num_classes else None,
            first=first_map(ladder.side, first, kernels),
            stages=up_stages(ladder, widths, kernels, norm, self.attention, self.depth),
            last=to_image(image_shape[-1], kernels, plain),
            name=name,
        )

    def discriminator(self, image_shape: tuple[int, int, int], num_classes: int, name: str) -> Any:
        """Images float32 [N, H, W, C] in [-1, 1], labels int32 [N] -> logits float32 [N, 1], or [N, 1 + K] (`Head`)."""
        from distgan.models.layers import Chain
        from distgan.models.residual import Head, down_stages
        from distgan.models.spectral import Kernels

        ladder = LADDERS[image_shape[0]]
        widths = [each * self.discriminator_width for each in ladder.discriminator]
        kernels = Kernels(spectral=True, orthogonal=True)
        blocks = down_stages(ladder, widths, image_shape[-1], kernels, self.attention, self.depth, wide=True)
        return Chain([*blocks, Head(self.head, num_classes, kernels)], name)
