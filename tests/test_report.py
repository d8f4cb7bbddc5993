"""`distgan report` without a browser: what gets into the page, and what is refused."""

import base64
import io
import json
import math
import re
import shutil
import subprocess
import sys

import fake_run
import numpy as np
import pytest
from conftest import environment, finish
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from distgan import cli
from distgan.tracking import curves, panels

MIB = 1_000_000


def make_report(out, *run_dirs):
    """Runs the command; returns the page, its content and its pictures."""
    assert cli.main(["report", f"--run_dir={','.join(map(str, run_dirs))}", f"--out={out}"]) == 0
    page = out.read_text()
    content, pictures = (
        json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page)[1])
        for name in ("content", "pictures")
    )
    return page, content, pictures


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=60),
    st.integers(min_value=1, max_value=70),
)
def test_a_thinned_curve_keeps_extremes_and_what_is_not_finite(values, most):
    xs = 64.0 * np.arange(len(values))
    curve = curves.thin(xs, np.array(values, float), most)
    assert len(curve["x"]) == len(curve["mean"]) == min(most, len(values))
    assert curve["x"] == sorted(curve["x"])
    finite = [value for value in values if math.isfinite(value)]
    lows, highs = ([each for each in curve.get(key, curve["mean"]) if each is not None] for key in ("low", "high"))
    if finite:
        assert min(lows) == pytest.approx(min(finite), rel=1e-4)
        assert max(highs) == pytest.approx(max(finite), rel=1e-4)
    else:
        assert not lows + highs
    assert bool(curve["bad"]) == (len(finite) < len(values))
    if len(values) <= most:
        assert curve["x"] == xs.tolist()
        assert curve["bad"] == [number for number, value in enumerate(values) if not math.isfinite(value)]


def test_a_thinned_curve_is_the_mean_of_its_rows():
    curve = curves.thin(np.arange(6.0), np.array([1, 3, math.nan, 5, math.nan, math.inf]), 3)
    assert curve == {
        "x": [0, 2, 4],
        "mean": [2, 5, None],
        "low": [1, 5, None],
        "high": [3, 5, None],
        "bad": [1, 2],
    }


def test_rows_that_are_none_are_passed_over(tmp_path):
    lines = ['{"progress/images_seen": 64, "a": null, "b": "text", "c": [1]}', "[]", '{"a": 1}', '{"progress/images_se']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (row,) = curves.read_rows(tmp_path / "metrics.jsonl")
    assert row == {"progress/images_seen": 64, "a": pytest.approx(math.nan, nan_ok=True)}


def test_a_long_run(tmp_path, capsys):
    rows = fake_run.make(
        tmp_path / "run",
        10_000,
        grids=230,
        restarts=(2500, 7500),
        not_finite=(5000,),
        spike=(6003, 1234.0),
        evaluations=20,
        checkpoints=3,
    )
    page, content, pictures = make_report(tmp_path / "out.html", tmp_path / "run")
    assert f"{len(page.encode()):,} bytes" in capsys.readouterr().out
    without = len(page) - sum(map(len, pictures))
    assert without < 5 * MIB, without
    (run,) = content["runs"]
    assert len(run["samples"]) == 200
    assert [run["samples"][0]["kimg"], run["samples"][-1]["kimg"]] == [0, 6400]
    grays = [_gray(pictures[sample["picture"]]) for sample in run["samples"]]
    assert grays == sorted(grays)
    assert grays[0] == 0
    assert grays[-1] == 250
    assert _gray(pictures[run["reals"]]) == 255
    loss = run["series"]["loss/discriminator"]
    assert max(loss["high"]) == 1234
    spike = loss["high"].index(1234)
    assert run["axes"][loss["axis"]][spike] == pytest.approx(640 * 6004, abs=6400)
    assert loss["mean"][0] == pytest.approx(np.mean([row["loss/discriminator"] for row in rows[:10]]), rel=1e-4)
    assert run["series"]["loss/generator"]["bad"] == [500]
    assert run["restarts"] == [640 * 2500, 640 * 7500]
    assert [each["best"] for each in run["checkpoints"]] == [False, False, True]
    assert all(each["bytes"] > 4000 for each in run["checkpoints"])
    assert run["series"]["eval/fid"]["mean"][0] == 300
    assert run["last"]["progress/images_seen"] == 6_400_000
    drawn = [key for section in content["sections"] for panel in section["panels"] for key in panel["keys"]]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == set(run["series"]) - {"progress/kimg", "progress/step"}


def _gray(picture):
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        assert image.format == "JPEG"
        return np.asarray(image).mean()


def test_many_runs_stay_small(tmp_path):
    fake_run.make(tmp_path / "run0", 5000, grids=50)
    for number in range(1, 7):
        shutil.copytree(tmp_path / "run0", tmp_path / f"run{number}")
    page, content, pictures = make_report(tmp_path / "out.html", *(tmp_path / f"run{number}" for number in range(7)))
    assert len(page) - sum(map(len, pictures)) < 5 * MIB
    assert sum(len(run["samples"]) for run in content["runs"]) <= 200
    assert [run["name"] for run in content["runs"]] == [f"run{number}" for number in range(7)]


def test_scores_of_different_protocols_are_kept_apart(tmp_path):
    for name, count in (("a", 10_000), ("b", 500)):
        fake_run.make(tmp_path / name, 20)
        lines = [json.dumps(fake_run.evaluation(640 * number, 100 / number, count)) for number in (5, 10)]
        (tmp_path / name / "evaluations.jsonl").write_text("\n".join([*lines, '{"images_seen": 9']))
    _, content, _ = make_report(tmp_path / "out.html", tmp_path / "a", tmp_path / "b")
    quality = next(section for section in content["sections"] if section["title"] == "Quality")
    charts = {panel["title"]: panel["keys"] for panel in quality["panels"]}
    assert charts["Frechet distance (A)"] == ["eval/fid (A)"]
    assert charts["Frechet distance (B)"] == ["eval/fid (B)"]
    assert [set(run["series"]) & {"eval/fid (A)", "eval/fid (B)"} for run in content["runs"]] == [
        {"eval/fid (A)"},
        {"eval/fid (B)"},
    ]
    assert [cards["fid"]["count"] for cards in content["protocols"]] == [10_000, 500]
    assert content["lower_is_better"] == {"fid": True, "precision": False}


def test_text_from_files_stays_text(tmp_path):
    evil = '</script><script>alert("x")</script><!-- {{content}} {{pictures}}'
    fake_run.make(tmp_path / "<b>&run", 3, data__path=evil)
    plain, _, _ = make_report(tmp_path / "plain.html", _plain(tmp_path))
    page, content, _ = make_report(tmp_path / "out.html", tmp_path / "<b>&run")
    assert content["runs"][0]["config"]["data.path"] == evil
    assert page.count("<script") == plain.count("<script") == 3
    assert page.count("</script") == 3
    assert "<title>&lt;b&gt;&amp;run" in page
    # Nothing that a browser would fetch.
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)


def _plain(folder):
    fake_run.make(folder / "plain", 3)
    return folder / "plain"


def test_numbers_that_json_lacks(tmp_path):
    fake_run.make(tmp_path / "run", 3, data__resolution=math.nan)
    (tmp_path / "run" / "evaluations.jsonl").write_text(
        json.dumps(fake_run.evaluation(640, math.inf)) + "\n" + json.dumps(fake_run.evaluation(1280, None)) + "\n"
    )
    page, content, _ = make_report(tmp_path / "out.html", tmp_path / "run")
    assert "NaN," not in page
    assert content["runs"][0]["series"]["eval/fid"]["bad"] == [0, 1]
    assert content["runs"][0]["config"]["data.resolution"] is None


def test_what_is_refused(tmp_path, refused):
    run, out = _plain(tmp_path), tmp_path / "out.html"
    empty = tmp_path / "empty"
    shutil.copytree(run, empty)
    (empty / "metrics.jsonl").write_text("")
    assert refused("report", f"--out={out}") == "distgan: --run_dir is missing: a run, or several with commas between"
    assert refused("report", f"--run_dir={run}") == "distgan: --out is missing: a new HTML file"
    assert "names a run twice" in refused("report", f"--run_dir={run},{run}", f"--out={out}")
    assert refused("report", f"--run_dir={tmp_path}", f"--out={out}") == f"distgan: --run_dir={tmp_path} holds no run"
    assert "holds no run" in refused("report", f"--run_dir={run},{tmp_path}/none", f"--out={out}")
    assert f"--run_dir={empty} has no rows" in refused("report", f"--run_dir={run},{empty}", f"--out={out}")
    (empty / "metrics.jsonl").unlink()
    assert "has no rows" in refused("report", f"--run_dir={empty}", f"--out={out}")
    assert "does not exist" in refused("report", f"--run_dir={run}", f"--out={tmp_path}/none/out.html")
    out.write_text("mine")
    assert refused("report", f"--run_dir={run}", f"--out={out}") == f"distgan: --out={out} exists"
    assert out.read_text() == "mine"
    (empty / "config.json").write_text("{")
    assert "config.json cannot be read" in refused("report", f"--run_dir={empty}", f"--out={tmp_path}/new.html")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


def test_pictures_that_cannot_be_read_are_left_out(tmp_path):
    fake_run.make(tmp_path / "run", 30, grids=3)
    (tmp_path / "run" / "samples" / "000009.png").write_bytes(b"half a picture")
    (tmp_path / "run" / "samples" / "000019.png").write_bytes(b"")
    _, content, pictures = make_report(tmp_path / "out.html", tmp_path / "run")
    assert [sample["kimg"] for sample in content["runs"][0]["samples"]] == [0]
    assert len(pictures) == 2  # And that of the real images.


def test_tensorflow_is_not_imported(tmp_path):
    run = _plain(tmp_path)
    code = (
        "import sys; from distgan import cli; "
        f"assert cli.main(['report', '--run_dir={run}', '--out={tmp_path}/out.html']) == 0; "
        "assert 'tensorflow' not in sys.modules"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    finish(subprocess.Popen([sys.executable, "-c", code], env=environment(), **pipes))


def test_each_number_has_one_place():
    keys = [*fake_run.row(0, 10, 0, 0), "health/nonfinite_steps", "mine/own", "plain"]
    found = panels.arrange(keys)
    placed = [key for charts in found.values() for _, here in charts for key in here]
    assert sorted(placed) == sorted(
        key for key in keys if not key.startswith("progress/") or key == "progress/restarts"
    )
    assert [panel.title for panel, _ in found["More"]] == ["mine", "plain"]
