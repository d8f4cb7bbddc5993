"""The article's DCGAN, with one resolution for both networks and logits instead of probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from distgan.schema import option


@dataclasses.dataclass(frozen=True)
class Dcgan:
    """Transposed convolutions up, strided convolutions down (Radford et al. 2016, in the article's sizes).

    Conditional, the class stands beside the latent and beside every pixel (Mirza and Osindero 2014).
    """

    latent_size: int = option(100, "dimensions of the latent", minimum=1)
    width: int = option(64, "channels of the widest feature maps; the article's is 64", minimum=1)
    dropout: float = option(0.3, "rate in the discriminator", minimum=0, maximum=0.99)
    leaky_slope: float = option(0.3, "of LeakyReLU below zero", minimum=0)
    batch_norm_momentum: float = option(0.99, "of the generator's moving statistics", minimum=0, maximum=1)

    def fits(self, image_shape: tuple[int, int, int]) -> Iterator[str]:
        """Yields what is wrong with images [H, W, C] for this model."""
        if image_shape[0] % 4:
            yield f"--data.resolution={image_shape[0]} is not a multiple of 4, which --model.name=dcgan needs"

    def generator(self, image_shape: tuple[int, int, int], num_classes: int, name: str) -> Any:
        """Latents float32 [N, Z], labels int32 [N] -> images float32 [N, H, W, C] in [-1, 1]; 0 classes is unconditional."""
        from keras import layers

        from distgan.models.layers import BatchNorm, Chain, ConcatLabel

        resolution, _, channels = image_shape
        side, width = resolution // 4, self.width

        def normalized(index: int) -> list[Any]:
            return [
                BatchNorm(self.batch_norm_momentum, name=f"norm{index}"),
                layers.LeakyReLU(self.leaky_slope, name=f"activation{index}"),
            ]

        def up(filters: int, strides: int, index: int, activation: str | None = None) -> Any:
            return layers.Conv2DTranspose(
                filters, 5, strides, padding="same", use_bias=False, activation=activation, name=f"up{index}"
            )

        return Chain(
            [
                *([ConcatLabel(num_classes, name="label")] if num_classes else []),
                layers.Dense(side * side * 4 * width, use_bias=False, name="project"),
                *normalized(0),
                layers.Reshape((side, side, 4 * width), name="reshape"),  # [N, H/4, W/4, 4 width]
                up(2 * width, 1, 1),
                *normalized(1),
                up(width, 2, 2),  # [N, H/2, W/2, width]
                *normalized(2),
                up(channels, 2, 3, activation="tanh"),  # [N, H, W, C]
            ],
            name=name,
        )

    def discriminator(self, image_shape: tuple[int, int, int], num_classes: int, name: str) -> Any:
        """Images float32 [N, H, W, C] in [-1, 1], labels int32 [N] -> logits float32 [N, 1]; 0 classes is unconditional."""
        from keras import layers

        from distgan.models.layers import Chain, ConcatLabel, Dropout

        def down(filters: int, index: int) -> list[Any]:
            return [
                layers.Conv2D(filters, 5, 2, padding="same", name=f"down{index}"),
                layers.LeakyReLU(self.leaky_slope, name=f"activation{index}"),
                Dropout(self.dropout, name=f"dropout{index}"),
            ]

        return Chain(
            [
                *([ConcatLabel(num_classes, name="label")] if num_classes else []),
                *down(self.width, 1),  # [N, H/2, W/2, width]
                *down(2 * self.width, 2),  # [N, H/4, W/4, 2 width]
                layers.Flatten(name="flatten"),
                layers.Dense(1, name="logit"),
            ],
            name=name,
        )
