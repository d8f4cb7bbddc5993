"""`distgan prepare`: any source's images, resized once, as TFRecord shards with a manifest; or every bad file by name."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from distgan import schema
from distgan.config import DataConfig
from distgan.data import tfrecord
from distgan.data.contract import open_source
from distgan.data.pixels import BadImage
from distgan.data.source import Encoded, Images, earlier_fingerprint
from distgan.errors import UserError
from distgan.runtime import devices
from distgan.runtime.control import Control
from distgan.schema import option, section
from distgan.tracking import console
from distgan.tracking.console import log
from distgan.training.stopping import Stop

_SETTINGS = "settings.json"  # While shards are missing: what those that are there were made by.
_LOCK = ".lock"  # While somebody writes.
_NAMED = 20  # How many bad files the manifest names.


@dataclasses.dataclass(frozen=True)
class Options:
    """What to prepare."""

    data: DataConfig = section(DataConfig)
    out: str = option("", "the folder that is written")
    images_per_shard: int = option(1000, "images in a shard", minimum=1)
    check: bool = option(False, "write nothing: read every image, and list the bad ones with their reasons")
    verbosity: int = option(0, "1 shows TensorFlow's own log", minimum=0, maximum=1)


def run(options: Options) -> int:
    """Writes the shards, or lists what is bad; returns 0 when all is well."""
    devices.silence(options.verbosity)
    console.start_log()
    data = options.data
    images = open_source(dataclasses.replace(data, on_error="skip") if options.check else data)
    threads = data.threads or (os.cpu_count() or 1)
    if options.check:
        return _check(images, data, threads)
    if not options.out:
        raise UserError("--out names no folder")
    if data.flip:
        log.info("--data.flip has no part in shards: it mirrors while training, where it is given again")
    if images.shape[2] == 2:
        raise UserError(f"{images.name} has 2 channels, which no PNG of a shard can hold: 1, 3 or 4 can")
    try:
        # Whatever moment it is stopped at, the next start goes on after the last whole shard.
        with Stop(Control(), early="with whole shards kept; start it again to go on").watching():
            _prepare(options, images, Path(options.out), threads)
    except OSError as error:
        raise UserError(f"--out={options.out}: cannot write {error.filename}: {error.strerror}") from None
    return 0


def _check(images: Images, data: DataConfig, threads: int) -> int:
    """Reads all; of our own shards the SHA-256 too."""
    root = Path(data.path)
    bad = []
    if data.path and root.is_dir():
        for shard in tfrecord.read_manifest(root).get("shards", []):
            if _sha256(root / shard["file"]) != shard["sha256"]:
                bad.append(f"{root / shard['file']}: its SHA-256 is not the manifest's")

    def look(first: int) -> tuple[int, list[str]]:
        found = []
        numbers = range(first, min(first + 100, images.num_images))
        for index in numbers:
            try:
                images.read(np.array([index]))
            except (BadImage, UserError) as error:
                found.append(str(error))
        return len(numbers), found

    with ThreadPoolExecutor(threads) as pool, console.Count("checked", images.num_images) as count:
        for number, found in pool.map(look, range(0, images.num_images, 100)):
            bad += found
            count.add(number)
    for line in bad:
        print(line)
    print(f"{images.num_images} images, {len(bad)} bad")
    return 2 if bad else 0


def _prepare(options: Options, images: Images, out: Path, threads: int) -> None:
    settings = {
        **{each.name: each.value for each in schema.entries(options.data, "data.") if each.name not in _OWN},
        "images_per_shard": options.images_per_shard,
        "input": images.fingerprint,
    }
    if not _is_prepared(out, settings, images):
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            if not _is_prepared(out, settings, images):
                _make_shards(options, images, out, settings, threads)


def _is_prepared(out: Path, settings: dict[str, Any], images: Images) -> bool:
    if not (out / tfrecord.MANIFEST).exists():
        return False
    _same_settings(out / tfrecord.MANIFEST, settings, images)
    print(f"{out} is prepared")
    return True


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keeps other processes out of the folder.

    Raises:
      UserError: another one is in it.
    """
    lock = FileLock(out / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"--out={out} is in use: another distgan prepare writes there") from None
    try:
        yield
        (out / _LOCK).unlink(missing_ok=True)
    finally:
        lock.release()


def _make_shards(options: Options, images: Images, out: Path, settings: dict[str, Any], threads: int) -> None:
    if (out / _SETTINGS).exists():
        _same_settings(out / _SETTINGS, settings, images)
    elif any(path.name != _LOCK for path in out.iterdir()):
        raise UserError(f"--out={out} holds other files")
    _write(out / _SETTINGS, json.dumps({"settings": settings}, indent=1).encode())
    firsts = range(0, images.num_images, options.images_per_shard)
    shards: dict[int, _Shard] = {}
    with ThreadPoolExecutor(threads) as pool, console.Count("prepared", images.num_images) as count:
        jobs = {}
        for number, first in enumerate(firsts):
            path = out / f"{number:05}-of-{len(firsts):05}.tfrecord"
            numbers = range(first, min(first + options.images_per_shard, images.num_images))
            jobs[pool.submit(_shard, images, options.data, numbers, path)] = number
        try:
            for job in as_completed(jobs):
                shards[jobs[job]] = job.result()
                count.add(shards[jobs[job]].read)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    _finish(options, images, out, settings, [shards[number] for number in range(len(firsts))])


# What does not change the shards.
_OWN = ("data.path", "data.threads", "data.cache_dir", "data.flip")


def _same_settings(path: Path, settings: dict[str, Any], images: Images) -> None:
    """Compares with the settings in a file, which is brought up to date where an earlier version wrote it.

    Raises:
      UserError: they are others, or cannot be read.
    """
    try:
        content = json.loads(path.read_text())
        written = dict(content["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    # What was prepared before there was an option went by its default.
    defaults = {entry.name: entry.value for entry in schema.entries(DataConfig(), "data.") if entry.name in settings}
    before = {**defaults, **written}
    if before.get("input") != images.fingerprint and before.get("input") == earlier_fingerprint(images):
        before["input"] = images.fingerprint
    changed = [name for name in sorted(before.keys() | settings.keys()) if before.get(name) != settings.get(name)]
    if changed:
        words = ", ".join(f"{name}={before.get(name)} (now {settings.get(name)})" for name in changed)
        raise UserError(f"--out={path.parent} was prepared otherwise: {words}; choose another --out")
    if written != settings:
        with contextlib.suppress(OSError):  # It can be read, and that is enough.
            _write(path, json.dumps({**content, "settings": settings}, indent=1).encode() + b"\n")


@dataclasses.dataclass
class _Shard:
    """A finished shard."""

    file: str
    bytes: int
    sha256: str
    rows: list[tuple[int, int]]
    """Offset and length of each record."""
    labels: list[int]
    bad: list[str]
    read: int


def _shard(images: Images, data: DataConfig, numbers: range, path: Path) -> _Shard:
    """Writes a shard, or takes it as it is where an earlier start finished it."""
    bad_list = path.with_suffix(".bad.json")
    if path.exists() and bad_list.exists():
        bad = json.loads(bad_list.read_text())
    else:
        bad = []
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            for record in _records(images, data, numbers, bad):
                file.write(tfrecord.frame(record))
            file.flush()
            os.fsync(file.fileno())
        _write(bad_list, json.dumps(bad).encode())
        temporary.rename(path)
    rows, labels = [], []
    for offset, record in tfrecord.scan(path):
        rows.append((offset, len(record)))
        label = tfrecord.parse(record, str(path))
        labels.append(label[tfrecord.LABEL].int64_list.value[0] if tfrecord.LABEL in label else 0)
    return _Shard(path.name, path.stat().st_size, _sha256(path), rows, labels, bad, len(numbers))


def _records(images: Images, data: DataConfig, numbers: range, bad: list[str]) -> Iterator[bytes]:
    for index in numbers:
        try:
            pixels, labels = images.read(np.array([index]))
        except BadImage as error:
            if data.on_error == "fail":
                raise UserError(f"{error} (--data.on_error=skip goes on without it)") from None
            bad.append(str(error))
            continue
        encoded = io.BytesIO()
        image = pixels[0]
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(encoded, "PNG")
        yield tfrecord.example(encoded.getvalue(), int(labels[0]) if images.num_classes else None)


def _finish(options: Options, images: Images, out: Path, settings: dict[str, Any], shards: list[_Shard]) -> None:
    """Writes index and manifest, by which the folder is whole."""
    rows = [(number, *row) for number, shard in enumerate(shards) for row in shard.rows]
    if not rows:
        raise UserError(f"--data.path={options.data.path} holds no readable image")
    bad = [line for shard in shards for line in shard.bad]
    labels = np.array([label for shard in shards for label in shard.labels], np.int32)
    index = io.BytesIO()
    np.savez(index, table=np.array(rows, np.int64), labels=labels)
    _write(out / tfrecord.INDEX, index.getvalue())
    entries = tfrecord.Records([out / shard.file for shard in shards], np.array(rows, np.int64), tfrecord.IMAGE)
    fitted = dataclasses.replace(options.data, channels=images.shape[2], on_error="fail")
    prepared = Encoded(str(out), entries, labels if images.num_classes else None, fitted, images.label_names)
    manifest = {
        "settings": settings,
        "images": len(rows),
        "shape": list(images.shape),
        "num_classes": images.num_classes,
        "label_names": list(images.label_names),
        "images_by_label": np.bincount(labels, minlength=images.num_classes).tolist() if images.num_classes else [],
        "left_out": len(bad),
        "left_out_first": bad[:_NAMED],
        "fingerprint": prepared.fingerprint,
        "index_sha256": hashlib.sha256(index.getvalue()).hexdigest(),
        "shards": [
            {"file": shard.file, "bytes": shard.bytes, "images": len(shard.rows), "sha256": shard.sha256}
            for shard in shards
        ],
    }
    _write(out / tfrecord.MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
    (out / _SETTINGS).unlink()
    for path in out.glob("*.bad.json"):
        path.unlink()
    print(f"{len(rows)} images in {len(shards)} shards in {out}" + (f", {len(bad)} left out" if bad else ""))


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.rename(path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
