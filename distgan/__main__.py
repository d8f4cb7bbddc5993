"""`python -m distgan`, and the command `distgan`."""

import atexit
import contextlib
import os
import sys
import threading
import traceback

from distgan import signals
from distgan.tracking import streams

_LAST_SECONDS = 5  # For what libraries do at the end.


def run() -> None:
    """Runs one command and ends the process with its exit code.

    It ends here, and not at the interpreter's leisure: that ends the threads that wait for Python's lock, TensorFlow's pipeline
    among them, and then would wait for ever for the pipeline to be done.
    """
    signals.hold()
    streams.open_closed()
    sys.stdout, sys.stderr = streams.strict(sys.stdout), streams.forgiving(sys.stderr)
    try:
        from distgan.cli import main  # Takes a moment, and no signal may cut into it.

        code = main()
    except BaseException:
        traceback.print_exc()
        code = 1
    signals.ignore()  # What it ends with stays.
    limit = threading.Timer(_LAST_SECONDS, os._exit, (code,))  # Horovod's would wait for a rank that stands still.
    limit.daemon = True
    limit.start()
    atexit._run_exitfuncs()
    limit.cancel()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(streams.OutputLost):  # Nobody can read it.
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
