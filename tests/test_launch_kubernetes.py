"""launch/kubernetes.sh: what it refuses, and what it asks of kubectl (a stand-in here: there is no cluster)."""

import os
import shutil
import subprocess

import pytest
import yaml
from conftest import REPOSITORY, environment

SCRIPT = REPOSITORY / "launch" / "kubernetes.sh"
STAND_IN = """#!/bin/sh
echo "$*" >>"{calls}"
case "$*" in
  kustomize*) exec {kubectl} "$@" ;;
  *"apply -f"*) cp "$(echo "$*" | sed 's/.*apply -f //')" "{applied}" ;;
  *status.phase*) printf Running ;;
  *"logs "*) echo "done: 20 kimg" ;;
  *exitCode*) printf 75 ;;
esac
"""


def launch(*words, path=None):
    env = environment() | ({"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"} if path else {})
    return subprocess.run(["bash", SCRIPT, *words], capture_output=True, text=True, env=env, check=False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "usage: bash launch/kubernetes.sh OVERLAY"),
        (["double"], "there is no overlay double; there are cpu-demo"),
        (["single", "--gpu=3"], "--gpu is not one of --name, --cpu, --data, --gpus"),
        (["single", "--with=spots"], "--with=spots: there is no such component; there are kueue"),
        (["single", "now"], "now is not --OPTION=VALUE"),
        (["single", "--image=me/distgan"], "image me/distgan names no version"),
        (["single", "--name=Birds"], "name Birds"),
        (["horovod-elastic", "--workers=9"], "72 ranks are not between --min-np 8 and --max-np 32"),
        (["single", "--", "--trian.total_kimg=1"], "unknown flag --trian.total_kimg"),
    ],
)
def test_refused(words, told):
    done = launch(*(words[:1]), *(["--dry_run"] if words else []), *words[1:])
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_dry_run_sets_everything():
    options = ["--name=birds", "--image=me/distgan:1", "--workers=3", "--gpus=4", "--runs=mine", "--with=spot"]
    done = launch("horovod", *options, "--dry_run", "--", "--preset=cifar10-sngan", "--seed=3")
    assert done.returncode == 0, done.stderr
    objects = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    job = objects["MPIJob"]
    worker = job["spec"]["mpiReplicaSpecs"]["Worker"]
    assert (job["metadata"]["name"], job["spec"]["slotsPerWorker"], worker["replicas"]) == ("birds", 4, 3)
    container = worker["template"]["spec"]["containers"][0]
    assert container["image"] == "me/distgan:1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert objects["ConfigMap"]["data"]["flags.txt"] == "--preset=cifar10-sngan\n--seed=3\n"
    assert "creates MPIJob birds" in done.stderr
    assert "to stop the run: kubectl delete mpijob birds" in done.stderr
    # The checkout's own overlay is as it was.
    assert launch("horovod", "--dry_run").stdout.count("cifar10-sngan") == 0


def test_apply_and_follow(tmp_path):
    calls, applied = tmp_path / "calls", tmp_path / "applied.yaml"
    stand_in = tmp_path / "kubectl"
    stand_in.write_text(STAND_IN.format(calls=calls, applied=applied, kubectl=shutil.which("kubectl")))
    stand_in.chmod(0o755)
    done = launch("multiworker", "--name=birds", "--namespace=gan", path=tmp_path)
    # The first worker's log, and the exit code of its pod.
    assert done.returncode == 75, done.stderr
    assert "done: 20 kimg" in done.stdout
    assert "Job" in {each["kind"] for each in yaml.safe_load_all(applied.read_text())}
    asked = calls.read_text().splitlines()
    assert asked[1].startswith("--namespace=gan apply -f ")
    assert all(each.startswith("--namespace=gan ") for each in asked[1:])
    first = "app.kubernetes.io/instance=birds,batch.kubernetes.io/job-completion-index=0"
    assert f"--namespace=gan logs --follow --selector={first} --tail=-1" in asked
