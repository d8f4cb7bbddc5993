"""Every preset with every precision, one replica and two, with classes and without, compiled by XLA and not: whole, but small.

Every two values that go together stand together in some run, and with --soak all of them do in all ways. So do regularizers and
augmentations with every precision.
"""

import itertools
import json
import subprocess
import sys
import zlib

import pytest
from conftest import REPOSITORY, environment, finish

from distgan import presets
from distgan.objectives import AUGMENTATIONS, REGULARIZERS

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16", "float64")
AXES = {
    "preset": tuple(presets.PRESETS),
    "precision": PRECISIONS,
    "replicas": (1, 2),
    "conditional": (True, False),
    "jit_compile": (False, True),
}
# Sets of regularizers that go together, on the models that they go with.
PENALTIES = {
    "first": "r1,r2,lecam,top_k",
    "second": "gradient_penalty,dragan,consistency,orthogonal",
    "classes": "auxiliary,weight_clip",
}
PARTS = {"augmentation": tuple(AUGMENTATIONS.parts), "precision": PRECISIONS, "penalties": tuple(PENALTIES)}
SIDE, SECONDS = 16, 2400


def pairs(axes, cell):
    """The pairs of values that stand together in a cell."""
    return {frozenset(pair) for pair in itertools.combinations(zip(axes, cell, strict=True), 2)}


def whole(axes, allowed):
    """All cells that are allowed."""
    return [cell for cell in itertools.product(*axes.values()) if allowed(cell)]


def cost(cell):
    """How much longer it takes to trace: XLA and a second replica double it."""
    return (2 in cell) + (cell[-1] is True)


def covering(axes, allowed):
    """Few of the allowed cells, with every pair of values that any of them has: the one with most new pairs, again and again."""
    # In no order, so that the values of a third axis are dealt out evenly.
    cells = sorted(whole(axes, allowed), key=lambda cell: zlib.crc32(name_of(cell).encode()))
    missing = set().union(*(pairs(axes, cell) for cell in cells))
    chosen = []
    while missing:
        best = max(cells, key=lambda cell: (len(pairs(axes, cell) & missing), -cost(cell)))
        chosen.append(best)
        missing -= pairs(axes, best)
    return chosen


def goes(cell):
    """XLA does not take the sums over replicas of a batch norm, which all generators of the presets have."""
    _, _, replicas, _, jit_compile = cell
    return not (jit_compile and replicas > 1)


def values_of(cell):
    """A preset's values at the smallest sizes, on made-up images of its channels, with few steps to trace."""
    name, precision, replicas, conditional, jit_compile = cell
    values = presets.preset(name)
    model = values.get("model.name", "dcgan")
    values |= small(1 if "digits-" in name else 3) | {"model.conditional": conditional, "data.path": ""}
    values["train.discriminator_updates"] = 1
    if model == "dcgan":
        values["model.width"] = 1
    else:
        # A sixteenth of the widths of resnet's tables is what biggan calls 16.
        width = 16 if model == "resnet" else 2
        values |= {"model.generator_width": width, "model.discriminator_width": width, "model.latent_size": 6}
        values["model.head"] = "projection" if conditional else "none"
    if values.get("model.attention"):
        values["model.attention"] = SIDE // 2
    return values | {"precision": precision, "jit_compile": jit_compile, "runtime.logical_cpus": replicas}


def parts_of(cell):
    """The same of regularizers and an augmentation."""
    augmentation, precision, penalties = cell
    values = small(3) | {"model.width": 1, "objective.regularizers": PENALTIES[penalties], "objective.top_k.k": 3}
    values |= {"objective.augmentation": augmentation, "precision": precision, "objective.ada.start": 0.5}
    values |= {"objective.weight_clip.limit": 0.1, "objective.dragan.interval": 2}
    if penalties == "classes":
        del values["model.width"]
        values |= {"model.name": "parts:Headed", "model.conditional": True}
    taken = {*PENALTIES[penalties].split(","), augmentation, "regularizers", "augmentation"}
    return {name: value for name, value in values.items() if name[:9] != "objective" or name.split(".")[1] in taken}


def small(channels):
    """Two images a replica, of three classes."""
    return {
        "data.source": "synthetic",
        "data.resolution": SIDE,
        "data.synthetic.num_images": 16,
        "data.synthetic.native_resolution": SIDE,
        "data.synthetic.channels": channels,
        "data.synthetic.num_classes": 3,
        "train.global_batch": 4,
        "evaluation.extractor": "parts:Averages",
        "evaluation.fid.count": 8,
    }


def name_of(cell):
    return "-".join(map(str, cell))


TABLES = {"presets": (AXES, goes, values_of), "parts": (PARTS, lambda cell: True, parts_of)}
CHOSEN = {table: covering(axes, allowed) for table, (axes, allowed, _) in TABLES.items()}
ALL = {table: whole(axes, allowed) for table, (axes, allowed, _) in TABLES.items()}


@pytest.mark.parametrize("table", TABLES)
def test_every_pair_is_covered(table):
    axes, allowed, _ = TABLES[table]
    found = set().union(*(pairs(axes, cell) for cell in CHOSEN[table]))
    for one, other in itertools.combinations(axes, 2):
        for pair in itertools.product(axes[one], axes[other]):
            together = [dict(zip(axes, cell, strict=True)) for cell in itertools.product(*axes.values())
                        if allowed(cell)]  # fmt: skip
            possible = any((cell[one], cell[other]) == pair for cell in together)
            assert (frozenset(zip((one, other), pair, strict=True)) in found) == possible, pair
    assert len(CHOSEN[table]) <= 1.3 * max(len(axes[one]) * len(axes[other])
                                           for one, other in itertools.combinations(axes, 2))  # fmt: skip


def test_every_part_is_here():
    assert sorted(",".join(PENALTIES.values()).split(",")) == sorted(REGULARIZERS.parts)


def run(cells, folder):
    """Name -> outcome of cells (name -> values), in three processes: a process has one number of replicas."""
    paths = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    processes, results = [], []
    by_replicas = {
        replicas: [name for name, values in cells.items() if values.get("runtime.logical_cpus", 1) == replicas]
        for replicas in (1, 2)
    }
    shares = [(1, by_replicas[1][::2]), (1, by_replicas[1][1::2]), (2, by_replicas[2])]
    for share, (replicas, names) in enumerate(shares):
        own = {name: cells[name] for name in names}
        asked, result = folder / f"cells{share}.json", folder / f"results{share}.json"
        asked.write_text(json.dumps(own))
        words = [sys.executable, str(REPOSITORY / "tests" / "table.py"), str(replicas), str(asked), str(result)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment() | paths}
        processes.append(subprocess.Popen(words, **pipes))
        results.append(result)
    try:
        for process in processes:
            finish(process, seconds=SECONDS if len(cells) < 200 else 10 * SECONDS)
    finally:
        for process in processes:
            process.kill()
    return {name: outcome for result in results for name, outcome in json.loads(result.read_text()).items()}


def values_by_name(chosen):
    return {name_of(cell): TABLES[table][2](cell) for table, cells in chosen.items() for cell in cells}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run(values_by_name(CHOSEN) | REFUSED, tmp_path_factory.mktemp("table"))


@pytest.mark.parametrize("cell", [cell for cells in CHOSEN.values() for cell in cells], ids=name_of)
def test_cell(cell, outcomes):
    assert outcomes[name_of(cell)] == ""


# XLA with batch norms that sum over replicas.
REFUSED = {
    f"refused-{name}": values_of((name, "float32", 2, False, True))
    for name in ("digits-dcgan", "cifar10-wgan-gp", "digits-biggan")
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, outcomes):
    assert outcomes[name].startswith("refused: --jit_compile does not go with 2 replicas here: generator/")
    assert "drop --jit_compile" in outcomes[name]


@pytest.mark.soak
def test_the_whole_table(tmp_path):
    outcomes = run(values_by_name(ALL), tmp_path)
    assert not {name: outcome for name, outcome in outcomes.items() if outcome}
