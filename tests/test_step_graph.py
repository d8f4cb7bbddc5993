"""No ordinary step waits for the host: read from the graphs of compiled steps, by TensorFlow's own list of GPU kernels."""

import json
import os
import sys

import pytest
from conftest import REPOSITORY, environment, finish_all, launch

RESIDUAL = {"model.generator_width": 4, "model.discriminator_width": 4, "model.conditional": True}
VARIANTS = {
    "plain": {"model.width": 4},
    "lazy": {
        "model.width": 4,
        "model.conditional": True,
        "precision": "mixed_float16",
        "train.accumulation_steps": 2,
        "train.clip_norm": 1.0,
        "train.loss_limit": 100.0,
        "objective.regularizers": "r1,lecam,orthogonal",
        "objective.r1.interval": 4,
        "objective.augmentation": "ada",
        "optimizer.learning_rate": "linear:2e-4:0",
    },
    "biggan": RESIDUAL
    | {
        "model.name": "biggan",
        "model.latent_size": 60,
        "objective.loss": "hinge",
        "objective.regularizers": "gradient_penalty,consistency",
        "objective.augmentation": "fixed",
        "train.fake_labels": "uniform",
        "train.update_order": "alternating",
        "train.discriminator_updates": 2,
        "optimizer.name": "sgd",
    },
    "resnet": RESIDUAL
    | {
        "model.name": "resnet",
        "model.head": "auxiliary",
        "model.discriminator_norm": "none",
        "precision": "mixed_bfloat16",
        "objective.loss": "relativistic_average",
        "objective.regularizers": "r2,dragan,top_k,auxiliary,weight_clip",
        "objective.augmentation": "diffaugment",
    },
}
DETERMINISTIC = ("single", "horovod")
LAYOUTS = {  # Launcher, workers, replicas of each, variants.
    "single": (None, 1, 1, tuple(VARIANTS)),
    "mirrored": (None, 1, 2, ("lazy",)),
    "horovod": ("horovod", 2, 1, ("lazy", "plain")),
    "multiworker": ("multiworker", 2, 1, ("lazy", "plain")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_step_waits_for_the_host(tmp_path, layout):
    launcher, workers, replicas, names = LAYOUTS[layout]
    variants, out = tmp_path / "variants.json", tmp_path / "out.json"
    common = {"runtime.logical_cpus": replicas, "deterministic": layout in DETERMINISTIC}
    variants.write_text(json.dumps({name: VARIANTS[name] | common for name in names}))
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    command = [sys.executable, str(REPOSITORY / "tests" / "step_graphs.py"), str(variants), str(out)]
    finish_all(launch(launcher, workers, command, environment() | {"PYTHONPATH": path}), seconds=600)
    counts = json.loads(out.read_text())
    assert list(counts) == list(names)
    assert counts.get("lazy") == 2  # Steps with R1, and those between.
