"""`distgan` with a watch on what the trainer spends with W&B, several runs in one process: jobs come as JSON on stdin.

A job is [environment, words, where the longest calls by name and the exit code are written as JSON].
"""

import json
import os
import sys
import time
from pathlib import Path

from distgan import cli
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
    for each in ("row", "picture", "histogram", "evaluation", "checkpoint", "alert", "close"):
        timed(each)
    for environment, words, out in json.load(sys.stdin):
        os.environ.update(environment)
        LONGEST.clear()
        code = cli.main(words)
        Path(out).write_text(json.dumps({"code": code, "longest": LONGEST}))
    os._exit(0)
