"""Parts of users' own: those that train as they should can be gone on with, and the others are refused by name at the start."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import own_parts
import pytest
import tensorflow as tf
from conftest import environment, finish, numbers, rows, start

from distgan import cli, registry, schema
from distgan.config import Config, DataConfig
from distgan.data.contract import open_source
from distgan.errors import UserError
from distgan.models import MODELS, contract
from distgan.objectives.contract import find_loss

TESTS = Path(__file__).parent
SHAPE = (16, 16, 1)
BRIEF = (
    "--preset=digits-dcgan",
    "--train.global_batch=16",
    "--train.report_kimg=0.016",
    "--train.total_kimg=0.032",
    "--tracking.wandb=disabled",
)


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def built(model, kind="discriminator", num_classes=0):
    return contract.build(model(), kind, SHAPE, num_classes, kind)


@pytest.mark.parametrize("model", own_parts.GOOD, ids=lambda model: model.__name__)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "float64"])
def test_stock_models_are_networks(model, policy):
    before = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_floatx("float64" if policy == "float64" else "float32")
    keras.config.set_dtype_policy(policy)
    try:
        for kind, inputs in (("generator", [2, 8]), ("discriminator", [2, *SHAPE])):
            first = built(model, kind)
            keras.layers.Dense(1)  # Moves Keras' count of layers without a name.
            again = built(model, kind)
            assert [v.path for v in first.variables] == [v.path for v in again.variables]
            assert all(v.path.startswith(f"{kind}/") for v in first.variables)
            outputs = first(tf.zeros(inputs, keras.config.floatx()), labels=tf.zeros([2], tf.int32))
            assert outputs.dtype == keras.config.floatx()
            assert outputs.shape == ([2, *SHAPE] if kind == "generator" else [2, 1])
    finally:
        keras.config.set_floatx(before[1])
        keras.config.set_dtype_policy(before[0])


REFUSED_MODELS = {
    "StockDropout": ["drop (Dropout) draws random numbers", "distgan.models.layers.Dropout"],
    "NestedDropout": ["drop (Dropout) draws random numbers"],
    "Noise": ["noise (GaussianNoise) draws random numbers", "`context`"],
    "StockBatchNorm": ["bn (BatchNormalization) keeps statistics", "distgan.models.layers.BatchNorm"],
    "StockSpectral": ["(SpectralNormalization) keeps statistics", "distgan.models.spectral"],
    "Counting": ["counting (Statistics) keeps statistics"],
    "Drawing": ["draws random numbers of its own", "context.draws"],
    "Nested": ["inner (Dropout) is not given the `context`"],
    "Forgotten": ["inner (Dropout) is not given the `context`"],
    "Twice": ["two of its variables are called"],
    "Hiding": ["discriminator/bias:0, which is none of its own", "neither be trained nor saved"],
    "Probabilities": ["sigmoid", "logits"],
    "Averaged": ["depends on the other images of its batch", "sum_over_replicas"],
    "Wide": ["[N, 3]", "[N, 1]"],
    "Weightless": ["no weights"],
    "Function": ["a function, not a keras.Model"],
    "Failing": ["images float32 [1, 16, 16, 1] failed", "input_shape=(16, 16, 1), target_shape=(7,)"],
    "ZeroToOne": ["sigmoid", "tanh"],
    "Small": ["[N, 2, 2, 1]", "[N, 16, 16, 1]"],
}


@pytest.mark.parametrize("name", REFUSED_MODELS)
def test_models_that_would_train_wrongly_are_refused(name):
    model = getattr(own_parts, name)
    kind = "generator" if name in ("ZeroToOne", "Small") else "discriminator"
    line = refusal(built, model, kind)
    assert line.startswith(f"{kind}() of own_parts:")
    for words in REFUSED_MODELS[name]:
        assert words in line


def test_networks_share_no_layers():
    """A layer that is made once, at import, would be trained and averaged as one."""
    built(own_parts.Elsewhere, "generator")
    line = refusal(contract.build, own_parts.Elsewhere(), "generator", SHAPE, 0, "generator_ema")
    assert "elsewhere/kernel was made elsewhere" in line
    assert "within generator()" in line


def test_labels_need_a_taker():
    assert "takes no labels" in refusal(built, own_parts.Stock, "discriminator", 10)
    assert "takes no labels" in refusal(built, own_parts.Functional, "generator", 10)
    built(own_parts.Mixed, "generator", 10)


@pytest.mark.parametrize("name", MODELS.parts)
@pytest.mark.parametrize("kind", ["generator", "discriminator"])
def test_own_networks_keep_the_contract(name, kind):
    """distgan's models pass the trial that users' go through."""
    model = schema.choose(MODELS, name).options
    narrow = {key: 4 for key in vars(model) if "width" in key}
    model = dataclasses.replace(model, **narrow, latent_size=6)
    network = contract.build(model, kind, (16, 16, 3), 10, kind)
    shape = (model.latent_size,) if kind == "generator" else (16, 16, 3)
    trial = contract._Trial(network, kind, shape, (16, 16, 3), 10)
    assert not list(trial.problems(tf.zeros([1, *shape]), tf.zeros([1], tf.int32)))


REFUSED_LOSSES = {
    "MEAN": ["the discriminator's loss gives []", "leave out its mean"],
    "COUPLED": ["the discriminator's loss", "depend on the other examples", "opposed=True"],
    "BROKEN": ["the discriminator's loss failed", "NameError"],
    "ALONE": ["is a function", "a pair (discriminator, generator)"],
    "NEEDS_REALS": ["the generator's loss failed"],
    "Stock": ["is a type"],
}


@pytest.mark.parametrize("name", REFUSED_LOSSES)
def test_losses_that_would_train_wrongly_are_refused(name):
    line = refusal(find_loss, f"own_parts:{name}")
    for words in (f"own_parts:{name}", *REFUSED_LOSSES[name]):
        assert words in line


def test_a_pair_of_functions_is_a_loss():
    assert not find_loss("own_parts:HINGE").pairs
    assert find_loss("own_parts:PAIRED").pairs


REFUSED_SOURCES = {
    "Floats": ["images float64 [3, 16, 16, 1]", "uint8"],
    "Flipped": ["other pixels", "second time"],
    "Sorted": ["order of its indices"],
    "Shared": ["the same array twice"],
    "ManyLabels": ["label 1", "below the 1 classes"],
    "Uncounted": ["label_counts [1, 2]", "64 images"],
    "Oblong": ["16x8", "squares"],
    "Nameless": ["fingerprint"],
    "Lacking": ["has no 'name'"],
}


def opened(name, **more):
    return open_source(schema.build(DataConfig, {"source": f"own_parts:{name}", **more}))


@pytest.mark.parametrize("name", REFUSED_SOURCES)
def test_sources_that_would_train_wrongly_are_refused(name):
    line = refusal(opened, name)
    for words in (f"--data.source=own_parts:{name}", *REFUSED_SOURCES[name]):
        assert words in line


def test_a_source_is_opened():
    assert opened("Ramps").num_images == 64
    assert "--data.resolution=8" in refusal(lambda: opened("Ramps", resolution=8))


REFUSED_PARTS = {
    "--model.name=own_parts:Nothing": ["own_parts has no 'Nothing'"],
    "--model.name=own_parts:Stok": ["did you mean 'Stock'"],
    "--model.name=nowhere:Model": ["nowhere cannot be imported", "PYTHONPATH", os.getcwd()],
    "--model.name=own_parts:NoDataclass": ["without @dataclasses.dataclass"],
    "--model.name=own_parts:judged": ["is a function"],
    "--model.name=own_parts:NoGenerator": ["has no 'generator'"],
    "--model.name=own_parts:NoDefault": ["'latent_size' needs a default"],
    "--model.name=own_parts:OddOption": ["'sizes' is of type"],
    "--objective.regularizers=own_parts:Bare": ["has no 'networks'"],
    "--objective.augmentation=own_parts:Stock": ["has no 'initial'"],
    "--data.source=own_parts:Stock": ["has no 'open'"],
    "--optimizer.name=own_parts:Stock": ["has no 'rates'"],
    "--evaluation.metrics=own_parts:Stock": ["has no 'count'"],
}


@pytest.mark.parametrize("flag", REFUSED_PARTS)
def test_what_is_no_part_is_refused(refused, flag, tmp_path):
    line = refused("train", flag, f"--run_dir={tmp_path / 'run'}", *BRIEF)
    for words in REFUSED_PARTS[flag]:
        assert words in line
    assert not list(tmp_path.iterdir())


REFUSED_RUNS = {
    "--model.name=own_parts:StockDropout": ["draws random numbers"],
    "--objective.loss=own_parts:MEAN": ["leave out its mean"],
    "--objective.regularizers=own_parts:Column": ["own_parts:Column", "images is [1, 1]"],
    "--objective.regularizers=own_parts:Silent": ["own_parts:Silent", "NoneType"],
    "--objective.augmentation=own_parts:Halved": ["own_parts:Halved", "makes float32 [1, 8, 8, 1]"],
    "--data.source=own_parts:Flipped": ["second time"],
}


@pytest.mark.parametrize("flag", REFUSED_RUNS)
def test_runs_that_would_train_wrongly_are_refused(refused, flag, tmp_path):
    line = refused("train", *BRIEF, flag, f"--run_dir={tmp_path / 'run'}")
    for words in REFUSED_RUNS[flag]:
        assert words in line


def test_the_page_for_users(tmp_path):
    """README's own parts, by its command, with few steps."""
    text = (TESTS.parent / "README.md").read_text()
    _, _, text = text.partition("**Parts of your own.**")
    code, command = re.findall(r"```(?:python)?\n(.*?)```", text, re.DOTALL)[:2]
    (tmp_path / "my_parts.py").write_text(code)
    assert command.startswith("distgan train --model.name=my_parts:MyGan")
    words = ["--train.total_kimg=0.032", "--train.global_batch=16", "--tracking.wandb=disabled"]
    _, err = finish(start(*command.split()[1:], *words, cwd=tmp_path))
    assert "done: 0.032 kimg" in err


@pytest.mark.parametrize("model", ["Stock", "Subclassed"])
def test_a_run_of_own_parts_is_gone_on_with(model, tmp_path):
    """Trained in a process whose working directory has the parts, then resumed and used in another, after other layers."""
    run_dir = tmp_path / "run"
    own = [f"--model.name=own_parts:{model}", "--model.units=6", "--objective.loss=own_parts:HINGE"]
    own += ["--objective.regularizers=own_parts:Norm", "--objective.Norm.gain=0.5", f"--run_dir={run_dir}"]
    finish(start("train", *BRIEF, *own, cwd=TESTS))
    keras.Sequential([keras.layers.Dense(1), keras.layers.Dense(1)])
    assert cli.main(["train", *BRIEF, *own, "--train.total_kimg=0.064"]) == 0
    straight = tmp_path / "straight"
    assert cli.main(["train", *BRIEF, *own, "--train.total_kimg=0.064", f"--run_dir={straight}"]) == 0
    assert [numbers(row) for row in rows(run_dir)] == [numbers(row) for row in rows(straight)]
    words = [f"--run_dir={run_dir}"]
    assert cli.main(["sample", *words, "--sample.count=64", f"--out={tmp_path / 'out.npz'}"]) == 0
    images = np.load(tmp_path / "out.npz")["images"]
    assert images.shape == (64, *SHAPE)
    assert cli.main(["export", *words, f"--out={tmp_path / 'export'}"]) == 0


def test_parts_are_found_in_the_working_directory(tmp_path):
    """By the command that is installed, whose own folder comes first, and never before an installed package."""
    (tmp_path / "mine.py").write_text("import tensorflow as tf\nLOSS = (lambda r, f: f - r, lambda r, f: -f)\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong one')\n")
    words = ["train", "--objective.loss=mine:LOSS", "--dry_run", f"--run_dir={tmp_path / 'run'}"]
    code = "import sys; sys.path.remove(''); sys.argv[0] = 'distgan'; from distgan import cli; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    finish(subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes))


def test_plain_fields_are_flags():
    config = schema.build(Config, {"model.name": "own_parts:Stock", "model.units": "5"})
    assert config.model.name.options == own_parts.Stock(units=5)
    assert "is not a whole number" in refusal(
        schema.build, Config, {"model.name": "own_parts:Stock", "model.units": "x"}
    )
    assert schema.flatten(config)["model.units"] == 5
    assert registry.resolve(MODELS, "own_parts:Stock") is own_parts.Stock
