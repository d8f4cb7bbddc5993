"""A cluster's node on this machine: pods as network, mount and process namespaces, run as the kubelet would run them.

A pod has a name that the others resolve, a root that is read-only but for its mounts, the non-root user, dropped capabilities
and environment of its manifest, and ends as a pod does: preStop, SIGTERM, grace period, SIGKILL.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import hosts
from conftest import REPOSITORY
from hosts import join, leave, run, space

NEEDED = (*hosts.NEEDED, "kubectl", "tini", "setpriv", "chroot")
NAMESPACE = "training"
WHERE = "/opt/distgan"
IMAGE_ENVIRONMENT = {
    "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
    "PYTHONPATH": WHERE,
    "HOME": "/home/distgan",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


class Cluster:
    """Pods, names and claims; `folder/claims/NAME` is what is in a claim."""

    def __init__(self, folder: Path):
        self.folder, self.bridge = folder, f"dp{os.getpid()}"
        self.pods, self.config_maps, self.names, self.last_address = {}, {}, {}, 10
        self.hosts = folder / "hosts"

    def __enter__(self):
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "link", "set", self.bridge, "up")
        self.folder.chmod(0o755)
        (self.folder / "ssh").mkdir()
        # The key that the operator makes for a job: of root, and readable for the pods' group.
        run("ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", self.folder / "ssh" / "id_rsa")
        (self.folder / "ssh" / "id_rsa").chmod(0o644)
        (self.folder / "ssh" / "authorized_keys").write_text((self.folder / "ssh" / "id_rsa.pub").read_text())
        user = "distgan:x:1000:1000::/home/distgan:/bin/bash\n"
        (self.folder / "passwd").write_text(user + Path("/etc/passwd").read_text())
        self.hosts.write_text("127.0.0.1 localhost\n")
        return self

    def __exit__(self, *_):
        for pod in list(self.pods.values()):
            pod.kill()
        run("ip", "link", "del", self.bridge)

    def claim(self, name):
        """What is in a claim."""
        return self.volume(f"claims/{name}")

    def volume(self, name):
        """A folder that belongs to the pods' group, as fsGroup makes it."""
        path = self.folder / name
        if not path.exists():
            path.mkdir(parents=True)
            os.chown(path, 0, 1000)
            path.chmod(0o2777)
        return path

    def apply(self, objects):
        """Takes the ConfigMaps of a rendering."""
        for each in objects:
            if each["kind"] == "ConfigMap":
                self.config_maps[each["metadata"]["name"]] = each["data"]

    def start(self, name, template, names, environment=None, mounts=()):
        """Starts a pod.

        Args:
          name: of the pod, also its host name.
          template: its template in the job.
          names: by which others find it.
          environment: what the controller puts into it.
          mounts: further pairs of a path here and a path in the pod.
        """
        self.last_address += 1
        address = f"10.78.0.{self.last_address}"
        self.names[name] = f"{address} {' '.join(dict.fromkeys([*names, name]))}\n"
        # Written in place: it is mounted in every pod.
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(self.names.values()))
        join(name, address, self.bridge)
        self.pods[name] = Pod(self, name, template, environment or {}, mounts)
        return self.pods[name]


class Pod:
    """A running pod with one container."""

    def __init__(self, cluster, name, template, environment, mounts):
        self.cluster, self.name, self.spec, self.labels = (
            cluster,
            name,
            template["spec"],
            template["metadata"]["labels"],
        )
        [self.container] = self.spec["containers"]
        own = {each["name"]: self._value(each) for each in self.container.get("env", [])}
        self.environment = {**IMAGE_ENVIRONMENT, "HOSTNAME": name, **environment, **own}
        self.log = cluster.folder / f"{name}.log"
        words = [self._expand(word) for word in [*self.container["command"], *self.container.get("args", [])]]
        script = (
            self._root_script([*self._mounts(), *mounts]) + f"exec chroot $root {shlex.join(self._as_user(words))}\n"
        )
        outside = [
            "nsenter",
            f"--net=/run/netns/{space(name)}",
            "unshare",
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
        ]
        with self.log.open("a") as file:
            self.process = subprocess.Popen(
                [*outside, "bash", "-euc", script], stdout=file, stderr=file, start_new_session=True
            )

    def _value(self, variable):
        source = variable.get("valueFrom", {})
        if "configMapKeyRef" in source:
            return self.cluster.config_maps[source["configMapKeyRef"]["name"]][source["configMapKeyRef"]["key"]]
        if "fieldRef" in source:
            return self.labels[re.fullmatch(r"metadata\.labels\['(.*)'\]", source["fieldRef"]["fieldPath"])[1]]
        return variable["value"]

    def _expand(self, word):
        return re.sub(r"\$\((\w+)\)", lambda match: self.environment[match[1]], word)

    def _as_user(self, words):
        """A command with what the manifest says of the user, in the environment of the container."""
        pod, own = self.spec["securityContext"], self.container["securityContext"]
        assert own["readOnlyRootFilesystem"]
        assert not own["allowPrivilegeEscalation"]
        who = [f"--reuid={pod['runAsUser']}", f"--regid={pod['runAsGroup']}", f"--groups={pod['fsGroup']}"]
        dropped = ["--no-new-privs", *(["--bounding-set=-all"] if own["capabilities"]["drop"] == ["ALL"] else [])]
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return ["setpriv", *who, *dropped, "--inh-caps=-all", "env", "-i", "-C", "/home/distgan", *variables, *words]

    def _mounts(self):
        """Pairs of a path here, or of the size of a memory disk, and a path in the pod; read-only ones end with `:ro`."""
        sources = {}
        for each in self.spec["volumes"]:
            name = each["name"]
            if "configMap" in each:
                sources[name] = self.cluster.volume(f"{self.name}-{name}")
                for item in each["configMap"]["items"]:
                    (sources[name] / item["path"]).write_text(
                        self.cluster.config_maps[each["configMap"]["name"]][item["key"]]
                    )
            elif "persistentVolumeClaim" in each:
                sources[name] = self.cluster.claim(each["persistentVolumeClaim"]["claimName"])
            elif each["emptyDir"].get("medium") == "Memory":
                sources[name] = each["emptyDir"]["sizeLimit"].replace("i", "")
            else:
                sources[name] = self.cluster.volume(f"{self.name}-{name}-{time.monotonic_ns()}")
        for each in self.container["volumeMounts"]:
            yield sources[each["name"]], each["mountPath"] + (":ro" if each.get("readOnly") else "")

    def _root_script(self, mounts):
        """Commands that make the pod's root, in $root."""
        base = self.cluster.volume(f"{self.name}-root")
        lines = [
            f"hostname {self.name}",
            "mount --make-rprivate /",
            f"mount -t tmpfs pod {base}",
            f"root={base}/root; mkdir {base}/upper {base}/work $root",
            f"mount -t overlay overlay -o lowerdir=/,upperdir={base}/upper,workdir={base}/work $root",
            "mount -t proc proc $root/proc",
            "mount --rbind /dev $root/dev",
        ]
        files = [
            (REPOSITORY, f"{WHERE}:ro"),
            (REPOSITORY / "k8s" / "sshd_config", "/etc/ssh/sshd_config"),
            (REPOSITORY / "k8s" / "ssh_config", "/etc/ssh/ssh_config"),
            (self.cluster.hosts, "/etc/hosts"),
            (self.cluster.folder / "passwd", "/etc/passwd"),
        ]
        for source, target in [*files, *mounts]:
            path, _, read_only = target.partition(":")
            if isinstance(source, str):
                lines += [f"mkdir -p $root{path}", f"mount -t tmpfs -o size={source},mode=1777 shm $root{path}"]
                continue
            make = "mkdir -p" if source.is_dir() else "touch"
            lines += [f"{make} $root{path}", f"mount --bind {source} $root{path}"]
            if read_only:
                lines.append(f"mount -o remount,bind,ro $root{path}")
        # Python, its packages and the checkout are where they are, on other disks maybe, or where the pod has a mount.
        for path in (sys.base_prefix, sys.prefix, REPOSITORY):
            lines += [f"mkdir -p $root{path}", f"mount --bind {path} $root{path}"]
            lines += [f"chmod o+x $root{parent}" for parent in Path(path).parents]
        return "\n".join([*lines, "mount -o remount,ro $root", "export PATH=$PATH:/usr/sbin:/sbin", ""])

    @property
    def first_process(self):
        """The number, outside, of the container's first process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def execute(self, words, seconds=60):
        """Runs a command within the container, as probes and hooks do; returns its exit code."""
        inside = ["nsenter", f"--target={self.first_process}", "--mount", "--net", "--uts", "--ipc", "--pid", "--root"]
        with self.log.open("a") as file:
            return subprocess.run(
                [*inside, *self._as_user(words)], timeout=seconds, check=False, stdout=file, stderr=file
            ).returncode

    def delete(self):
        """Ends the pod as the kubelet does; returns its exit code and the seconds that it took."""
        begun, grace = time.monotonic(), self.spec["terminationGracePeriodSeconds"]
        hook = self.container.get("lifecycle", {}).get("preStop")
        if hook:
            self.execute(hook["exec"]["command"], grace)
        if self.process.poll() is None:
            os.kill(self.first_process, signal.SIGTERM)
        try:
            self.process.wait(max(1, begun + grace - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
        code = self.process.wait()
        self.kill()
        return code, time.monotonic() - begun

    def wait(self, seconds):
        """Waits for the end; returns the exit code."""
        code = self.process.wait(seconds)
        self.kill()
        return code

    def kill(self):
        """Ends the pod without a word, and removes what it had."""
        leave(self.name)
        self.process.wait(30)
        self.cluster.pods.pop(self.name, None)
