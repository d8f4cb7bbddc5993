"""W&B's local file of a run: a log of records in blocks of 32 KiB, as wandb-core writes it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 2**15
_HEADER = (
    7  # Of the file, and of each chunk: CRC-32, length, and whether it is whole (1), first, middle or last (2, 3, 4).
)
_FULL, _FIRST, _LAST = 1, 2, 4


def records(path: Path) -> Iterator[bytes]:
    """The records of a file, serialized, up to where it was cut; what is damaged is passed over to the next block."""
    with path.open("rb") as file:
        parts: list[bytes] = []
        while block := file.read(_BLOCK):
            place = _HEADER if file.tell() <= _BLOCK else 0
            while place + _HEADER <= len(block):
                check, length, kind = block[place : place + 4], block[place + 4 : place + 6], block[place + 6]
                end = place + _HEADER + int.from_bytes(length, "little")
                if kind == 0 or end > len(block):
                    break
                if zlib.crc32(block[place + 6 : end]) != int.from_bytes(check, "little"):
                    parts = []
                    break
                if kind in (_FULL, _FIRST):
                    parts = []
                parts.append(block[place + _HEADER : end])
                if kind in (_FULL, _LAST):
                    yield b"".join(parts)
                    parts = []
                place = end
