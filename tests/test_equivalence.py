"""The same run at any scale: one replica against every strategy and number of workers, for every variable.

In float64, where a correct program differs by rounding alone (1e-13) and a wrong one by far more; with SGD, which shows a
wrong factor that Adam hides; batch norm and dropout are on.
"""

import json
import os
import sys

import numpy as np
import pytest
from conftest import REPOSITORY, SMALL, distgan, environment, finish_all, launch, numbers, rows

from distgan.objectives import AUGMENTATIONS, LOSSES, REGULARIZERS

BASE = {
    "data.source": "digits",
    "data.resolution": 16,
    "data.flip": True,
    "model.width": 8,
    "train.global_batch": 24,
    "precision": "float64",
}
SGD = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.05}
ADAM = {"optimizer.name": "adam", "optimizer.learning_rate": 2e-4}
PLAIN = {"model.name": "parts:Plain", "model.units": 16}
ALTERNATING = {"train.update_order": "alternating", "train.discriminator_updates": 2, "train.clip_norm": 0.5}
EXACT = {
    "sgd": BASE | SGD,
    "adam": BASE | ADAM | {"train.accumulation_steps": 2, "model.conditional": True},
    "alternating": BASE | SGD | ALTERNATING | {"objective.loss": "minimax", "optimizer.momentum": 0.5},
}
FLOAT32 = {"float32": BASE | ADAM | {"precision": "float32"}}
PLAIN_MODELS = {
    f"{name}-{steps}": {key: value for key, value in (BASE | PLAIN | optimizer).items() if key != "model.width"}
    | {"train.accumulation_steps": steps}
    for name, optimizer in (("sgd", SGD), ("adam", ADAM))
    for steps in (1, 4)
}
LOSS_MODELS = {
    f"{loss}-{steps}": PLAIN_MODELS[f"sgd-{steps}"] | {"objective.loss": loss, "train.accumulation_steps": steps}
    for loss in LOSSES.parts
    for steps in (1, 4)
    if (loss, steps) != ("relativistic_average", 4)  # Refused: its means are of the whole batch.
}
# Every regularizer and augmentation, in steps with several phases, with settings that move what they keep.
MORE = {
    "penalties": {
        "objective.regularizers": "r1,r2,gradient_penalty,consistency,weight_clip",
        "objective.r1.interval": 4,
        "objective.consistency.fake_weight": 0.5,
        "objective.weight_clip.limit": 0.12,
        "objective.augmentation": "diffaugment",
    },
    "kept": {
        "model.name": "parts:Headed",
        "model.conditional": True,
        "train.fake_labels": "paired",
        "train.update_order": "alternating",
        "train.generator_batch_multiple": 2,
        "objective.regularizers": "lecam,orthogonal,auxiliary",
        "objective.lecam.decay": 0.9,
        "objective.lecam.start_kimg": 0.1,
        "objective.orthogonal.weight": 0.01,
        "objective.augmentation": "ada",
        "objective.ada.start": 0.5,
        "objective.ada.interval": 3,
        "objective.ada.speed_kimg": 2.0,
    },
    "whole": {
        "objective.regularizers": "dragan,top_k",
        "objective.dragan.interval": 2,
        "objective.top_k.k": "linear:20:6:0.4",
        "objective.augmentation": "fixed",
        "objective.fixed.p": "cosine:0.2:0.8:0.4",
        "objective.fixed.filter": 1.0,
        "objective.fixed.noise": 1.0,
        "objective.fixed.cutout": 1.0,
        "optimizer.learning_rate": "linear:0.05:0.02:0.3",
        "optimizer.discriminator_learning_rate": 0.08,
    },
}
MORE_MODELS = {
    f"{name}-{steps}": PLAIN_MODELS[f"sgd-{steps}"] | changes
    for name, changes in MORE.items()
    for steps in (1, 4)
    if (name, steps) != ("whole", 4)  # Refused, as above.
}
# Stock Keras models of a user's own, told classes where they take them.
OWN_MODELS = {
    f"{name}-1": PLAIN_MODELS["sgd-1"] | {"model.name": f"own_parts:{name}", "model.conditional": conditional}
    for name, conditional in (("Stock", False), ("Mixed", True), ("Functional", False), ("Subclassed", True))
}


# Workers of each launcher -> replicas in all.
LAYOUTS = {
    "mirrored-2": (None, 1, 2),
    "mirrored-4": (None, 1, 4),
    "multiworker-2": ("multiworker", 2, 2),
    "multiworker-2x2": ("multiworker", 2, 4),
    "horovod-2": ("horovod", 2, 2),
    "horovod-3": ("horovod", 3, 3),
}


# Compiling for three and four replicas takes long, and two show what several phases get wrong.
LEFT_OUT = {(layout, "alternating") for layout, (_, _, replicas) in LAYOUTS.items() if replicas > 2}
CASES = [(layout, variant) for layout in LAYOUTS for variant in EXACT if (layout, variant) not in LEFT_OUT]


def run(layout, variants, folder):
    launcher, workers, replicas = LAYOUTS.get(layout, (None, 1, 1))
    out, asked = folder / f"{layout}.npz", folder / f"{layout}.json"
    asked.write_text(json.dumps(variants))
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    command = [sys.executable, str(REPOSITORY / "tests" / "replicas.py"), str(replicas), str(out), str(asked)]
    finish_all(launch(launcher, workers, command, environment() | {"PYTHONPATH": paths}), seconds=600)
    return dict(np.load(out))


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """Layout -> every array of every variant."""
    folder = tmp_path_factory.mktemp("states")
    variants = EXACT | FLOAT32
    small = PLAIN_MODELS | LOSS_MODELS | MORE_MODELS | OWN_MODELS
    more = {
        "mirrored-2": [*(f"{name}-1" for name in (*LOSSES.parts, *MORE)), *OWN_MODELS],
        "horovod-2": ["relativistic_average-1", "kept-1", "whole-1", "Mixed-1", "Subclassed-1"],
    }
    found = {"single": run("single", variants | small, folder)}
    for layout in LAYOUTS:
        asked = {name: variants[name] for name in variants if (layout, name) not in LEFT_OUT}
        found[layout] = run(layout, asked | {name: small[name] for name in more.get(layout, ())}, folder)
    return found


def of(arrays, variant, moment):
    prefix = f"{variant}|{moment}|"
    found = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    assert found
    return found


def assert_same_change(one, other, variant, other_variant=None, still=()):
    """|da - db| <= 1e-8 |da| for each variable, where d is its change since the start; those of `still` have none."""
    start, end = of(one, variant, "start"), of(one, variant, "end")
    other_start, other_end = of(other, other_variant or variant, "start"), of(other, other_variant or variant, "end")
    assert end.keys() == other_end.keys()
    for name in end.keys() - {"samples"}:
        assert np.array_equal(start[name], other_start[name]), name
        change, other_change = end[name] - start[name], other_end[name] - start[name]
        if name in still:
            assert np.abs([change, other_change]).max() < 1e-15
            continue
        difference = np.linalg.norm(change - other_change)
        assert difference <= 1e-8 * np.linalg.norm(change), f"{name}: {difference} of {np.linalg.norm(change)}"
        if "learning_rate" not in name:
            assert np.any(change), f"{name} did not change"


@pytest.mark.parametrize(("layout", "variant"), CASES)
def test_replicas(states, variant, layout):
    names = of(states["single"], variant, "end").keys()
    for part in ("generator:", "discriminator:", "generator_ema:", "moving_variance", "optimizer:", "report_totals"):
        assert any(part in name for name in names)
    assert_same_change(states["single"], states[layout], variant)
    samples = [of(states[each], variant, "end")["samples"] for each in ("single", layout)]
    assert np.array_equal(*samples)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_accumulation(states, optimizer):
    """One pass or four micro-batches, where no batch norm looks at the micro-batch."""
    assert_same_change(states["single"], states["single"], f"{optimizer}-1", f"{optimizer}-4")


@pytest.mark.parametrize("loss", LOSSES.parts)
def test_losses(states, loss):
    """Every loss on two replicas, and in four micro-batches; the one that sums over replicas under Horovod too."""
    whole = f"{loss}-1"
    # What is added to all logits falls out of a loss of their differences.
    still = ["discriminator:logit:bias"] if loss.startswith(("wasserstein", "relativistic")) else []
    assert_same_change(states["single"], states["mirrored-2"], whole, still=still)
    if loss == "relativistic_average":
        assert_same_change(states["single"], states["horovod-2"], whole, still=still)
    else:
        assert_same_change(states["single"], states["single"], whole, f"{loss}-4", still=still)


def test_every_part_is_compared():
    regularizers = {name for changes in MORE.values() for name in changes["objective.regularizers"].split(",")}
    assert regularizers == set(REGULARIZERS.parts)
    assert {"none", *(changes["objective.augmentation"] for changes in MORE.values())} == set(AUGMENTATIONS.parts)


@pytest.mark.parametrize("variant", MORE)
def test_regularizers_and_augmentations(states, variant):
    one = states["single"]
    assert_same_change(one, states["mirrored-2"], f"{variant}-1")
    if variant in ("kept", "whole"):
        assert_same_change(one, states["horovod-2"], f"{variant}-1")
    if variant != "whole":
        assert_same_change(one, one, f"{variant}-1", f"{variant}-4")
    changed = {name for name, array in of(one, f"{variant}-1", "end").items() if name.startswith("kept:") and array}
    assert len(changed) == {"penalties": 0, "kept": 5, "whole": 0}[variant]


@pytest.mark.parametrize("variant", OWN_MODELS)
def test_models_of_users(states, variant):
    """Stock Keras layers, with and without names, and distgan's within stock models."""
    one, normed = states["single"], variant in ("Mixed-1", "Subclassed-1")
    assert any("moving_variance" in name for name in of(one, variant, "end")) == normed
    assert_same_change(one, states["mirrored-2"], variant)
    if normed:
        assert_same_change(one, states["horovod-2"], variant)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32(states, layout):
    one, other = states["single"], states[layout]
    first, other_first = of(one, "float32", "first"), of(other, "float32", "first")
    # After Adam's first step its mean gradient is (1 - beta_1) times the first gradient.
    gradients = [name for name in first if name.endswith("_momentum")]
    assert len(gradients) == 16
    for name in gradients:
        assert np.linalg.norm(first[name] - other_first[name]) <= 1e-5 * np.linalg.norm(first[name]), name
    end, other_end = of(one, "float32", "end"), of(other, "float32", "end")
    weights = [name for name in end if name.startswith(("generator", "discriminator"))]
    together, other_together = (
        np.concatenate([arrays[name].ravel() for name in weights]) for arrays in (end, other_end)
    )
    assert np.linalg.norm(together - other_together) <= 1e-4 * np.linalg.norm(together)


def test_a_wrong_factor_would_show(states):
    """The bound has teeth: twice the gradient is far outside it."""
    start, end = of(states["single"], "sgd", "start"), of(states["single"], "sgd", "end")
    doubled = {f"sgd|end|{name}": start[name] + 2 * (end[name] - start[name]) for name in start}
    wrong = states["single"] | doubled
    with pytest.raises(AssertionError, match="of"):
        assert_same_change(states["single"], wrong, "sgd")


def test_metrics(tmp_path):
    """The command line's rows, pictures and batch line, with one and two replicas."""
    words = [*SMALL, "--train.total_kimg=0.32", "--train.report_kimg=0.016"]
    for replicas in (1, 2):
        _, err = distgan("train", f"--run_dir={tmp_path / str(replicas)}", *words, f"--runtime.logical_cpus={replicas}")
        assert f"global batch 16 = {replicas} replicas x {16 // replicas} x 1 accumulation steps" in err
    one, two = rows(tmp_path / "1"), rows(tmp_path / "2")
    assert len(one) == 20
    for first, second in zip(one, two, strict=True):
        for key, value in numbers(first).items():
            assert numbers(second)[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key
    reals = [tmp_path / folder / "samples" / "reals.png" for folder in ("1", "2")]
    assert reals[0].read_bytes() == reals[1].read_bytes()
