"""What images are, by a sample of them: their shape, what becomes of them, and who they are.

Which images are the sample depends on how many there are, and on nothing else: all workers look at the same ones, and the same
images in a folder, a zip, shards or an array are the same data. What files look like from outside (sizes, times, checksums)
decides only whether they are looked at again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL
from filelock import FileLock

from distgan import files, seeds
from distgan.config import DataConfig
from distgan.data import index
from distgan.data.pixels import BadImage, Facts, decode_with_facts, plain
from distgan.errors import UserError

log = logging.getLogger("distgan")

SAMPLE = 1024
"""Images that are looked at; where there are no more, all of them."""
_DEPTHS = (8, 10, 12, 14, 16)
_LOCK_SECONDS = 600  # Another process of this host may be looking at the same images.
_UNREADABLE = b"unreadable"
_VERSION = 1


class Entries(Protocol):
    """Encoded images by index, as they lie in files."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """For messages."""
        ...

    def fetch(self, index: int) -> bytes:
        """The encoded image; called from several threads at once.

        Raises:
          BadImage: it is not there any more, or damaged.
        """
        ...

    def state(self, indices: np.ndarray) -> bytes:
        """Another one when one of the images at the indices (int64 [N]) may be another one, without reading them."""
        ...


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a sample of encoded images shows."""

    shape: tuple[int, int, int]
    """(H, W, C) that they all become."""
    bits: int
    """In use of those with 16 bits; 16 where there are none."""
    looks_plain: bool
    """Whether the first readable one is `plain`."""
    digest: str
    """Of the fitted pixels."""
    notes: tuple[str, ...]
    """What is changed of them, each with the flag that decides it."""


class _Look(NamedTuple):
    """An image of the sample."""

    digest: bytes
    """Of its fitted pixels."""
    shape: tuple[int, int, int]
    """Once it is fitted."""
    facts: Facts | None
    """None where it cannot be read."""
    is_plain: bool
    reason: str
    """Why it cannot be read."""


def sample(count: int) -> np.ndarray:
    """The indices that are looked at of `count` images: int64 [at most SAMPLE], ascending, the same for the same count."""
    if count <= SAMPLE:
        return np.arange(count)
    return np.sort(index.permute(np.arange(SAMPLE), count, seeds.key(0, "identity")))


def digest(pixels: Iterator[np.ndarray]) -> str:
    """Of the fitted pixels of the sample's images, uint8 [H, W, C] each, in order."""
    return _combined(hashlib.sha256(image.tobytes()).digest() for image in pixels)


def fingerprint(count: int, shape: tuple[int, int, int], labels: np.ndarray | None, pixels: str) -> str:
    """Identifies data by number, shape, labels (int32 [N], or None) and the `digest` of the sample's pixels."""
    whole = hashlib.sha256(f"{_VERSION} {count} {shape} {pixels} ".encode())
    if labels is not None:
        whole.update(labels.astype("<i4").tobytes())
    return whole.hexdigest()[:16]


def cache_dir(data: DataConfig) -> Path:
    """Where lists and surveys are kept."""
    try:
        return Path(data.cache_dir or Path.home() / ".cache" / "distgan")
    except RuntimeError:  # A user without a name or a home.
        return Path(tempfile.gettempdir()) / "distgan"


def survey(name: str, entries: Entries, data: DataConfig) -> Survey:
    """Looks at the sample; or takes what an earlier look gave, where no image of the sample has changed from outside.

    Raises:
      UserError: none of the images can be read.
    """
    indices = sample(len(entries))
    fitted_by = (data.channels, data.bits, data.resolution, data.fit, data.resample, data.background)
    key = hashlib.sha256(f"{_VERSION} {PIL.__version__} {len(entries)} {fitted_by} ".encode())
    key.update(entries.state(indices))
    path = cache_dir(data) / f"survey-{key.hexdigest()[:16]}.json"
    if kept := _load(path):
        return kept
    with _alone(path):
        if kept := _load(path):
            return kept
        if len(entries) > SAMPLE:
            log.info("%s: looks at %s of %s images, once", name, f"{SAMPLE:,}", f"{len(entries):,}")
        looks, made = _look_at(name, entries, indices, data)
        if all(look.facts for look in looks):  # What cannot be read now may be readable the next time.
            _write(path, files.sealed(json.dumps(dataclasses.asdict(made)).encode()))
        return made


def _look_at(name: str, entries: Entries, indices: np.ndarray, data: DataConfig) -> tuple[list[_Look], Survey]:
    threads = data.threads or (os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        looks = list(pool.map(lambda number: _look(entries, number, data), indices.tolist()))
        readable = [look.facts for look in looks if look.facts]
        if not readable:
            raise UserError(f"{name} holds no readable image: {entries.name(int(indices[0]))}: {looks[0].reason}")
        channels = data.channels or (1 if all(facts.gray for facts in readable) else 3)
        largest = max(facts.largest for facts in readable)
        bits = data.bits or next(depth for depth in _DEPTHS if largest < 2**depth) if largest else 16
        settled = dataclasses.replace(data, channels=channels, bits=bits)
        others = [
            place
            for place, look in enumerate(looks)
            if look.facts and (look.shape[2] != channels or look.facts.largest and bits != (data.bits or 16))
        ]
        again = pool.map(lambda place: _look(entries, int(indices[place]), settled), others)
        for place, look in zip(others, again, strict=True):
            looks[place] = look
    first = next(look for look in looks if look.facts)
    lines = tuple(notes(readable, settled, first.shape))
    return looks, Survey(first.shape, bits, first.is_plain, _combined(look.digest for look in looks), lines)


def _look(entries: Entries, number: int, data: DataConfig) -> _Look:
    try:
        encoded = entries.fetch(number)
        pixels, facts = decode_with_facts(encoded, data, data.channels)
    except BadImage as error:
        return _Look(_UNREADABLE, (0, 0, 0), None, False, str(error))
    shape: Any = pixels.shape
    return _Look(hashlib.sha256(pixels.tobytes()).digest(), shape, facts, plain(encoded, shape), "")


def _combined(digests: Iterator[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _load(path: Path) -> Survey | None:
    if (content := files.read_sealed(path)) is None:
        return None
    values = json.loads(content)
    with contextlib.suppress(TypeError, KeyError):  # Another version's has other fields.
        return Survey(**{**values, "shape": tuple(values["shape"]), "notes": tuple(values["notes"])})
    return None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Among the processes of a host, where the cache can be written: the workers look once, and not each for itself."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{path}.lock", timeout=_LOCK_SECONDS))
        yield


def _write(path: Path, content: bytes) -> None:
    with contextlib.suppress(OSError):  # What cannot be kept is worked out again.
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, content)


def say(name: str, lines: Sequence[str]) -> None:
    """Logs what is done to the images of a source, a line each."""
    for line in lines:
        log.info("%s: %s", name, line)


def notes(images: Sequence[Facts], data: DataConfig, shape: tuple[int, int, int]) -> Iterator[str]:
    """Yields what is changed of images on their way to the shape, each with the flag that decides it.

    Args:
      images: what those of the sample were.
      data: channels and bits are settled.
      shape: (H, W, C) that they become.
    """

    def of_all(matches: Callable[[Facts], bool]) -> str:
        """`3 of 40 images`, or nothing where there is none."""
        count = sum(map(matches, images))
        return count and f"{count:,} of {len(images):,} images" or ""

    height, width, channels = shape
    if channels > 2 and (gray := of_all(lambda facts: facts.gray)):
        yield f"{gray} are gray and become {'RGB' if channels == 3 else 'RGBA'} (--data.channels=1 makes all gray)"
    if channels == 1 and (coloured := of_all(lambda facts: not facts.gray)):
        yield f"{coloured} have colour and become gray (--data.channels=3 keeps colour)"
    if channels in (1, 3) and (transparent := of_all(lambda facts: facts.transparent)):
        keeps = "--data.channels=4 keeps it"
        yield f"{transparent} have transparency, which is laid on --data.background={data.background} ({keeps})"
    if deep := of_all(lambda facts: facts.largest > 0):
        largest = max(facts.largest for facts in images)
        yield f"{deep} have 16 bits, with values up to {largest}: the upper 8 of {data.bits} are taken (--data.bits)"
    if animated := of_all(lambda facts: facts.animated):
        yield f"{animated} have several frames, of which the first is taken"
    if data.fit == "crop" and (oblong := of_all(lambda facts: facts.height != facts.width)):
        yield f"{oblong} are not square, and their middle is taken (--data.fit=pad or --data.fit=stretch keeps all of it)"
    if data.resolution and of_all(lambda facts: _side(facts, data) != data.resolution):
        sizes = sorted({(facts.height, facts.width) for facts in images}, key=lambda size: (size[0] * size[1], size))
        spans = " to ".join(f"{rows}x{columns}" for rows, columns in dict.fromkeys((sizes[0], sizes[-1])))
        small = of_all(lambda facts: _side(facts, data) < data.resolution)
        enlarged = f"; {small} are smaller" if small else ""
        yield f"images of {spans} are resized to {height}x{width} (--data.resolution={data.resolution}){enlarged}"


def _side(facts: Facts, data: DataConfig) -> int:
    """Of the square that an image becomes before it is resized."""
    return (min if data.fit == "crop" else max)(facts.height, facts.width)
