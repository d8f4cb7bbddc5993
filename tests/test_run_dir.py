"""The run directory: what is written, who may write, and a disk that is read-only."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SMALL, distgan, finish, rows, start
from faults import memory_disk
from PIL import Image
from wandb_files import history

from distgan import config as configs
from distgan import presets, schema
from distgan.errors import UserError
from distgan.training.run_dir import RunDir, read_config

TEN_STEPS = (*SMALL, "--train.total_kimg=0.16", "--train.report_kimg=0.032", "--checkpoint.every_kimg=0.08")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of ten steps that is complete."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    _, err = distgan("train", f"--run_dir={run_dir}", *TEN_STEPS, "--train.sample_kimg=0.08")
    return run_dir, err


def test_contents(finished):
    run_dir, err = finished
    assert {path.name for path in run_dir.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "samples",
        "checkpoints",
        "log.txt",
    }
    grids = {"000000.png", "000000.080.png", "000000.160.png"}
    assert {path.name for path in (run_dir / "samples").iterdir()} == {*grids, "reals.png"}
    assert [path.name for path in sorted((run_dir / "checkpoints").iterdir())] == ["000000000080", "000000000160"]
    found = rows(run_dir)
    assert [row["progress/images_seen"] for row in found] == [32, 64, 96, 128, 160]
    for key in (
        "progress/kimg",
        "progress/step",
        "progress/restarts",
        "loss/discriminator",
        "loss/generator",
        "d_logits/real_mean",
        "d_logits/fake_mean",
        "d_sign/real",
        "d_sign/fake",
        "grad_norm/generator",
        "grad_norm/discriminator",
        "lr/generator",
        "lr/discriminator",
        "throughput/images_per_second",
        "throughput/images_per_second_per_replica",
        "time/step_ms",
        "time/data_wait_ms",
        "memory/host_peak_gb",
    ):
        assert all(np.isfinite(row[key]) for row in found), key
    assert "strategy single (auto: 1 CPU found)" in err
    assert "0.2 of 0.16 kimg" in err
    assert "left  loss D" in err
    with Image.open(run_dir / "samples" / "reals.png") as picture:
        assert picture.size[0] >= 400


@pytest.mark.parametrize(
    ("interval", "step", "total"),
    [
        (16, 16, 5000),
        (80, 16, 160),
        (1000, 64, 20_000),
        (500, 64, 20_000),
        (999, 7, 9000),
        (10, 2048, 50_000),
        (5000, 96, 12_345),
    ],
)
def test_no_grid_overwrites_another(interval, step, total):
    """However often there is one; that of the first step in a kimg has the name of the kimg."""
    steps = range(0, total + step, step)
    due = [seen for seen in steps if seen // interval > (seen - step) // interval or seen >= total]
    place = SimpleNamespace(path=Path("run"))
    names = [RunDir.sample_path(place, seen, step).name for seen in due]
    assert len(set(names)) == len(due)
    assert names == sorted(names, key=lambda name: float(name.removesuffix(".png")))
    whole = [name for seen, name in zip(due, names, strict=True) if seen % 1000 < step]
    assert all(re.fullmatch(r"\d{6}\.png", name) for name in whole)


def test_config_json(finished):
    run_dir, _ = finished
    content = json.loads((run_dir / "config.json").read_text())
    config = schema.build(configs.Config, content["config"])
    assert config.train.global_batch == 16
    assert config.model.name.options.width == 4
    assert {"python", "keras", "distgan", "numpy"} <= content["starts"][0]["versions"].keys()
    assert content["starts"][0]["command"][1] == "train"


def test_a_complete_run_says_so(finished):
    run_dir, _ = finished
    before = (run_dir / "metrics.jsonl").read_text()
    _, err = distgan("train", f"--run_dir={run_dir}")
    assert "nothing left to do" in err
    assert (run_dir / "metrics.jsonl").read_text() == before


def test_another_config_is_refused(finished, refused):
    run_dir, _ = finished
    # Kept, as a debugger does: the lock must not depend on the error's end.
    errors = []
    for seed in (5, 6):
        config = schema.build(configs.Config, {**read_config(run_dir), "seed": seed})
        with pytest.raises(UserError, match="holds another run") as error:
            RunDir(run_dir, config, "fingerprint")
        errors.append(error)
    line = refused("train", f"--run_dir={run_dir}", "--seed=5", "--model.width=8", "--checkpoint.keep=9")
    assert "holds another run: model.width=4 (now 8), seed=0 (now 5)" in line
    assert "keep" not in line
    line = refused("train", f"--run_dir={run_dir}", "--preset=cifar10-dcgan", "--data.source=synthetic")
    assert "data.source=digits (now synthetic)" in line


def test_a_run_from_before_a_field_goes_by_its_default(tmp_path):
    config = schema.build(configs.Config, presets.preset("digits-dcgan"))
    RunDir(tmp_path, config, "fingerprint").close()
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    del content["config"]["train.fake_labels"]
    file.write_text(json.dumps(content))
    RunDir(tmp_path, config, "fingerprint").close()
    changed = schema.build(configs.Config, presets.preset("digits-dcgan") | {"train.fake_labels": "uniform"})
    with pytest.raises(UserError, match=r"train.fake_labels=data \(now uniform\)"):
        RunDir(tmp_path, changed, "fingerprint")


def test_other_versions_are_named(tmp_path, said):
    """Of what computes, and of the last start: neither of what was before that, nor of what does not compute."""
    config = schema.build(configs.Config, presets.preset("digits-dcgan"))
    for _ in range(2):
        RunDir(tmp_path, config, "fingerprint").close()
    assert not said
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    last = content["starts"][1]["versions"]
    now = last["tensorflow"]
    content["starts"][0]["versions"]["keras"] = "3.1.0"
    last.update(tensorflow="2.9.0", wandb="0.1.0", python="3.9.0")
    file.write_text(json.dumps(content))
    for _ in range(2):
        RunDir(tmp_path, config, "fingerprint").close()
    expected = f"tensorflow 2.9.0 -> {now} since this run's last start: its numbers may differ from here on by rounding"
    assert said == [expected]


def test_other_data_is_refused(tmp_path):
    config = schema.build(configs.Config, presets.preset("digits-dcgan"))
    RunDir(tmp_path, config, "fingerprint").close()
    with pytest.raises(UserError, match="other data"):
        RunDir(tmp_path, config, "another")


def test_one_writer(tmp_path):
    config = schema.build(configs.Config, presets.preset("digits-dcgan"))
    held = RunDir(tmp_path, config, "fingerprint")
    with pytest.raises(UserError, match="another process trains there"):
        RunDir(tmp_path, config, "fingerprint")
    held.close()
    RunDir(tmp_path, config, "fingerprint").close()


def test_damaged_config(tmp_path, refused):
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be read" in refused("train", f"--run_dir={tmp_path}")


def test_sample(finished, tmp_path):
    run_dir, _ = finished
    for count in (3, 70):
        out = tmp_path / f"{count}.npz"
        distgan("sample", f"--run_dir={run_dir}", f"--sample.count={count}", "--sample.seed=7", f"--out={out}")
    few, many = (np.load(tmp_path / f"{count}.npz")["images"] for count in (3, 70))
    assert many.shape == (70, 16, 16, 1)
    assert many.dtype == np.uint8
    assert np.array_equal(many[:3], few)
    assert len(np.unique(many, axis=0)) == 70
    out, _ = distgan("sample", f"--run_dir={run_dir}")
    assert "sample-000000-seed0.png" in out
    # The fixed grid of training is that of the run's seed.
    last = (run_dir / "samples" / "000000.160.png").read_bytes()
    assert (run_dir / "sample-000000-seed0.png").read_bytes() == last


def test_sample_out(finished, refused, tmp_path):
    run_dir, _ = finished
    there = tmp_path / "there.png"
    there.write_text("mine")
    assert "exists" in refused("sample", f"--run_dir={run_dir}", f"--out={there}")
    assert there.read_text() == "mine"
    assert "ends in none of .png, .npz" in refused("sample", f"--run_dir={run_dir}", f"--out={tmp_path / 'x.jpg'}")
    assert "does not exist" in refused("sample", f"--run_dir={run_dir}", f"--out={tmp_path / 'no' / 'x.png'}")


def test_read_only_disk(tmp_path, refused):
    with memory_disk(tmp_path / "disk", "size=1m,ro") as disk:
        line = refused("train", f"--run_dir={disk / 'run'}")
    assert f"--run_dir={disk / 'run'} cannot be written: Read-only file system" in line


def traced(run_dir):
    """The names of what the newest trace holds."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    trace = max((run_dir / "profile").glob("plugins/profile/*/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    space = xplane_pb2.XSpace.FromString(trace.read_bytes())
    return {metadata.name for plane in space.planes for metadata in plane.event_metadata.values()}


def test_profile(tmp_path):
    """Of the steps asked for, of those before the run's end, and of those that are left when it goes on."""
    run_dir = tmp_path / "run"
    words = ["train", f"--run_dir={run_dir}", *TEN_STEPS]
    _, err = distgan(*words, "--runtime.profile_steps=3:6")
    assert "profile of steps 3:6 written to" in err
    assert any("Conv2D" in name for name in traced(run_dir))
    shutil.rmtree(run_dir / "profile")
    _, err = distgan(*words, "--train.total_kimg=0.32", "--runtime.profile_steps=5:100")
    assert "profile of steps 5:100 written to" in err
    assert any("Conv2D" in name for name in traced(run_dir))


def test_wandb_offline(tmp_path):
    """Two starts are one run, whose files hold every row and the pictures."""
    words = ["train", f"--run_dir={tmp_path}", *TEN_STEPS, "--tracking.wandb=offline"]
    _, err = distgan(*words)
    run_id = json.loads((tmp_path / "wandb_run.json").read_text())["id"]
    assert f"W&B offline, run {run_id}" in err
    distgan(*words, "--train.total_kimg=0.32")
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2
    logged = [row for file in files for row in history(file)]
    reported = [row for row in logged if "loss/discriminator" in row]
    assert [row["progress/images_seen"] for row in reported] == [row["progress/images_seen"] for row in rows(tmp_path)]
    for row, other in zip(reported, rows(tmp_path), strict=True):
        assert row["loss/discriminator"] == pytest.approx(other["loss/discriminator"])
    assert any(key.startswith("samples/ema_grid") for row in logged for key in row)


def test_two_processes_one_run_dir(tmp_path):
    words = ["train", f"--run_dir={tmp_path}", *SMALL, "--train.total_kimg=100", "--checkpoint.every_kimg=0.016"]
    first = start(*words)
    try:
        while not (tmp_path / "checkpoints").exists():
            assert first.poll() is None
        _, err = finish(start(*words), 2)
        assert "another process trains there" in err
    finally:
        first.kill()
        first.communicate()
