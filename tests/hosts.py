"""Several hosts on one machine: network namespaces on a bridge, each with its name, its sshd and a run directory of its own."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SSH_PORT = 2222
NEEDED = ("ip", "nsenter", "unshare", "ssh", "ssh-keygen", "/usr/sbin/sshd")


def missing(needed=NEEDED):
    """What this machine lacks for it, in words; empty where nothing is missing."""
    lacks = [name for name in needed if not shutil.which(name)]
    return [*lacks, *([] if os.geteuid() == 0 else ["root"])]


def space(name):
    """The namespace of a host."""
    return f"distgan-{name}"


def run(*words):
    """A command that must succeed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def join(name, address, bridge):
    """A network namespace with its interface eth0 on a bridge."""
    run("ip", "netns", "add", space(name))
    outer = f"{bridge}-{address.rpartition('.')[2]}"
    run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space(name))
    run("ip", "link", "set", outer, "master", bridge, "up")
    run("ip", "-n", space(name), "address", "add", f"{address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        run("ip", "-n", space(name), "link", "set", device, "up")


def leave(name):
    """Removes a namespace, and what runs there."""
    if space(name) not in {line.split()[0] for line in run("ip", "netns", "list").splitlines() if line}:
        return
    for pid in run("ip", "netns", "pids", space(name)).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    run("ip", "netns", "del", space(name))


class Hosts:
    """The hosts host1, host2, ...; `run_dir` is one path, and on each host another folder."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.run_dir = folder, folder / "run"
        self.names = [f"host{number}" for number in range(1, count + 1)]
        self.bridge = f"dg{os.getpid()}"
        self.pids = {}

    def __enter__(self):
        # Namespaces that an interrupted test left behind are removed; no two tests run this at once.
        self._remove()
        self.run_dir.mkdir()
        Path("/run/sshd").mkdir(exist_ok=True)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "key")
        table = "127.0.0.1 localhost\n"
        table += "".join(f"{self.address(name)} {name}\n" for name in self.names)
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "link", "set", self.bridge, "up")
        for name in self.names:
            self._start(name, table)
        self._write_ssh()
        return self

    def __exit__(self, *_):
        self._remove()

    def address(self, name):
        return f"10.77.0.{10 + self.names.index(name)}"

    def own(self, name):
        """The run directory of a host, as seen from outside."""
        return self.folder / name

    def _start(self, name, table):
        self.own(name).mkdir()
        join(name, self.address(name), self.bridge)
        folder = Path("/etc/netns") / space(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text(table)
        key, config, pid_file = (self.folder / f"{name}.{kind}" for kind in ("key", "config", "pid"))
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
        config.write_text(
            f"Port {SSH_PORT}\nListenAddress {self.address(name)}\nHostKey {key}\nPidFile {pid_file}\n"
            f"AuthorizedKeysFile {self.folder}/key.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
        )
        script = f"mount --bind {self.own(name)} {self.run_dir} && hostname {name} && /usr/sbin/sshd -f {config}"
        run("ip", "netns", "exec", space(name), "unshare", "--uts", "--mount", "sh", "-c", script)
        end = time.monotonic() + 10
        while not (pid_file.exists() and pid_file.read_text().strip()):
            assert time.monotonic() < end, f"sshd of {name} did not start"
            time.sleep(0.05)
        self.pids[name] = pid_file.read_text().strip()

    def _write_ssh(self):
        """An ssh that finds the key and asks nothing: horovodrun calls it by name."""
        config = self.folder / "ssh.config"
        config.write_text(
            f"IdentityFile {self.folder}/key\nUserKnownHostsFile /dev/null\nStrictHostKeyChecking no\nLogLevel ERROR\n"
        )
        folder = self.folder / "bin"
        folder.mkdir()
        (folder / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
        (folder / "ssh").chmod(0o755)
        self.path = os.pathsep.join([str(folder), os.path.dirname(sys.executable), os.environ["PATH"]])

    def start(self, name, *words, env):
        """Starts a command on a host."""
        inside = ["nsenter", f"--target={self.pids[name]}", "--net", "--uts", "--mount", *map(str, words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        return subprocess.Popen(inside, env=env | {"PATH": self.path}, **pipes)

    def trainers(self, name):
        """The process numbers of `distgan train` on a host."""
        found = []
        for pid in run("ip", "netns", "pids", space(name)).split():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"python" in words[0] and b"train" in words and not any(b"horovodrun" in word for word in words):
                found.append(int(pid))
        return found

    def signal(self, name, number):
        """Sends a signal to the trainers of a host."""
        pids = self.trainers(name)
        assert pids
        for pid in pids:
            os.kill(pid, number)

    def kill_trainers(self):
        """Ends what a fault left over."""
        for name in self.names:
            for pid in self.trainers(name):
                os.kill(pid, signal.SIGKILL)

    def empty(self, name):
        """Empties a host's run directory."""
        for path in self.own(name).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def link(self, name, state):
        """Cuts a host off (`down`) or joins it again (`up`)."""
        run("ip", "-n", space(name), "link", "set", "eth0", state)

    def _remove(self):
        for name in self.names:
            leave(name)
            shutil.rmtree(Path("/etc/netns") / space(name), ignore_errors=True)
        if Path("/sys/class/net", self.bridge).exists():
            run("ip", "link", "del", self.bridge)
