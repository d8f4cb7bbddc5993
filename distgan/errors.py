"""How a command ends when it does not end well: one exception per exit code, each told in one line without a traceback."""

import re
import sysconfig
import traceback
from pathlib import Path

# Control characters but for newline and tab, marks that turn the direction of writing, and halves of characters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Exit(Exception):
    """Ends the program with `code` after printing the message."""

    code = 1


class UserError(Exit):
    """A mistake in a flag, the config or the data: names what was given and what is allowed."""

    code = 2


class Diverged(Exit):
    """A loss or a gradient was not finite; the weights are those before the step, and the evidence is saved."""

    code = 3


class Stopped(Exit):
    """A signal was answered and the run is saved: starting it again goes on."""

    code = 75


class Halted(Exit):
    """The end was asked for where the run is tracked, and the run is saved: starting it again goes on."""

    code = 0


class Ended(Exit):
    """The end of all workers by the first error of one: every worker has its code, and one says it."""

    def __init__(self, code: int, text: str, spoken: bool = True):
        super().__init__(text)
        self.code = code
        self.spoken = spoken


class Broken(Exit):
    """A device or a sum over devices failed: a broken machine, or the echo of another worker's end."""


class Desynced(Exit):
    """The replicas' states are no longer the same: a bug, or a broken machine."""


class Regroup(Exception):
    """Elastic workers came or went, as the text says: those that are there form a group anew and go on."""


def in_one_line(error: Exception) -> str:
    """An error of a user's own code: its type, the user's line that it came from, and what it says.

    Keras' errors lose their colours, and the list of arguments at their end.
    """
    ours = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), "<")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(ours) and "site-packages" not in frame.filename
    ]
    # A syntax error says itself where.
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames and not isinstance(error, SyntaxError) else ""
    text = re.sub(r"\x1b\[\d*m", "", str(error)).partition("Arguments received by")[0]
    return f"{type(error).__name__}{place}: {' '.join(text.split())}"


def printable(text: str) -> str:
    r"""A text that others may have written, with what could command a terminal spelled out.

    >>> printable("rank 1\x1b[2J: no such file")
    'rank 1\\x1b[2J: no such file'
    """
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)
