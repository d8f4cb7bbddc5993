"""The fault matrix: runs that are killed, stopped, cut off, given bad disks and other workers end like one that never was.

`--soak` (or `--soak=N`, for N random moments) is the whole of it; without, a tenth.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import pytest
import wandb_files
from conftest import REPOSITORY, SMALL, clusters, environment, finish_all, local_addresses, numbers, rows
from faults import DAMAGES, Watch, flip, full, honest, lose, memory_disk, ranks, read_only, truncate
from worlds import SIZES

from distgan.training import checkpoint, scores
from distgan.training.checkpoint import Checkpoint

FAULTS = str(REPOSITORY / "tests" / "faults.py")
RUN = (*SMALL, "--deterministic", "--train.report_kimg=0.08", "--train.sample_kimg=0", "--checkpoint.every_kimg=0.16")
STEPS, SOAK_STEPS = 1000, 5000
KILLED = -signal.SIGKILL


def length(steps):
    return f"--train.total_kimg={steps * 16 / 1000}"


class Life:
    """A run that is started again and again; what it says goes to a file, as nobody reads a pipe meanwhile."""

    def __init__(self, run_dir, *words, launcher=(), env=None, name=""):
        self.run_dir, self.words, self.launcher, self.env = run_dir, words, launcher, env or environment()
        self.told = run_dir.with_name(f"{run_dir.name}{name}.txt")
        self.process = None

    def start(self, plan="", *more):
        """With faults planned (see faults.py)."""
        words = [*self.launcher, sys.executable, FAULTS, plan, "train", f"--run_dir={self.run_dir}", *self.words, *more]
        with self.told.open("w") as told:
            self.process = subprocess.Popen(words, stdout=told, stderr=told, env=self.env)
        return self

    def end(self, code, *texts, seconds=300):
        """Waits for the end, which has an exit code and says some texts; nothing is lost or twice in metrics.jsonl."""
        try:
            self.process.wait(seconds)
        finally:
            self.process.kill()
        err = self.told.read_text()
        assert self.process.returncode == code, f"exit code {self.process.returncode}, not {code}\n{err}"
        assert "Traceback" not in err or self.launcher, err
        for text in texts:
            assert text in err, f"{text!r} is not in:\n{err}"
        seen = self.seen()
        assert seen == sorted(set(seen))
        return err

    def run(self, plan="", code=0, *texts, more=()):
        return self.start(plan, *more).end(code, *texts)

    def seen(self):
        """The images seen of all rows so far; a row that is being written is left out."""
        path = self.run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [int(line.split(",")[0].split(":")[1]) for line in lines if line.endswith("\n")]

    def until(self, happened):
        """Waits, while it runs."""
        end = time.monotonic() + 600
        while not happened():
            assert self.process.poll() is None, f"it ended too early:\n{self.told.read_text()}"
            assert time.monotonic() < end, self.told.read_text()
            time.sleep(0.005)

    def until_told(self, text, times=1):
        self.until(lambda: self.told.read_text().count(text) >= times)

    def until_seen(self, images):
        self.until(lambda: max(self.seen(), default=0) >= images)

    def newest(self):
        """The directory of the newest checkpoint."""
        return checkpoint.whole(self.run_dir / "checkpoints")[-1]


def side_by_side(*functions):
    with ThreadPoolExecutor(len(functions)) as pool:
        for each in [pool.submit(function) for function in functions]:
            each.result()


def state(run_dir):
    found = checkpoint.newest(run_dir / "checkpoints")
    assert found is not None
    return found


def assert_same(undisturbed, run_dir, but=()):
    """The same bits, but for some names, and the same rows."""
    one, other = state(undisturbed), state(run_dir)
    assert one.images_seen == other.images_seen
    assert one.arrays.keys() == other.arrays.keys()
    for name in one.arrays:
        assert name in but or np.array_equal(one.arrays[name], other.arrays[name]), name
    assert [numbers(row) for row in rows(run_dir)] == [numbers(row) for row in rows(undisturbed)]


@pytest.fixture(scope="module")
def steps(soak):
    return SOAK_STEPS if soak else STEPS


@pytest.fixture(scope="module")
def whole(tmp_path_factory, steps):
    """A run that nothing happens to: its directory, and what was sampled of its process."""
    life = Life(tmp_path_factory.mktemp("whole") / "run", *RUN, length(steps)).start()
    watch = Watch(life.process.pid, lambda: max(life.seen(), default=0))
    life.end(0, seconds=1500)
    return life.run_dir, watch.samples


def test_nothing_grows(whole, steps):
    """Neither memory nor open files nor threads, after the first tenth of a long run."""
    _, samples = whole
    total = steps * 16

    def levels(first, last):
        """The usual memory between two tenths of the run, and the files and threads that are always there."""
        part = [each[1:] for each in samples if first * total / 10 <= each[0] < last * total / 10]
        assert len(part) >= 3
        memory, files, threads = zip(*part, strict=True)
        return median(memory), min(files), min(threads)

    early, late = levels(1, 3), levels(7, 9.5)  # Before its end, where all is given back.
    print("MiB, files, threads:", *((memory // 2**20, *others) for memory, *others in (early, late)))
    assert late[0] < 1.02 * early[0]
    assert late[1] <= early[1]
    assert late[2] <= early[2]


STAGES = ("file", "manifest", "rename", "retention")


def kills(run_dir, steps, count):
    """SIGKILL at the stages of a save, and at random moments: all over the run, and before its first row."""
    draw, life = random.Random(0), Life(run_dir, *RUN, length(steps))
    for stage in STAGES:
        life.run(f"kill:{stage}:3", KILLED)
        left = {path.name for path in (run_dir / "checkpoints").glob(".tmp-*")}
        assert bool(left) == (stage != "retention")
    here, told = state(run_dir).images_seen, 0
    for moment in sorted(draw.uniform(here, 0.9 * 16 * steps) for _ in range(count)):
        before = len(life.seen())
        life.start()
        if draw.random() < 0.2:
            time.sleep(draw.uniform(0, 6))
        else:
            life.until_seen(moment)
            time.sleep(draw.uniform(0, 0.1))
        life.process.kill()
        life.end(KILLED)
        told += len(life.seen()) > before
    life.start().end(0, seconds=1500)
    # A start counts once it has the run directory: before its first row, and later than an early kill.
    assert len(STAGES) + told <= rows(run_dir)[-1]["progress/restarts"] <= len(STAGES) + count
    assert not list((run_dir / "checkpoints").glob(".tmp-*"))


def stops(run_dir, steps):
    """SIGTERM in a step, again and again, in a save; SIGINT; and damage to what was saved."""
    life = Life(run_dir, *RUN, length(steps))
    saves = run_dir / "checkpoints"
    life.run("terms:step:20", 75, "stopped by SIGTERM at", "saved; start it again to go on")
    for damage in DAMAGES:
        bad, before = life.newest(), [path.name for path in checkpoint.whole(saves)]
        damage(bad)
        err = life.run(
            "term:step:30", 75, "stopped by SIGTERM", f"{bad.name} is damaged", f"set aside as {bad.name}.corrupt"
        )
        assert (saves / f"{bad.name}.corrupt").is_dir()
        # That of the stop before was the newest, so the one before it is where this start went on.
        assert f"goes on at {int(before[-2]) / 1000:g} of" in err
    life.run("term:file:2,slow:manifest:2", 75, "fault: slow", "stopped by SIGTERM at")
    life.start().until_seen(life.seen()[-1] + 160)
    life.process.send_signal(signal.SIGINT)
    life.end(75, "stopped by SIGINT at")
    life.start().end(0, "goes on at", seconds=1500)


def test_one_rank_killed_and_stopped(whole, tmp_path, steps, soak):
    side_by_side(lambda: kills(tmp_path / "killed", steps, soak or 3), lambda: stops(tmp_path / "stopped", steps))
    assert_same(whole[0], tmp_path / "killed")
    assert_same(whole[0], tmp_path / "stopped")


def test_all_checkpoints_damaged(whole, tmp_path, refused):
    run_dir = shutil.copytree(whole[0], tmp_path / "run")
    found = checkpoint.whole(run_dir / "checkpoints")
    assert len(found) == 3
    for damage, path in zip((flip, truncate, lose), found, strict=True):
        damage(path)

    def content():
        files = [path for path in sorted(run_dir.rglob("*")) if path.parent.name.isdigit() or path.suffix == ".jsonl"]
        return {path: path.read_bytes() for path in files}

    before = content()
    line = refused("train", f"--run_dir={run_dir}", length(10000))
    assert f"{run_dir}/checkpoints: none of 3 checkpoints is whole" in line
    assert content() == before


def test_stop_in_an_evaluation(tmp_path):
    """It is made up for, and the scores and the best checkpoint are those of the undisturbed run."""
    words = (*RUN, length(60), "--evaluation.every_kimg=0.48", f"--data.cache_dir={tmp_path / 'cache'}")
    undisturbed, stopped = Life(tmp_path / "undisturbed", *words), Life(tmp_path / "stopped", *words)
    undisturbed.run()
    # Its first features are of the reals, the second of the fakes.
    stopped.run("term:evaluation:2", 75, "stopped by SIGTERM at 0.48 kimg", "saved")
    assert not (stopped.run_dir / "evaluations.jsonl").exists()
    # Made up for; the second one is ended, begun again, and ended by the last that can be: at the end of the run.
    stopped.run("kill:evaluation:4", KILLED)
    stopped.run("term:evaluation:2", 75, "stopped by SIGTERM at 0.96 kimg")
    stopped.run()
    # The last checkpoint is that of the stop, before the row of its place.
    assert_same(undisturbed.run_dir, stopped.run_dir, but=("report_totals", "report_counts"))
    one, other = ([each["scores"] for each in scores.read(life.run_dir)] for life in (undisturbed, stopped))
    assert len(one) == 2
    assert one == other
    best = [checkpoint.best_images_seen(life.run_dir / "checkpoints") for life in (undisturbed, stopped)]
    assert best[0] == best[1] is not None


def test_stop_in_a_compilation(tmp_path):
    """The main thread is in native code for long: a thread saves the copy in memory, and the process ends within the limit."""
    grace = 1
    words = (
        *SMALL,
        "--deterministic",
        "--jit_compile",
        "--train.sample_kimg=0",
        "--train.report_kimg=0.08",
        length(20),
    )
    words = (*words, "--model.width=32", f"--checkpoint.grace_seconds={grace}", "--tracking.wandb=offline")
    undisturbed, stopped = Life(tmp_path / "undisturbed", *words), Life(tmp_path / "stopped", *words)
    stopped.start("term:step:1").until_told("fault: term")
    begun = time.monotonic()
    err = stopped.end(75, f"stopped by SIGTERM while step 0 took more than {grace} s; the state before it is saved")
    assert time.monotonic() - begun < 3 * grace + 3, err
    assert state(stopped.run_dir).images_seen == 0
    preempted = next(stopped.run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    end = time.monotonic() + 60
    while wandb_files.exit_code(preempted) is None:  # W&B's process ends after the trainer.
        assert time.monotonic() < end
        time.sleep(0.1)
    assert wandb_files.exit_code(preempted) == 75
    assert any(record.HasField("preempting") for record in wandb_files.records(preempted))
    side_by_side(undisturbed.run, stopped.run)
    assert_same(undisturbed.run_dir, stopped.run_dir)
    assert rows(stopped.run_dir)[-1]["progress/restarts"] == 1


def trouble(life, bad, folder):
    """Saves fail for a while, which is told once, and costs nothing."""
    life.start().until(lambda: checkpoint.whole(life.run_dir / "checkpoints"))
    with bad(folder):
        life.until_told("no checkpoint can be saved")
        told = life.told.read_text().count(" of ")
        life.until(lambda: life.told.read_text().count(" of ") > told + 5)
    err = life.end(0, "checkpoints are written again")
    assert err.count("no checkpoint can be saved") == 1
    return err


def test_disk_is_bad_for_a_while(whole, tmp_path, steps):
    """Full, or read-only; and the same where an error ends the run."""
    with memory_disk(tmp_path / "disk", "size=4m") as disk, memory_disk(tmp_path / "other", "size=4m") as other:
        lives = [
            Life(disk / "run", *RUN, length(steps)),
            Life(tmp_path / "run", *RUN, length(steps), launcher=honest()),
        ]
        side_by_side(
            lambda: trouble(lives[0], full, disk),
            lambda: trouble(lives[1], read_only, lives[1].run_dir),
        )
        for life in lives:
            assert_same(whole[0], life.run_dir)
        env = environment() | {"TMPDIR": str(tmp_path)}  # Where the last state goes.
        failing = Life(other / "run", *RUN, length(steps), "--checkpoint.on_error=fail", env=env)
        failing.start().until(lambda: checkpoint.whole(other / "run" / "checkpoints"))
        with full(other):
            err = failing.end(2, "No space left on device")
        assert len([line for line in err.splitlines() if line.startswith("distgan: ")]) == 1
        failing.run()
        assert_same(whole[0], failing.run_dir)


HOROVODRUN = (str(Path(sys.executable).with_name("horovodrun")), "--gloo", "-np", "2")


def test_two_ranks_killed_and_stopped(tmp_path, soak):
    """Horovod's: each is killed, and one is told to stop."""
    steps, draw = (1000 if soak else 300), random.Random(1)
    undisturbed = Life(tmp_path / "undisturbed", *RUN, length(steps), launcher=HOROVODRUN)
    life = Life(tmp_path / "run", *RUN, length(steps), launcher=HOROVODRUN)

    def chain():
        # horovodrun ends with 1, whatever its ranks end with.
        life.run("kill:rename:3@0", 1, "fault: kill at rename 3")
        here = state(life.run_dir).images_seen
        for moment in sorted(draw.uniform(here, 0.8 * 16 * steps) for _ in range(soak // 3 or 1)):
            life.start().until_seen(moment)
            os.kill(ranks(life.run_dir)[draw.choice([0, 1])], signal.SIGKILL)
            life.end(1)
        life.run("terms:step:10@1", 1, "stopped by SIGTERM at", "saved; start it again to go on")
        log = (life.run_dir / "log.1.txt").read_text()
        assert "stopped by SIGTERM at" in log.splitlines()[-1]
        life.run()

    side_by_side(undisturbed.run, chain)
    assert_same(undisturbed.run_dir, life.run_dir)


def test_workers_start_again_one_by_one(tmp_path):
    """multiworker: one is killed and started at once, while the primary is ending or gone; then the primary."""
    words = [*SMALL, "--train.report_kimg=0.08", "--train.sample_kimg=0", "--checkpoint.every_kimg=0.16"]
    configs = clusters(local_addresses(2))
    lives = [
        Life(tmp_path / "run", *words, env=environment() | {"TF_CONFIG": each}, name=f".{rank}")
        for rank, each in enumerate(configs)
    ]

    def both(plan="", *more):
        return [life.start(plan, *more) for life in lives]

    primary, other = both("kill:step:12@1", length(10000))
    other.end(KILLED)
    # At once, and again while the primary leaves: it waits for the next primary, within --runtime.join_timeout_seconds.
    other.start("", length(10000))
    primary.end(1, "rank 1 on", "ended without a word")
    primary.start("", length(10000))
    primary.until_told(f"goes on at {state(primary.run_dir).images_seen / 1000:g} of")
    # The other way round: the primary is killed, and is there again before the other has left.
    primary.until_seen(max(primary.seen(), default=0) + 1)
    primary.process.kill()
    primary.end(KILLED)
    primary.start("terms:step:5", length(10000))
    other.end(1, "the primary (rank 0) ended without a word")
    # It hears of the stop from the primary, and is sent a signal of its own when it has answered.
    other.start("term:exit:1", length(10000))
    primary.end(75, "stopped by SIGTERM")
    other.end(75, "fault: term at exit")
    total = state(primary.run_dir).images_seen // 16 + 10
    both("", length(total))
    for life in lives:
        life.end(0)
    undisturbed = Life(tmp_path / "one", *words, length(total))
    undisturbed.run()
    assert primary.seen() == undisturbed.seen()
    found = state(primary.run_dir).arrays
    for name, array in state(undisturbed.run_dir).arrays.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4, err_msg=name)


def test_saved_at_any_number_and_restored_at_any_other(tmp_path):
    env = environment() | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    command = [sys.executable, str(REPOSITORY / "tests" / "worlds.py")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    finish_all([subprocess.Popen([*command, str(size), tmp_path], env=env, **pipes) for size in SIZES], seconds=600)
    with np.load(tmp_path / "undisturbed.npz") as undisturbed:
        for saved_at, size in itertools.product(SIZES, SIZES):
            with np.load(tmp_path / f"{saved_at}-{size}.npz") as found:
                assert set(found) == set(undisturbed)
                for name, array in undisturbed.items():
                    message = f"{name}, saved at {saved_at}, restored at {size}"
                    np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-12, err_msg=message)


def test_what_is_kept(tmp_path):
    """The newest whole ones and the best, which damaged ones neither push out nor count among."""
    folder = tmp_path / "checkpoints"

    def save(images_seen, best=False, keep=2):
        arrays = {"generator/a": np.arange(4.0), "discriminator/b": np.ones(3), "images_seen": np.array(images_seen)}
        checkpoint.write(folder, Checkpoint(arrays, {"images_seen": images_seen}), keep, best)

    def there():
        return [int(path.name) for path in sorted(folder.iterdir()) if path.name.isdigit()]

    save(10, best=True)
    for images_seen in (20, 30, 40):
        save(images_seen)
    assert there() == [10, 30, 40]
    truncate(folder / f"{40:012d}")
    save(50)
    assert there() == [10, 30, 40, 50]
    assert [int(path.name) for path in checkpoint.whole(folder)] == [10, 30, 50]
    for images_seen in (30, 50):
        truncate(folder / f"{images_seen:012d}")
    # All that is left is the best; what cannot be written removes nothing.
    full_disk = mock.patch.object(checkpoint, "_write_through", side_effect=OSError(28, "No space left on device"))
    with full_disk, pytest.raises(OSError, match="No space"):
        save(60, keep=1)
    assert checkpoint.newest(folder).images_seen == 10
    # Nor does one that is written, and is not what is read back.
    with (
        mock.patch.object(checkpoint, "damage", return_value="rotten"),
        pytest.raises(OSError, match="not what is read"),
    ):
        save(70, keep=1)
    assert checkpoint.newest(folder).images_seen == 70
    assert checkpoint.find(folder, "best", "checkpoint").images_seen == 10
    # What is damaged is written anew where the same images come again.
    truncate(folder / f"{70:012d}")
    save(70, keep=1)
    assert there() == [10, 30, 40, 50, 70]
    assert not checkpoint.damage(folder / f"{70:012d}")
    assert (folder / f"{70:012d}.corrupt").is_dir()


def test_soak(whole, tmp_path, steps):
    """Ten faults of four kinds, one every tenth of a long run; without --soak four."""
    draw, count = random.Random(2), (10 if steps == SOAK_STEPS else 4)
    with memory_disk(tmp_path / "disk", "size=6m") as disk:
        life = Life(disk / "run", *RUN, length(steps))
        for number, kind in enumerate(itertools.islice(itertools.cycle(["term", "damage", "disk", "kill"]), count)):
            life.start().until_seen((number + draw.uniform(0.3, 0.7)) * 16 * steps / count)
            if kind == "disk":
                with full(disk):
                    life.until_told("no checkpoint can be saved")
                    life.process.kill()
                    life.end(KILLED)
                continue
            life.process.send_signal(signal.SIGTERM if kind == "term" else signal.SIGKILL)
            life.end(75 if kind == "term" else KILLED)
            if kind == "damage":
                draw.choice(DAMAGES)(life.newest())
        life.start().end(0, seconds=1500)
        assert_same(whole[0], life.run_dir)
        assert rows(life.run_dir)[-1]["progress/restarts"] == count
