"""What a user types: help, flags, dry runs, and one line for every mistake."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import SMALL, distgan, environment

from distgan import cli, flag_names, presets, schema
from distgan import config as configs
from distgan.commands import sample, train

# Prints what a command imported, after it ran.
IMPORTS = "import sys; from distgan import cli; cli.main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"


HELP_OF_PARTS = ["train", "--objective.regularizers=r1,lecam", "--objective.augmentation=ada", "--help"]


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["presets"], ["sample", "--help"], HELP_OF_PARTS])
def test_help_imports_neither_tensorflow_nor_wandb(words):
    done = subprocess.run([sys.executable, "-c", IMPORTS, *words], capture_output=True, text=True, env=environment())
    assert done.returncode == 0
    assert not {"tensorflow", "keras", "wandb", "sklearn"} & set(done.stderr.split())
    assert "distgan" in done.stdout or "dcgan" in done.stdout or "run_dir" in done.stdout
    for flag in ("r1.gamma=10.0", "r1.interval=1", "lecam.decay=0.99", "lecam.start_kimg=0.0", "ada.target=0.6"):
        assert (f"--objective.{flag}" in done.stdout) == (words == HELP_OF_PARTS)


def test_import_is_light():
    code = "import sys, distgan; assert not {'tensorflow', 'wandb', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_help_is_fast():
    # The promise is half a second; a busy machine gets three times that.
    times = []
    for _ in range(3):
        start = time.perf_counter()
        distgan("train", "--help")
        times.append(time.perf_counter() - start)
    assert min(times) < 1.5


def test_help_lists_every_flag(capsys):
    assert cli.main(["train", "--help"]) == 0
    out, _ = capsys.readouterr()
    for entry in schema.entries(train.Options()):
        assert f"--{entry.name}=" in out
        assert entry.doc in out


def test_flags_of_the_chosen_parts(capsys):
    assert cli.main(["train", "--data.source=synthetic", "--optimizer.name=sgd", "--help"]) == 0
    out, _ = capsys.readouterr()
    assert "--data.synthetic.num_images=1024" in out
    assert "--optimizer.momentum=0.0" in out
    assert "beta_1" not in out


def test_own_part_has_flags(capsys):
    assert cli.main(["train", "--model.name=parts:Plain", "--model.units=4", "--help"]) == 0
    assert "--model.units=4" in capsys.readouterr().out


def test_flagfile_and_order(tmp_path, capsys):
    file = tmp_path / "flags"
    file.write_text("# a comment\n--seed=7\n--train.global_batch=32\n--model.name=dcgan\n--model.width=8\n")
    assert cli.main(["train", f"--flagfile={file}", "--seed=8", "--help"]) == 0
    out, _ = capsys.readouterr()
    assert "--seed=8" in out
    assert "--train.global_batch=32" in out
    assert "--model.width=8" in out


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets(name, capsys):
    assert cli.main(["presets", name]) == 0
    out, _ = capsys.readouterr()
    shown = json.loads(out[out.index("{") :])
    config = schema.build(configs.Config, shown)
    assert schema.flatten(config) == shown
    assert not configs.problems(config)


def test_presets_lists_parts(capsys):
    assert cli.main(["presets", "--parts"]) == 0
    out, _ = capsys.readouterr()
    for word in ("digits", "cifar10", "dcgan", "minimax", "sgd", "width=64"):
        assert word in out


def test_dry_run_writes_nothing(tmp_path):
    run_dir = tmp_path / "run"
    words = ["train", "--dry_run", f"--run_dir={run_dir}", "--runtime.logical_cpus=4", "--train.accumulation_steps=2"]
    out, err = distgan(*words)
    assert "global batch 64 = 4 replicas x 8 x 2 accumulation steps" in out
    assert "strategy mirrored (auto: 4 logical CPUs found)" in err
    assert json.loads(out[: out.index("\n}") + 2])["train.accumulation_steps"] == 2
    # 16x16 gray, width 32: dense 100x2048, norms 2x(2048+64+32), convolutions 25x(128x64 + 64x32 + 32x1).
    assert "generator: 465,888 parameters" in out
    # Convolutions 25x(1x32 + 32x64) + 96 biases, dense 4x4x64 + 1.
    assert "discriminator: 53,121 parameters" in out
    assert "estimated memory of a replica" in out
    assert not run_dir.exists()
    # Nothing of TensorFlow's start-up reaches the user: two lines of our own are all.
    assert len(err.splitlines()) == 2


def test_doctor():
    out, err = distgan("doctor")
    for word in ("tensorflow", "keras", "GPUs: ", "W&B key: no"):
        assert word in out
    assert not err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "0.1.0\n"


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "distgan", "trian"], capture_output=True, text=True, env=environment())
    assert done.returncode == 2
    assert done.stderr == "distgan: unknown command 'trian'; did you mean 'train'?\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sede=1"], "unknown flag --sede; did you mean --seed?"),
        (["--train.globl_batch=8"], "did you mean --train.global_batch?"),
        (["--preset=digit-dcgan"], "--preset=digit-dcgan is unknown; did you mean 'digits-dcgan'?"),
        (["--data.source=digist"], "--data.source=digist is not a source; did you mean 'digits'?"),
        (["--objective.loss=hinges"], "--objective.loss=hinges is not a loss; did you mean 'hinge'?"),
        (["--model.name=nowhere:Thing"], "nowhere:Thing: nowhere cannot be imported: ModuleNotFoundError: No module"),
        (["--train.global_batch=0"], "--train.global_batch=0 is not a whole number, at least 1"),
        (["--train.global_batch=ten"], "--train.global_batch=ten is not a whole number, at least 1"),
        (["--train.total_kimg=-1"], "--train.total_kimg=-1 is not a number, above 0"),
        (["--train.total_kimg=inf"], "--train.total_kimg=inf is not a number, above 0"),
        (["--strategy=mirored"], "--strategy=mirored is not one of auto, single, mirrored"),
        (["--precision=float16"], "--precision=float16 is not one of float32, mixed_bfloat16, mixed_float16, float64"),
        (["--deterministic=maybe"], "deterministic"),
        (["--seed"], "seed"),
        (["seed=1"], "unexpected word 'seed=1'"),
        (["--flagfile=/nowhere/flags"], "/nowhere/flags"),
        (["--runtime.profile_steps=5"], "--runtime.profile_steps=5 is not FIRST:LAST"),
        (["--runtime.profile_steps=9:5"], "--runtime.profile_steps=9:5 is not FIRST:LAST"),
        (["--train.discriminator_updates=2"], "needs --train.update_order=alternating"),
        (["--data.resolution=18"], "--data.resolution=18 is not a multiple of 4"),
        (["--train.global_batch=1798"], "--train.global_batch=1798 is more than the 1797 images of digits"),
        (["--train.accumulation_steps=3"], "the nearest legal values are 63 or 66"),
        (["--data.source=npz"], "needs --data.path"),
    ],
)
def test_mistakes(flags, said, refused, tmp_path):
    run_dir = tmp_path / "run"
    line = refused("train", f"--run_dir={run_dir}", *flags)
    assert said in line
    assert not run_dir.exists()


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"pictures": np.zeros((4, 8, 8), np.uint8)}, "lacks images for npz; it has pictures"),
        ({"images": np.zeros((4, 8, 8), np.float32)}, "must be uint8 [N,H,W] or [N,H,W,C], not float32 [4, 8, 8]"),
        ({"images": np.zeros((4, 8), np.uint8)}, "not uint8 [4, 8]"),
        ({"images": np.zeros((4, 8, 8, 5), np.uint8)}, "must have 1 to 4 channels, not 8x8x5"),
        ({"images": np.zeros((0, 8, 8, 1), np.uint8)}, "holds no image"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(3, int)}, "labels must be integers [4]"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(4)}, "labels must be integers [4]"),
        ({"images": np.zeros((4, 8, 8), np.uint8)}, "--train.global_batch=64 is more than the 4 images"),
    ],
)
def test_bad_npz(arrays, said, refused, tmp_path):
    path = npz(tmp_path / "data.npz", **arrays)
    assert said in refused("train", f"--run_dir={tmp_path / 'run'}", "--data.source=npz", f"--data.path={path}")


def test_unreadable_npz(refused, tmp_path):
    path = tmp_path / "data.npz"
    flags = ["train", f"--run_dir={tmp_path / 'run'}", "--data.source=npz", f"--data.path={path}"]
    assert "does not exist" in refused(*flags)
    path.write_bytes(b"PK not a zip")
    assert "is not a readable .npz file" in refused(*flags)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.write_bytes(path.with_suffix(".npy").read_bytes())
    assert "is not a readable .npz file" in refused(*flags)


@pytest.mark.parametrize(
    ("source", "file"), [("mnist", "mnist.npz"), ("cifar10", "cifar-10-batches-py-target_archive")]
)
def test_missing_download(source, file, tmp_path, monkeypatch):
    # A proxy that does not answer stands for a network that is not there.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    _, err = distgan("train", f"--data.source={source}", f"--run_dir={tmp_path / 'run'}", code=2)
    assert f"{source} cannot be downloaded" in err
    assert (
        f"put {'mnist.npz' if source == 'mnist' else 'cifar-10-python.tar.gz'} at {tmp_path / 'datasets' / file}" in err
    )
    assert len(err.splitlines()) == 1


def test_own_copy_of_mnist(tmp_path, capsys):
    path = npz(tmp_path / "mnist.npz", x_train=np.zeros((70, 28, 28), np.uint8), y_train=np.zeros(70, np.uint8))
    words = ["train", "--dry_run", "--data.source=mnist", "--data.resolution=0", f"--data.path={path}"]
    assert cli.main(words) == 0
    assert "70 images 28x28x1, 1 classes" in capsys.readouterr().out


def test_sample_mistakes(refused, tmp_path):
    assert "holds no run" in refused("sample", f"--run_dir={tmp_path}")
    assert "unknown flag --sample.cuont; did you mean --sample.count?" in refused("sample", "--sample.cuont=3")


def test_run_dir_that_cannot_be_written(refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    assert f"--run_dir={file / 'run'} cannot be written" in refused("train", f"--run_dir={file / 'run'}", *SMALL)


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("batch_size", "train.global_batch"),
        ("batch-size", "train.global_batch"),
        ("lr", "optimizer.learning_rate"),
        ("epochs", "train.total_kimg"),
        ("steps", "train.total_kimg"),
        ("gpus", "strategy"),
        ("total_kimg", "train.total_kimg"),
        ("resolution", "data.resolution"),
        ("r1_gamma", "objective.r1.gamma"),
    ],
)
def test_flags_of_other_trainers(refused, flag, meant):
    assert f"unknown flag --{flag}; here it is --{meant}" in refused("train", f"--{flag}=1")


def test_every_flag_that_is_meant_is_there():
    regularized = schema.build(train.Options, {"objective.regularizers": "r1"})
    known = {entry.name for options in (regularized, sample.Options()) for entry in schema.entries(options)}
    assert {*flag_names.CALLED_ELSEWHERE.values(), *flag_names.ADVICE} <= known
