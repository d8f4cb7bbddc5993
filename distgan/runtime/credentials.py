"""Keys and passwords in the environment: how they come here without standing on a command line, and who gets them.

horovodrun writes its whole environment on the command lines of its ranks, which every user of a host can read. The launchers
(`hide_secrets` in launch/environment.sh) keep back what looks like a secret, and hand it over by a file, or to other hosts by
the standard input of ssh. The W&B key is for W&B's process alone, and child processes that need no secret get none.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from distgan import files
from distgan.errors import UserError

LARGEST = 4096
"""Bytes of a file that holds a secret."""
_SECRET = re.compile(r"(_KEY|_TOKEN|_SECRET)$|PASSWORD|^AWS_", re.IGNORECASE)  # As in launch/environment.sh.
_TRACKING = re.compile(r"^WANDB_.*_KEY$")
_SECONDS, _MOST_BYTES = 30.0, 2**20
_held: dict[str, str] = {}


def receive() -> None:
    """Takes over what the launcher has kept off the command lines, as if it had come by the environment.

    Raises:
      UserError: it did not come.
    """
    place = os.environ.pop("DISTGAN_SECRETS", "")
    if not place:
        return
    ssh = str(Path(place).parent / "bin")  # The launcher's own ssh, which hands the secrets on.
    os.environ["PATH"] = os.pathsep.join(each for each in os.environ["PATH"].split(os.pathsep) if each != ssh)
    try:
        text = files.read_text(place, _MOST_BYTES) if os.path.exists(place) else _read_stdin()
    except (OSError, ValueError) as error:
        raise UserError(f"DISTGAN_SECRETS={place}, which the launcher has set, cannot be read: {error}") from None
    os.environ.update(line.partition("=")[::2] for line in text.split("\0") if line)


def _read_stdin() -> str:
    end, content = time.monotonic() + _SECONDS, b""
    while len(content) <= _MOST_BYTES and select.select([0], [], [], max(0, end - time.monotonic()))[0]:
        part = os.read(0, 2**16)
        if not part:
            return content.decode()
        content += part
    raise UserError(f"the launcher's ssh did not hand over its secrets within {_SECONDS:g} s")


@contextlib.contextmanager
def holding(all_of_them: bool) -> Iterator[None]:
    """Takes the W&B key, or all that looks like a secret, out of this process' environment for the time of the block.

    Programs that are started in the block, by libraries too, inherit none of it; `for_tracking` still has it.
    """
    names = [name for name in os.environ if _TRACKING.search(name) or (all_of_them and _SECRET.search(name))]
    taken = {name: os.environ.pop(name) for name in names}
    _held.update(taken)
    try:
        yield
    finally:
        for name, value in taken.items():
            os.environ.setdefault(name, value)
            del _held[name]


def for_tracking(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of W&B's process: this one's and what is held back, with more where they say nothing."""
    return {**more, **_held, **os.environ}


def for_child() -> dict[str, str]:
    """This process' environment without secrets, for a process of its own that needs none."""
    return {name: value for name, value in os.environ.items() if not _SECRET.search(name)}


def wandb_key() -> str:
    """The W&B key that is held back; empty where there is none."""
    return _held.get("WANDB_API_KEY", "")


def job_secret() -> str:
    """The secret of a launcher that started all workers of a job; empty where there is none."""
    return os.environ.get("DISTGAN_SECRET", "") or _held.get("DISTGAN_SECRET", "")
