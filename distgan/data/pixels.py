"""From the bytes of an image file to uint8 pixels, by Pillow: one path for training, `prepare` and evaluation."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageColor, ImageOps

from distgan.config import DataConfig

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
MOST_PIXELS = 2**26
"""A larger image is refused by its header, before it is decoded: a few bytes can claim any size."""
_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_GRAY = ("1", "L", "F", *_SIXTEEN_BITS)


class BadImage(Exception):
    """Bytes that are no image, or not one that fits; says why."""


def decode(data: bytes, fit: DataConfig, channels: int) -> np.ndarray:
    """The pixels of an encoded image, uint8 [S, S, channels], see `square`.

    EXIF orientation is applied, the first frame taken, 16 bits become 8 by their upper byte. Where `channels` is 1 or 3,
    transparency is flattened on `fit.background`. 0 channels are 1 for gray images and 3 for others.

    Raises:
      BadImage: what Pillow says.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise BadImage(f"{width}x{height} is more than {MOST_PIXELS} pixels")
            upright = ImageOps.exif_transpose(image)
            pixels = _to_channels(upright, channels or (1 if upright.mode in _GRAY else 3), fit.background)
    except BadImage:
        raise
    except Exception as error:  # On broken data Pillow's decoders raise nearly anything.
        raise BadImage(_first_line(error)) from None
    return square(pixels, fit)


def _to_channels(image: Image.Image, channels: int, background: str) -> np.ndarray:
    if image.mode in _SIXTEEN_BITS:
        image = Image.fromarray((np.clip(np.asarray(image), 0, 2**16 - 1) >> 8).astype(np.uint8))
    clear = image.mode in ("PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info
    if channels == 4:
        image = image.convert("RGBA")
    elif clear:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*ImageColor.getrgb(background)[:3], 255))
        image = Image.alpha_composite(ground, image).convert("L" if channels == 1 else "RGB")
    else:
        image = image.convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def square(pixels: np.ndarray, fit: DataConfig) -> np.ndarray:
    """uint8 [H, W, C] -> uint8 [S, S, C]: cropped to the middle, padded or stretched, then resized to `fit.resolution`.

    Where that is 0, S is the shorter side (crop) or the longer one (pad, stretch).
    """
    height, width, channels = pixels.shape
    if height != width and fit.fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    elif height != width and fit.fit == "pad":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        padded = np.empty((side, side, channels), np.uint8)
        padded[:] = _colour(fit.background, channels)
        padded[top : top + height, left : left + width] = pixels
        pixels = padded
    side = fit.resolution or max(pixels.shape[:2])
    return pixels if pixels.shape[:2] == (side, side) else resize(pixels, side, fit.resample)


def resize(pixels: np.ndarray, side: int, resample: str = "lanczos") -> np.ndarray:
    """uint8 [H, W, C] -> uint8 [side, side, C] by Pillow's filter, each channel by itself."""
    chosen = _FILTERS[resample]
    if pixels.shape[2] == 3:  # As the planes give, and faster.
        return np.asarray(Image.fromarray(pixels).resize((side, side), chosen))
    planes = [Image.fromarray(plane).resize((side, side), chosen) for plane in np.moveaxis(pixels, -1, 0)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def _colour(name: str, channels: int) -> np.ndarray:
    red, green, blue = ImageColor.getrgb(name)[:3]
    gray = (red * 299 + green * 587 + blue * 114 + 500) // 1000
    return np.array({1: [gray], 2: [gray, 255], 3: [red, green, blue], 4: [red, green, blue, 255]}[channels], np.uint8)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
