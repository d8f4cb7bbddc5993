"""What `kubectl apply -k` would send: rendered, held against Kubernetes' schemas and against our rules."""

import copy
import functools
import json
import subprocess
import sys

import jsonschema
import kubernetes_validate
import operators
import pytest
import yaml
from conftest import REPOSITORY
from kubernetes_validate.utils import all_versions

sys.path.insert(0, str(REPOSITORY / "k8s"))
import check

OVERLAYS = ("single", "multiworker", "jobset", "horovod", "horovod-elastic", "cpu-demo")
MIXES = ((), ("kueue",), ("wandb-online",), ("spot",), ("kueue", "wandb-online", "spot"))
NEWEST = sorted(set(all_versions()), key=lambda text: [*map(int, text.split("."))])[-3:]


@functools.cache
def rendered(overlay, *components):
    """The documents of an overlay with components mixed in, as text."""
    folder = REPOSITORY / "k8s" / "overlays" / overlay
    if not components:
        return _kustomize(folder)
    return subprocess.run(
        [
            "bash",
            REPOSITORY / "launch" / "kubernetes.sh",
            overlay,
            *(f"--with={each}" for each in components),
            "--dry_run",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def _kustomize(folder):
    return subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True).stdout


def objects(overlay, *components):
    return list(yaml.safe_load_all(rendered(overlay, *components)))


def validate(each):
    """Against the schemas of the newest Kubernetes versions, or of the operator and, within, of Kubernetes."""
    if each["kind"] in operators.SCHEMAS:
        jsonschema.validate(each, operators.SCHEMAS[each["kind"]])
        for part in operators.inner(each):
            validate(part)
        return
    for version in NEWEST:
        _validate(json.dumps(each), version)


@functools.cache
def _validate(text, version):
    kubernetes_validate.validate(json.loads(text), version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_render_and_are_valid(overlay):
    for mix in MIXES:
        found = objects(overlay, *mix)
        assert check.problems(found) == [], mix
        for each in found:
            validate(each)
        kinds = [each["kind"] for each in found]
        assert "PodTemplate" not in kinds
        text = rendered(overlay, *mix)
        assert "RUN" not in text.replace("$(RUN)", "").replace("name: RUN\n", ""), "a place that no setting reached"


def test_storage_is_valid():
    folder = REPOSITORY / "k8s" / "storage"
    claims = list(yaml.safe_load_all(_kustomize(folder)))
    pod = yaml.safe_load((folder / "files.yaml").read_text())
    for each in [*claims, pod]:
        validate(each)
    used = {
        each["persistentVolumeClaim"]["claimName"] for each in pod["spec"]["volumes"] if "persistentVolumeClaim" in each
    }
    assert used == {each["metadata"]["name"] for each in claims}
    # The same manners as the runs' pods.
    worker = next(each for each in objects("single") if each["kind"] == "Job")["spec"]["template"]["spec"]
    for key in ("runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "seccompProfile"):
        assert pod["spec"]["securityContext"][key] == worker["securityContext"][key]
    assert pod["spec"]["containers"][0]["securityContext"] == worker["containers"][0]["securityContext"]
    assert pod["spec"]["automountServiceAccountToken"] is False


def test_schemas_refuse_what_the_types_do_not_have():
    for overlay, path, value in (
        ("horovod", "spec.runPolicy.cleanPodPolicy", "Always"),
        ("horovod", "spec.mpiReplicaSpecs.Worker.replica", 2),
        ("horovod", "spec.mpiReplicaSpecs.Worker.template.spec.containers.0.imagePolicy", "Always"),
        ("jobset", "spec.replicatedJobs.0.template.spec.parallel", 2),
        ("jobset", "spec.failurePolicy.rules.0.action", "Fail"),
        ("multiworker", "spec.template.spec.securityContext.runAsNotRoot", True),
    ):
        job = next(each for each in objects(overlay) if each["kind"] in ("Job", "JobSet", "MPIJob"))
        validate(job)
        put(job, path, value)
        with pytest.raises(jsonschema.ValidationError):
            validate(job)


def put(tree, path, value):
    """Sets a value by its path, as `spec.containers.0.image`; None takes it away."""
    *parents, last = [int(word) if word.isdigit() else word.replace("|", ".") for word in path.split(".")]
    for word in parents:
        tree = tree[word]
    if value is None:
        del tree[last]
    else:
        tree[last] = value


POD = "spec.template.spec"
WORKER = "spec.mpiReplicaSpecs.Worker.template.spec"
LAUNCHER = "spec.mpiReplicaSpecs.Launcher.template.spec"
JOBSET_POD = "spec.replicatedJobs.0.template.spec.template.spec"
# A mistake for each rule: the rule, an overlay, the kind of the object, what is changed, and into what.
MISTAKES = [
    ("names", "multiworker", "Job", "metadata.name", "a" * 62),
    ("names", "horovod", "MPIJob", "metadata.name", "2nd-try"),
    ("instance", "jobset", "JobSet", "metadata.labels.app|kubernetes|io/instance", "other"),
    ("selectors", "multiworker", "Service", "spec.selector.app|kubernetes|io/instance", "other"),
    ("selectors", "single", "NetworkPolicy", "spec.podSelector.matchLabels.app|kubernetes|io/instance", "other"),
    ("workers", "multiworker", "Job", "spec.completions", 3),
    ("workers", "jobset", "ConfigMap", "data.workers", "3"),
    ("peers", "multiworker", "Job", f"{POD}.containers.0.args.6", "--runtime.peers=$(RUN)-{index}:2222"),
    ("peers", "jobset", "JobSet", f"{JOBSET_POD}.containers.0.ports.1.containerPort", 3333),
    ("service", "multiworker", "Service", "spec.publishNotReadyAddresses", False),
    ("service", "multiworker", "Job", f"{POD}.subdomain", "other"),
    ("jobset_network", "jobset", "JobSet", "spec.network.enableDNSHostnames", False),
    ("mpi_words", "horovod", "MPIJob", "spec.runPolicy.cleanPodPolicy", "running"),
    ("mpi_words", "horovod", "MPIJob", "spec.mpiReplicaSpecs.Worker.restartPolicy", "ExitCode"),
    ("mpi_words", "horovod", "MPIJob", "spec.launcherCreationPolicy", "WhenReady"),
    ("mpi_words", "horovod", "MPIJob", "spec.mpiImplementation", "Intel"),
    ("launcher", "horovod", "MPIJob", "spec.mpiReplicaSpecs.Launcher.replicas", 2),
    ("launcher", "horovod-elastic", "MPIJob", "spec.runPolicy.backoffLimit", 3),
    ("slots", "horovod", "MPIJob", "spec.slotsPerWorker", 4),
    ("slots", "horovod-elastic", "MPIJob", f"{LAUNCHER}.containers.0.args.5", "4"),
    ("slots", "horovod-elastic", "MPIJob", f"{LAUNCHER}.containers.0.args.3", "8"),
    ("ssh", "horovod", "MPIJob", "spec.sshAuthMountPath", "/home/other/.ssh"),
    ("ssh", "horovod-elastic", "MPIJob", f"{WORKER}.containers.0.ports.0.containerPort", 22),
    ("volumes", "single", "Job", f"{POD}.volumes.1.name", "results"),
    ("volumes", "horovod", "MPIJob", f"{WORKER}.volumes.0.configMap.name", "other"),
    ("storage", "single", "Job", f"{POD}.containers.0.volumeMounts.2.readOnly", False),
    ("storage", "single", "Job", f"{POD}.volumes.5.emptyDir", {}),
    ("budget", "horovod", "PodDisruptionBudget", "spec.minAvailable", "50%"),
    ("budget", "multiworker", "PodDisruptionBudget", "spec.minAvailable", 1),
    ("network", "single", "NetworkPolicy", "spec.egress.1", None),
    ("network", "single", "ConfigMap", "data.flags|txt", "--tracking.wandb=online"),
    ("network", "multiworker", "NetworkPolicy", "spec.ingress.0.from.0", {"ipBlock": {"cidr": "10.0.0.0/8"}}),
    ("network", "horovod-elastic", "NetworkPolicy", "spec.ingress.0.from.0.podSelector", {}),
    ("network", "jobset", "NetworkPolicy", "spec.ingress.0.from", []),
    ("network", "horovod", "NetworkPolicy", "spec.podSelector.matchLabels.app|kubernetes|io/component", "worker"),
    ("exit_codes", "single", "Job", "spec.podFailurePolicy.rules.0.onExitCodes.values", [2, 75]),
    ("exit_codes", "jobset", "JobSet", "spec.failurePolicy.rules", []),
    ("grace", "single", "Job", f"{POD}.terminationGracePeriodSeconds", 30),
    ("grace", "horovod", "MPIJob", f"{WORKER}.containers.0.lifecycle", None),
    ("grace", "horovod", "MPIJob", f"{LAUNCHER}.containers.0.args.4", "--seed=0"),
    ("grace", "multiworker", "Job", f"{POD}.containers.0.args.4", "--checkpoint.grace_seconds=100"),
    ("grace", "horovod", "MPIJob", f"{WORKER}.containers.0.lifecycle.preStop.exec.command.2", "119"),
    ("probes", "cpu-demo", "Job", f"{POD}.containers.0.livenessProbe", {"exec": {"command": ["true"]}}),
    ("probes", "cpu-demo", "Job", f"{POD}.containers.0.args.3", "--runtime.heartbeat=/tmp/alive"),
    ("resources", "single", "Job", f"{POD}.containers.0.resources.limits.memory", "256Gi"),
    ("image", "single", "Job", f"{POD}.containers.0.image", "registry.example.com/distgan:latest"),
    ("image", "single", "Job", f"{POD}.containers.0.image", "registry.example.com:5000/distgan"),
    ("secrets", "horovod", "MPIJob", f"{LAUNCHER}.containers.0.env.0", {"name": "WANDB_API_KEY", "value": "x"}),
    ("secrets", "single", "ConfigMap", "data.flags|txt", "--tracking.wandb_entity=" + "0123456789abcdef0123" * 2),
    ("restricted", "single", "Job", f"{POD}.securityContext.runAsNonRoot", False),
    ("restricted", "single", "Job", f"{POD}.automountServiceAccountToken", None),
    ("restricted", "horovod", "MPIJob", f"{LAUNCHER}.containers.0.securityContext.capabilities", None),
    ("restricted", "horovod", "MPIJob", f"{WORKER}.containers.0.securityContext.readOnlyRootFilesystem", False),
    ("ending", "horovod", "MPIJob", "spec.runPolicy.ttlSecondsAfterFinished", None),
    ("ending", "multiworker", "Job", "spec.podReplacementPolicy", "TerminatingOrFailed"),
    ("queue", "single", "Job", "spec.suspend", True),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda each: f"{each[0]}-{each[3].rpartition('.')[2]}")
def test_mistakes_are_caught(mistake):
    rule, overlay, kind, path, value = mistake
    found = copy.deepcopy(objects(overlay))
    put(next(each for each in found if each["kind"] == kind), path, value)
    assert rule in [name for name, _ in check.problems(found)]


def test_every_rule_has_a_mistake_and_a_reason():
    assert {rule for rule, *_ in MISTAKES} == {rule.__name__ for rule in check.RULES}
    assert all(rule.__doc__ for rule in check.RULES)
    for count in (0, 2):
        jobs = [each for each in objects("single") if each["kind"] == "Job"] * count
        assert [name for name, _ in check.problems(jobs)] == ["one_job"]
