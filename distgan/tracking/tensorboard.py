"""TensorBoard's event files: every number of a row, and the grids, at the images seen."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from PIL import Image

from distgan.tracking.tracker import Row

_COLORSPACES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


class TensorBoard:
    """A sink; each start of a run adds a file."""

    def __init__(self, folder: Path):
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

    def close(self, exit_code: int) -> None:
        self.writer.close()

    def _write(self, values: list[tf.compat.v1.Summary.Value], images_seen: int) -> None:
        with self.writer.as_default():
            tf.summary.experimental.write_raw_pb(
                tf.compat.v1.Summary(value=values).SerializeToString(), step=images_seen
            )
        self.writer.flush()
