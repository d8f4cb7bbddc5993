"""The manifests run: the pods of rendered jobs, with what the controllers add, train, lose one of them, and end as one run."""

import json
import subprocess
import time

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY, distgan, rows
from hosts import missing
from pods import NAMESPACE, NEEDED, Cluster

from distgan.training import checkpoint

TOTAL = 25600  # Seconds of training, so that a pod can be deleted in their midst.
FLAGS = [
    "--preset=digits-dcgan",
    "--model.width=4",
    "--train.global_batch=16",
    "--precision=float64",
    "--optimizer.name=sgd",
    "--train.sample_kimg=0",
    "--train.report_kimg=0.64",
    "--checkpoint.every_kimg=0.64",
    "--tracking.wandb=disabled",
    f"--train.total_kimg={TOTAL / 1000}",
]


def alone(total, path):
    """The weights of one process' run."""
    distgan("train", *FLAGS, f"--train.total_kimg={total / 1000}", f"--run_dir={path}")
    return checkpoint.newest(path / "checkpoints").arrays


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return alone(TOTAL, tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture
def cluster(tmp_path):
    lacks = missing(NEEDED)
    assert not lacks, f"pods of our own need {', '.join(lacks)}"
    with Cluster(tmp_path) as found:
        yield found


def rendered(overlay, *words, flags=FLAGS):
    """An overlay for this machine: two workers of one rank each."""
    command = ["bash", REPOSITORY / "launch" / "kubernetes.sh", overlay, "--name=digits", "--workers=2", "--gpus=1"]
    done = subprocess.run([*command, *words, "--dry_run", "--", *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    return objects, next(each for each in objects if each["kind"] in ("Job", "JobSet", "MPIJob"))


def saved(cluster):
    """Images of the newest checkpoint on the claim; 0 where there is none."""
    folder = cluster.claim("distgan-runs") / "digits" / "checkpoints"
    return max((int(path.name) for path in folder.glob("[0-9]*")), default=0)


def wait_until(met, pods, seconds=180):
    end = time.monotonic() + seconds
    while not met():
        logs = "\n".join(f"{pod.name}:\n{pod.log.read_text()}" for pod in pods)
        assert all(pod.process.poll() is None for pod in pods), logs
        assert time.monotonic() < end, logs
        time.sleep(0.2)


def probe(pod, name):
    """Whether a pod's probe is content."""
    return pod.execute(pod.container[name]["exec"]["command"]) == 0


def starts(cluster):
    """How often the run was started, as it says itself."""
    return len(json.loads((cluster.claim("distgan-runs") / "digits" / "config.json").read_text())["starts"])


def check_run(cluster, expected, total):
    """The run on the claim is whole, and is the run of one process."""
    path = cluster.claim("distgan-runs") / "digits"
    assert [row["progress/images_seen"] for row in rows(path)] == list(range(640, total + 1, 640))
    arrays = checkpoint.newest(path / "checkpoints").arrays
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-4, atol=1e-4, err_msg=name)


def action(job, code, disrupted):
    """What the Job's controller does about a pod's exit code, by the podFailurePolicy."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        conditions = [each["type"] for each in rule.get("onPodConditions", [])]
        if code in rule.get("onExitCodes", {}).get("values", []) or (disrupted and "DisruptionTarget" in conditions):
            return rule["action"]
    return "Count"


def test_multiworker(cluster, undisturbed):
    objects, job = rendered("multiworker")
    cluster.apply(objects)
    [service] = [each for each in objects if each["kind"] == "Service"]
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    count, subdomain = job["spec"]["completions"], job["spec"]["template"]["spec"]["subdomain"]

    def start(index):
        name = f"digits-{index}"
        names = [f"{name}.{subdomain}", f"{name}.{subdomain}.{NAMESPACE}.svc"]
        return cluster.start(name, job["spec"]["template"], names, {"JOB_COMPLETION_INDEX": str(index)})

    pods = [start(index) for index in range(count)]
    wait_until(lambda: all(probe(pod, "startupProbe") for pod in pods), pods)
    wait_until(lambda: saved(cluster), pods)
    code, seconds = pods[1].delete()
    assert (code, action(job, code, disrupted=True)) == (75, "Ignore"), pods[1].log.read_text()
    assert seconds < job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    code = pods[0].wait(30)
    assert (code, action(job, code, disrupted=False)) == (75, "Ignore"), pods[0].log.read_text()
    assert saved(cluster) < TOTAL
    pods = [start(index) for index in range(count)]
    for pod in pods:
        assert pod.wait(180) == 0, pod.log.read_text()
    check_run(cluster, undisturbed, TOTAL)
    assert starts(cluster) == 2
    assert {path.name for path in (cluster.claim("distgan-runs") / "digits").glob("log*")} == {"log.txt", "log.1.txt"}


def test_a_mistake_fails_the_job_at_once(cluster):
    objects, job = rendered("single", "--workers=1", flags=[*FLAGS, "--train.global_batch=5000"])
    cluster.apply(objects)
    pod = cluster.start("digits-0", job["spec"]["template"], [], {"JOB_COMPLETION_INDEX": "0"})
    code = pod.wait(60)
    assert (code, action(job, code, disrupted=False)) == (2, "FailJob"), pod.log.read_text()


class MpiJob:
    """What the MPI Operator does for a job."""

    def __init__(self, cluster, objects, job):
        cluster.apply(objects)
        self.cluster, self.spec, self.name = cluster, job["spec"], job["metadata"]["name"]
        self.config = cluster.volume("mpi-job-config")
        ssh = self.spec["sshAuthMountPath"]
        self.mounts = [(cluster.folder / "ssh", f"{ssh}:ro"), (self.config, "/etc/mpi:ro")]
        count = self.spec["mpiReplicaSpecs"]["Worker"]["replicas"]
        lines = [f"{self.full_name(index)} slots={self.spec['slotsPerWorker']}\n" for index in range(count)]
        (self.config / "hostfile").write_text("".join(lines))
        self.discover([])
        self.workers = [self.worker(index) for index in range(count)]
        self.discover(range(count))
        launcher = self.spec["mpiReplicaSpecs"]["Launcher"]["template"]
        environment = {
            "K_MPI_JOB_ROLE": "launcher",
            "OMPI_MCA_orte_default_hostfile": "/etc/mpi/hostfile",
            "OMPI_MCA_plm_rsh_args": "-o ConnectionAttempts=10",
            "NVIDIA_VISIBLE_DEVICES": "",
        }
        self.launcher = cluster.start(f"{self.name}-launcher", launcher, [], environment, self.mounts)

    def full_name(self, index):
        return f"{self.name}-worker-{index}.{self.name}.{NAMESPACE}.svc"

    def discover(self, running):
        script = self.config / "discover_hosts.sh"
        script.write_text("#!/bin/sh\n" + "".join(f"echo {self.full_name(index)}\n" for index in running))
        script.chmod(0o755)

    def worker(self, index):
        name = f"{self.name}-worker-{index}"
        template = self.spec["mpiReplicaSpecs"]["Worker"]["template"]
        names = [self.full_name(index), f"{name}.{self.name}"]
        return self.cluster.start(name, template, names, {"K_MPI_JOB_ROLE": "worker"}, self.mounts)


def test_horovod(cluster, undisturbed):
    job = MpiJob(cluster, *rendered("horovod"))
    wait_until(lambda: saved(cluster), [*job.workers, job.launcher])
    _, seconds = job.workers[1].delete()
    # All ranks have saved and ended before the pod's own end, and the launcher waits for the pod's successor.
    assert seconds < 60, job.workers[1].log.read_text()
    log = (cluster.claim("distgan-runs") / "digits" / "log.txt").read_text()
    assert "stopped by SIGTERM" in log
    assert saved(cluster) < TOTAL
    job.worker(1)
    code = job.launcher.wait(240)
    assert code == 0, job.launcher.log.read_text()
    assert "exit code 75: starting it again" in job.launcher.log.read_text()
    check_run(cluster, undisturbed, TOTAL)
    assert starts(cluster) == 2


def test_horovod_stopped_and_mistaken(cluster):
    running = MpiJob(cluster, *rendered("horovod", flags=[*FLAGS, "--train.total_kimg=1000"]))
    wait_until(lambda: saved(cluster), [*running.workers, running.launcher])
    # The whole job is deleted: the launcher has its ranks save, though a pod that ends has horovodrun end them.
    code, _ = running.launcher.delete()
    assert code == 75, running.launcher.log.read_text()
    assert "stopped by SIGTERM" in (cluster.claim("distgan-runs") / "digits" / "log.txt").read_text()
    for each in running.workers:
        each.delete()
    # A mistake that only the ranks find: the launcher has its code, and tries once.
    running = MpiJob(cluster, *rendered("horovod", flags=[*FLAGS, "--train.global_batch=5000"]))
    assert running.launcher.wait(120) == 2, running.launcher.log.read_text()
    text = running.launcher.log.read_text()
    assert "--train.global_batch=5000" in text
    assert "starting it again" not in text


@pytest.mark.soak
def test_horovod_elastic(cluster):
    """A worker is deleted, the other goes on, its successor joins; the whole job is deleted, and goes on to the end."""
    log = cluster.claim("distgan-runs") / "digits" / "log.txt"
    words = ["--min_ranks=1", "--max_ranks=3"]
    job = MpiJob(cluster, *rendered("horovod-elastic", *words, flags=[*FLAGS, "--train.total_kimg=100000"]))

    def goes_on(workers, seen):
        wait_until(lambda: saved(cluster) > seen + 1280, [*workers, job.launcher])
        batches = [line for line in log.read_text().splitlines() if "global batch" in line]
        assert f"= {len(workers)} replicas" in batches[-1]

    goes_on(job.workers, 0)
    code, seconds = job.workers[1].delete()
    # Its rank trained on as long as its pod might.
    assert seconds < job.workers[1].spec["terminationGracePeriodSeconds"], code
    job.discover([0])
    goes_on(job.workers[:1], saved(cluster))
    successor = job.worker(1)
    job.discover([0, 1])
    wait_until(lambda: log.read_text().count("= 2 replicas") == 2, [job.workers[0], successor, job.launcher])
    goes_on([job.workers[0], successor], saved(cluster))
    code, _ = job.launcher.delete()
    assert code == 75, job.launcher.log.read_text()
    for each in (job.workers[0], successor):
        each.delete()
    total = saved(cluster) // 640 * 640 + 1280
    flags = [*FLAGS, f"--train.total_kimg={total / 1000}"]
    job = MpiJob(cluster, *rendered("horovod-elastic", *words, flags=flags))
    assert job.launcher.wait(120) == 0, job.launcher.log.read_text()
    check_run(cluster, alone(total, cluster.folder / "alone"), total)
