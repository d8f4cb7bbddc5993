"""Files of a run that are torn, empty, damaged or something else: nothing whole is lost, and no training ends by them."""

import json

import pytest
from conftest import SMALL, distgan, finish, rows, start

from distgan.config import TrackingConfig
from distgan.tracking import evaluations, json_lines, wandb_file, wandb_sink
from distgan.tracking.tracker import JsonLines


def row(number):
    return json.dumps({"progress/images_seen": number, "loss": None}).encode()


ROWS = [row(number) for number in range(1, 11)]
WHOLE = b"".join(line + b"\n" for line in ROWS)
DAMAGED = {
    "empty line": b"",
    "torn": ROWS[4][:9],
    "glued": ROWS[4][:9] + ROWS[5],
    "zeros, as of a power cut": bytes(50),
    "no text": b"\xff\xfe\x00",
    "a number": b"5",
    "a list": b"[]",
    "another object": b"{}",
    "no place": b'{"progress/images_seen": null}',
    "endless": b'{"progress/images_seen": Infinity}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("place", [0, 5, 10])
def test_a_damaged_line_costs_no_other(tmp_path, line, place, said):
    path = tmp_path / "metrics.jsonl"
    damaged = b"".join(each + b"\n" for each in [*ROWS[:place], line, *ROWS[place:]])
    path.write_bytes(damaged)
    assert len(list(json_lines.read(path, json_lines.is_row))) == 10
    sink = JsonLines(path)
    assert sink.last_images_seen == 10
    sink.row({"progress/images_seen": 11})
    sink.close(0)
    assert path.read_bytes() == WHOLE + b'{"progress/images_seen": 11}\n'
    assert (tmp_path / "metrics.jsonl.corrupt").read_bytes() == damaged
    assert f"{path} is damaged in line {place + 1}: kept as metrics.jsonl.corrupt, the other 10 go on" in said
    # Another one gets another name.
    path.write_bytes(damaged)
    JsonLines(path).close(0)
    assert (tmp_path / "metrics.jsonl.corrupt.1").exists()


@pytest.mark.parametrize("cut", [0, 1, 20, len(ROWS[-1]), len(ROWS[-1]) + 1])
def test_a_torn_last_line(tmp_path, cut):
    """It is cut off; not where its end alone is lacking. Nothing is set aside."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(WHOLE[: len(WHOLE) - cut])
    sink = JsonLines(path)
    whole = cut in (0, 1)
    assert sink.last_images_seen == (10 if whole else 9)
    sink.close(0)
    assert path.read_bytes() == (WHOLE if whole else WHOLE[: -len(ROWS[-1]) - 1])
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_behind_a_torn_one_is_not_glued_to_it(tmp_path):
    """As another process, or an earlier version, has left it while the disk was full."""
    path = tmp_path / "evaluations.jsonl"
    path.write_bytes(b'{"images_seen": 16, "sco')
    lines = json_lines.Appender(path)
    for seen in (32, 48):
        lines.add({"images_seen": seen, "scores": {"fid": 1.0}, "cards": {"fid": {}}})
    lines.close()
    assert [each["images_seen"] for each in evaluations.read(tmp_path)] == [32, 48]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "5", "null", '{"id": null}', '{"id": 5}', '{"id": ""}', "{", b"\xff\xff", bytes(40)],
)
def test_wandb_run_json_that_is_none(tmp_path, content):
    """A run of its own begins at W&B, and what was there is kept."""
    path = tmp_path / "wandb_run.json"
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(data)
    identity = wandb_sink._identity(tmp_path, TrackingConfig(), "", 1)
    assert identity["id"]
    assert wandb_file.read(tmp_path)["id"] == identity["id"]
    assert (tmp_path / "wandb_run.json.corrupt").read_bytes() == data
    assert wandb_sink._identity(tmp_path, TrackingConfig(), "", 2) == identity


def tear(path):
    """Its second half is gone."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_run_whose_files_are_all_damaged(tmp_path):
    """It goes on, and can be exported and shown; all that was whole is there, and all that was not under another name."""
    run_dir, cache = tmp_path / "run", tmp_path / "cache"
    words = ["train", f"--run_dir={run_dir}", *SMALL[:2], "--tracking.wandb=offline", f"--data.cache_dir={cache}"]
    words += ["--train.report_kimg=0.016", "--evaluation.every_kimg=0.064", "--evaluation.fid.count=100"]
    distgan(*words, "--evaluation.extractor=classifier", "--evaluation.classifier_kimg=0.1", "--train.total_kimg=0.128")
    seen = [each["progress/images_seen"] for each in rows(run_dir)]
    first, second = (run_dir / "evaluations.jsonl").read_bytes().splitlines(keepends=True)
    (run_dir / "evaluations.jsonl").write_bytes(first + b"\xff\n" + second[:50] + second)
    metrics = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_bytes(b"".join([*metrics[:2], b"\n", *metrics[2:]]))
    for path in (run_dir / "wandb_run.json", run_dir / "config.json", *cache.glob("statistics-*.npz")):
        tear(path)
    (run_dir / "checkpoints" / "best.json").write_text("[]")
    _, err = distgan("train", f"--run_dir={run_dir}", "--train.total_kimg=0.256")
    assert "goes on at 0.128 of 0.256 kimg" in err
    assert "Traceback" not in err
    asides = {path.name for path in run_dir.glob("*.corrupt")}
    assert asides == {
        f"{name}.corrupt" for name in ("evaluations.jsonl", "metrics.jsonl", "wandb_run.json", "config.json")
    }
    assert all(name in err for name in asides)
    assert [each["progress/images_seen"] for each in rows(run_dir)][: len(seen)] == seen
    assert rows(run_dir)[-1]["progress/images_seen"] == 256
    # The second one was damaged, and is made up for.
    assert [each["images_seen"] for each in evaluations.read(run_dir)] == [64, 128, 192, 256]
    with (run_dir / "evaluations.jsonl").open("ab") as file:
        file.write(first[:40])
    commands = [("export", f"--out={tmp_path / 'out'}"), ("report", f"--out={tmp_path / 'out.html'}")]
    for process in [start(name, f"--run_dir={run_dir}", *more) for name, *more in commands]:
        finish(process)
