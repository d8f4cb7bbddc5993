"""Reads a W&B run's local file: a log of protobuf records in blocks of 32 KiB."""

import json
import zlib

BLOCK = 2**15
HEADER = (
    7  # Of the file, and of each chunk: CRC-32, length, and whether it is whole (1), first, middle or last (2, 3, 4).
)


def records(path):
    """The records of a file, up to where it was cut."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data.startswith(b":W&B")
    place, parts = HEADER, []
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        check, length = (
            int.from_bytes(data[place : place + 4], "little"),
            int.from_bytes(data[place + 4 : place + 6], "little"),
        )
        chunk = data[place + 6 : place + HEADER + length]  # Its kind, and what it carries.
        if len(chunk) <= length or not any(data[place : place + HEADER]):
            return
        assert check == zlib.crc32(chunk)
        parts.append(chunk[1:])
        if chunk[0] in (1, 4):
            yield Record.FromString(b"".join(parts))
            parts = []
        place += HEADER + length


def history(path):
    """The logged rows of a file."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def exit_code(path):
    """The run's; None before its end."""
    return next((record.exit.exit_code for record in records(path) if record.HasField("exit")), None)
