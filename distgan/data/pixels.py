"""From the bytes of an image file to uint8 pixels, by Pillow: for training, `prepare` and evaluation.

The training pipeline decodes by TensorFlow's own operation where that gives the same pixels; `plain` says where.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps

from distgan.config import DataConfig

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
MOST_PIXELS = 2**26
"""A larger image is refused by its header, before it is decoded: a few bytes can claim any size."""
_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_GRAY = ("1", "L", "F", *_SIXTEEN_BITS)
_TURNS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")  # Where Pillow looks for the orientation.
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH_AND_COLOUR = slice(24, 26)
_PNG_DEEP_RGB = b"\x10\x02"
_SURELY_SIXTEEN = 2**14  # A larger value needs more than 14 bits.
_PNG_COLOURS = {1: (0,), 3: (0, 2), 4: (6,)}  # Channels wanted -> colour types: 0 gray, 2 RGB, 6 RGBA.
_PNG_CHUNK = struct.Struct(">I4s")
_PNG_PASSED_OVER = (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"sBIT", b"tIME")
_JPEG_COMPONENTS = {
    1: (1,),
    3: (1, 3),
}  # Channels wanted -> components. Pillow's gray of colour is not the Y component.
_JPEG_SEGMENT = struct.Struct(">BBH")
_JPEG_FRAME = struct.Struct(">BHHB")
# Baseline and extended, by Huffman's code. Where a progressive one lacks a scan, versions of libjpeg smooth it in their own ways.
_JPEG_FRAMES = (0xC0, 0xC1)
_JPEG_SCAN, _JPEG_EXIF, _JPEG_PROFILE = 0xDA, 0xE1, 0xE2
# Tables, restart interval, JFIF, Exif, ICC profile, Adobe's, comment.
_JPEG_PASSED_OVER = (0xC4, 0xDB, 0xDD, 0xE0, _JPEG_EXIF, _JPEG_PROFILE, 0xEE, 0xFE)
_JPEG_SAMPLINGS = ((0x11, 0x11, 0x11), (0x21, 0x11, 0x11), (0x22, 0x11, 0x11))  # 4:4:4, 4:2:2, 4:2:0.


class BadImage(Exception):
    """Bytes that are no image, or not one that fits; says why."""


class Facts(NamedTuple):
    """What an image was before it was fitted."""

    height: int
    width: int
    gray: bool
    transparent: bool
    animated: bool
    largest: int
    """The largest value of 16 bits; 0 where there are 8."""


def decode(data: bytes, fit: DataConfig, channels: int) -> np.ndarray:
    """The pixels of an encoded image, uint8 [S, S, channels], see `square`.

    EXIF orientation is applied, the first frame taken, 16 bits become 8: the upper ones of `fit.bits` (0 is 16). Where
    `channels` is 1 or 3, transparency is flattened on `fit.background`. 0 channels are 1 for gray images and 3 for others.

    Raises:
      BadImage: what Pillow says, or values that need more bits.
    """
    return decode_with_facts(data, fit, channels)[0]


def decode_with_facts(data: bytes, fit: DataConfig, channels: int) -> tuple[np.ndarray, Facts]:
    """What `decode` gives, and what the image was before."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise BadImage(f"{width}x{height} is more than {MOST_PIXELS} pixels")
            animated = bool(getattr(image, "is_animated", False))
            eight, largest = _eight_bits(image, data, fit.bits or 16)
            upright = ImageOps.exif_transpose(eight)
            gray, transparent = upright.mode in _GRAY, _is_transparent(upright)
            pixels = _to_channels(upright, channels or (1 if gray else 3), fit.background)
    except BadImage:
        raise
    except Exception as error:  # On broken data Pillow's decoders raise nearly anything.
        raise BadImage(_first_line(error)) from None
    height, width, _ = pixels.shape
    return square(pixels, fit), Facts(height, width, gray, transparent, animated, largest)


def plain(data: bytes, shape: tuple[int, int, int]) -> bool:
    """Whether an encoded image is a JPEG or PNG that needs no more than decoding to be uint8 [H, W, C], by its header.

    If so, libjpeg (with its accurate integer DCT) and libpng alone give what `decode` gives, or fail. It is False wherever that
    is not sure: `decode` does all.
    """
    try:
        if data.startswith(b"\xff\xd8"):  # One that is cut off would be told on stderr by libjpeg, too.
            return data.endswith(b"\xff\xd9") and _plain_jpeg(data, shape)
        return data.startswith(_plain_png_starts(shape)) and _plain_png(data)
    except struct.error:  # It ends too early.
        return False


@functools.cache
def _plain_png_starts(shape: tuple[int, int, int]) -> tuple[bytes, ...]:
    """How PNGs of 8 bits a channel, not interlaced, begin, with the header's checksum."""
    height, width, channels = shape
    headers = [
        b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
        for colour in _PNG_COLOURS.get(channels, ())
    ]
    return tuple(_PNG + struct.pack(">I", 13) + each + struct.pack(">I", zlib.crc32(each)) for each in headers)


def _plain_png(data: bytes) -> bool:
    """Whether a PNG's chunks after the header change nothing: no transparency, no Exif, no text that may be Exif."""
    place = len(_PNG) + 25
    while True:
        length, kind = _PNG_CHUNK.unpack_from(data, place)
        if kind == b"IEND":
            return True
        end = place + 8 + length
        if kind in _PNG_PASSED_OVER:  # libpng leaves a damaged one out, and Pillow refuses the image.
            if struct.unpack_from(">I", data, end)[0] != zlib.crc32(data[place + 4 : end]):
                return False
        elif kind != b"IDAT":
            return False
        place = end + 4


def _plain_jpeg(data: bytes, shape: tuple[int, int, int]) -> bool:
    """Whether a JPEG's segments before the first scan are of the shape, upright, and of a common kind."""
    place, fits = 2, False
    while True:
        start, marker, length = _JPEG_SEGMENT.unpack_from(data, place)
        body, place = place + 4, place + 2 + length
        if start != 0xFF:
            return False
        if marker == _JPEG_SCAN:
            return fits
        if marker in _JPEG_FRAMES:
            bits, height, width, components = _JPEG_FRAME.unpack_from(data, body)
            samplings = tuple(data[body + 7 : place : 3])
            fits = (
                (bits, height, width) == (8, *shape[:2])
                and components in _JPEG_COMPONENTS.get(shape[2], ())
                and (components == 1 or samplings in _JPEG_SAMPLINGS)
            )
        elif marker not in _JPEG_PASSED_OVER or marker == _JPEG_EXIF and not _upright(data[body:place]):
            return False
        elif marker == _JPEG_PROFILE and not data.startswith(b"ICC_PROFILE\0", body):
            return False  # As of files with several pictures.


def _upright(segment: bytes) -> bool:
    """Whether it is Exif that Pillow reads, and does not ask for a turn."""
    exif = Image.Exif()
    try:
        exif.load(segment)
        return segment.startswith(b"Exif\0\0") and exif.get(ExifTags.Base.Orientation, 1) == 1
    except Exception:  # As it raises in `decode`.
        return False


def _eight_bits(image: Image.Image, data: bytes, bits: int) -> tuple[Image.Image, int]:
    """The upper 8 of the bits in use of a 16-bit image, and its largest value; others as they are, and 0."""
    if image.mode in _SIXTEEN_BITS:
        values = np.clip(np.asarray(image), 0, 2**16 - 1)
    elif data.startswith(_PNG) and data[_PNG_DEPTH_AND_COLOUR] == _PNG_DEEP_RGB:
        largest = int(np.asarray(image).max()) * 256 + 255  # Pillow takes the upper byte of RGB itself.
        if bits == 16 and largest >= _SURELY_SIXTEEN:
            return image, largest
        values = _deep_rgb(data)
    else:
        return image, 0
    largest = int(values.max())
    if largest >= 2**bits:
        raise BadImage(f"has values up to {largest}, and {bits} bits hold {2**bits - 1}: choose --data.bits=16")
    eight = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    eight.info = {name: value for name, value in image.info.items() if name in _TURNS}
    return eight, largest


def _deep_rgb(data: bytes) -> np.ndarray:
    """uint16 [H, W, 3] of a PNG, by TensorFlow, as Pillow has no 16 bits for RGB."""
    import tensorflow as tf

    return tf.io.decode_png(data, 3, tf.uint16).numpy()


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info


def to_channels(pixels: np.ndarray, channels: int, background: str) -> np.ndarray:
    """uint8 [H, W, 1 to 4] (gray, with alpha, RGB, with alpha) -> uint8 [H, W, channels], as `decode` makes them."""
    return _to_channels(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), channels, background)


def _to_channels(image: Image.Image, channels: int, background: str) -> np.ndarray:
    if channels == 4:
        image = image.convert("RGBA")
    elif _is_transparent(image):
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
