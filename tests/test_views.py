"""A real short run, stopped once, as TensorBoard, the W&B workspace and the report show it."""

import io
import json
import re
import sys

import numpy as np
import pytest
from conftest import SMALL, distgan, rows
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distgan import cli, tracking
from distgan.tracking import panels
from distgan.tracking.console import log
from distgan.tracking.tensorboard import TensorBoard

# Of rows of several workers, of machines with GPUs, of runs with other parts.
ELSEWHERE = {
    "workers/step_ms_slowest",
    "workers/slowest_rank",
    "node/0/gpu_utilization",
    "node/0/gpu_memory_gb",
    "node/0/gpu_power_watts",
    "time/reduction_wait_ms",
    "time/checkpoint_s",
    "health/nonfinite_steps",
    "loss_scale/generator/scale",
    "d_logits/real",
    "d_logits/fake",
    "samples/ema_grid",
    "samples/real_grid",
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run that was started twice."""
    path = tmp_path_factory.mktemp("views") / "run"
    words = ["train", f"--run_dir={path}", *SMALL, "--tracking.tensorboard", "--train.report_kimg=0.064"]
    words += ["--train.sample_kimg=0.064", "--objective.regularizers=r1", "--objective.augmentation=ada"]
    words += ["--evaluation.every_kimg=0.128", "--evaluation.metrics=fid,kid,pr,dc"]
    words += [f"--evaluation.{name}.count=64" for name in ("fid", "kid", "pr", "dc")]
    words += ["--evaluation.kid.subset_size=32"]
    distgan(*words, "--train.total_kimg=0.128")
    distgan(*words, "--train.total_kimg=0.256")
    return path


def test_tensorboard_has_the_rows(run_dir):
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    written = rows(run_dir)
    assert [row["progress/images_seen"] for row in written] == [64, 128, 192, 256]
    assert set(events.Tags()["scalars"]) == {key for row in written for key in row}
    for key in events.Tags()["scalars"]:
        found = [(event.step, event.value) for event in events.Scalars(key)]
        # Event files hold float32.
        expected = [(row["progress/images_seen"], float(np.float32(row[key]))) for row in written if key in row]
        assert found == expected, key
    assert [event.step for event in events.Images("samples/real_grid")] == [0]
    grids = events.Images("samples/ema_grid")
    assert {event.step for event in grids} == {0, 64, 128, 192, 256}
    assert grids[-1].encoded_image_string == (run_dir / "samples" / "000000.256.png").read_bytes()
    assert len(list((run_dir / "samples").glob("0*.png"))) == len(grids)
    with Image.open(io.BytesIO(grids[-1].encoded_image_string)) as picture:
        assert picture.size == (grids[-1].width, grids[-1].height)


def test_a_disk_that_fails_is_harmless(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    (tmp_path / "tensorboard").write_text("a file in the way")
    events = TensorBoard(tmp_path / "tensorboard")
    for seen in (64, 128):
        events.row({"progress/images_seen": seen})
    events.close(0)
    assert [message for message in caplog.messages if "tensorboard is not written any more" in message]


@pytest.mark.parametrize("there", [True, False])
def test_it_writes_without_tensorboard(tmp_path, said, monkeypatch, there):
    if not there:
        monkeypatch.setitem(sys.modules, "tensorboard", None)
    events = TensorBoard(tmp_path)
    events.row({"progress/images_seen": 64})
    events.close(0)
    assert ["pip install '.[tensorboard]'" in message for message in said] == ([] if there else [True])
    monkeypatch.undo()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [event.value for event in found.Scalars("progress/images_seen")] == [64]


def test_panels_name_what_rows_have(run_dir):
    keys = {key for row in rows(run_dir) for key in row} | ELSEWHERE
    for panel in (panel for section in panels.SECTIONS.values() for panel in section):
        for pattern in panel.keys:
            if pattern not in ("eval/class_fid*",):
                assert any(panels.Panel("", (pattern,)).matches(key) for key in keys), pattern
    placed = panels.arrange(keys - {"d_logits/real", "d_logits/fake", "samples/ema_grid", "samples/real_grid"})
    assert "More" not in placed, placed["More"]


def test_the_dashboard_names_what_rows_have(run_dir, tmp_path, capsys):
    keys = {key for row in rows(run_dir) for key in row} | ELSEWHERE
    config = json.loads((run_dir / "config.json").read_text())["config"]
    assert cli.main(["dashboard", "--project=birds", "--entity=us", f"--out={tmp_path}/out.json"]) == 0
    assert "not sent (--out)" in capsys.readouterr().err
    view = json.loads((tmp_path / "out.json").read_text())
    assert (view["project"], view["entity"]) == ("birds", "us")
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    titles = ["Now", "Samples", *panels.SECTIONS, "Across runs"]
    assert [section["name"] for section in sections] == titles
    charts = [chart["config"] for section in sections for chart in section["panels"]]
    for chart in charts:
        for key in [*chart.get("metrics", []), *chart.get("mediaKeys", [])]:
            assert key in keys, key
        if "metricRegex" in chart:
            assert any(re.search(chart["metricRegex"], key) for key in keys), chart
        if chart.get("metrics") or "metricRegex" in chart:
            assert chart.get("xAxis") in ("progress/images_seen", "_runtime", None)
        for column in chart.get("columns", []):
            kind, _, name = column["accessor"].partition(":")
            assert kind == "summary" or name.replace(".value", "") in config, column
    assert sum("metrics" in chart for chart in charts) > 20


def test_the_dashboard_without_a_server(capsys, monkeypatch, tmp_path, refused):
    monkeypatch.setattr("distgan.tracking.wandb_run.has_key", lambda: False)
    assert cli.main(["dashboard", "--project=birds"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["project"] == "birds"
    assert "not sent (no W&B key was found)" in err
    monkeypatch.setattr("distgan.tracking.wandb_run.has_key", lambda: True)
    assert "--entity is missing" in refused("dashboard")
    # A server that refuses, and one that takes it.
    import wandb_workspaces.workspaces as workspaces

    def refuse(workspace):
        raise ConnectionError("refused\nwith details")

    monkeypatch.setattr(workspaces.Workspace, "save", refuse)
    assert cli.main(["dashboard", "--entity=us"]) == 0
    out, err = capsys.readouterr()
    assert err == "distgan: not sent (ConnectionError: refused): this is what the workspace would be\n"
    assert json.loads(out)["entity"] == "us"
    sent = []
    monkeypatch.setattr(workspaces.Workspace, "save", lambda workspace: sent.append(workspace) or workspace)
    monkeypatch.setattr(workspaces.Workspace, "url", property(lambda workspace: "https://there/us/distgan"))
    assert cli.main(["dashboard", "--entity=us"]) == 0
    assert capsys.readouterr().out == "https://there/us/distgan\n"
    assert [each.entity for each in sent] == ["us"]


def test_the_dashboard_without_its_library(monkeypatch, refused):
    # As if it had never been imported.
    monkeypatch.delitem(sys.modules, "distgan.tracking.workspace", raising=False)
    monkeypatch.delattr(tracking, "workspace", raising=False)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert "pip install 'distgan[dashboard]'" in refused("dashboard")


def test_the_report_of_a_real_run(run_dir, tmp_path):
    out = tmp_path / "out.html"
    assert cli.main(["report", f"--run_dir={run_dir}", f"--out={out}"]) == 0
    content = json.loads(re.search(r'id="content">(.*?)</script>', out.read_text())[1])
    (run,) = content["runs"]
    assert run["restarts"] == [128]
    assert run["total_images"] == 256
    assert [each["images_seen"] for each in run["evaluations"]] == [128, 256]
    loss = run["series"]["loss/discriminator"]
    assert run["axes"][loss["axis"]] == [64, 128, 192, 256]
    assert loss["mean"] == pytest.approx([row["loss/discriminator"] for row in rows(run_dir)], rel=1e-4)
    assert len(run["starts"]) == 2
    assert run["samples"]
    assert run["reals"] is not None
    assert run["checkpoints"][-1]["images_seen"] == 256
