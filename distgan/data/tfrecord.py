"""Images as TFRecords, read by index: shards that `distgan prepare` wrote, and any others.

A record is its length (8 bytes), that length's checksum (4), the data, the data's checksum (4); the data is a tf.train.Example
with an encoded image and, optionally, an integer label. A table of places makes access random: from `index.npz` beside our
own shards, or worked out once for others and kept beside them, or in --data.cache_dir.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distgan import files
from distgan.config import DataConfig
from distgan.data import labels as label_rules
from distgan.data.folder import is_hidden
from distgan.data.pixels import BadImage
from distgan.data.source import Encoded
from distgan.errors import UserError
from distgan.schema import option

log = logging.getLogger("distgan")

MANIFEST = "manifest.json"
INDEX = "index.npz"
IMAGE, LABEL = "image", "label"
_SUFFIX = ".tfrecord"
_LENGTH = struct.Struct("<QI")
_LARGEST_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class TfRecord:
    """--data.path names a folder of TFRecords: what `distgan prepare` wrote, or others of tf.train.Examples."""

    image_feature: str = option("image/encoded", "of others' shards: the feature with the encoded image")
    label_feature: str = option("", "of others' shards: the feature with the label, an integer; empty is none")

    def open(self, data: DataConfig) -> Encoded:
        root = Path(data.path)
        if not data.path or not root.is_dir():
            raise UserError(f"--data.path={data.path} is not a folder of TFRecords")
        manifest = read_manifest(root)
        if manifest:
            table, labels = _own_table(root, manifest)
            shards = [root / shard["file"] for shard in manifest["shards"]]
            entries = Records(shards, table, IMAGE)
            data = dataclasses.replace(data, channels=data.channels or manifest["shape"][2])
            names = tuple(manifest["label_names"])
            return Encoded(data.path, entries, labels, data, names, lambda: _earlier_fingerprint(manifest))
        shards = sorted(path for path in root.iterdir() if _SUFFIX in path.name and not is_hidden(path.name))
        if not shards:
            raise UserError(f"--data.path={root} holds no {MANIFEST} and no file with {_SUFFIX} in its name")
        return open_shards(shards, self.image_feature, self.label_feature, Path(data.cache_dir or root), data)


def open_shards(
    shards: Sequence[Path],
    image_feature: str,
    label_feature: str,
    cache_dir: Path,
    data: DataConfig,
    label_names: Sequence[str] = (),
) -> Encoded:
    """Others' shards, by an index that is worked out once and kept in a folder.

    Raises:
      UserError: a shard or a feature is not as it should be, or the index cannot be kept.
    """
    table, labels = _indexed(shards, image_feature, label_feature, cache_dir)
    entries, folder = Records(shards, table, image_feature), shards[0].parent
    if not label_feature and (integers := entries.integer_features()):
        flag = "--data.tfrecord.label_feature chooses one of the integers"
        log.info("%s: no labels are read; %s: %s", folder, flag, ", ".join(integers))

    def earlier() -> str:
        digest = hashlib.sha256(table.tobytes())
        digest.update(b"" if labels is None else labels.tobytes())
        return digest.hexdigest()[:16]

    return Encoded(str(folder), entries, labels, data, label_names, earlier)


def _earlier_fingerprint(manifest: dict[str, Any]) -> str:
    """Of the shards' checksums, as earlier versions had it."""
    checksums = "".join(shard["sha256"] for shard in manifest["shards"])
    return hashlib.sha256(checksums.encode()).hexdigest()[:16]


def _indexed(
    shards: Sequence[Path], image_feature: str, label_feature: str, cache_dir: Path
) -> tuple[np.ndarray, np.ndarray | None]:
    """Shard, offset and length of every record (int64 [N, 3]), and the labels (int32 [N])."""
    states = np.array([[shard.stat().st_size, shard.stat().st_mtime_ns] for shard in shards], np.int64)
    named = f"{[str(shard.resolve()) for shard in shards]} {image_feature} {label_feature}"
    cached = cache_dir / f"distgan-index-{hashlib.sha256(named.encode()).hexdigest()[:16]}.npz"
    kept = files.read_sealed_npz(cached, ("table", "labels", "states"))
    if len(kept) == 3 and np.array_equal(kept["states"], states):
        return kept["table"], kept["labels"] if label_feature else None
    log.info("%s: reads all records once, for an index that is kept in %s", shards[0].parent, cached)
    rows, labels = [], []
    for number, shard in enumerate(shards):
        for offset, record in scan(shard):
            features = parse(record, f"record at {offset} of {shard}")
            _one(features, image_feature, "bytes_list", f"{shard} (--data.tfrecord.image_feature)")
            if label_feature:
                labels.append(_one(features, label_feature, "int64_list", f"{shard} (--data.tfrecord.label_feature)"))
            rows.append((number, offset, len(record)))
    if not rows:
        raise UserError(f"{shards[0].parent} holds no record")
    table = np.array(rows, np.int64)
    label_array = label_rules.checked(
        np.array(labels, np.int64), lambda index: f"record at {rows[index][1]} of {shards[rows[index][0]]}"
    )
    try:
        files.write_npz(cached, {"table": table, "labels": label_array, "states": states})
    except OSError as error:
        raise UserError(
            f"{cached} cannot be written ({error.strerror}): choose where the index is kept by --data.cache_dir"
        ) from None
    return table, label_array if label_feature else None


class Records:
    """Encoded images in TFRecord files, read at their places, by any number of threads at once."""

    def __init__(self, shards: Sequence[Path], table: np.ndarray, feature: str):
        """Opens the shards; the table is int64 [N, 3]: shard, offset of the record, length of its data."""
        self.shards, self.table, self.feature = shards, table, feature
        try:
            self.files = [files.descriptor(shard) for shard in shards]  # As long as the process.
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None

    def __len__(self) -> int:
        return len(self.table)

    def name(self, index: int) -> str:
        shard, offset, _ = self.table[index]
        return f"record at {offset} of {self.shards[shard]}"

    def state(self, indices: np.ndarray) -> bytes:
        rows = self.table[indices]
        try:
            states = [os.stat(self.shards[shard]) for shard in np.unique(rows[:, 0])]
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
        facts = [(state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino) for state in states]
        return repr(([str(shard) for shard in self.shards], facts)).encode() + rows.tobytes()

    def fetch(self, index: int) -> bytes:
        try:
            return _one(self._features(index), self.feature, "bytes_list", "it")
        except UserError as error:
            raise BadImage(str(error)) from None

    def integer_features(self) -> list[str]:
        """The names of the first record's features that are one integer; empty where it is damaged."""
        try:
            features = self._features(0)
        except (BadImage, UserError):
            return []
        return [name for name in sorted(features) if len(features[name].int64_list.value) == 1]

    def _features(self, index: int) -> Any:
        shard, offset, length = (int(value) for value in self.table[index])
        try:
            data = os.pread(self.files[shard], _LENGTH.size + length + 4, offset)
        except OSError as error:
            raise BadImage(str(error.strerror)) from None
        return parse(_checked(data, length), "it")


def masked_crc(data: bytes) -> int:
    """The checksum of a TFRecord: CRC-32C (Castagnoli), turned by 15 bits, plus a constant."""
    import google_crc32c

    check = google_crc32c.value(data)
    return ((check >> 15 | check << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(record: bytes) -> bytes:
    """A record as it lies in a file."""
    length = struct.pack("<Q", len(record))
    return length + struct.pack("<I", masked_crc(length)) + record + struct.pack("<I", masked_crc(record))


def _checked(data: bytes, length: int) -> bytes:
    if len(data) != _LENGTH.size + length + 4:
        raise BadImage("the shard is cut short")
    record = data[_LENGTH.size : -4]
    if struct.unpack("<I", data[-4:])[0] != masked_crc(record):
        raise BadImage("its checksum is another one")
    return record


def scan(shard: Path) -> Iterator[tuple[int, bytes]]:
    """The offset and data of every record of a file, in order.

    Raises:
      UserError: it is cut short, or a checksum is another one.
    """
    try:
        with files.open_regular(shard) as file:
            offset = 0
            while header := file.read(_LENGTH.size):
                length, check = _LENGTH.unpack(header) if len(header) == _LENGTH.size else (0, -1)
                if check != masked_crc(header[:8]) or length > _LARGEST_BYTES:
                    raise UserError(f"{shard} at {offset} is no TFRecord, or cut short, or compressed")
                yield offset, _checked(header + file.read(length + 4), length)
                offset += _LENGTH.size + length + 4
    except OSError as error:
        raise UserError(f"{shard} cannot be read: {error.strerror}") from None
    except BadImage as error:
        raise UserError(f"record at {offset} of {shard}: {error}") from None


def example(image: bytes, label: int | None) -> bytes:
    """The data of a record of ours; the same bytes for the same values."""
    from tensorflow.core.example import example_pb2

    made = example_pb2.Example()
    made.features.feature[IMAGE].bytes_list.value.append(image)
    if label is not None:
        made.features.feature[LABEL].int64_list.value.append(label)
    return made.SerializeToString(deterministic=True)


def parse(record: bytes, where: str) -> Any:
    """The features of a tf.train.Example.

    Raises:
      UserError: it is none.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.example import example_pb2

    try:
        return example_pb2.Example.FromString(record).features.feature
    except DecodeError:
        raise UserError(f"{where} is not a tf.train.Example") from None


def _one(features: Any, name: str, kind: str, where: str) -> Any:
    """The one value of a feature."""
    values = getattr(features[name], kind).value if name in features else []
    if len(values) != 1:
        names = ", ".join(sorted(features)) or "none"
        raise UserError(f"{where} has no one value in {name!r}; its features are {names}")
    return values[0]


def read_manifest(root: Path) -> dict[str, Any]:
    """What `distgan prepare` says of the shards in a folder; empty where it wrote none.

    Raises:
      UserError: it cannot be read, or does not say what it should.
    """
    path = root / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = json.loads(files.read_bytes(path, _LARGEST_BYTES))
        if problem := next(_wrong(manifest), ""):
            raise ValueError(problem)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return manifest


_FIELDS = {"shape": list, "num_classes": int, "label_names": list, "index_sha256": str, "shards": list}
_SHARD_FIELDS = {"file": str, "bytes": int, "sha256": str}


def _wrong(manifest: Any) -> Iterator[str]:
    """Yields what a manifest does not say as it should."""
    if not isinstance(manifest, dict):
        yield "it is no JSON object"
    for name, kind in _FIELDS.items():
        if type(manifest.get(name)) is not kind:
            yield f"it has no {name}, or another thing in its place"
    if len(manifest["shape"]) != 3 or not all(type(side) is int and side > 0 for side in manifest["shape"]):
        yield "its shape is not [height, width, channels]"
    if not all(isinstance(name, str) for name in manifest["label_names"]) or manifest["num_classes"] < 0:
        yield "its classes are none"
    if not manifest["shards"]:
        yield "it names no shard"
    for shard in manifest["shards"]:
        if not isinstance(shard, dict) or not all(
            type(shard.get(name)) is kind for name, kind in _SHARD_FIELDS.items()
        ):
            yield "one of its shards has no file, bytes or sha256"
        if shard["file"] != os.path.basename(shard["file"]) or shard["file"] in ("", ".", ".."):
            yield f"the shard {shard['file']} would not lie in its folder"


def _own_table(root: Path, manifest: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """The table of places and the labels beside our own shards.

    Raises:
      UserError: they are not those of the shards.
    """
    place, shards = root / INDEX, manifest["shards"]
    try:
        data = files.read_bytes(place, _LARGEST_BYTES)
        if hashlib.sha256(data).hexdigest() != manifest["index_sha256"]:
            raise UserError(f"{place} is damaged: its SHA-256 is not the manifest's")
        arrays, _ = files.read_npz(io.BytesIO(data), ("table", "labels"))
        for shard in shards:
            size = (root / shard["file"]).stat().st_size
            if size != shard["bytes"]:
                raise UserError(f"{root / shard['file']} has {size} bytes, and the manifest says {shard['bytes']}")
        table, labels = arrays["table"], arrays["labels"]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    except (KeyError, files.Damaged) as error:
        raise UserError(f"{place} is damaged: {error}") from None
    if not _places_are_in(table, [shard["bytes"] for shard in shards]):
        raise UserError(f"{place} is damaged: it names places that the shards do not have")
    num_classes = manifest["num_classes"]
    if not num_classes:
        return table, None
    if labels.shape != (len(table),) or labels.dtype.kind != "i" or not ((labels >= 0) & (labels < num_classes)).all():
        raise UserError(f"{place} is damaged: its labels are not those of {len(table)} images of {num_classes} classes")
    return table, labels.astype(np.int32)


def _places_are_in(table: np.ndarray, sizes: Sequence[int]) -> bool:
    """Whether every row is a shard's number, and a record that lies within its so many bytes."""
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != 3 or not len(table) or (table < 0).any():
        return False
    shard, offset, length = table.T
    if shard.max() >= len(sizes) or length.max() > _LARGEST_BYTES:
        return False
    return bool((offset <= np.array(sizes)[shard] - length - _LENGTH.size - 4).all())
