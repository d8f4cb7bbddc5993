"""Whether the code that a run directory names may be imported.

config.json names parts by `module:attribute`, and to import a module is to run it. A run of one's own is trusted. Where others
could have written it, code that is not distgan's is imported only if the user has named it too, or has said --allow_code.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distgan.errors import UserError

FLAG = "--allow_code"
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_allowed: set[str] = set()
_all_allowed = False


def allow(words: Sequence[str]) -> list[str]:
    """Allows the code that words of a command line name, or all with --allow_code; returns the other words.

    What an earlier call has allowed no longer is.
    """
    global _all_allowed
    _all_allowed = FLAG in words
    _allowed.clear()
    for word in words:
        name, _, value = word.partition("=") if word.startswith("-") else ("", "", word)
        if not name.endswith("run_dir"):
            _allowed.update(part for part in value.split(",") if _CODE.fullmatch(part.strip()))
    return [word for word in words if word != FLAG]


def named_code(config: Mapping[str, Any], fields: Iterable[str]) -> dict[str, list[str]]:
    """The parts in the fields of a flat config that are not distgan's own, by the field."""
    found = {}
    for field in fields:
        if own := [part.strip() for part in str(config.get(field, "")).split(",") if ":" in part]:
            found[field] = own
    return found


def check(run_dir: Path, config: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Checks that the code that a run's config names may be imported.

    Raises:
      UserError: others can have written it.
    """
    if _all_allowed:
        return
    foreign = {field: names for field, names in named_code(config, fields).items() if not set(names) <= _allowed}
    reason = next(filter(None, (_written_by_others(path) for path in (run_dir, run_dir / "config.json"))), "")
    if foreign and reason:
        told = ", ".join(f"{field}={','.join(names)}" for field, names in foreign.items())
        raise UserError(
            f"--run_dir={run_dir} names code that is not distgan's, {told}, and {reason}: it is not run unless you say "
            f"{FLAG}, or name it yourself by --{next(iter(foreign))}"
        )


def _written_by_others(path: Path) -> str:
    """How somebody else may have written a file or folder; empty where nobody could but this user."""
    try:
        state = path.stat()
    except OSError as error:
        return f"{path} cannot be looked at ({error.strerror})"
    if state.st_uid != os.geteuid():
        return f"{path} belongs to another user (number {state.st_uid})"
    if state.st_mode & stat.S_IWOTH:
        return f"everybody can write to {path}"
    # Many systems give each user a group of their own, and let it write.
    if state.st_mode & stat.S_IWGRP and not state.st_gid == os.getegid() == os.geteuid():
        return f"the group {state.st_gid} can write to {path}"
    return ""
