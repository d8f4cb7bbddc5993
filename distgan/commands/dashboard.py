"""`distgan dashboard`: the workspace of a W&B project, sent to the server, or written as JSON where there is none."""

from __future__ import annotations

import dataclasses
import sys
import threading
from pathlib import Path
from typing import Any

from distgan.commands import trained
from distgan.errors import UserError
from distgan.schema import option

_SEND_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Options:
    """Whose workspace."""

    project: str = option("distgan", "the W&B project")
    entity: str = option("", "its user or team")
    out: str = option("", "a new JSON file: written instead of sending; without a key it is printed")


def run(options: Options) -> int:
    """Sends the workspace and prints its address, or prints it."""
    try:
        from distgan.tracking import workspace
    except ImportError as error:
        if not (error.name or "").startswith("wandb_workspaces"):
            raise
        raise UserError(f"dashboard needs wandb-workspaces: pip install 'distgan[dashboard]' ({error})") from None
    if options.out:
        trained.check_new(options.out)
    built = workspace.build(options.project, options.entity)
    reason = "--out" if options.out else _send(built, options)
    if not reason:
        return 0
    print(f"distgan: not sent ({reason}): this is what the workspace would be", file=sys.stderr)
    text = workspace.as_json(built) + "\n"
    if options.out:
        with trained.writing(Path(options.out)) as temporary:
            temporary.write_text(text)
    else:
        print(text, end="")
    return 0


def _send(built: Any, options: Options) -> str:
    """Saves the workspace on the server; returns why it could not, empty where it did.

    Raises:
      UserError: there is a key, and nobody said whose workspace.
    """
    from distgan.tracking.wandb_run import has_key

    if not has_key():
        return "no W&B key was found"
    if not options.entity:
        raise UserError("--entity is missing: the W&B user or team whose workspace it is")
    outcome = [f"no answer from the W&B server in {_SEND_SECONDS} s"]

    def send() -> None:
        try:
            print(built.save().url)
            outcome[0] = ""
        except Exception as error:
            outcome[0] = f"{type(error).__name__}: {error}".splitlines()[0]

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    sender.join(_SEND_SECONDS)
    return outcome[0]
