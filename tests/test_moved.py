"""A run directory that is moved, deleted, or taken by something else while its run writes to it."""

import dataclasses
import json
import re
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, environment, finish, rows, start
from wandb_files import history

from distgan import config as configs
from distgan import presets, schema
from distgan.errors import UserError
from distgan.training import checkpoint
from distgan.training.checkpoint import Checkpoint
from distgan.training.run_dir import RunDir, read_config
from distgan.training.saving import Saver, Snapshots

CONFIG = schema.build(configs.Config, presets.preset("digits-dcgan"))


def opened(path):
    return RunDir(path, CONFIG, "fingerprint")


def locked(path):
    with pytest.raises(UserError, match="another process trains there"):
        opened(path)
    return True


def test_it_is_followed(tmp_path, said):
    """Wherever it is moved, also where another run is in its place, or a link leads there."""
    directory = opened(tmp_path / "run")
    assert directory.find() == tmp_path / "run"
    for name, in_its_place in (
        ("a", lambda path: None),
        ("b", lambda path: opened(path).close()),
        ("c", lambda path: path.touch()),
    ):
        before = directory.path
        before.rename(tmp_path / name)
        in_its_place(before)
        assert directory.find() == tmp_path / name
        assert said[-1] == f"--run_dir={before} was moved: the run goes on in --run_dir={tmp_path / name}"
        assert locked(tmp_path / name)
    (tmp_path / "d").symlink_to(directory.path)
    assert directory.find() == tmp_path / "c"
    assert directory.moves == 3
    directory.close()


def test_it_is_gone(tmp_path, said):
    path = tmp_path / "runs" / "run"
    directory = opened(path)
    content = (path / "config.json").read_bytes()
    for gone in (path, path.parent):
        shutil.rmtree(gone)
        assert directory.checkpoints() == path / "checkpoints"
        assert (path / "config.json").read_bytes() == content
        assert f"--run_dir={path} is gone: it is made anew" in said[-1]
        assert locked(path)
    # As where its disk is mounted anew: the same run, in another directory.
    path.rename(tmp_path / "other")
    shutil.copytree(tmp_path / "other", path)
    shutil.rmtree(tmp_path / "other")
    assert directory.find() == path
    assert "is another mount of the same directory" in said[-1]
    # Another run, one that is going on, a file.
    shutil.rmtree(path)
    RunDir(path, dataclasses.replace(CONFIG, seed=5), "fingerprint").close()
    with pytest.raises(OSError, match="another run is in its place"):
        directory.find()
    (path / "config.json").unlink()
    other = opened(path)
    (path / "config.json").unlink()
    with pytest.raises(OSError, match="another run is in its place"):
        directory.find()
    other.close()
    shutil.rmtree(path)
    path.touch()
    with pytest.raises(FileExistsError):
        directory.find()
    path.unlink()
    assert directory.find() == path
    directory.close()


def delete(folder):
    """Though files come to it meanwhile."""
    gone = folder.stat().st_ino
    while folder.exists() and folder.stat().st_ino == gone:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_checkpoint_that_goes_after_the_last_save(tmp_path, monkeypatch, said):
    """As while W&B's uploads are waited for."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    directory = opened(tmp_path / "run")
    snapshots = Snapshots(lambda: Checkpoint({"a": np.zeros(1)}, {"images_seen": 16}))
    saver = Saver(directory.checkpoints, CONFIG.checkpoint, snapshots, elsewhere=directory.save_elsewhere)
    saver.save_last()
    for gone in (directory.checkpoints(), directory.path):
        shutil.rmtree(gone)
        saver.make_sure()
        assert checkpoint.newest(directory.checkpoints()).images_seen == 16
        assert read_config(directory.path)
    shutil.rmtree(directory.path)
    directory.path.touch()
    with pytest.raises(UserError, match="no checkpoint can be saved"):
        saver.make_sure()
    saved = Path(re.search(r"kimg is saved in --run_dir=(\S+) instead", said[-1])[1])
    assert checkpoint.newest(saved / "checkpoints").images_seen == 16
    directory.close()


WORDS = (*SMALL[:2], "--tracking.wandb=offline", "--train.total_kimg=3.2", "--train.report_kimg=0.16")
WORDS += ("--train.sample_kimg=1.6", "--checkpoint.every_kimg=0.32")


def test_a_run_whose_directory_goes(tmp_path):
    """Moved, it is followed; deleted, it is made anew; where neither can be, the state is saved elsewhere, which is said."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    names, env = ("moved", "deleted", "blocked"), environment() | {"TMPDIR": str(elsewhere)}
    runs = {name: tmp_path / name / "run" for name in names}
    more = {"blocked": ["--checkpoint.on_error=fail"]}
    processes = {
        name: start("train", f"--run_dir={path}", *WORDS, *more.get(name, []), env=env) for name, path in runs.items()
    }
    for name, path in runs.items():
        while not checkpoint.whole(path / "checkpoints"):
            assert processes[name].poll() is None, processes[name].communicate()
            time.sleep(0.02)
        if name == "moved":
            path.rename(tmp_path / "new-moved")
        elif name == "deleted":
            delete(path)
        while name == "blocked" and not path.is_file():
            delete(path)
            path.touch()
    errors = {name: finish(process, 2 if name == "blocked" else 0)[1] for name, process in processes.items()}
    assert not any("Traceback" in err for err in errors.values())
    ends = {"moved": tmp_path / "new-moved", "deleted": runs["deleted"]}
    for name, path in ends.items():
        assert f"done: 3.2 kimg, samples in {path}/samples" in errors[name]
        assert checkpoint.newest(path / "checkpoints").images_seen == 3200
        assert [row["progress/images_seen"] for row in rows(path)] == list(range(160, 3201, 160))
        log = [line.partition(" ")[2] for line in (path / "log.txt").read_text().splitlines()]
        assert log == errors[name].splitlines()[2:]  # Two came before the run directory.
        assert read_config(path)
    assert not (runs["moved"] / "config.json").exists()
    for name, path in ends.items():  # What was logged for W&B and went with the directory, the next start hands on.
        logged = sum(
            "loss/discriminator" in row for file in path.glob("wandb/offline*/*.wandb") for row in history(file)
        )
        lost = json.loads((path / "wandb_run.json").read_text())["high_water_images"] == -1
        assert logged == (0 if lost else 20)
        assert ("the next start hands it all rows" in errors[name]) == lost
    [line] = [line for line in errors["blocked"].splitlines() if line.startswith("distgan: ")]
    [saved] = [path for path in elsewhere.iterdir() if path.name.startswith("run-")]
    assert f"--run_dir={runs['blocked']}" in line
    assert f"kimg is saved in --run_dir={saved} instead" in errors["blocked"]
    assert read_config(saved)["train.total_kimg"] == 3.2
    assert checkpoint.newest(saved / "checkpoints").images_seen > 0
