"""Keys and passwords in the environment: no command line shows them, ranks have them all the same, other programs do not."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL, environment, finish, start

from distgan import cli
from distgan.runtime import credentials

MARK = "mark-5f1d"
SECRETS = {
    "WANDB_API_KEY": f"{MARK} of W&B",
    "HF_TOKEN": f"{MARK}-hf",
    "AWS_ACCESS_KEY_ID": f"{MARK}-aws",
    "AWS_REGION": f"{MARK}-region",
    "MY_SECRET": f"{MARK}\nof 'two' lines = \"quoted\" $HOME",
    "DB_PASSWORD_FILE": f"{MARK}-file",
    "my_api_key": f"{MARK}-small",
}
PLAIN = {"KEYBOARD": "us", "PUBLIC_KEY_PATH": "here"}
PATHS = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
TRAIN = ["train", *SMALL, "--data.source=parts:Told", "--train.total_kimg=0.032", "--train.sample_kimg=0"]


def programs(folder, **texts):
    """Programs of ours in front of PATH."""
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return os.pathsep.join([str(folder), os.path.dirname(sys.executable), os.environ["PATH"]])


def launched(script, options, words, env, code=0):
    command = ["bash", str(REPOSITORY / "launch" / script), *options, "--", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return finish(subprocess.Popen(command, env=env, **pipes), code)


@pytest.mark.parametrize("script", ["horovod.sh", "elastic.sh"])
def test_horovodrun_has_no_secret_to_show(tmp_path, script):
    show = 'env -0; echo; stat -c %a "$DISTGAN_SECRETS"; cat "$DISTGAN_SECRETS"; cat "$(dirname "$DISTGAN_SECRETS")/bin/ssh"'
    path = programs(tmp_path, horovodrun=f"{{ {show}; }} >{tmp_path}/out")
    launched(script, ["-np", "2"], ["presets"], environment() | SECRETS | PLAIN | {"PATH": path})
    shown, _, rest = (tmp_path / "out").read_text().partition("\0\n")
    shown = dict(line.partition("=")[::2] for line in shown.split("\0"))
    assert MARK not in json.dumps(shown)
    assert PLAIN.items() <= shown.items()
    mode, _, rest = rest.partition("\n")
    assert mode == "600"
    *handed, ssh = rest.split("\0")
    handed = dict(line.partition("=")[::2] for line in handed)
    assert SECRETS.items() <= handed.items()
    assert len(handed["DISTGAN_SECRET"]) == 32
    assert "exec" in ssh
    assert not Path(shown["DISTGAN_SECRETS"]).exists()  # It ends with the job.


def test_ranks_have_the_secrets_and_no_command_line_shows_them(tmp_path):
    """One rank is of this machine; the other one's host is reached by ssh, where the launcher's files are not."""
    ssh = 'command="${@: -1}"; exec bash -c "${command//DISTGAN_SECRETS=/DISTGAN_SECRETS=/nowhere}"'
    path = programs(tmp_path, ssh=ssh)
    seen, stop = set(), threading.Event()

    def look():
        while not stop.wait(0.05):
            for each in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(each.read_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        options = ["-np", "2", "-H", "localhost:1,elsewhere.invalid:1", "--network-interfaces", "lo"]
        env = environment() | SECRETS | {"PATH": path, "PYTHONPATH": PATHS, "DISTGAN_TEST_OUT": str(tmp_path)}
        launched("horovod.sh", options, [*TRAIN, f"--run_dir={tmp_path / 'run'}"], env)
    finally:
        stop.set()
        thread.join()
    lines = [line for line in seen if b"--data.source=parts:Told" in line]
    assert any(b"elsewhere.invalid" in line for line in lines)
    assert any(b"HOROVOD_RANK=0" in line for line in lines)
    assert not [line for line in seen if MARK.encode() in line]
    for rank in (0, 1):
        told = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert {name: value for name, value in SECRETS.items() if name != "WANDB_API_KEY"}.items() <= told.items()
        assert "WANDB_API_KEY" not in told  # It is W&B's process' alone.
        assert "DISTGAN_SECRETS" not in told
        if rank == 0:
            assert not any(each.startswith("/tmp/tmp.") for each in told["PATH"].split(os.pathsep))  # noqa: S108


def test_an_ssh_that_hands_nothing_over_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(credentials, "_SECONDS", 0.2)
    reading, writing = os.pipe()
    before = os.dup(0)
    os.dup2(reading, 0)
    try:
        monkeypatch.setenv("DISTGAN_SECRETS", "/nowhere/secrets")
        with pytest.raises(Exception, match="did not hand over its secrets"):
            credentials.receive()
    finally:
        os.dup2(before, 0)
        for each in (reading, writing, before):
            os.close(each)


WATCH = f"""
import os, subprocess
original = subprocess._fork_exec
def watched(*words):
    given = words[5] if words[5] is not None else [f'{{name}}={{value}}'.encode() for name, value in os.environ.items()]
    secrets = [each for each in given if {MARK.encode()!r} in each]
    with open(os.environ["DISTGAN_TEST_OUT"], "a") as file:
        print(len(secrets), words[0], file=file)
    return original(*words)
subprocess._fork_exec = watched
"""


def test_programs_that_commands_start_have_no_secret(tmp_path):
    """Each command runs under a Python that notes every program it starts, and how many secrets that one has."""
    run_dir, out = tmp_path / "run", tmp_path / "out"
    assert cli.main(["train", *SMALL, "--train.total_kimg=0.032", "--train.sample_kimg=0", f"--run_dir={run_dir}"]) == 0
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    paths = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    env = environment() | SECRETS | {"PYTHONPATH": paths, "DISTGAN_TEST_OUT": str(out)}
    assert "W&B key: yes" in finish(start("doctor", env=env))[0]
    finish(start("export", f"--run_dir={run_dir}", f"--out={tmp_path / 'exported'}", env=env))
    finish(start("report", f"--run_dir={run_dir}", f"--out={tmp_path / 'page.html'}", env=env))
    started = out.read_text().splitlines()
    assert any(f"{sys.executable!r}, '-I'" in line for line in started)  # Export's own check.
    assert [line for line in started if not line.startswith("0 ")] == []


def test_what_looks_like_a_secret(monkeypatch):
    for name, value in (SECRETS | PLAIN).items():
        monkeypatch.setenv(name, value)
    with credentials.holding(all_of_them=True):
        assert not SECRETS.keys() & os.environ.keys()
        assert PLAIN.items() <= os.environ.items()
        assert SECRETS.items() <= credentials.for_tracking({}).items()
        assert credentials.wandb_key() == SECRETS["WANDB_API_KEY"]
    assert SECRETS.items() <= os.environ.items()
    with credentials.holding(all_of_them=False):
        assert SECRETS.keys() - os.environ.keys() == {"WANDB_API_KEY"}
        assert not SECRETS.keys() & credentials.for_child().keys()
    assert credentials.wandb_key() == ""
