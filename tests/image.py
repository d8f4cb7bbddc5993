"""Executes the steps of a Dockerfile without a builder: each stage is a layer over this machine's root, entered by chroot.

Understood is what k8s/Dockerfile has: FROM, ARG, ENV, WORKDIR, USER, COPY, RUN, and what is only noted, as ENTRYPOINT. A base
image is this machine's own root, so only a Debian with Python stands for python:*-slim; one that is only copied from may be any
folder.
"""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY


class Stage:
    """One stage: its layers, lowest first, and what RUN finds set."""

    def __init__(self, folder, base=None):
        self.layers = [*(base.layers if base else ()), folder]
        self.environment = dict(base.environment) if base else {}
        self.directory, self.user = (base.directory, base.user) if base else ("/", "0:0")
        folder.mkdir()
        folder.chmod(0o755)

    @property
    def top(self):
        """Where this stage's files are written."""
        return self.layers[-1]

    def enter(self, words, arguments):
        """Runs a command in the stage; returns its exit code and what it wrote."""
        work, root = (self.top.with_name(f"{self.top.name}-{kind}") for kind in ("work", "root"))
        for path in (work, root):
            path.mkdir(exist_ok=True)
        lower = ":".join([*map(str, reversed(self.layers[:-1])), "/"])
        # This machine's Python may be where only root looks.
        open_ways = [f"chmod o+x {root}{each}" for each in Path(sys.base_prefix).parents]
        script = [
            "mount --make-rprivate /",
            f"mount -t overlay overlay -o lowerdir={lower},upperdir={self.top},workdir={work} {root}",
            *open_ways,
            *(f"mount --bind /{each} {root}/{each}" for each in ("proc", "sys")),
            f"mount --rbind /dev {root}/dev",
            f"mount -t tmpfs tmp {root}/tmp -o mode=1777",  # noqa: S108
            f"mkdir -p {root}{self.directory}",
        ]
        user, group = self.user.split(":")
        variables = {"PATH": os.environ["PATH"], "HOME": "/root"} | self.environment | arguments
        passed = [f"{name}={value}" for name, value in variables.items()]
        command = [
            "setpriv",
            f"--reuid={user}",
            f"--regid={group}",
            "--clear-groups",
            "env",
            "-i",
            "-C",
            self.directory,
        ]
        script.append(f"exec chroot {root} {shlex.join([*command, *passed, *words])}")
        outside = ["unshare", "--mount", "bash", "-euc", "\n".join(script)]
        done = subprocess.run(outside, capture_output=True, text=True, timeout=900, check=False)
        return done.returncode, done.stdout + done.stderr


def instructions(text):
    """Pairs of a word and the rest of its line, lines that go on joined."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.strip().split(None, 1)) for line in text.splitlines() if line.strip()]


def ignored(path, patterns):
    """Whether a path of the checkout is kept from the build, by a .dockerignore."""
    out = False
    for pattern in patterns:
        bare = pattern.lstrip("!").removeprefix("**/")
        parts = [path, *map(str, Path(path).parents)][:-1]
        if any(
            fnmatch.fnmatch(each, bare) or (pattern.startswith("**/") and Path(each).name == bare) for each in parts
        ):
            out = not pattern.startswith("!")
    return out


def context(folder, patterns):
    """The files of the checkout that a build sees, copied into a folder."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if not ignored(name, patterns) and (REPOSITORY / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    return folder


def build(folder, arguments, before_run, bases=None):
    """Executes k8s/Dockerfile.

    Args:
      folder: an empty one, for the layers.
      arguments: of --build-arg.
      before_run: called with each stage before a RUN of it.
      bases: folders that stand for base images, by their names.

    Returns:
      The last stage, and the pairs of a RUN's words and its output.
    """
    ignore = (REPOSITORY / "k8s" / "Dockerfile.dockerignore").read_text().splitlines()
    source = context(folder / "context", [line for line in ignore if line and not line.startswith("#")])
    values, stages, stage, log = {}, {}, None, []
    steps = instructions((REPOSITORY / "k8s" / "Dockerfile").read_text())
    needed = _needed(steps, _defaults(steps) | arguments)
    for word, rest in steps:
        rest = _substitute(rest, values)
        if word == "ARG":
            name, _, default = rest.partition("=")
            values.setdefault(name, arguments.get(name, default))
        elif word == "FROM":
            base, *named = rest.split()
            current = named[1] if named else "final"
            stage = Stage(folder / current, stages.get(base)) if current in needed else None
            if stage and base in (bases or {}):
                stage.layers.insert(0, bases[base])
            stages[current] = stage
        elif stage is None:
            continue
        elif word == "ENV":
            stage.environment |= dict(each.split("=", 1) for each in shlex.split(rest))
        elif word == "WORKDIR":
            stage.directory = rest
        elif word == "USER":
            stage.user = rest
        elif word == "COPY":
            _copy(stage, stages, source, rest.split())
        elif word == "RUN":
            before_run(stage)
            code, output = stage.enter(shlex.split(rest), {})
            assert code == 0, f"RUN {rest}: {code}\n{output}"
            log.append((rest, output))
        else:
            assert word in ("LABEL", "ENTRYPOINT", "CMD"), word
    return stage, log


def _defaults(steps):
    pairs = [rest.partition("=") for word, rest in steps if word == "ARG"]
    return {name: value for name, _, value in reversed(pairs) if value}


def _substitute(text, values):
    return re.sub(r"\$\{(\w+)\}", lambda match: values.get(match[1], match[0]), text)


def _needed(steps, values):
    """The stages that the last one stands on."""
    stages, current = {}, None
    for word, rest in steps:
        rest = _substitute(rest, values)
        if word == "FROM":
            base, *named = rest.split()
            current = named[1] if named else "final"
            stages[current] = {base}
        elif word == "COPY" and rest.startswith("--from="):
            stages[current].add(rest.split()[0].removeprefix("--from="))
    needed, open_ones = set(), ["final"]
    while open_ones:
        each = open_ones.pop()
        if each in stages and each not in needed:
            needed.add(each)
            open_ones += stages[each]
    return needed


def _copy(stage, stages, source, words):
    """COPY: files of the context, or of another stage, into this one."""
    other = stages[words.pop(0).removeprefix("--from=")] if words[0].startswith("--from=") else None
    *froms, target = words
    into = stage.top / os.path.normpath(os.path.join(stage.directory, target)).lstrip("/")
    for each in froms:
        # What another stage holds of a folder lies in several layers.
        layers = [layer / each.lstrip("/") for layer in other.layers] if other else [source / each]
        found = [layer for layer in layers if layer.exists()]
        assert found, f"COPY: there is no {each}"
        for layer in found:
            if layer.is_dir():
                shutil.copytree(layer, into, dirs_exist_ok=True, symlinks=True)
            else:
                to_folder = target.endswith("/") or len(froms) > 1 or target == "."
                path = into / layer.name if to_folder else into
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(layer, path)
