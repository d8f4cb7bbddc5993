"""Scores: in training and after it, the same on any number of replicas, told with how they came about."""

import dataclasses
import functools
import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, distgan, environment, finish, finish_all, launch, rows, start
from parts import Averages
from sklearn.datasets import load_digits

from distgan import cli, schema
from distgan.data.pixels import BadImage
from distgan.data.source import InMemory
from distgan.errors import UserError
from distgan.evaluation import evaluator, protocols
from distgan.runtime.base import Runtime
from distgan.runtime.control import Control
from distgan.runtime.topology import Topology
from distgan.tracking.tracker import JsonLines
from distgan.training import scores

METRICS = ("--evaluation.metrics=fid,pr,dc,is,kid", "--evaluation.fid.count=300", "--evaluation.kid.count=300")
METRICS += ("--evaluation.pr.count=200", "--evaluation.dc.count=200", "--evaluation.is.count=130")
METRICS += ("--evaluation.kid.subset_size=50",)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"--data.cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A run that evaluates itself at 64, 128, ... images, and keeps one checkpoint."""
    run_dir = tmp_path_factory.mktemp("evaluate") / "run"
    words = [f"--run_dir={run_dir}", *SMALL, cache, *METRICS, "--evaluation.every_kimg=0.064"]
    words += ["--train.report_kimg=0.064", "--checkpoint.every_kimg=0.064", "--checkpoint.keep=1"]
    distgan("train", *words, "--train.total_kimg=0.256", "--optimizer.learning_rate=0.01")
    return run_dir, words


def evaluations(run_dir):
    return [json.loads(line) for line in (Path(run_dir) / "evaluations.jsonl").read_text().splitlines()]


def test_in_training(finished):
    run_dir, words = finished
    found = evaluations(run_dir)
    assert [each["images_seen"] for each in found] == [64, 128, 192, 256]
    best = float("inf")
    for each, row in zip(found, rows(run_dir), strict=True):
        assert row["progress/images_seen"] == each["images_seen"]
        best = min(best, each["scores"]["fid"])
        scores = {name.removeprefix("eval/"): row[name] for name in row if name.startswith("eval/")}
        assert scores == each["scores"] | {"fid_best": best}
        assert each["cards"]["fid"]["count"] == 300
        assert each["cards"]["fid"]["checkpoint"] == each["images_seen"]
        assert all(each["costs"][name] > 0 for name in ("seconds/fake", "seconds/metrics", "images_per_second/fake"))
    # Reals are looked at once, and then taken from the cache.
    assert ["seconds/real" in each["costs"] for each in found] == [True, False, False, False]
    best = min(found, key=lambda each: each["scores"]["fid"])["images_seen"]
    assert json.loads((run_dir / "checkpoints" / "best.json").read_text()) == {"images_seen": best}
    kept = {int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {best, 256}
    # Started again, the run evaluates only what it has not.
    distgan("train", *words, "--train.total_kimg=0.32", "--optimizer.learning_rate=0.01")
    assert [each["images_seen"] for each in evaluations(run_dir)] == [64, 128, 192, 256, 320]


@pytest.fixture(scope="module")
def scored(finished, cache, tmp_path_factory):
    """The scores of one checkpoint by one replica, two mirrored ones and two Horovod ranks."""
    run_dir, _ = finished
    folder = tmp_path_factory.mktemp("scores")
    found = {}
    for name, more in (("one", ()), ("mirrored", ("--runtime.logical_cpus=2",))):
        distgan("evaluate", f"--run_dir={run_dir}", cache, *METRICS, *more, f"--out={folder / name}.json")
        found[name] = json.loads((folder / f"{name}.json").read_text())
    command = [sys.executable, "-m", "distgan", "evaluate", f"--run_dir={run_dir}", cache, *METRICS]
    finish_all(launch("horovod", 2, [*command, f"--out={folder}/horovod.json"], environment()))
    found["horovod"] = json.loads((folder / "horovod.json").read_text())
    return folder, found


def test_any_number_of_replicas(scored):
    _, found = scored
    for name in ("mirrored", "horovod"):
        assert found[name]["cards"] == found["one"]["cards"]
        for key, value in found["one"]["scores"].items():
            assert found[name]["scores"][key] == pytest.approx(value, rel=1e-6), (name, key)


def test_ranking(scored, finished, refused, capsys, cache):
    folder, _ = scored
    out, _ = distgan("evaluate", folder / "one.json", folder / "mirrored.json")
    assert out.splitlines()[0].split()[:2] == ["fid", "precision"]
    assert len(out.splitlines()) == 3
    other = [word.replace("fid.count=300", "fid.count=200") for word in METRICS]
    distgan("evaluate", f"--run_dir={finished[0]}", cache, *other, f"--out={folder / 'other.json'}")
    line = refused("evaluate", folder / "one.json", folder / "other.json")
    assert "can't be ranked by fid: count is 300 and 200" in line


def test_two_sets(tmp_path, cache):
    pixels, labels = load_digits(return_X_y=True)
    images = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    np.savez(tmp_path / "b.npz", images=images[::-1], labels=labels[::-1])
    words = [f"--real={tmp_path / 'a.npz'}", f"--fake={tmp_path / 'b.npz'}", cache, f"--out={tmp_path / 'x.json'}"]
    counts = ["--evaluation.fid.count=1797", "--evaluation.pr.count=1797", "--evaluation.dc.count=1797"]
    distgan("evaluate", *words, "--evaluation.metrics=fid,pr,dc", *counts)
    scores = json.loads((tmp_path / "x.json").read_text())["scores"]
    # The same images in another order.
    assert abs(scores["fid"]) < 1e-6
    assert scores["precision"] == scores["recall"] == scores["coverage"] == 1


@dataclasses.dataclass(frozen=True)
class Holes(InMemory):
    """Images of which some can't be read."""

    holes: tuple[int, ...] = ()

    def read(self, indices):
        for hole in set(self.holes) & set(indices.tolist()):
            raise BadImage(f"image {hole} is torn")
        return super().read(indices)


def noise(count, holes=()):
    images = np.random.default_rng(count).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return Holes(f"noise {holes}", images, None, holes=holes)


def compared(reals, fakes, cache_dir, on_error):
    """Of two sets of images, by the colours' averages."""
    metrics = tuple(schema.choose(protocols.METRICS, name) for name in ("fid", "pr", "dc"))
    runtime = Runtime(Topology("single", "", 1), Control())
    sides = (evaluator.of_images(images, runtime, on_error) for images in (reals, fakes))
    extractor = Averages().open(None, cache_dir)
    return evaluator.evaluate(metrics, *sides, extractor, runtime, cache_dir, {})


def test_unreadable_images_are_left_out(tmp_path):
    reals, fakes = noise(300, (0, 70)), noise(200)
    with pytest.raises(UserError, match=r"image 0 is torn \(--data.on_error=skip leaves it out\)"):
        compared(reals, fakes, tmp_path, "fail")
    there = InMemory("whole", np.delete(reals.images, reals.holes, 0), None)
    whole = compared(there, fakes, tmp_path, "fail")
    for _ in range(2):  # The second time from the cache.
        found = compared(reals, fakes, tmp_path, "skip")
        assert found.scores == pytest.approx(whole.scores, rel=1e-9)
        assert [card["real_count"] for card in found.cards.values()] == [298] * 3
        assert [card["count"] for card in found.cards.values()] == [200] * 3
    with pytest.raises(UserError, match="4 of 300 images of noise .* cannot be read"):
        compared(noise(300, (0, 70, 71, 299)), fakes, tmp_path / "others", "skip")


def test_scores_that_are_not_finite(tmp_path, capsys):
    """As a divergence from data that lacks a class: JSON has no infinity."""
    rows_file = JsonLines(tmp_path / "rows.jsonl")
    for number, (modes, kl) in enumerate([(9.0, 0.5), (10.0, float("inf"))]):
        result = evaluator.Result({"modes": modes, "kl": kl}, {"modes": {"count": 100}}, {})
        line = scores.as_json(result, number)
        scores.append(tmp_path, line)
        (tmp_path / f"{number}.json").write_text(scores.to_json(line))
    for line in scores.read(tmp_path):  # As a run that goes on has them.
        rows_file.row({"progress/images_seen": line["images_seen"], "eval/kl": line["scores"]["kl"]})
    rows_file.close(0)
    assert '"kl": null' in (tmp_path / "evaluations.jsonl").read_text()
    assert '"kl": null' in (tmp_path / "1.json").read_text()
    assert '"eval/kl": null' in (tmp_path / "rows.jsonl").read_text()
    assert cli.main(["evaluate", str(tmp_path / "0.json"), str(tmp_path / "1.json")]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[1:] for row in table[1:]] == [["10", "nan"], ["9", "0.5"]]
    for lower_is_better, best in ((True, 1.0), (False, 2.0)):
        found = sorted(
            [float("nan"), 2.0, float("-inf"), 1.0],
            key=functools.partial(scores.sort_key, lower_is_better=lower_is_better),
        )
        assert found[0] == best


def test_stopped_while_evaluating(tmp_path, cache):
    run_dir = tmp_path / "run"
    words = [f"--run_dir={run_dir}", *SMALL, cache, "--evaluation.every_kimg=0.064", "--evaluation.fid.count=500000"]
    process = start("train", *words, "--train.total_kimg=1", "--checkpoint.every_kimg=1")
    deadline = time.monotonic() + 200
    # The cache holds the reals' statistics: soon after the start the fakes' are being worked out.
    while not (run_dir / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(20)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    _, err = finish(process, 75)
    assert time.monotonic() - asked < 30
    assert "stopped by SIGTERM at 0.064 kimg, saved" in err
    assert (run_dir / "checkpoints" / f"{64:012d}").is_dir()
    assert not (run_dir / "evaluations.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "evaluate needs --run_dir, or --real and --fake"),
        (("--real=/nowhere", "--fake=/nowhere"), "--real: --data.path=/nowhere: No such file or directory"),
        (("--run_dir=/nowhere",), "--run_dir=/nowhere holds no run"),
        (
            ("--real=a", "--fake=b", "--evaluation.metrics=class_fid"),
            "class_fid compares classes, which --fake=b is not",
        ),
        (("--real=a", "--fake=b", "--evaluation.metrics="), "--evaluation.metrics names none"),
        (("/nowhere/result.json",), "/nowhere/result.json holds no result of distgan evaluate"),
    ],
)
def test_mistakes(flags, said, refused):
    assert said in refused("evaluate", *flags)


def test_mistakes_of_a_run(finished, refused, cache, tmp_path):
    run_dir, _ = finished
    words = ["evaluate", f"--run_dir={run_dir}", cache]
    assert "--checkpoint=17 is no checkpoint of" in refused(*words, "--checkpoint=17")
    few = refused(*words, "--evaluation.metrics=kid", "--evaluation.kid.count=10")
    assert "--evaluation.kid.count=10 is too few: --evaluation.metrics=kid needs" in few
    assert "class_fid compares class by class: it needs --model.conditional" in refused(
        *words, "--evaluation.metrics=class_fid"
    )
    assert "is not a metric" in refused(*words, "--evaluation.metrics=fidd")
    (tmp_path / "taken").write_text("")
    assert "exists" in refused(*words, f"--out={tmp_path / 'taken'}")
