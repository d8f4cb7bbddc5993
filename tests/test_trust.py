"""Code that a run directory names: one's own is run as ever, a stranger's only where the user says so."""

import contextlib
import json
import os
import sys
import zipfile

import keras
import pytest
from conftest import SMALL

from distgan import cli, schema, trust
from distgan.config import Config
from distgan.errors import UserError
from distgan.models.saved import SavedGenerator
from distgan.training.run_dir import RunDir, read_config

PARTS = [entry.name for entry in schema.entries(Config()) if entry.table]
COMMANDS = {
    "train": ["train", "--dry_run"],
    "train --help": ["train", "--help"],
    "sample": ["sample"],
    "evaluate": ["evaluate"],
    "export": ["export", "--out={out}"],
    "report": ["report", "--out={out}"],
    "doctor": ["doctor"],
}


@pytest.fixture(autouse=True)
def _stranger(tmp_path, monkeypatch):
    """A module that notes that it was run."""
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("stranger", None)


@pytest.fixture
def run_dir(tmp_path):
    """A stranger's run directory."""
    values = dict(word[2:].split("=") for word in SMALL) | {"train.total_kimg": 3.0}
    path = tmp_path / "run"
    RunDir(path, schema.build(Config, values), "data").close()
    path.chmod(0o777)
    return path


def name_code(run_dir, field):
    config = run_dir / "config.json"
    content = json.loads(config.read_text())
    before = content["config"][field]
    many = field.endswith(("regularizers", "metrics")) and before
    content["config"][field] = f"{before},stranger:Part" if many else "stranger:Part"
    config.write_text(json.dumps(content))


def was_run(run_dir):
    return (run_dir.parent / "was_run").exists()


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_no_command_runs_a_strangers_code(run_dir, refused, words):
    name_code(run_dir, "model.name")
    words = [word.format(out=run_dir.parent / "out") for word in words]
    line = refused(*words, f"--run_dir={run_dir}")
    assert "names code that is not distgan's, model.name=stranger:Part, and everybody can write to" in line
    assert "--allow_code" in line
    assert not was_run(run_dir)
    assert cli.main([*words, f"--run_dir={run_dir}", "--allow_code"]) == 2  # It holds no part.
    assert was_run(run_dir) == (words[0] != "report")


@pytest.mark.parametrize("field", PARTS)
def test_no_field_is_forgotten(run_dir, field):
    name_code(run_dir, field)
    trust.allow([])
    with pytest.raises(UserError, match=f"{field}=.*stranger:Part"):
        read_config(run_dir)
    assert not was_run(run_dir)


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (["--model.name=stranger:Part"], True),
        (["--model.name", "stranger:Part"], True),
        (["--model.name=stranger:Other"], False),
        (["--run_dir=stranger:Part"], False),
        (["--run_dir=/data/stranger:Part"], False),
        (["--allow_code"], True),
        ([], False),
    ],
)
def test_what_the_user_names_is_allowed(run_dir, words, allowed):
    name_code(run_dir, "model.name")
    assert trust.allow(words) == [word for word in words if word != "--allow_code"]
    if allowed:
        assert read_config(run_dir)["model.name"] == "stranger:Part"
    else:
        with pytest.raises(UserError, match="names code"):
            read_config(run_dir)
    trust.allow([])


def test_who_can_have_written_a_run(run_dir):
    name_code(run_dir, "model.name")
    config = run_dir / "config.json"
    trust.allow([])

    def trusted():
        with contextlib.suppress(UserError):
            return read_config(run_dir)["model.name"] == "stranger:Part"
        return False

    for mode, file_mode, expected in ((0o755, 0o644, True), (0o755, 0o666, False), (0o757, 0o644, False)):
        run_dir.chmod(mode)
        config.chmod(file_mode)
        assert trusted() == expected, oct(mode)
    run_dir.chmod(0o755)
    config.chmod(0o644)
    if os.geteuid() == 0:
        for path in (config, run_dir):
            os.chown(path, 54321, -1)
            assert not trusted()
            os.chown(path, 0, -1)
        run_dir.chmod(0o775)
        assert trusted()  # Root's own group.
        os.chown(run_dir, -1, 54321)
        assert not trusted()


def test_a_strangers_run_of_distgans_own_parts_is_read(run_dir):
    trust.allow([])
    assert read_config(run_dir)["model.name"] == "dcgan"


def test_keras_safe_mode_runs_no_code(tmp_path):
    good, doctored = tmp_path / "good.keras", tmp_path / "doctored.keras"
    SavedGenerator({"model.name": "dcgan", "model.width": 4}, (16, 16, 1), 0).save(good)
    keras.models.load_model(good)
    for field in PARTS:
        with zipfile.ZipFile(good) as archive, zipfile.ZipFile(doctored, "w") as other:
            for name in archive.namelist():
                content = json.loads(archive.read(name)) if name == "config.json" else archive.read(name)
                if name == "config.json":
                    content["config"]["config"][field] = "stranger:Part"
                    content = json.dumps(content)
                other.writestr(name, content)
        with pytest.raises(Exception, match=f"{field}=stranger:Part"):
            keras.models.load_model(doctored)
        assert not (tmp_path / "was_run").exists()
    with pytest.raises(UserError, match="stranger"):
        keras.models.load_model(doctored, safe_mode=False)
    assert (tmp_path / "was_run").exists()
