"""W&B cannot harm a run: the real client against a stand-in server that fails in every way, kills, restarts, workers."""

import contextlib
import dataclasses
import functools
import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import psutil
import pytest
import wandb_files
from conftest import REPOSITORY, environment, finish, finish_all, launch, rows, start
from wandb.proto import wandb_internal_pb2
from wandb_server import KEY, Server

from distgan import config as configs
from distgan import presets, schema
from distgan.tracking import wandb_file
from distgan.tracking.alerts import Watch
from distgan.tracking.wandb_run import local_images_seen
from distgan.tracking.wandb_sink import lacks_rows

SMALL = ["--model.width=4", "--train.global_batch=16", "--deterministic", "--runtime.cpu_threads=1"]
SHORT = ["--train.total_kimg=3.2", "--train.report_kimg=0.16", "--train.sample_kimg=1.6", "--checkpoint.every_kimg=1.6"]
INIT_SECONDS, FINISH_SECONDS = 4, 10
LIMITS = [f"--tracking.wandb_init_seconds={INIT_SECONDS}", f"--tracking.wandb_finish_seconds={FINISH_SECONDS}"]
START_SECONDS = 30  # Of a process, see wandb_sink.
LONGEST_SECONDS = 0.1
SLACK = 3  # For a busy machine.

FAULTS = {
    "none": [],
    "refused": [],
    "hangs_at_init": [("graphql", "hang", 300)],
    "hangs_mid_run": [("file_stream", "hang", 300, 1)],
    "401": [("any", "status", 401)],
    "403": [("file_stream", "status", 403)],
    "429_then_well": [("file_stream", "status", 429, 0, 2)],
    "500_then_well": [("file_stream", "status", 500, 0, 2)],
    "500": [("file_stream", "status", 500)],
    "garbage": [("file_stream", "garbage")],
    "dies_mid_run": [],
}
WELL = ("none", "429_then_well", "500_then_well")


def words(run_dir, *flags, mode="online"):
    return ["train", f"--run_dir={run_dir}", *SMALL, *LIMITS, f"--tracking.wandb={mode}", *flags]


def begin(run_dir, server, *flags, mode="online", **more):
    """A training run that takes the server for W&B's."""
    env = environment() | (server.environment() if server else {}) | more
    return start(*words(run_dir, *flags, mode=mode), env=env)


def wait_for(condition, seconds=120, process=None):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def weights(run_dir):
    """Every array of the last checkpoint, as bytes."""
    newest = sorted((run_dir / "checkpoints").glob("0*"))[-1]
    return {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}


def on_disk(run_dir):
    """The rows of all local files, oldest file first."""
    files = sorted(run_dir.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.parent.name.split("run-")[1])
    return [row for file in files for row in wandb_files.history(file)]


def reported(history):
    return [row for row in history if "loss/discriminator" in row]


def assert_same_rows(history, run_dir):
    """W&B has the rows of metrics.jsonl, once and with the same values; pictures stand beside."""
    found = rows(run_dir)
    assert [row["progress/images_seen"] for row in reported(history)] == [row["progress/images_seen"] for row in found]
    for there, here in zip(reported(history), found, strict=True):
        for key, value in here.items():
            assert there[key] == value or (value is None and math.isnan(float(there[key]))), key
    axis = [row["progress/images_seen"] for row in history]
    assert axis == sorted(set(axis))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Name of a fault -> (run directory, server, what was logged); one process does all runs, one after the other."""
    folder = tmp_path_factory.mktemp("faulty")
    key_file = folder / "key"
    key_file.write_text(f"{KEY}\n")
    flags = [*SHORT, f"--tracking.wandb_key_file={key_file}"]
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(Server(*faults)) for name, faults in FAULTS.items()}
        servers["refused"].die()
        jobs = [({}, words(folder / "disabled", *SHORT, mode="disabled"), f"{folder}/disabled.json")]
        for name, server in servers.items():
            env = server.environment() | {"WANDB_API_KEY": ""}
            jobs.append((env, words(folder / name, *flags), f"{folder}/{name}.json"))
        command = [sys.executable, str(REPOSITORY / "tests" / "timed.py")]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(command, env=environment(), text=True, **pipes)
        dying = threading.Thread(target=die_mid_run, args=(servers["dies_mid_run"], process))
        dying.start()
        out, err = process.communicate(json.dumps(jobs), timeout=400)
        dying.join()
        assert process.returncode == 0, f"{out}\n{err}"
        assert KEY not in out + err
        logs = {path.parent.name: path.read_text() for path in folder.glob("*/log.txt")}
        yield {name: (folder / name, servers.get(name), logs[name]) for name in ("disabled", *FAULTS)}


def die_mid_run(server, process):
    while process.poll() is None and not server.counts.get("file_stream"):
        time.sleep(0.02)
    server.die()


@pytest.mark.parametrize("name", FAULTS)
def test_fault(faulty, name):
    """The run ends well and as without W&B, in time; every row is there or on the disk; the user is told how to upload."""
    run_dir, server, err = faulty[name]
    expected = weights(faulty["disabled"][0])
    assert len(expected) == 5
    assert all(weights(run_dir)[file] == data for file, data in expected.items())
    done = json.loads(Path(f"{run_dir}.json").read_text())
    assert done["code"] == 0
    longest = done["longest"]
    assert longest.pop("close") < INIT_SECONDS + FINISH_SECONDS + 2 * START_SECONDS
    assert max(longest.values()) < SLACK * LONGEST_SECONDS
    assert_same_rows(on_disk(run_dir), run_dir)
    if name in WELL:
        assert_same_rows(server.run.history, run_dir)
        assert server.run.exit_code == 0
        assert "wandb sync" not in err
    else:
        assert re.search(r"upload with: wandb sync (--include-online )?\S+run-\S+", err)
    assert all(server.overwritten == 0 for server in server.runs.values())
    assert server.unknown == []


def test_sync_after_a_fault(faulty, tmp_path):
    """The printed command brings everything to a server that is well."""
    run_dir, _, err = faulty["403"]
    command = re.search(r"upload with: (wandb sync .*)", err)[1].split()
    with Server() as server:
        done = sync(command[2:], server, tmp_path)
        assert done.returncode == 0, done.stderr
        assert_same_rows(server.run.history, run_dir)


def sync(folders, server, cwd):
    """`wandb sync` as the user would run it; its own log is left in `cwd`."""
    command = [str(Path(sys.executable).with_name("wandb")), "sync", *map(str, folders)]
    env = environment() | server.environment()
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_content(faulty):
    run_dir, server, _ = faulty["none"]
    kept = json.loads((run_dir / "wandb_run.json").read_text())
    assert server.runs.keys() == {kept["id"]}
    assert kept["high_water_images"] == 3200
    config = {name: value["value"] for name, value in server.run.config.items() if name != "_wandb"}
    resolved = json.loads((run_dir / "config.json").read_text())
    differing = {name for name, value in resolved["config"].items() if config.get(name) != value}
    assert not differing
    assert config["data_fingerprint"] == resolved["data_fingerprint"]
    assert (config["chosen_strategy"], config["world_size"]) == ("single", 1)
    assert config["versions"]["wandb"]
    row = reported(server.run.history)[-1]
    assert {"d_logits/real_std", "d_logits/fake_std", "ema/decay", "lr/generator"} <= row.keys()
    assert row["samples/ema_grid"]["path"].endswith(".jpg")
    assert row["d_logits/real"]["_type"] == "histogram"
    assert sum("samples/real_grid" in each for each in server.run.history) == 1
    assert any(path.endswith(".jpg") for path in server.stored)


def test_key_is_nowhere(faulty):
    """Read from its file, it is in none of the run's files and not in what was printed."""
    for run_dir, _, _ in faulty.values():
        for path in run_dir.rglob("*"):
            assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def fake_nvml(folder):
    """A module `pynvml` of a host with two GPUs, which this run computes on so far as it can tell."""
    (folder / "pynvml.py").write_text(
        "from types import SimpleNamespace as S\n"
        "class NVMLError(Exception): pass\n"
        "def nvmlInit():\n"
        "    from distgan.runtime import devices\n"
        "    devices._gpu_numbers = lambda: [0, 1]\n"
        "def nvmlDeviceGetCount(): return 2\n"
        "def nvmlDeviceGetHandleByIndex(index): return index\n"
        "def nvmlDeviceGetUUID(gpu): return f'GPU-{gpu}'\n"
        "def nvmlDeviceGetUtilizationRates(gpu): return S(gpu=80 + 10 * gpu)\n"
        "def nvmlDeviceGetMemoryInfo(gpu): return S(used=(gpu + 1) * 2**30)\n"
        "def nvmlDeviceGetPowerUsage(gpu): return 100000\n"
    )
    return f"{folder}:{REPOSITORY}"


@pytest.mark.parametrize("launcher", ["horovod", "multiworker", "mirrored"])
def test_one_run(tmp_path, launcher):
    """Two replicas of any kind are one run; W&B's stop button ends all workers, with exit code 0 and a checkpoint."""
    stopped = launcher == "multiworker"
    flags = ["--train.total_kimg=100000", "--train.report_kimg=0.64"] if stopped else SHORT
    flags = [*flags, "--tracking.wandb_checkpoints=all"]
    if launcher == "mirrored":
        flags.append("--runtime.logical_cpus=2")
    run_dir = tmp_path / "run"
    with Server() as server:
        env = environment() | server.environment() | {"PYTHONPATH": fake_nvml(tmp_path)}
        command = [sys.executable, "-m", "distgan", *words(run_dir, *flags)]
        processes = launch(None if launcher == "mirrored" else launcher, 2, command, env=env)
        if stopped:
            metrics = run_dir / "metrics.jsonl"
            wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2, process=processes[0])
            server.stop = True
        errors = finish_all(processes, 0)
        assert_same_rows(server.run.history, run_dir)
        assert server.run.overwritten == 0
        assert server.unknown == []
        row = rows(run_dir)[-1]
        assert row["node/0/gpu_utilization"] == 85
        assert row["node/0/gpu_memory_gb"] == 2
        assert not any(name.startswith("node/1") for name in row)
        assert ("time/reduction_wait_ms" in row) == (launcher != "mirrored")
        if launcher == "mirrored":
            finish(start("export", f"--run_dir={run_dir}", f"--out={tmp_path / 'digits'}", env=env))
            assert len(server.runs) == 2
            [exported] = [each for each in server.artifacts.values() if "generator.keras" in str(each["files"])]
            assert any("saved_model.pb" in str(file) for file in exported["files"])
            assert server.unknown == []
        saved = {each["state"] for each in server.artifacts.values()}
        assert saved == {"COMMITTED"}
        assert any(file.endswith("manifest.json") for each in server.artifacts.values() for file in each["files"])
    if stopped:
        assert "stopped by W&B's stop button" in errors[0]
        saved = int(sorted((run_dir / "checkpoints").glob("0*"))[-1].name)
        assert 0 <= saved - row["progress/images_seen"] < 640


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_killed_and_started_again(tmp_path, mode):
    """One run id, no row twice and none missing, wherever the kills came."""
    run_dir, ids = tmp_path / "run", set()
    flags = ["--train.report_kimg=0.16", "--train.sample_kimg=1.6", "--checkpoint.every_kimg=0.8"]
    with Server() as server:
        for _ in range(5 if mode == "offline" else 2):
            process = begin(run_dir, server, *flags, "--train.total_kimg=1000", mode=mode)
            before = len(rows(run_dir)) if (run_dir / "metrics.jsonl").exists() else 0
            wait_for((run_dir / "metrics.jsonl").exists, process=process)
            wait_for(
                lambda b=before: len((run_dir / "metrics.jsonl").read_text().splitlines()) > b + 12, process=process
            )
            process.send_signal(signal.SIGKILL)
            process.communicate()
            ids.add(json.loads((run_dir / "wandb_run.json").read_text())["id"])
        total = (rows(run_dir)[-1]["progress/images_seen"] + 1600) / 1000
        finish(begin(run_dir, server, *flags, f"--train.total_kimg={total}", mode=mode))
        ids.add(json.loads((run_dir / "wandb_run.json").read_text())["id"])
        if mode == "offline":
            assert_same_rows(on_disk(run_dir), run_dir)
            sync(sorted(run_dir.glob("wandb/offline-run-*")), server, tmp_path)
        assert server.runs.keys() == ids
        assert len(ids) == 1
        assert_same_rows(server.run.history, run_dir)
        assert server.run.overwritten == 0
        assert server.unknown == []


def test_its_process_is_killed(tmp_path):
    """As where memory ends, at its start and later: the next start of the complete run hands on what W&B lacks."""
    flags = ["--train.report_kimg=1", "--train.total_kimg=20", "--train.sample_kimg=0"]
    early, late = tmp_path / "early", tmp_path / "late"
    with Server() as first, Server() as second:
        servers = {early: first, late: second}
        processes = {run_dir: begin(run_dir, server, *flags, mode="auto") for run_dir, server in servers.items()}
        wait_for(lambda: its_processes(processes[early]), process=processes[early])
        end_all(its_processes(processes[early]))
        wait_for(lambda: wandb_file.read(late).get("mode") == "online", process=processes[late])
        end_all(its_processes(processes[late]))
        for run_dir, process in processes.items():
            finish(process)
            assert len(rows(run_dir)) == 20
            assert sum(len(reported(run.history)) for run in servers[run_dir].runs.values()) < 20
        processes = {run_dir: begin(run_dir, server, *flags) for run_dir, server in servers.items()}
        for run_dir, process in processes.items():
            _, err = finish(process)
            assert "nothing left to do" in err
            assert "W&B lacks rows of this run: it gets them now" in err
            assert_same_rows(servers[run_dir].run.history, run_dir)
            assert servers[run_dir].run.exit_code == 0
            assert wandb_file.read(run_dir)["high_water_images"] == 20000


def end_all(processes):
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def its_processes(process):
    """W&B's process of a run, and those that it has started."""
    for child in psutil.Process(process.pid).children():
        if "distgan.tracking.wandb_run" in child.cmdline():
            return [*child.children(recursive=True), child]
    return []


def write_local_file(folder, images_seen):
    """As W&B's client writes it, with a row at each place."""
    folder.mkdir(parents=True)
    with (folder / "run-abc.wandb").open("wb") as file:
        file.write(b":W&B\x00\x00\x00")
        for seen in images_seen:
            record = wandb_internal_pb2.Record()
            item = record.history.item.add()
            item.nested_key.append("progress/images_seen")
            item.value_json = str(seen)
            data = b"\x01" + record.SerializeToString()
            file.write(zlib.crc32(data).to_bytes(4, "little") + (len(data) - 1).to_bytes(2, "little") + data)


def test_a_clock_that_went_back(tmp_path):
    """W&B's folders have names by the clock: the last row is looked for in all of them."""
    for time_of_day, images_seen in (("120000", range(0, 50)), ("110000", range(50, 80)), ("130000", ())):
        write_local_file(tmp_path / "wandb" / f"offline-run-20260101_{time_of_day}-abc", images_seen)
    assert local_images_seen(tmp_path, "abc") == 79
    # What holds no row is no part of the run.
    assert len(list((tmp_path / "wandb").iterdir())) == 2


@pytest.mark.parametrize(
    ("noted", "lacks"),
    [
        ({}, True),
        ({"high_water_images": -1}, True),
        ({"high_water_images": 319}, True),
        ({"high_water_images": 320}, False),
        ({"high_water_images": 320, "project": "other"}, True),
        ({"high_water_images": 320, "entity": "other"}, True),
    ],
)
def test_what_wandb_lacks(tmp_path, noted, lacks):
    tracking = configs.TrackingConfig()
    if noted:
        identity = {"id": "abc", "entity": tracking.wandb_entity, "project": tracking.wandb_project}
        (tmp_path / "wandb_run.json").write_text(json.dumps(identity | noted))
    assert lacks_rows(tracking, tmp_path, 320) == lacks
    assert not lacks_rows(dataclasses.replace(tracking, wandb="disabled"), tmp_path, 320)


def test_sigterm(tmp_path):
    """It marks the preemption; with a server that hangs it is over in time all the same."""
    run_dir = tmp_path / "run"
    endless = ["--train.total_kimg=100000", "--train.report_kimg=0.32"]
    with Server() as well, Server(("any", "hang", 300)) as hung:
        runs = [begin(run_dir, well, *endless), begin(tmp_path / "hung", hung, *endless)]
        wait_for(lambda: well.counts.get("file_stream") and hung.counts.get("graphql"), process=runs[0])
        for each in (
            run_dir,
            tmp_path / "hung",
        ):  # Before the first step there is nothing to save, and nothing to tell.
            wait_for(lambda metrics=each / "metrics.jsonl": metrics.exists() and metrics.read_text(), process=runs[0])
        for process in runs:
            process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        finish(runs[1], 75)
        assert time.monotonic() - sent < 15 + SLACK * 10
        finish(runs[0], 75)
        assert well.run.preempting
        assert well.run.exit_code == 75
        seen = rows(run_dir)[-1]["progress/images_seen"] // 1000 + 2
        finish(begin(run_dir, well, f"--train.total_kimg={seen}", "--train.report_kimg=0.32"))
        assert_same_rows(well.run.history, run_dir)
        assert rows(run_dir)[-1]["progress/restarts"] == 1
        assert well.run.alerts == ["restart"]


def test_without_wandb_or_key(tmp_path):
    """No package: one line says so. No key: offline, without a question. A sweep agent's id is the run's."""
    (tmp_path / "no" / "wandb").mkdir(parents=True)
    (tmp_path / "no" / "wandb" / "__init__.py").write_text("raise ImportError(\"No module named 'wandb'\")\n")
    more = {"PYTHONPATH": f"{tmp_path / 'no'}:{REPOSITORY}"}
    short = ["--train.total_kimg=0.32", "--train.report_kimg=0.16"]
    none = begin(tmp_path / "none", None, *short, mode="auto", **more)
    keyless = begin(tmp_path / "keyless", None, *short, mode="auto", HOME=str(tmp_path), WANDB_RUN_ID="trial7")
    without, offline = finish_all([none, keyless])
    assert [line for line in without.splitlines() if "W&B" in line][0].endswith("W&B is off: No module named 'wandb'")
    assert without.count("W&B") == 1
    assert re.search(r"W&B run trial7 is on this disk; upload with: wandb sync \S+offline-run-\S+-trial7", offline)
    assert json.loads((tmp_path / "keyless" / "wandb_run.json").read_text())["id"] == "trial7"
    assert_same_rows(on_disk(tmp_path / "keyless"), tmp_path / "keyless")


def test_sweep(tmp_path):
    """The sweep file as the README says it: a trial is a run of two ranks, in a directory of its own, with the score aimed at."""
    trials = [
        {"optimizer.learning_rate": rate, "optimizer.beta_1": beta} for rate, beta in ((0.0002, 0.5), (0.0009, 0.0))
    ]
    fixed = {"preset": "digits-dcgan", "train.total_kimg": 0.32, "train.report_kimg": 0.16, "train.global_batch": 64}
    fixed |= {"evaluation.every_kimg": 0.32, "evaluation.extractor": "classifier", "model.width": 4}
    (tmp_path / "launch").symlink_to(REPOSITORY / "launch")
    with Server() as server:
        env = environment() | server.environment()
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        client = functools.partial(subprocess.run, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        created = client(["wandb", "sweep", "--project", "distgan", "launch/sweep.yaml"])
        agent = re.search(r"wandb agent \S+/distgan/\S+", created.stderr)[0].split()
        flags = schema.flatten(schema.build(configs.Config, presets.preset("digits-dcgan")))
        assert server.sweep["parameters"].keys() <= flags.keys()
        server.trials = [fixed | trial for trial in trials]
        done = client(agent)
        assert done.returncode == 0, done.stderr
        assert server.runs.keys() == {"trial0", "trial1"}, done.stderr
        for name, trial in zip(("trial1", "trial0"), trials, strict=True):
            run, run_dir = server.runs[name], tmp_path / "runs" / "sweep" / name
            assert_same_rows(run.history, run_dir)
            assert run.summary[server.sweep["metric"]["name"]] == rows(run_dir)[-1]["eval/fid_best"]
            assert {flag: run.config[flag]["value"] for flag in trial} == trial
            assert run.config["world_size"]["value"] == 2
        assert server.unknown == []


def test_dashboard():
    """`distgan dashboard` brings the workspace to the server, and says where it is."""
    with Server() as server:
        env = environment() | server.environment()
        out, _ = finish(start("dashboard", "--project=birds", "--entity=tester", env=env))
        [view] = server.views
        assert (view["entityName"], view["projectName"]) == ("tester", "birds")
        sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
        assert sections[0]["name"] == "Now"
        assert re.fullmatch(rf"{server.url}/tester/birds\?nw=\w+\n", out)
        assert server.unknown == []


def test_key_file_that_is_not_there(tmp_path, refused):
    line = refused("train", f"--run_dir={tmp_path}", *SMALL[:2], "--tracking.wandb_key_file=/no/such/key")
    assert "--tracking.wandb_key_file=/no/such/key cannot be read: No such file or directory" in line


def test_watch():
    """What somebody should look at is told once while it lasts."""
    scores = Watch()
    throughput = {"throughput/images_per_second": 100}
    found = [(20, 20), (41, 20), (50, 20), (19, 19), (39, 19)]
    rows_of_scores = [throughput | {"eval/fid": fid, "eval/fid_best": best} for fid, best in found]
    told = [[alert.title for alert in scores.row(row)] for row in rows_of_scores]
    assert told == [[], ["score got worse"], [], [], ["score got worse"]]
    assert list(scores.row(throughput)) == []
    watch = Watch()

    def titles(count, sign, rate):
        row = {"d_sign/real": sign, "throughput/images_per_second": rate}
        return [alert.title for _ in range(count) for alert in watch.row(row)]

    assert titles(30, 0.5, 100) == []
    assert titles(30, 0.99, 100) == ["discriminator overfits"]
    assert titles(2, 0.5, 50) == []
    assert titles(20, 0.5, 50) == ["throughput dropped"]
    assert titles(5, 0.5, 100) == []
    assert titles(5, 0.5, 59) == ["throughput dropped"]
    assert titles(20, 0.99, 61) == ["discriminator overfits"]
