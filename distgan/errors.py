"""How a command ends when it does not end well: one exception per exit code, each told in one line without a traceback."""


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
