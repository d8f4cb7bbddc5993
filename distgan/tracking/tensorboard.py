"""TensorBoard's event files: every number of a row, and the grids, at the images seen."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
from PIL import Image

from distgan.tracking.alerts import Row
from distgan.tracking.console import log
from distgan.tracking.tracker import Sink

_COLORSPACES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


class TensorBoard(Sink):
    """A sink; each start of a run adds a file. An error, as of a full disk, ends the file and not the run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.writer: tf.summary.SummaryWriter | None = None
        # TensorFlow writes the files by itself.
        if importlib.util.find_spec("tensorboard") is None:
            log.info("%s is written; to look at it, pip install '.[tensorboard]': TensorBoard is not installed", folder)
        with self._harmless():
            self.writer = tf.summary.create_file_writer(str(folder))

    def row(self, row: Row) -> None:
        """Writes all numbers as one event."""
        values = [tf.compat.v1.Summary.Value(tag=key, simple_value=value) for key, value in row.items()]
        self._write(values, int(row["progress/images_seen"]))

    def picture(self, name: str, path: Path, images_seen: int) -> None:
        """Takes the picture file as it is."""
        data = path.read_bytes()
        with Image.open(path) as picture:
            image = tf.compat.v1.Summary.Image(
                height=picture.height,
                width=picture.width,
                colorspace=_COLORSPACES.get(picture.mode, 3),
                encoded_image_string=data,
            )
        self._write([tf.compat.v1.Summary.Value(tag=name, image=image)], images_seen)

    def move(self, run_dir: Path) -> None:
        """Begins a file where the folder is a new one; in a folder that was moved the file has moved along."""
        self.folder = run_dir / self.folder.name
        if self.writer and not self.folder.exists():
            with self._harmless():
                self.writer = tf.summary.create_file_writer(str(self.folder))

    def close(self, exit_code: int) -> None:
        with self._harmless():
            if self.writer:
                self.writer.close()

    def _write(self, values: list[tf.compat.v1.Summary.Value], images_seen: int) -> None:
        if not self.writer:
            return
        with self._harmless(), self.writer.as_default():
            event = tf.compat.v1.Summary(value=values).SerializeToString()
            tf.summary.experimental.write_raw_pb(event, step=images_seen)
            self.writer.flush()

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:
            self.writer = None
            log.warning("%s is not written any more: %s", self.folder, str(error).splitlines()[0])
