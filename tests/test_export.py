"""What `distgan sample` draws, and that an export draws the same where there is no distgan."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import SMALL, environment, finish_all, start
from environments import tensorflow_alone
from PIL import Image

from distgan import cli, schema, seeds
from distgan.commands.sample import _find_nearest, read_seeds
from distgan.config import Config
from distgan.data.pixels import BadImage
from distgan.data.source import InMemory
from distgan.errors import UserError

BATCHES = (1, 3, 64, 100)
TINY = (
    "--train.global_batch=16",
    "--train.total_kimg=0.064",
    "--checkpoint.every_kimg=0.032",
    "--tracking.wandb=disabled",
)
RUNS = {
    "plain": (*SMALL, *TINY),
    "classes": (*SMALL, *TINY, "--model.conditional", "--ema.statistics=standing", "--precision=mixed_float16"),
    "biggan": ("--preset=digits-biggan", "--model.generator_width=4", "--model.discriminator_width=4", *TINY),
    "bfloat16": (*SMALL, *TINY, "--precision=mixed_bfloat16"),
    "float64": (*SMALL, *TINY, "--precision=float64"),
}
LABELLED = ("classes", "biggan")
DRAW = """
import importlib.util
import sys

import numpy as np
import tensorflow as tf

for name in ("distgan", "safetensors", "sklearn", "wandb", "filelock", "google_crc32c", "horovod", "pytest"):
    assert importlib.util.find_spec(name) is None, name
folder, *names = sys.argv[1:]
for name in names:
    asked, found = np.load(f"{folder}/{name}-asked.npz"), {}
    draw = tf.saved_model.load(f"{folder}/{name}-model/saved_model").signatures
    for count in (1, 3, 64, 100):
        latents, seeds = (tf.constant(asked[key][:count]) for key in ("latents", "seeds"))
        labels = {"labels": tf.constant(asked["labels"][:count])} if "labels" in asked else {}
        found[f"latents{count}"] = draw["serving_default"](latents=latents, **labels)["images"]
        for truncation in (0.0, 0.7):
            given = {"seeds": seeds, "truncation": tf.constant(truncation), **labels}
            found[f"seeds{count}/{truncation}"] = draw["seeds"](**given)["images"]
    np.savez(f"{folder}/{name}-found.npz", **found)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs, each exported beside itself."""
    root = tmp_path_factory.mktemp("export")
    finish_all([start("train", f"--run_dir={root / name}", *words) for name, words in RUNS.items()])
    score = {
        "images_seen": 64,
        "kimg": 0.064,
        "scores": {"fid": 12.5},
        "cards": {"fid": {"split": "train"}},
        "costs": {},
    }
    (root / "classes" / "evaluations.jsonl").write_text(json.dumps(score) + "\n")
    for name in RUNS:
        here("export", f"--run_dir={root / name}", f"--out={root / name}-model")
    return root


def here(*words):
    """Runs `distgan` in this process."""
    assert cli.main([str(word) for word in words]) == 0


def sample(run_dir, out, *words):
    here("sample", f"--run_dir={run_dir}", f"--out={out}", *words)
    return np.load(out)


def alone(folder, code, *words):
    """Runs code where there is nothing but TensorFlow."""
    command = [tensorflow_alone(), "-I", "-c", code, *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def sampled(runs):
    """What `distgan sample` draws of each run: the seeds 0 to 99, the same truncated, and 100 samples of seed 7."""
    asked = {
        "seeds": ("--sample.seeds=0-99",),
        "cut": ("--sample.seeds=0-99", "--sample.truncation=0.7"),
        "counted": ("--sample.count=100", "--sample.seed=7"),
    }
    return {
        name: {key: sample(runs / name, runs / f"{name}-{key}.npz", *words) for key, words in asked.items()}
        for name in RUNS
    }


@pytest.fixture(scope="module")
def served(runs, sampled):
    """What each SavedModel draws of the same seeds, latents and labels, with TensorFlow alone."""
    for name, drawn in sampled.items():
        size = json.loads((runs / name / "config.json").read_text())["config"]["model.latent_size"]
        latents = seeds.normal(seeds.key(7, "sample/latents"), 0, 100, (size,)).numpy()
        labels = {"labels": drawn["seeds"]["labels"]} if name in LABELLED else {}
        np.savez(runs / f"{name}-asked.npz", latents=latents, seeds=drawn["seeds"]["seeds"], **labels)
    alone(runs, DRAW, runs, *RUNS)
    return {name: np.load(runs / f"{name}-found.npz") for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_a_saved_model_draws_the_samples_with_tensorflow_alone(sampled, served, name):
    drawn, found = sampled[name], served[name]
    assert ("labels" in drawn["seeds"]) == (name in LABELLED)
    for count in BATCHES:
        np.testing.assert_array_equal(found[f"latents{count}"], drawn["counted"]["images"][:count])
        np.testing.assert_array_equal(found[f"seeds{count}/0.0"], drawn["seeds"]["images"][:count])
        np.testing.assert_array_equal(found[f"seeds{count}/0.7"], drawn["cut"]["images"][:count])
    assert (drawn["cut"]["images"] != drawn["seeds"]["images"]).any()


@pytest.mark.parametrize("name", RUNS)
def test_a_keras_file_draws_the_samples(runs, sampled, name):
    import keras

    import distgan.models.saved  # noqa: F401
    from distgan.evaluation.sampling import to_uint8

    drawn = {key: array[:64] for key, array in sampled[name]["counted"].items() if key != "label_names"}
    generator = keras.models.load_model(runs / f"{name}-model" / "generator.keras")
    latents = seeds.normal(seeds.key(7, "sample/latents"), 0, 64, (generator.latent_size,))
    images = to_uint8(generator(latents, labels=drawn.get("labels"))).numpy()
    # Without a graph of its own TensorFlow may round otherwise.
    assert np.abs(images.astype(int) - drawn["images"]).max() <= 1
    assert (images == drawn["images"]).mean() > 0.999


def test_the_card_says_what_it_is(runs):
    card = (runs / "classes-model" / "README.md").read_text()
    fingerprint = json.loads((runs / "classes" / "config.json").read_text())["data_fingerprint"]
    for words in (
        "0.064 kimg",
        "| fid | 12.5 |",
        '"split": "train"',
        fingerprint,
        "1797",
        "tensorflow",
        "standing",
        "(178)",
    ):
        assert words in card
    assert str(runs) not in card
    assert card.count("- SavedModel checked: 64 images equal to distgan sample's") == 2
    assert "None were worked out" in (runs / "plain-model" / "README.md").read_text()
    assert sorted(path.name for path in (runs / "classes-model").iterdir()) == [
        "README.md",
        "generator.keras",
        "samples.png",
        "saved_model",
    ]
    assert not list(runs.glob(".tmp*"))


@pytest.mark.parametrize("name", ["plain", "classes"])
def test_the_code_in_the_card_works(runs, name):
    folder = runs / f"{name}-model"
    served, ours = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    alone(folder, served)
    subprocess.run([sys.executable, "-c", ours], cwd=folder, check=True, env=environment(), capture_output=True)


def test_wrong_labels_end_a_signature(runs):
    import tensorflow as tf

    draw = tf.saved_model.load(str(runs / "classes-model" / "saved_model")).signatures["latents"]
    for labels, words in (([10], "labels must be from 0 to 9"), ([-1], "labels must be"), ([1, 2], "as many labels")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            draw(latents=tf.zeros([1, 100]), labels=tf.constant(labels))


def test_a_seed_is_one_image_in_any_list(runs, tmp_path):
    many = sample(runs / "classes", tmp_path / "many.npz", "--sample.seeds=0-99")
    few = sample(runs / "classes", tmp_path / "few.npz", "--sample.seeds=70,3,98-99")
    np.testing.assert_array_equal(few["images"], many["images"][[70, 3, 98, 99]])
    assert few["labels"].tolist() == [0, 3, 8, 9]
    assert few["seeds"].tolist() == [70, 3, 98, 99]


def test_rows_of_classes(runs, tmp_path):
    words = ("--sample.rows=classes", "--sample.label=3,7", "--sample.count=5")
    drawn = sample(runs / "classes", tmp_path / "x.npz", *words)
    assert drawn["labels"].tolist() == [3] * 5 + [7] * 5
    one = sample(runs / "classes", tmp_path / "y.npz", "--sample.label=7", "--sample.count=5")
    np.testing.assert_array_equal(drawn["images"][5:], one["images"])


def test_an_arc_begins_and_ends_at_its_samples(runs, tmp_path):
    drawn = sample(runs / "plain", tmp_path / "x.npz", "--sample.interpolate=5", "--sample.count=3")["images"]
    samples = sample(runs / "plain", tmp_path / "y.npz", "--sample.count=3")["images"]
    assert drawn.shape == (10, 16, 16, 1)
    np.testing.assert_array_equal(drawn[[0, 4, 5, 9]], samples[[0, 1, 1, 2]])
    here(
        "sample",
        f"--run_dir={runs / 'plain'}",
        "--sample.interpolate=5",
        "--sample.count=3",
        f"--out={tmp_path / 'x.png'}",
    )
    with Image.open(tmp_path / "x.png") as grid:  # Enlarged 512 // (5 * 17) = 6 times.
        assert grid.size == (5 * 17 * 6 - 6, 2 * 17 * 6 - 6)


def test_arcs():
    from distgan.evaluation.sampling import slerp

    x, y = np.eye(2, dtype=np.float32)
    half = np.float32(np.sqrt(0.5))
    np.testing.assert_allclose(slerp(x, y, 3), [x, [half, half], y], atol=1e-7)
    np.testing.assert_allclose(slerp(x, 3 * x, 3), [x, 2 * x, 3 * x])
    np.testing.assert_allclose(np.linalg.norm(slerp(x, y, 9), axis=1), 1, atol=1e-6)


def test_truncated_latents_are_a_cut_normal_distribution():
    import tensorflow as tf

    from distgan.evaluation.sampling import truncated

    latents = seeds.normal(0, 0, 10_000, (1,))
    np.testing.assert_array_equal(truncated(latents, tf.constant(0.0)), latents)
    cut = truncated(latents, tf.constant(0.5)).numpy()
    assert 0.49 < np.abs(cut).max() <= 0.5 + 1e-6
    assert abs(cut.std() - 0.2837) < 0.005  # sqrt(1 - 2 t p(t) / (2 P(t) - 1)) at t = 0.5.
    assert (np.argsort(cut[:, 0]) == np.argsort(latents[:, 0])).mean() > 0.99


def test_the_nearest_training_image(runs, tmp_path):
    from distgan.evaluation.nearest import nearest

    drawn = sample(runs / "plain", tmp_path / "x.npz", "--sample.nearest", "--sample.count=9")
    assert drawn["nearest"].shape == (9, 16, 16, 1)
    apart = (drawn["images"].astype(float) - drawn["nearest"]).reshape(9, -1)
    np.testing.assert_allclose(np.sqrt((apart**2).mean(1)), drawn["nearest_distances"])

    reals = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), np.uint8)
    found = nearest(reals[[5, 30]][:, :, ::-1], lambda each: (reals[each], each), 40, flip=True)
    assert found.indices.tolist() == [5, 30]
    assert found.distances.tolist() == [0, 0]
    assert nearest(reals[[5]][:, :, ::-1], lambda each: (reals[each], each), 40, flip=False).distances > 0


def test_the_nearest_image_that_can_be_read():
    class Torn(InMemory):
        def read(self, indices):
            if 3 in indices:
                raise BadImage("image 3 is torn")
            return super().read(indices)

    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 1), np.uint8)
    torn = Torn("torn", pixels, None)
    skip, fail = (schema.build(Config, {"data.on_error": word}) for word in ("skip", "fail"))
    found = _find_nearest(pixels[2:5], torn, skip)
    assert found.indices[[0, 2]].tolist() == [2, 4]
    assert found.indices[1] != 3
    with pytest.raises(UserError, match="--sample.nearest: image 3 is torn"):
        _find_nearest(pixels[:1], torn, fail)


def test_single_files_are_a_data_set(runs, tmp_path):
    from distgan.config import DataConfig
    from distgan.data.folder import Folder

    drawn = sample(runs / "classes", tmp_path / "x.npz", "--sample.seeds=2-6")
    here("sample", f"--run_dir={runs / 'classes'}", "--sample.seeds=2-6", f"--out={tmp_path}/files/")
    images = Folder().open(DataConfig(path=str(tmp_path / "files"), cache_dir=str(tmp_path / "cache")))
    pixels, labels = images.read(np.arange(5))
    np.testing.assert_array_equal(pixels, drawn["images"])
    assert labels.tolist() == drawn["labels"].tolist()
    assert (tmp_path / "files" / "000004.png").exists()


def test_checkpoint_and_weights_are_chosen(runs, tmp_path):
    new = sample(runs / "plain", tmp_path / "new.npz", "--sample.count=4")["images"]
    old = sample(runs / "plain", tmp_path / "old.npz", "--sample.count=4", "--sample.checkpoint=32")["images"]
    raw = sample(runs / "plain", tmp_path / "raw.npz", "--sample.count=4", "--sample.weights=raw")["images"]
    assert (new != old).any()
    assert (new != raw).any()


def test_without_out_nothing_is_overwritten(runs):
    words = ("sample", f"--run_dir={runs / 'plain'}", "--sample.count=4")
    here(*words)
    first = (runs / "plain" / "sample-000000-seed0.png").read_bytes()
    here(*words, "--sample.truncation=0.5")
    here(*words[:-1], "--sample.seeds=1-3")
    assert (runs / "plain" / "sample-000000-seed0.png").read_bytes() == first
    assert (runs / "plain" / "sample-000000-seed0-2.png").read_bytes() != first
    assert (runs / "plain" / "sample-000000-seeds.png").exists()


def test_lists_of_seeds(refused, runs):
    assert read_seeds("7").tolist() == [7]
    for text in ("a", "3-1", "-1", "1,,2", "4294967296", "0-4294967295"):
        assert f"--sample.seeds={text} is no list" in refused(
            "sample", f"--run_dir={runs / 'plain'}", f"--sample.seeds={text}"
        )


@pytest.mark.parametrize(
    ("name", "words", "line"),
    [
        ("plain", ["--sample.label=3"], "--sample.label=3: the run is not conditional"),
        ("plain", ["--sample.rows=classes"], "--sample.rows=classes: the run is not conditional"),
        ("classes", ["--sample.label=3,10"], "--sample.label=10 is none of 0, 1"),
        ("classes", ["--sample.seeds=1", "--sample.count=3"], "--sample.count=3 does not go with --sample.seeds"),
        ("classes", ["--sample.seeds=1", "--sample.seed=3"], "--sample.seed=3 does not go with --sample.seeds"),
        ("classes", ["--sample.rows=classes", "--sample.interpolate=3"], "does not go with --sample.interpolate"),
        ("classes", ["--sample.interpolate=3", "--sample.seeds=4"], "--sample.interpolate=3 needs two samples"),
        ("classes", ["--sample.interpolate=1"], "--sample.interpolate=1 is not a whole number, at least 2"),
        ("classes", ["--sample.nearest", "--out=new/"], "--sample.nearest needs a .png or .npz, not --out=new/"),
        ("classes", ["--sample.checkpoint=33"], "--sample.checkpoint=33 is no checkpoint of"),
        ("classes", ["--sample.weights=old"], "--sample.weights=old is not one of ema, raw"),
        ("classes", ["--out=x.jpg"], "--out=x.jpg ends in none of .png, .npz, /"),
    ],
)
def test_mistakes_in_sample(refused, runs, name, words, line):
    assert line in refused("sample", f"--run_dir={runs / name}", *words)


def test_mistakes_in_export(refused, runs, tmp_path):
    run_dir = f"--run_dir={runs / 'plain'}"
    assert "--out is missing" in refused("export", run_dir)
    assert f"--out={tmp_path} exists" in refused("export", run_dir, f"--out={tmp_path}")
    assert "does not exist" in refused("export", run_dir, f"--out={tmp_path / 'no' / 'x'}")
    assert "holds no run" in refused("export", f"--run_dir={tmp_path}", f"--out={tmp_path / 'x'}")
    line = refused("export", run_dir, f"--out={tmp_path / 'x'}", "--export.checkpoint=1")
    assert line.endswith("newest, best (after an evaluation), 32, 64")
    for command, changed, line in (
        ("export", {"model.width": 8}, "config.json: generator_ema/"),
        ("sample", {"model.width": 8}, "config.json: generator_ema/"),
        ("sample", {"model.conditional": True}, "config.json: generator_ema/"),
        ("export", {"model.name": "resnet", "model.attention": 5}, "config.json: --model.attention=5"),
    ):
        out = f"--out={tmp_path / 'x.npz'}"
        edited = _copy_of_config(runs / "plain", tmp_path / "edited", changed)
        assert "has no checkpoint yet" in refused(command, f"--run_dir={edited}", out)
        (edited / "checkpoints").symlink_to(runs / "plain" / "checkpoints")
        assert f"the checkpoint does not go with {line}" in refused(command, f"--run_dir={edited}", out)
        assert [path.name for path in tmp_path.iterdir()] == ["edited"]
        shutil.rmtree(edited)


def _copy_of_config(run_dir, to, changed):
    content = json.loads((run_dir / "config.json").read_text())
    to.mkdir()
    (to / "config.json").write_text(json.dumps({**content, "config": {**content["config"], **changed}}))
    return to
