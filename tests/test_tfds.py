"""tensorflow_datasets, in an environment of its own, on a data set that is made here."""

import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL, distgan, environment, finish, numbers, rows

BUILDER = '''
import numpy as np
import tensorflow_datasets as tfds


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Noise that is dark or light."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(16, 16, 3)), "label": tfds.features.ClassLabel(names=["dark", "light"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(40):
            noise = np.random.default_rng(number).integers(0, 100, (16, 16, 3))
            yield number, {"image": (noise + 150 * (number % 2)).astype(np.uint8), "label": number % 2}
'''
CHECK = """
import sys
import numpy as np
import tiny_images
from distgan.config import DataConfig
from distgan.data.tfds import Tfds

found = Tfds("tiny_images").open(DataConfig(path=sys.argv[1]))
assert (found.num_images, found.shape, found.num_classes) == (40, (16, 16, 3), 2)
assert found.label_names == ("dark", "light")
pixels, labels = found.read(np.arange(40))
assert labels.sum() == 20
assert ((pixels >= 150).all((1, 2, 3)) == labels).all()
np.savez(sys.argv[1] + ".npz", images=pixels, labels=labels)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of an environment that adds tensorflow_datasets to this one's packages."""
    folder = tmp_path_factory.mktemp("tfds")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    found = folder / "bin" / "python"
    [site] = (folder / "lib").glob("python*/site-packages")
    (site / "these.pth").write_text(f"{sysconfig.get_path('purelib')}\n{REPOSITORY}\n")
    install = [
        str(found),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "tensorflow-datasets>=4.9,<5",
    ]
    subprocess.run(install, check=True)
    return found


def test_tfds(python, tmp_path):
    (tmp_path / "tiny_images").mkdir()
    (tmp_path / "tiny_images" / "__init__.py").write_text(textwrap.dedent(BUILDER))
    env = environment() | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
    data = tmp_path / "data"
    make = "import sys, tiny_images; tiny_images.TinyImages(data_dir=sys.argv[1]).download_and_prepare()"
    for code in (make, CHECK):
        finish(subprocess.Popen([str(python), "-c", code, str(data)], **pipes))
    words = ["train", f"--run_dir={tmp_path / 'run'}", *SMALL, "--data.source=tfds", f"--data.path={data}"]
    words += ["--train.total_kimg=0.32", "--train.report_kimg=0.016", "--data.flip", "--model.conditional"]
    command = [str(python), "-m", "distgan", *words]
    finish(subprocess.Popen([*command, "--data.tfds.name=tiny_images"], **pipes))
    distgan(*words, f"--run_dir={tmp_path / 'npz'}", "--data.source=npz", f"--data.path={data}.npz")
    same, its = rows(tmp_path / "run"), rows(tmp_path / "npz")
    assert len(its) == 20
    assert [numbers(row) for row in same] == [numbers(row) for row in its]
    _, err = finish(subprocess.Popen([*command, "--data.tfds.name=no_such_set"], **pipes), 2)
    assert [line for line in err.splitlines() if line.startswith("distgan: --data.tfds.name=no_such_set: ")]
    assert "Traceback" not in err


def test_without_tfds(refused, tmp_path):
    line = refused("train", f"--run_dir={tmp_path / 'run'}", "--data.source=tfds", "--data.tfds.name=cifar10")
    assert "needs tensorflow_datasets" in line
    assert Path(tmp_path / "run").exists() is False
