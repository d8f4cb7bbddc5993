"""Images as files: in folders, and the same inside a zip.

A class is the first folder level; or `dataset.json` at the top says it for each file, as StyleGAN's tools write it:
{"labels": [["00000/img00000000.png", 6], ...]}, or {"labels": null}.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from distgan.config import DataConfig
from distgan.data.pixels import SUFFIXES, BadImage
from distgan.data.source import Encoded
from distgan.errors import UserError

_LABELS = "dataset.json"
_LARGEST_BYTES = 2**30
_LOCAL_HEADER = 30  # Bytes of a zip entry's own header, before its name and extra field.


@dataclasses.dataclass(frozen=True)
class Folder:
    """--data.path names a folder; images are found in it at any depth."""

    def open(self, data: DataConfig) -> Encoded:
        root = _existing(data, "folder")
        if not root.is_dir():
            raise UserError(f"--data.path={root} is not a folder")
        names, sizes = list_folder(root, Path(data.cache_dir or Path.home() / ".cache" / "distgan"))
        listed = root / _LABELS
        try:
            text = listed.read_bytes() if listed.exists() else None
        except OSError as error:
            raise UserError(f"{listed} cannot be read: {error.strerror}") from None
        return _open(data, Files(root, names, sizes), names.decoded(), text, sizes)


@dataclasses.dataclass(frozen=True)
class Zip:
    """--data.path names a zip file of images, as StyleGAN's data sets are."""

    def open(self, data: DataConfig) -> Encoded:
        path = _existing(data, "zip")
        try:
            with zipfile.ZipFile(path) as archive:
                infos = sorted(_images_in(archive), key=lambda info: info.filename.encode())
                text = archive.read(_LABELS) if _LABELS in archive.namelist() else None
        except (OSError, zipfile.BadZipFile, RuntimeError, EOFError, zlib.error) as error:
            raise UserError(f"--data.path={path} is not a readable zip file: {error}") from None
        entries = ZipEntries(path, infos)
        return _open(data, entries, (info.filename for info in infos), text, entries.sizes)


def _existing(data: DataConfig, source: str) -> Path:
    if not data.path:
        raise UserError(f"--data.source={source} needs --data.path")
    path = Path(data.path)
    try:
        path.stat()
    except OSError as error:
        raise UserError(f"--data.path={path}: {error.strerror}") from None
    return path


def _open(data: DataConfig, entries: Any, names: Any, text: bytes | None, sizes: np.ndarray) -> Encoded:
    if not len(entries):
        raise UserError(f"--data.path={data.path} holds no image ({', '.join(SUFFIXES)})")
    listed = list(names)
    labels, label_names = _listed_labels(data, listed, text) if text is not None else _folder_labels(data, listed)
    digest = hashlib.sha256()
    for name in listed:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    digest.update(sizes.tobytes())
    if labels is not None:
        digest.update(labels.tobytes())
    return Encoded(data.path, entries, labels, data, digest.hexdigest()[:16], label_names)


def _folder_labels(data: DataConfig, names: Sequence[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels by the first folder level; none where there is no more than one."""
    firsts = [name.partition("/")[0] if "/" in name else "" for name in names]
    classes = sorted(set(firsts), key=str.encode)
    if len(classes) < 2:
        return None, ()
    if not classes[0]:
        raise UserError(
            f"--data.path={data.path} holds images beside folders of images ({names[firsts.index('')]}): a class is a folder, or "
            f"{_LABELS} says it"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[first] for first in firsts], np.int32), tuple(classes)


def _listed_labels(data: DataConfig, names: Sequence[str], text: bytes) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels as dataset.json gives them."""
    where = f"{_LABELS} of --data.path={data.path}"
    try:
        pairs = json.loads(text)["labels"]
        by_name = None if pairs is None else {str(name): label for name, label in pairs}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{where} is not {{"labels": [["name", class], ...]}}: {error}') from None
    if by_name is None:
        return None, ()
    missing = [name for name in names if name not in by_name]
    if missing:
        raise UserError(f"{where} has no label for {len(missing)} of {len(names)} images, as {missing[0]}")
    labels = [by_name[name] for name in names]
    wrong = next((each for each in zip(names, labels, strict=True) if type(each[1]) is not int or each[1] < 0), None)
    if wrong:
        raise UserError(f"{where}: the label of {wrong[0]} is {wrong[1]}, not a whole number from 0")
    return np.array(labels, np.int32), ()


class Names:
    """Many names in two arrays, where a list of strings would take several times the memory."""

    def __init__(self, blob: np.ndarray, ends: np.ndarray):
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, names: Sequence[bytes]) -> Names:
        """Packs names."""
        ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        return cls(np.frombuffer(b"".join(names), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        start = self.ends[index - 1] if index else 0
        return self.blob[start : self.ends[index]].tobytes()

    def decoded(self) -> Iterator[str]:
        """All names, in order."""
        return (os.fsdecode(self[index]) for index in range(len(self)))


class Files:
    """Image files below a folder."""

    def __init__(self, root: Path, names: Names, sizes: np.ndarray):
        self.root, self.names, self.sizes = root, names, sizes

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def fetch(self, index: int) -> bytes:
        try:
            with open(self.name(index), "rb") as file:
                data = file.read(_LARGEST_BYTES)
        except OSError as error:
            since = "; it was there when the folder was listed" if isinstance(error, FileNotFoundError) else ""
            raise BadImage(f"{error.strerror}{since}") from None
        if len(data) != self.sizes[index]:
            raise BadImage(f"has {len(data)} bytes, and had {self.sizes[index]} when the folder was listed")
        return data


def list_folder(root: Path, cache_dir: Path) -> tuple[Names, np.ndarray]:
    """The image files below a folder, in the order of their names, and their sizes in bytes (int64 [N]).

    The list is kept in `cache_dir`; it holds as long as no folder below was written to since.

    Raises:
      UserError: a folder cannot be read, or is linked into itself.
    """
    cached = cache_dir / f"files-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.npz"
    try:
        with np.load(cached) as kept:
            names, sizes = Names(kept["blob"], kept["ends"]), kept["sizes"]
            folders = Names(kept["folder_blob"], kept["folder_ends"]).decoded()
            if all(os.stat(path).st_mtime_ns == time for path, time in zip(folders, kept["times"], strict=True)):
                return names, sizes
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # No list yet, or none that can be used.
    found: list[tuple[bytes, int]] = []
    times: list[tuple[bytes, int]] = []
    _walk(os.fsencode(root), b"", (), found, times)
    found.sort()
    names, sizes = Names.of([name for name, _ in found]), np.array([size for _, size in found], np.int64)
    folders_seen = Names.of([name for name, _ in times])
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_suffix(f".{os.getpid()}.npz")
        np.savez(
            temporary,
            blob=names.blob,
            ends=names.ends,
            sizes=sizes,
            folder_blob=folders_seen.blob,
            folder_ends=folders_seen.ends,
            times=np.array([time for _, time in times], np.int64),
        )
        temporary.rename(cached)
    except OSError:
        pass  # A list that cannot be kept is made again.
    return names, sizes


def _walk(
    root: bytes,
    below: bytes,
    above: tuple[tuple[int, int], ...],
    found: list[tuple[bytes, int]],
    times: list[tuple[bytes, int]],
) -> None:
    path = os.path.join(root, below) if below else root
    try:
        state = os.stat(path)
        if (state.st_dev, state.st_ino) in above:
            raise UserError(
                f"--data.path={os.fsdecode(root)}: {os.fsdecode(below)} is a link to a folder that holds it"
            )
        times.append((path, state.st_mtime_ns))
        above = (*above, (state.st_dev, state.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                name = below + b"/" + entry.name if below else entry.name
                if entry.is_dir():
                    _walk(root, name, above, found, times)
                elif entry.name.lower().endswith(tuple(suffix.encode() for suffix in SUFFIXES)):
                    found.append((name, entry.stat().st_size))
    except OSError as error:
        raise UserError(f"{os.fsdecode(path)} cannot be listed: {error.strerror}") from None


def _images_in(archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    """The entries that are images.

    Raises:
      UserError: one leads out of the archive, is encrypted, or claims more than a gibibyte.
    """
    for info in archive.infolist():
        if info.is_dir() or not info.filename.lower().endswith(SUFFIXES):
            continue
        where = f"{info.filename} in --data.path={archive.filename}"
        if info.filename.startswith(("/", "\\")) or ".." in PurePosixPath(info.filename.replace("\\", "/")).parts:
            raise UserError(f"{where} is an unsafe name")
        if info.flag_bits & 1:
            raise UserError(f"{where} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{where} is compressed in a way that is not stored or deflate")
        if max(info.file_size, info.compress_size) > _LARGEST_BYTES:
            raise UserError(f"{where} is larger than {_LARGEST_BYTES} bytes")
        yield info


class ZipEntries:
    """Image files in a zip, read at their places, by any number of threads at once."""

    def __init__(self, path: Path, infos: Sequence[zipfile.ZipInfo]):
        self.path = path
        self.names = Names.of([info.filename.encode() for info in infos])
        facts = [(info.header_offset, info.compress_size, info.file_size, info.CRC) for info in infos]
        self.table = np.array(facts, np.int64).reshape(-1, 4)
        self.deflated = np.array([info.compress_type == zipfile.ZIP_DEFLATED for info in infos], bool)
        self.file = os.open(path, os.O_RDONLY)  # As long as the process.

    @property
    def sizes(self) -> np.ndarray:
        """int64 [N], in bytes, before compression."""
        return self.table[:, 2]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return f"{self.path}:{self.names[index].decode()}"

    def fetch(self, index: int) -> bytes:
        offset, stored, size, check = (int(value) for value in self.table[index])
        try:
            header = self._read(_LOCAL_HEADER, offset)
            skipped = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            data = self._read(stored, offset + _LOCAL_HEADER + skipped)
            if self.deflated[index]:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except (OSError, zlib.error) as error:
            raise BadImage(str(error)) from None
        if len(data) != size or zlib.crc32(data) != check:
            raise BadImage("is damaged: its checksum is another one")
        return data

    def _read(self, size: int, offset: int) -> bytes:
        return os.pread(self.file, size, offset)
