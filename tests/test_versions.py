"""The oldest and the newest Python and TensorFlow, each in an environment of its own: both give the golden losses.

With --soak all pairs of them.
"""

import json
import subprocess

import pytest
from conftest import REPOSITORY, environment, rows
from environments import PYTHONS, pair
from golden import make
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OLDEST, NEWEST = ("3.11", "2.20"), ("3.13", "2.21")
OTHERS = [
    pytest.param((python, tensorflow), marks=pytest.mark.soak)
    for python in PYTHONS
    for tensorflow in ("2.20", "2.21")
    if (python, tensorflow) not in (OLDEST, NEWEST)
]
STEPS = {10: "--train.total_kimg=0.64", 20: "--train.total_kimg=1.28"}
SECONDS = 300


def distgan(versions, *words, ranks=0):
    """Runs `distgan` of a pair, under horovodrun where there are ranks; returns what it wrote to stderr."""
    python = pair(*versions)
    launcher = [python.with_name("horovodrun"), "--gloo", "-np", ranks] if ranks else []
    command = list(map(str, [*launcher, python, "-m", "distgan", *words]))
    env = environment() | {"PATH": f"{python.parent}:{environment()['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("echo 3.10", "is Python 3.10: Python 3.11 to 3.13 is needed"),
        ("echo 3.14", "is Python 3.14: Python 3.11 to 3.13 is needed"),
        ("echo no such version; exit 127", "is missing or does not start: Python 3.11 to 3.13 is needed"),
    ],
)
def test_setup_refuses_another_python(program, said, tmp_path):
    python = tmp_path / "python3"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    command = ["bash", "-c", f". {REPOSITORY}/launch/setup.sh"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment() | {"PYTHON": str(python)})
    assert done.returncode == 2
    assert done.stderr == f"launch: {python} {said}: install one, or name it by PYTHON=...\n"


@pytest.mark.parametrize("versions", [OLDEST, NEWEST, *OTHERS], ids="-".join)
def test_train_resume_evaluate_export(versions, tmp_path):
    run_dir = tmp_path / "run"
    words = ["train", f"--run_dir={run_dir}", *make.FLAGS]
    err = distgan(versions, *words, STEPS[10], "--tracking.tensorboard")
    # TensorFlow 2.21 writes the files, and brings nothing to look at them with.
    assert ("pip install '.[tensorboard]'" in err) == (versions[1] == "2.21")
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    written = [event.value for event in events.Scalars("loss/generator")]
    assert written == pytest.approx([row["loss/generator"] for row in rows(run_dir)])
    assert "->" not in distgan(versions, *words, STEPS[20])
    make.check(run_dir)
    for start in json.loads((run_dir / "config.json").read_text())["starts"]:
        assert start["versions"]["tensorflow"].startswith(versions[1])
        assert start["versions"]["python"].startswith(versions[0])

    scores = tmp_path / "scores.json"
    counts = ["--evaluation.metrics=fid", "--evaluation.fid.count=300", f"--data.cache_dir={tmp_path}"]
    distgan(versions, "evaluate", f"--run_dir={run_dir}", *counts, f"--out={scores}")
    assert "fid" in scores.read_text()
    # It compares what the SavedModel draws with what the run's generator draws.
    distgan(versions, "export", f"--run_dir={run_dir}", f"--out={tmp_path / 'model'}")
    assert (tmp_path / "model" / "README.md").exists()


@pytest.mark.parametrize("versions", [OLDEST, NEWEST, *OTHERS], ids="-".join)
def test_two_ranks(versions, tmp_path):
    distgan(versions, "train", f"--run_dir={tmp_path}", *make.FLAGS, STEPS[20], ranks=2)
    make.check(tmp_path)


@pytest.mark.parametrize(
    ("first", "then"),
    [(OLDEST, NEWEST), pytest.param(NEWEST, OLDEST, marks=pytest.mark.soak)],
    ids=["upgraded", "downgraded"],
)
def test_a_run_goes_on_with_another_version(first, then, tmp_path):
    """As if it had been trained with one alone, and it says so."""
    run_dir = tmp_path / "run"
    words = ["train", f"--run_dir={run_dir}", *make.FLAGS]
    distgan(first, *words, STEPS[10])
    err = distgan(then, *words, STEPS[20])
    starts = json.loads((run_dir / "config.json").read_text())["starts"]
    before, after = (start["versions"]["tensorflow"] for start in starts)
    assert f"tensorflow {before} -> {after}" in err
    make.check(run_dir)
