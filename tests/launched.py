"""The launchers of launch/ at work on two workers, as from a terminal."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import REPOSITORY, SMALL, environment, rows

from distgan.training import checkpoint

LAUNCHERS = {
    "multiworker": ("multiworker.sh", "2"),
    "horovod": ("horovod.sh", "-np", "2", "--"),
    "elastic": ("elastic.sh", "-np", "2", "--"),
}


class Launched:
    """A launcher in a process group of its own, and all that it starts; what they say goes to a file."""

    def __init__(self, launcher, run_dir, *more, programs=None):
        """Starts it; `programs` is a folder whose programs come first."""
        self.run_dir, self.told = run_dir, run_dir.with_suffix(".txt")
        self.mark = f"DISTGAN_TEST={run_dir}"
        folders = [*([str(programs)] if programs else []), os.path.dirname(sys.executable), os.environ["PATH"]]
        env = environment() | {"PATH": os.pathsep.join(folders), "DISTGAN_TEST": str(run_dir)}
        script, *options = LAUNCHERS[launcher]
        words = ["bash", str(REPOSITORY / "launch" / script), *options, "train", f"--run_dir={run_dir}", *SMALL]
        words += ["--train.total_kimg=10000", "--train.report_kimg=0.08", *more]
        with self.told.open("w") as told:
            self.process = subprocess.Popen(words, env=env, stdout=told, stderr=told, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def rows(self):
        """The number of rows so far."""
        return len(rows(self.run_dir)) if (self.run_dir / "metrics.jsonl").exists() else 0

    def until_rows(self, count):
        """Waits for so many rows."""
        end = time.monotonic() + 200
        while self.rows() < count:
            assert self.process.poll() is None, self.told.read_text()
            assert time.monotonic() < end, self.told.read_text()
            time.sleep(0.05)

    def processes(self, word=""):
        """Those of the job whose command line has a word."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if self.mark in variables and (not word or word in words):
                    found.append(int(folder.name))
        return sorted(found)

    def workers(self):
        """The workers, in the order in which they were started."""
        launchers = set(self.processes("--gloo"))
        own = [pid for pid in self.processes(f"--run_dir={self.run_dir}") if pid not in launchers]
        return [pid for pid in own if b"python" in Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]]

    def ends(self, code):
        """The launcher with an exit code, and all that it has started; nobody complains. Returns what they said."""
        assert self.process.wait(120) == code, self.told.read_text()
        end = time.monotonic() + 30
        while left := self.processes():
            assert time.monotonic() < end, f"{left} are left\n{self.told.read_text()}"
            time.sleep(0.1)
        said = self.told.read_text()
        for noise in ("Traceback", "Error", "grpc", "terminate called", "Killed", "Terminated"):
            assert noise not in said, said
        return said

    def ends_saved(self, code):
        """The same, and the state of the last row, or a later one, is saved."""
        said = self.ends(code)
        assert "saved; start it again to go on" in (self.run_dir / "log.txt").read_text()
        saved = checkpoint.newest(self.run_dir / "checkpoints").images_seen
        assert rows(self.run_dir)[-1]["progress/images_seen"] <= saved
        return said
