"""How large the feature maps of residual networks are, and what does not go with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping


@dataclasses.dataclass(frozen=True)
class Ladder:
    """The feature maps of both networks for images of one resolution."""

    side: int
    """Of the generator's first map; each block doubles it."""
    generator: tuple[int, ...]
    """Channels of the first map, then of each block's."""
    discriminator: tuple[int, ...]
    """Channels of each block's map."""
    halvings: int
    """So many blocks of the discriminator, the first ones, halve the side."""

    @property
    def resolution(self) -> int:
        """Of the images."""
        return self.generator_sides[-1]

    @property
    def generator_sides(self) -> list[int]:
        """The side of each block's map."""
        return [self.side << number for number in range(1, len(self.generator))]

    @property
    def discriminator_sides(self) -> list[int]:
        """The side of each block's map."""
        blocks = range(1, len(self.discriminator) + 1)
        return [self.resolution >> min(number, self.halvings) for number in blocks]


def misfits(
    ladders: Mapping[int, Ladder], image_shape: tuple[int, int, int], attention: int, model: str
) -> Iterator[str]:
    """Yields what is wrong with images [H, W, C], and with attention at this side (0 is none), for a model of such ladders."""
    side = image_shape[0]
    if side not in ladders or image_shape[1] != side:
        sides = ", ".join(map(str, ladders))
        yield f"--data.resolution={side} is none of {sides}, which --model.name={model} is laid out for"
    elif attention:
        ladder = ladders[side]
        possible = sorted({*ladder.generator_sides} & {*ladder.discriminator_sides})
        if attention not in possible:
            yield (
                f"--model.attention={attention} is no side of feature maps in both networks for {side}x{side} images: "
                f"{' and '.join(map(str, possible))} are, and 0 is none"
            )


def head_problems(head: str, conditional: bool) -> Iterator[str]:
    """Yields what is wrong with a head for a model that is conditional or isn't."""
    if conditional and head == "none":
        yield (
            "--model.conditional with --model.head=none has a discriminator that is not told the class: "
            "use --model.head=projection or --model.head=auxiliary"
        )
    if head != "none" and not conditional:
        yield f"--model.head={head} needs --model.conditional; --model.head=none goes without classes"
