"""`distgan` with a watch on what the trainer spends with W&B: `timed.py OUT train ...` writes the longest calls as JSON."""

import atexit
import json
import sys
import time
from pathlib import Path

from distgan import __main__
from distgan.tracking.wandb_sink import WandbSink

LONGEST = {}


def timed(name):
    original = getattr(WandbSink, name)

    def call(*args, **more):
        start = time.perf_counter()
        try:
            return original(*args, **more)
        finally:
            LONGEST[name] = max(LONGEST.get(name, 0.0), time.perf_counter() - start)

    setattr(WandbSink, name, call)


if __name__ == "__main__":
    out = Path(sys.argv.pop(1))
    for each in ("row", "picture", "histogram", "evaluation", "checkpoint", "alert", "close"):
        timed(each)
    atexit.register(lambda: out.write_text(json.dumps(LONGEST)))
    __main__.run()
