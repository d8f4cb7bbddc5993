"""Checks rendered manifests for what the Kubernetes API would take, and training would not survive.

    kubectl kustomize k8s/overlays/horovod | python k8s/check.py

Prints a line a problem, and ends with 2 if there are any. Needs PyYAML. `launch/kubernetes.sh` runs it before it applies
anything, and the tests hold every overlay against it.
"""

import json
import re
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))
from distgan import errors

INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
GPU = "nvidia.com/gpu"
SSH_PORT = 2222
CONTROL_PORT_OFFSET = 1000
USER_HOME = "/home/distgan"
WRITABLE = (USER_HOME, "/tmp")  # noqa: S108
DEFAULT_GRACE_SECONDS = 30
# Many times what writing a checkpoint was measured to take (README, "The run directory"), for slower disks.
SAVE_SECONDS = 20
# For the signal's way, the launcher's end, the log's last lines.
MARGIN_SECONDS = 10
SECRET_WORDS = re.compile(r"(api_?key|token|password|secret)", re.IGNORECASE)
SECRET_VALUES = re.compile(r"\b[0-9a-f]{40}\b|-----BEGIN|\b(sk|ghp|hf|wandb_v1)_[A-Za-z0-9]{16,}")


class Run:
    """The objects of one run, with short ways to what the rules look at."""

    def __init__(self, objects):
        self.objects = [each for each in objects if each]
        self.jobs = [each for each in self.objects if each["kind"] in ("Job", "JobSet", "MPIJob")]
        self.job = self.jobs[0] if self.jobs else {"kind": "none", "metadata": {"name": ""}, "spec": {}}
        self.kind, self.spec, self.name = self.job["kind"], self.job["spec"], self.job["metadata"]["name"]

    def all(self, kind):
        """The objects of a kind."""
        return [each for each in self.objects if each["kind"] == kind]

    @property
    def job_spec(self):
        """The spec of the Job itself, also within a JobSet; empty for an MPIJob."""
        if self.kind == "JobSet":
            return self.spec["replicatedJobs"][0]["template"]["spec"]
        return self.spec if self.kind == "Job" else {}

    @property
    def pods(self):
        """The pod templates, by role."""
        if self.kind == "MPIJob":
            replicas = self.spec.get("mpiReplicaSpecs", {})
            return {role.lower(): each.get("template", {}) for role, each in replicas.items()}
        return {"worker": self.job_spec["template"]} if self.job_spec else {}

    @property
    def workers(self):
        """How many worker pods there are."""
        if self.kind == "MPIJob":
            return self.spec["mpiReplicaSpecs"]["Worker"].get("replicas", 1)
        return self.job_spec.get("parallelism", 1)

    def container(self, role):
        """The one container of a pod."""
        return self.pods[role]["spec"]["containers"][0]

    @property
    def containers(self):
        """Every container with its pod's role."""
        return [(role, each) for role, pod in self.pods.items() for each in pod["spec"].get("containers", [])]

    @property
    def flags(self):
        """The flags of distgan, of the flag file and of the command, which counts where both have one."""
        text = "\n".join(each.get("data", {}).get("flags.txt", "") for each in self.all("ConfigMap"))
        trainer = self.container("launcher" if self.kind == "MPIJob" else "worker")
        words = text.splitlines() + [self.expand(word) for word in trainer.get("args", [])]
        pairs = [word.strip()[2:].partition("=") for word in words if word.strip().startswith("--")]
        return {name: value for name, _, value in pairs}

    def expand(self, word):
        """A word of a command with $(NAME) put in, as the kubelet does."""
        values = {"RUN": self.name}
        for settings in self.all("ConfigMap"):
            values |= {name.upper(): value for name, value in settings.get("data", {}).items()}
        return re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], match[0]), str(word))

    def option(self, name):
        """The word behind an option of the launcher's command."""
        words = [self.expand(word) for word in self.container("launcher").get("args", [])]
        return words[words.index(name) + 1] if name in words[:-1] else None


def one_job(run):
    """One run a rendering."""
    if len(run.jobs) != 1:
        yield f"there are {len(run.jobs)} jobs, and not one"


def names(run):
    """The names of the pods that the controllers make are DNS labels."""
    longest = {
        "Job": f"{run.name}-{run.workers - 1}",
        # The operator of JobSets adds a suffix of its own to a pod's name, not to its host name.
        "JobSet": f"{run.name}-worker-0-{run.workers - 1}-xxxxx",
        "MPIJob": f"{run.name}-worker-{run.workers - 1}",
    }[run.kind]
    if len(longest) > 63 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", run.name):
        yield f"name {run.name}: {longest} must be lower case letters, digits and -, begin with a letter, 63 at most"


def instance(run):
    """Everything carries the run's name, so that selectors and people find it."""
    for each in run.objects:
        if each["metadata"].get("labels", {}).get(INSTANCE) != run.name:
            yield f"{each['kind']} {each['metadata']['name']}: label {INSTANCE} is not {run.name}"
    for role, pod in run.pods.items():
        labels = pod.get("metadata", {}).get("labels", {})
        if labels.get(INSTANCE) != run.name or labels.get(COMPONENT) != role:
            yield f"pod {role}: labels {INSTANCE} and {COMPONENT} are not {run.name} and {role}"


def selectors(run):
    """Services, budgets, policies and spreads choose pods of this run that are there."""
    labels = [pod["metadata"]["labels"] for pod in run.pods.values()]
    chosen = [(f"Service {each['metadata']['name']}", each["spec"]["selector"]) for each in run.all("Service")]
    for each in run.all("PodDisruptionBudget"):
        chosen.append((f"PodDisruptionBudget {each['metadata']['name']}", each["spec"]["selector"]["matchLabels"]))
    for each in run.all("NetworkPolicy"):
        rules = [rule for side in ("ingress", "egress") for rule in each["spec"].get(side, [])]
        ends = [end for rule in rules for end in rule.get("from", []) + rule.get("to", []) if "podSelector" in end]
        for selector in [each["spec"]["podSelector"], *(end["podSelector"] for end in ends)]:
            chosen.append((f"NetworkPolicy {each['metadata']['name']}", selector.get("matchLabels", {})))
    for role, pod in run.pods.items():
        for each in pod["spec"].get("topologySpreadConstraints", []):
            chosen.append((f"topologySpreadConstraints of {role}", each["labelSelector"]["matchLabels"]))
        terms = pod["spec"].get("affinity", {}).get("podAffinity", {})
        for each in terms.get("preferredDuringSchedulingIgnoredDuringExecution", []):
            chosen.append((f"podAffinity of {role}", each["podAffinityTerm"]["labelSelector"]["matchLabels"]))
    for what, selector in chosen:
        if INSTANCE not in selector or not any(selector.items() <= each.items() for each in labels):
            yield f"{what}: {selector} chooses no pod of this run"


def workers(run):
    """All workers run at once, and distgan is told how many."""
    job = run.job_spec
    if not job:
        return
    if job.get("completions", 1) != job.get("parallelism", 1):
        yield f"completions {job.get('completions')} and parallelism {job.get('parallelism')} differ: workers would wait"
    if run.workers > 1 and job.get("completionMode") != "Indexed":
        yield "completionMode is not Indexed: workers have no numbers"
    told = int(run.flags.get("runtime.workers", 1))
    if told != run.workers:
        yield f"--runtime.workers={told}, and {run.workers} pods"


def peers(run):
    """The workers' addresses are those that the controllers give, on ports that are declared and kept free."""
    if not run.job_spec or run.workers == 1:
        return
    if run.kind == "Job":
        pattern = f"{run.name}-{{index}}.{run.name}"
    else:
        pattern = f"{run.name}-{run.spec['replicatedJobs'][0]['name']}-0-{{index}}.{run.name}"
    found, _, port = run.flags.get("runtime.peers", "").rpartition(":")
    if found != pattern:
        yield f"--runtime.peers={found}:{port}: the pods are {pattern}"
    ports = {each["containerPort"] for each in run.container("worker").get("ports", [])}
    for needed in (
        int(port or 0),
        int(run.flags.get("runtime.control_port", 0)) or int(port or 0) + CONTROL_PORT_OFFSET,
    ):
        if needed not in ports:
            yield f"port {needed} is used by the workers, and is not among the container's {sorted(ports)}"


def service(run):
    """The workers of a plain Job have names before they are ready."""
    if run.kind != "Job" or run.workers == 1:
        return
    subdomain = run.pods["worker"]["spec"].get("subdomain")
    found = [each for each in run.all("Service") if each["metadata"]["name"] == subdomain]
    if not found:
        yield f"subdomain {subdomain} is no Service's name"
    for each in found:
        if each["spec"].get("clusterIP") != "None" or not each["spec"].get("publishNotReadyAddresses"):
            yield f"Service {subdomain} is not headless with publishNotReadyAddresses: the workers would not find each other"


def jobset_network(run):
    """The same in a JobSet, which makes its Service itself."""
    network = run.spec.get("network", {})
    if run.kind == "JobSet" and not (network.get("enableDNSHostnames") and network.get("publishNotReadyAddresses")):
        yield "network needs enableDNSHostnames and publishNotReadyAddresses: the workers would not find each other"
    if run.kind == "JobSet" and network.get("subdomain", run.name) != run.name:
        yield f"network.subdomain {network['subdomain']} is not {run.name}, which the workers' addresses end with"


def mpi_words(run):
    """Words that the operator's schema lets through, or that its default gets wrong."""
    if run.kind != "MPIJob":
        return
    policy = run.spec.get("runPolicy", {})
    if policy.get("cleanPodPolicy") != "Running":
        yield f"cleanPodPolicy {policy.get('cleanPodPolicy')} is not Running: workers would keep their GPUs after the end"
    if run.spec.get("launcherCreationPolicy", "AtStartup") not in ("AtStartup", "WaitForWorkersReady"):
        yield f"launcherCreationPolicy {run.spec['launcherCreationPolicy']} is not AtStartup or WaitForWorkersReady"
    if policy.get("suspend") and run.spec.get("launcherCreationPolicy") == "WaitForWorkersReady":
        yield "launcherCreationPolicy WaitForWorkersReady does not go with suspend (kubeflow/mpi-operator 615)"
    if run.spec.get("mpiImplementation", "OpenMPI") != "OpenMPI":
        yield f"mpiImplementation {run.spec['mpiImplementation']} is not OpenMPI: horovodrun would not read the host file"
    for role, each in run.spec["mpiReplicaSpecs"].items():
        if role not in ("Launcher", "Worker"):
            yield f"mpiReplicaSpecs.{role} is not Launcher or Worker"
        if each.get("restartPolicy", "Never") not in ("Never", "OnFailure"):
            yield f"{role} restartPolicy {each['restartPolicy']} is not Never or OnFailure"


def launcher(run):
    """One launcher, which the operator does not start again: launch/mpijob.sh knows which ends are worth it."""
    if run.kind != "MPIJob":
        return
    each = run.spec["mpiReplicaSpecs"].get("Launcher", {})
    if each.get("replicas", 1) != 1:
        yield f"Launcher replicas {each['replicas']} is not 1"
    if run.spec.get("runPolicy", {}).get("backoffLimit") != 0 or each.get("restartPolicy", "Never") != "Never":
        yield "the launcher needs backoffLimit 0 and restartPolicy Never: a run with a mistake in its flags would be tried again"


def slots(run):
    """A rank a GPU."""
    if run.kind != "MPIJob":
        return
    found = run.spec.get("slotsPerWorker", 1)
    gpus = int(run.container("worker")["resources"]["limits"].get(GPU, 0))
    if found != max(gpus, 1):
        yield f"slotsPerWorker {found} is not the {gpus} GPUs of a worker"
    per_host, low, high = (run.option(name) for name in ("--slots-per-host", "--min-np", "--max-np"))
    if any(word.endswith("elastic.sh") for word in run.container("launcher")["command"]):
        if str(found) != per_host:
            yield f"--slots-per-host {per_host} is not slotsPerWorker {found}"
        elif not (low and high and 0 < int(low) <= run.workers * found <= int(high)):
            yield f"{run.workers * found} ranks are not between --min-np {low} and --max-np {high}"
    elif run.option("-np") not in (None, str(run.workers * found)):
        yield f"-np {run.option('-np')} is not {run.workers} workers of {found} slots"


def ssh(run):
    """The key where ssh of the pods' user looks, and one port."""
    if run.kind != "MPIJob":
        return
    if run.spec.get("sshAuthMountPath") != f"{USER_HOME}/.ssh":
        yield f"sshAuthMountPath {run.spec.get('sshAuthMountPath')} is not {USER_HOME}/.ssh"
    ports = {each["name"]: each["containerPort"] for each in run.container("worker").get("ports", [])}
    if ports.get("ssh") != SSH_PORT or run.option("-p") not in (None, str(SSH_PORT)):
        yield f"ssh port {ports.get('ssh')} of the workers and {run.option('-p')} of the launcher are not sshd's {SSH_PORT}"


def volumes(run):
    """Every mount has its volume, every volume its mount, and the settings are this run's."""
    for role, pod in run.pods.items():
        declared = {each["name"]: each for each in pod["spec"].get("volumes", [])}
        mounted = {each["name"] for each in run.container(role).get("volumeMounts", [])}
        for name in sorted(declared.keys() ^ mounted):
            yield f"{role}: volume {name} is {'not mounted' if name in declared else 'mounted and not declared'}"
        for each in declared.values():
            settings = each.get("configMap", {})
            keys = {name: set(other.get("data", {})) for name, other in _by_name(run, "ConfigMap").items()}
            if settings and not {item["key"] for item in settings.get("items", [])} <= keys.get(
                settings["name"], set()
            ):
                yield f"{role}: ConfigMap {settings['name']} is not here, or lacks a key that is mounted"


def _by_name(run, kind):
    return {each["metadata"]["name"]: each for each in run.all(kind)}


def storage(run):
    """Data is only read, the run is written to a claim, the root is not written at all."""
    for role, each in run.containers:
        mounts = {mount["mountPath"]: mount for mount in each.get("volumeMounts", [])}
        if "/data" in mounts and not mounts["/data"].get("readOnly"):
            yield f"{role}: /data is not mounted readOnly"
        for path in WRITABLE:
            if path not in mounts:
                yield f"{role}: nothing writable is mounted at {path}"
        if role == "worker" and "/runs" not in mounts:
            yield "worker: nothing is mounted at /runs: the run would end with its pod"
        declared = {volume["name"]: volume for volume in run.pods[role]["spec"].get("volumes", [])}
        shared = declared.get(mounts.get("/dev/shm", {}).get("name"), {}).get("emptyDir", {})  # noqa: S108
        if role == "worker" and (shared.get("medium") != "Memory" or "sizeLimit" not in shared):
            yield "worker: /dev/shm is not an emptyDir in memory with a sizeLimit: NCCL has 64 MiB without"


def budget(run):
    """Nobody evicts a worker of a run that goes on."""
    found = [each["spec"] for each in run.all("PodDisruptionBudget")]
    for each in found:
        if type(each.get("minAvailable")) is not int:
            yield f"PodDisruptionBudget minAvailable {each.get('minAvailable')} is not a number of pods"
    least = [each.get("minAvailable") for each in found if each["selector"]["matchLabels"].get(COMPONENT) == "worker"]
    if least != [run.workers]:
        yield f"PodDisruptionBudget minAvailable {least} is not the {run.workers} workers"


def network(run):
    """Nobody from outside, and DNS."""
    policies = [each["spec"] for each in run.all("NetworkPolicy")]
    if not any({"Ingress", "Egress"} <= set(each.get("policyTypes", ())) for each in policies):
        yield "no NetworkPolicy closes Ingress and Egress"
        return
    rules = [rule for each in policies for rule in each.get("egress", [])]
    ports = [port.get("port") for rule in rules for port in rule.get("ports", [])]
    if 53 not in ports:
        yield "no NetworkPolicy lets DNS (port 53) through: the workers would not find each other"
    guarded = [each for each in policies if "Ingress" in each.get("policyTypes", ())]
    for role, pod in run.pods.items():
        labels = pod["metadata"].get("labels", {}).items()
        if not any(each["podSelector"].get("matchLabels", {}).items() <= labels for each in guarded):
            yield f"{role}: no NetworkPolicy guards its ports: TensorFlow's and Horovod's let everybody in"
    for rule in (rule for each in policies for rule in each.get("ingress", [])):
        peers = rule.get("from") or [{}]
        if any(peer.keys() != {"podSelector"} or _instance_of(peer) != run.name for peer in peers):
            yield "a NetworkPolicy lets others in than the run's own pods"
    online = run.flags.get("tracking.wandb") == "online"
    if online != (443 in ports):
        yield f"--tracking.wandb={run.flags.get('tracking.wandb')}, and port 443 is {'closed' if online else 'open'}"


def _instance_of(peer):
    return peer["podSelector"].get("matchLabels", {}).get(INSTANCE)


def exit_codes(run):
    """A mistake and a diverged run end the job; a stopped run and a lost node do not count."""
    if not run.job_spec:
        return
    actions = {}
    for rule in run.job_spec.get("podFailurePolicy", {}).get("rules", []):
        codes = rule.get("onExitCodes", {})
        if (
            codes.get("operator", "In") != "In"
            or codes.get("containerName", "distgan") != run.container("worker")["name"]
        ):
            yield f"podFailurePolicy: onExitCodes {codes} is not of this container, by In"
        for code in codes.get("values", []):
            actions.setdefault(code, rule["action"])
        for condition in rule.get("onPodConditions", []):
            actions.setdefault(condition["type"], rule["action"])
    wanted = {errors.UserError.code: "FailJob", errors.Diverged.code: "FailJob"}
    wanted |= {errors.Stopped.code: "Ignore", "DisruptionTarget": "Ignore"}
    if actions != wanted:
        yield f"podFailurePolicy {actions} is not {wanted}"
    if run.kind == "JobSet":
        found = run.spec.get("failurePolicy", {}).get("rules", [])
        if not any(
            each["action"] == "FailJobSet" and each.get("onJobFailureReasons") == ["PodFailurePolicy"] for each in found
        ):
            yield "failurePolicy does not end the JobSet (FailJobSet) when a Job fails by its PodFailurePolicy"


def grace(run):
    """A pod that is deleted has the time to end its step, to write a checkpoint, and to say so."""
    asked = float(run.flags.get("checkpoint.grace_seconds", 0)) or DEFAULT_GRACE_SECONDS
    least = asked + SAVE_SECONDS
    for role, pod in run.pods.items():
        seconds = pod["spec"].get("terminationGracePeriodSeconds", 30)
        hook = run.container(role).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
        waits = int((re.findall(r"\b\d+\b", " ".join(hook)) or ["0"])[-1])
        if seconds < max(least, waits) + MARGIN_SECONDS or 0 < waits < least:
            yield (
                f"{role}: terminationGracePeriodSeconds {seconds} must be {MARGIN_SECONDS} above preStop's {waits}, and both "
                f"above {least:g}: --checkpoint.grace_seconds, and {SAVE_SECONDS} to write a checkpoint"
            )
    if run.kind == "MPIJob" and not run.container("worker").get("lifecycle", {}).get("preStop"):
        yield "worker: no preStop: the ranks are sshd's children, and would not be told of the pod's end"
    if run.kind == "MPIJob" and "checkpoint.grace_seconds" not in run.flags:
        yield "launcher: --checkpoint.grace_seconds is not set: under horovodrun it is 2"


def probes(run):
    """The start is watched by the file that distgan touches; nothing kills a worker that compiles."""
    for role, each in run.containers:
        if "livenessProbe" in each:
            yield f"{role}: a livenessProbe kills a worker that compiles; the workers watch each other"
    probe = json.dumps(run.container("worker").get("startupProbe"))
    if run.kind == "MPIJob":
        if "tcpSocket" not in probe:
            yield "worker: startupProbe does not ask sshd"
    elif run.flags.get("runtime.heartbeat", "?") not in probe:
        yield f"worker: startupProbe does not look at --runtime.heartbeat={run.flags.get('runtime.heartbeat', '')}"


def resources(run):
    """What a pod asks for is what it may have."""
    for role, each in run.containers:
        asked, most = (each.get("resources", {}).get(key, {}) for key in ("requests", "limits"))
        if asked != most or not {"cpu", "memory"} <= most.keys():
            yield f"{role}: requests {asked} and limits {most} must be equal, with cpu and memory"


def image(run):
    """An image that is the same tomorrow."""
    found = {each["image"] for _, each in run.containers}
    for each in sorted(found):
        tag = each.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in each and tag in ("", "latest"):
            yield f"image {each} names no version (a tag other than latest, or @sha256:...)"
    if len(found) > 1:
        yield f"the pods have different images: {', '.join(sorted(found))}"


def secrets(run):
    """Keys are files. horovodrun shows its environment to everybody."""
    for each in run.all("Secret"):
        yield f"Secret {each['metadata']['name']} is written down here: create it from a file"
    for role, each in run.containers:
        for variable in each.get("env", []):
            if SECRET_WORDS.search(variable["name"]) or "secretKeyRef" in variable.get("valueFrom", {}):
                yield f"{role}: {variable['name']} is a secret in the environment: mount it as a file"
        if any("secretRef" in source for source in each.get("envFrom", [])):
            yield f"{role}: envFrom puts a Secret in the environment: mount it as a file"
    text = json.dumps(run.objects)
    for match in SECRET_VALUES.finditer(text):
        yield f"{match[0][:6]}... looks like a key"


def restricted(run):
    """Kubernetes' restricted pod security, and no token."""
    for role, pod in run.pods.items():
        spec = pod["spec"]
        security = spec.get("securityContext", {})
        if not (security.get("runAsNonRoot") and security.get("runAsUser") and security.get("fsGroup")):
            yield f"{role}: securityContext needs runAsNonRoot, runAsUser and fsGroup"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{role}: seccompProfile is not RuntimeDefault"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{role}: automountServiceAccountToken is not false"
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(key):
                yield f"{role}: {key} is set"
        for each in spec.get("volumes", []):
            if "hostPath" in each:
                yield f"{role}: volume {each['name']} is a hostPath"
    for role, each in run.containers:
        security = each.get("securityContext", {})
        if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
            yield f"{role}: allowPrivilegeEscalation is not false, or privileged is set"
        if security.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{role}: capabilities are not dropped (drop: [ALL])"
        if not security.get("readOnlyRootFilesystem"):
            yield f"{role}: readOnlyRootFilesystem is not true"


def ending(run):
    """A finished job goes by itself, and a failed pod is replaced after its end, not before."""
    after = run.spec.get("runPolicy", run.spec).get("ttlSecondsAfterFinished")
    if not after:
        yield "ttlSecondsAfterFinished is not set: finished jobs would stay for ever"
    if run.job_spec.get("podReplacementPolicy", "Failed" if run.kind == "MPIJob" else None) != "Failed":
        yield "podReplacementPolicy is not Failed: two pods would be one worker for a while"
    for role, pod in run.pods.items():
        if pod["spec"].get("restartPolicy") != "Never":
            yield f"{role}: restartPolicy {pod['spec'].get('restartPolicy')} is not Never, which podFailurePolicy needs"


def queue(run):
    """A job is suspended for Kueue, and for nobody else."""
    suspended = bool(run.spec.get("runPolicy", run.spec).get("suspend"))
    label = run.job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
    if suspended != bool(label):
        yield f"suspend is {suspended}, and the label kueue.x-k8s.io/queue-name is {label}: nobody would start it"


RULES = (
    names, instance, selectors, workers, peers, service, jobset_network, mpi_words, launcher, slots, ssh, volumes, storage,
    budget, network, exit_codes, grace, probes, resources, image, secrets, restricted, ending, queue,
)  # fmt: skip


def problems(objects):
    """What is wrong with a rendering: pairs of a rule's name and a line.

    Args:
      objects: the documents of `kubectl kustomize`, as PyYAML reads them.
    """
    run = Run(objects)
    found = [("one_job", text) for text in one_job(run)]
    return found or [(rule.__name__, text) for rule in RULES for text in rule(run)]


if __name__ == "__main__":
    found = problems(yaml.safe_load_all(sys.stdin))
    for _, line in found:
        print(f"check: {line}", file=sys.stderr)
    sys.exit(2 if found else 0)
