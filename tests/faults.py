"""Breaks `distgan` where and when it is planned, without a hook in it: `faults.py KIND:PLACE:N[@RANK],... train --flags`.

KIND is what happens, in the process itself: `kill` (SIGKILL), `term` (SIGTERM), `terms` (it until the end), `slow` (2 s pass),
`oom` and `nccl` (an error as a GPU's).
It happens the N-th time that the process comes to PLACE, one of PLACES; with @RANK on that worker only.
Below are also faults that come from outside: a disk that is full, files that are damaged, processes that are watched.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from unittest import mock

PLACES = (
    "step",  # Before some steps are taken in one call.
    "evaluation",  # Before the first features of an evaluation.
    "file",  # In a save: the first file is written.
    "manifest",  # All files are written, and not the manifest.
    "rename",  # All is written, under the temporary name.
    "retention",  # It has its name; old ones are not yet removed.
    "exit",  # The command is done, and what the process ends with is known.
)


def here(kind):
    """Something bad, in this process."""
    match kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "term":
            os.kill(os.getpid(), signal.SIGTERM)
        case "terms":
            threading.Thread(target=terminate, daemon=True).start()
        case "slow":
            time.sleep(2)
        case "oom":
            import tensorflow as tf

            tf.zeros([2**50])  # Raises it.
        case "nccl":
            from tensorflow import errors

            text = (
                "Graph execution error:\n\nunhandled cuda error (NCCL_DEBUG=INFO)\n\t [[{{node CollectiveReduceV2}}]]"
            )
            raise errors.InternalError(None, None, text)
        case _:
            raise ValueError(kind)


def terminate():
    """Sends SIGTERM to this process again and again, to its last moment."""
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.005)


def planned(text, rank):
    """The function to call at each place."""
    plan, come = {}, Counter()
    terminal = os.fdopen(os.dup(2), "w")  # stderr is held back while steps are compiled.
    for each in filter(None, text.split(",")):
        fault, _, where = each.partition("@")
        kind, place, number = fault.split(":")
        assert place in PLACES
        if not where or int(where) == rank:
            plan[place, int(number)] = kind

    def reach(place):
        come[place] += 1
        if kind := plan.get((place, come[place])):
            print(f"fault: {kind} at {place} {come[place]}", file=terminal, flush=True)
            here(kind)

    return reach


def around(function, before=lambda *_: None, after=lambda *_: None):
    """A function with something before and after it, called with its arguments."""

    def wrapped(*args):
        before(*args)
        result = function(*args)
        after(*args)
        return result

    return wrapped


def patches(reach):
    """The places, in the program's own functions."""
    from distgan.evaluation import evaluator
    from distgan.training import checkpoint, step

    def before_file(path, _):
        if path.name == checkpoint._MANIFEST:
            reach("manifest")

    def after_file(path, _):
        if path.name != checkpoint._MANIFEST and len(list(path.parent.iterdir())) == 1:
            reach("file")

    def after_sync(folder):
        if folder.name.startswith(checkpoint._TEMPORARY):
            reach("rename")

    for module, name, before, after in (
        (step.Advance, "__call__", lambda *_: reach("step"), None),
        (step.Advance, "measure", lambda *_: reach("step"), None),
        (evaluator, "_collect", lambda *_: reach("evaluation"), None),
        (checkpoint, "_write_through", before_file, after_file),
        (checkpoint, "_sync", None, after_sync),
        (checkpoint, "_write", None, lambda *_: reach("retention")),
    ):
        more = {key: value for key, value in (("before", before), ("after", after)) if value}
        yield mock.patch.object(module, name, around(getattr(module, name), **more))


def own_rank():
    """This worker's number, as its launcher says."""
    task = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {})
    return int(os.environ.get("HOROVOD_RANK", task.get("index", 0)))


def ranks(run_dir):
    """The process number of each rank of a run under horovodrun."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"--run_dir={run_dir}".encode() in words and b"python" in words[0]:
            number = [each for each in variables if each.startswith(b"HOROVOD_RANK=")]
            found |= {int(each.partition(b"=")[2]): int(path.name) for each in number}
    return found


@contextlib.contextmanager
def memory_disk(folder, options):
    """A small disk of its own on a folder; needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def full(folder):
    """The disk of a folder is full within the block."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def read_only(folder):
    """A folder and those in it take no new files within the block, from whom `honest` has started."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for each in folders:
        each.chmod(0o555)
    try:
        yield
    finally:
        for each in folders:
            each.chmod(0o755)


def honest():
    """The first words of a command that heeds files' modes, also as root."""
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


def flip(checkpoint):
    """One bit of a checkpoint's largest file is another."""
    path = max(checkpoint.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(checkpoint):
    """A file ends too early."""
    path = checkpoint / "generator.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def lose(checkpoint):
    """A file is gone."""
    (checkpoint / "optimizer.safetensors").unlink()


DAMAGES = (flip, truncate, lose)


class Watch(threading.Thread):
    """Samples a process ten times a second to its end: (images seen or whatever `clock` says, RSS bytes, files, threads)."""

    def __init__(self, pid, clock):
        super().__init__(daemon=True)
        self.folder, self.clock, self.samples = Path(f"/proc/{pid}"), clock, []
        self.start()

    def run(self):
        with contextlib.suppress(OSError, IndexError):
            while True:
                pages = int((self.folder / "statm").read_text().split()[1])
                files, threads = (len(os.listdir(self.folder / name)) for name in ("fd", "task"))
                self.samples.append((self.clock(), pages * os.sysconf("SC_PAGESIZE"), files, threads))
                time.sleep(0.1)


def main(plan, words):
    from distgan.__main__ import run

    reach = planned(plan, own_rank())
    for patch in patches(reach):
        patch.start()
    atexit.register(reach, "exit")
    sys.argv = ["distgan", *words]
    run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
