"""Images as files: in folders, and the same inside a zip.

A class is the first folder level; or `dataset.json` at the top says it for each file, as StyleGAN's tools write it:
{"labels": [["00000/img00000000.png", 6], ...]}, or {"labels": null}. What is hidden, and what systems leave behind (`__MACOSX`,
`lost+found`), is neither image nor class.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from distgan import files
from distgan.config import DataConfig
from distgan.data import labels as label_rules
from distgan.data.pixels import SUFFIXES, BadImage
from distgan.data.source import Encoded
from distgan.data.survey import cache_dir
from distgan.errors import UserError

log = logging.getLogger("distgan")

_LABELS = "dataset.json"
_SYSTEM_NAMES = (
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found", "$recycle.bin", "recycler", "recycled"),
    *(
        "system volume information",
        "@eadir",
        "@tmp",
        "@recycle",
        "#recycle",
        "#snapshot",
        "__pycache__",
        "cachedir.tag",
    ),
)
_KEPT = ("blob", "ends", "passed_over", "folder_blob", "folder_ends", "times")
_SPECIAL = "pipes, sockets and devices"
_HIDDEN = "hidden or of the system"
_KINDS = 6  # How many kinds of what is passed over are named.
_LONGEST_SUFFIX = 12
_NAMED = 5  # How many classes are named.
_LARGEST_BYTES = 2**30
_LOCAL_HEADER = 30  # Bytes of a zip entry's own header, before its name and extra field.


@dataclasses.dataclass(frozen=True)
class Folder:
    """--data.path names a folder; images are found in it at any depth."""

    def open(self, data: DataConfig) -> Encoded:
        root = _existing(data, "folder")
        if not root.is_dir():
            raise UserError(f"--data.path={root} is not a folder")
        names, passed_over = list_folder(root, cache_dir(data))
        listed = root / _LABELS
        try:
            text = files.read_bytes(listed, _most_of_labels(len(names))) if listed.exists() else None
        except OSError as error:
            raise UserError(f"{listed} cannot be read: {error.strerror}") from None
        return _open(data, Files(root, names), names.decoded(), text, passed_over)


@dataclasses.dataclass(frozen=True)
class Zip:
    """--data.path names a zip file of images, as StyleGAN's data sets are."""

    def open(self, data: DataConfig) -> Encoded:
        path = _existing(data, "zip")
        try:
            with files.open_regular(path) as file, zipfile.ZipFile(file) as archive:
                passed_over: Counter[str] = Counter()
                infos = sorted(_images_in(archive, path, passed_over), key=lambda info: info.filename.encode())
                text = _labels_in(archive, _most_of_labels(len(infos)))
        except (OSError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, zlib.error) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"--data.path={path} is not a readable zip file: {why}") from None
        entries = ZipEntries(path, infos)
        return _open(data, entries, (info.filename for info in infos), text, passed_over)


def _most_of_labels(images: int) -> int:
    """The bytes that labels of so many images may take: more is no list of labels, and might not fit into the memory."""
    return 2**20 + 2**10 * images


def _labels_in(archive: zipfile.ZipFile, most_bytes: int) -> bytes | None:
    if _LABELS not in archive.namelist():
        return None
    if (size := archive.getinfo(_LABELS).file_size) > most_bytes:
        raise ValueError(f"its {_LABELS} takes {size:,} bytes, and {most_bytes:,} are enough for its images")
    return archive.read(_LABELS)


def _existing(data: DataConfig, source: str) -> Path:
    if not data.path:
        raise UserError(f"--data.source={source} needs --data.path")
    path = Path(data.path)
    try:
        path.stat()
    except OSError as error:
        raise UserError(f"--data.path={path}: {error.strerror}") from None
    return path


def _open(
    data: DataConfig, entries: Any, names: Iterable[str], text: bytes | None, passed_over: Counter[str]
) -> Encoded:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in passed_over.most_common(_KINDS))
    if not len(entries):
        others = f"; what it holds: {kinds}" if kinds else ""
        raise UserError(f"--data.path={data.path} holds no image ({', '.join(SUFFIXES)}){others}")
    if kinds:
        log.info("%s: passed over, as no images: %s", data.path, kinds)
    listed = list(names)
    labels, label_names = _listed_labels(data, listed, text) if text is not None else _folder_labels(data, listed)
    if label_names:
        several = ", ".join(label_names[:_NAMED]) + (", ..." if len(label_names) > _NAMED else "")
        log.info("%s: its %s folders are the classes: %s", data.path, f"{len(label_names):,}", several)
    return Encoded(data.path, entries, labels, data, label_names, lambda: _earlier_fingerprint(entries, labels))


def _earlier_fingerprint(entries: Any, labels: np.ndarray | None) -> str:
    """Of names, sizes and labels, as earlier versions had it."""
    digest = hashlib.sha256()
    for index in range(len(entries)):
        digest.update(entries.names[index] + b"\0")
    digest.update(entries.sizes.tobytes())
    if labels is not None:
        digest.update(labels.tobytes())
    return digest.hexdigest()[:16]


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
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{where} is not {{"labels": [["name", class], ...]}}: {error}') from None
    if by_name is None:
        log.info("%s says that there are no labels", where)
        return None, ()
    missing = [name for name in names if name not in by_name]
    if missing:
        raise UserError(f"{where} has no label for {len(missing)} of {len(names)} images, as {missing[0]}")
    labels = [by_name[name] for name in names]
    if absent := len(by_name) - len(set(names) & by_name.keys()):
        log.info("%s has labels of %s files that are not there", where, f"{absent:,}")
    for name, label in zip(names, labels, strict=True):
        if type(label) is not int:
            raise UserError(f"{where}: the label of {name} is {label}, not a whole number from 0")
    return label_rules.checked(np.array(labels, object), lambda index: f"{where}: {names[index]}"), ()


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

    def __init__(self, root: Path, names: Names):
        self.root, self.names = root, names

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> np.ndarray:
        """File sizes in bytes, int64 [N]; 0 for a file that is missing."""
        return np.array([_state(self.name(index))[0] for index in range(len(self))], np.int64)

    def name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def fetch(self, index: int) -> bytes:
        try:
            with files.open_regular(self.name(index)) as file:
                return file.read(_LARGEST_BYTES)
        except OSError as error:
            since = "; it was there when the folder was listed" if isinstance(error, FileNotFoundError) else ""
            raise BadImage(f"{error.strerror}{since}") from None

    def state(self, indices: np.ndarray) -> bytes:
        paths = [self.name(index) for index in indices.tolist()]
        return repr([(path, *_state(path)) for path in paths]).encode()


def _state(path: str) -> tuple[int, int, int, int]:
    """Size in bytes, times of the last write and the last change, and inode of a file; zeros where it is not there."""
    try:
        state = os.stat(path)
    except OSError:
        return 0, 0, 0, 0
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def list_folder(root: Path, cache_dir: Path) -> tuple[Names, Counter[str]]:
    """The image files below a folder, in the order of their names, and how many of which kind of others are passed over.

    The list is kept in `cache_dir`; it holds as long as no folder below was written to since.

    Raises:
      UserError: a folder cannot be read, or is linked into itself.
    """
    cached = cache_dir / f"files-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.npz"
    kept = files.read_sealed_npz(cached, _KEPT)
    if len(kept) == len(_KEPT):
        names, passed_over = Names(kept["blob"], kept["ends"]), Counter(json.loads(str(kept["passed_over"])))
        folders = Names(kept["folder_blob"], kept["folder_ends"]).decoded()
        with contextlib.suppress(OSError):  # Where a folder is gone.
            if all(os.stat(path).st_mtime_ns == time for path, time in zip(folders, kept["times"], strict=True)):
                return names, passed_over
    listing = _Listing([], [], Counter())
    _walk(os.fsencode(root), b"", (), listing)
    names = Names.of(sorted(listing.images))
    folders_listed = Names.of([name for name, _ in listing.folders])
    found = {
        "blob": names.blob,
        "ends": names.ends,
        "passed_over": json.dumps(listing.passed_over),
        "folder_blob": folders_listed.blob,
        "folder_ends": folders_listed.ends,
        "times": np.array([time for _, time in listing.folders], np.int64),
    }
    with contextlib.suppress(OSError):  # A list that cannot be kept is made again.
        files.write_npz(cached, found)
    return names, listing.passed_over


@dataclasses.dataclass(frozen=True)
class _Listing:
    """What lies below a folder."""

    images: list[bytes]
    """Their names from the folder on."""
    folders: list[tuple[bytes, int]]
    """Each with the time of its last write, in ns."""
    passed_over: Counter[str]
    """How many of which kind."""


def _walk(root: bytes, below: bytes, above: tuple[tuple[int, int], ...], listing: _Listing) -> None:
    path = os.path.join(root, below) if below else root
    try:
        state = os.stat(path)
        if (state.st_dev, state.st_ino) in above:
            raise UserError(
                f"--data.path={os.fsdecode(root)}: {os.fsdecode(below)} is a link to a folder that holds it"
            )
        listing.folders.append((path, state.st_mtime_ns))
        above = (*above, (state.st_dev, state.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                name = below + b"/" + entry.name if below else entry.name
                is_folder = entry.is_dir()
                if name == _LABELS.encode():
                    continue
                special = not (is_folder or entry.is_file() or entry.is_symlink())
                if kind := _kind(os.fsdecode(entry.name), is_folder) or (special and _SPECIAL or ""):
                    listing.passed_over[kind] += 1
                elif is_folder:
                    _walk(root, name, above, listing)
                else:
                    listing.images.append(name)
    except OSError as error:
        raise UserError(f"{os.fsdecode(path)} cannot be listed: {error.strerror}") from None


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or what a system leaves behind.

    >>> is_hidden("._robin.png"), is_hidden("__MACOSX"), is_hidden("robin.png")
    (True, True, False)
    """
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def _kind(name: str, is_folder: bool) -> str:
    """What a file or folder of this name is that is passed over; empty for images and folders of them."""
    if is_hidden(name):
        return _HIDDEN
    if is_folder or name.lower().endswith(SUFFIXES):
        return ""
    return os.path.splitext(name)[1].lower()[:_LONGEST_SUFFIX] or "without a suffix"


def _images_in(archive: zipfile.ZipFile, path: Path, passed_over: Counter[str]) -> Iterator[zipfile.ZipInfo]:
    """The entries that are images; others are counted by their kinds.

    Raises:
      UserError: one leads out of the archive, is encrypted, or claims more than a gibibyte.
    """
    for info in archive.infolist():
        if info.is_dir() or info.filename == _LABELS:
            continue
        *folders, name = (part for part in info.filename.split("/") if part not in ("", ".", ".."))
        if kind := _HIDDEN if any(map(is_hidden, folders)) else _kind(name, False):
            passed_over[kind] += 1
            continue
        where = f"{info.filename} in --data.path={path}"
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
        self.file = files.descriptor(path)  # As long as the process.

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

    def state(self, indices: np.ndarray) -> bytes:
        names = [self.names[index] for index in indices.tolist()]
        return repr(names).encode() + self.table[indices, 1:].tobytes()

    def _read(self, size: int, offset: int) -> bytes:
        return os.pread(self.file, size, offset)
