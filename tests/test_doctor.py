"""`distgan doctor --run_dir`: what it says of checkpoints is what a restart does."""

import numpy as np
from conftest import SMALL

from distgan import cli, schema
from distgan.config import Config
from distgan.training import checkpoint
from distgan.training.checkpoint import Checkpoint
from distgan.training.run_dir import RunDir


def test_run(tmp_path, capsys, refused):
    values = dict(word[2:].split("=") for word in SMALL) | {"train.total_kimg": 3.0}
    RunDir(tmp_path, schema.build(Config, values), "data").close()
    folder = tmp_path / "checkpoints"

    def told():
        assert cli.main(["doctor", f"--run_dir={tmp_path}"]) == 0
        return capsys.readouterr().out.splitlines()

    assert told() == ["a restart begins at 0 of 3 kimg: there is no checkpoint"]
    for seen in (1000, 2000, 3000):
        arrays = {"generator/w": np.ones(seen, np.float32), "step": np.array(seen)}
        checkpoint.write(folder, Checkpoint(arrays, {"images_seen": seen}), keep=9, best=seen == 1000)
    assert told()[-1] == "a restart has nothing left to do: 3 of 3 kimg are done"
    with (folder / "000000003000" / "generator.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    (folder / "000000002000" / "run.safetensors").unlink()
    (folder / ".tmp-000000004000").mkdir()
    first, *others, last = told()
    assert first.startswith(".tmp-000000004000: 0 bytes")
    assert first.endswith("not finished, is removed at the next save")
    assert [line.split(", ", 3)[3] for line in others] == [
        "verified, the best",
        "DAMAGED ([Errno 2] No such file or directory: "
        f"'{folder / '000000002000' / 'run.safetensors'}'), is set aside at a restart",
        "DAMAGED (generator.safetensors has another SHA-256), is set aside at a restart",
    ]
    assert last == f"a restart goes on at 1 of 3 kimg, from {folder / '000000001000'}"
    assert checkpoint.newest(folder, repair=True).images_seen == 1000
    assert [line.rpartition(", ")[2] for line in told()[1:4]] == [
        "the best",
        "set aside as damaged",
        "set aside as damaged",
    ]
    (folder / "000000001000" / "manifest.json").write_text("{}")
    assert "none of its checkpoints is whole" in refused("doctor", f"--run_dir={tmp_path}")
    assert "config.json is not there" in refused("doctor", f"--run_dir={tmp_path / 'nowhere'}")
