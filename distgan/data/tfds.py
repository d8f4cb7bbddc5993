"""Images of tensorflow_datasets, by name: downloaded and prepared once per host, then read at random as TFRecords."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from distgan.config import DataConfig
from distgan.data.source import Encoded
from distgan.data.tfrecord import open_shards
from distgan.errors import UserError
from distgan.schema import option

_LOCK_SECONDS = 6 * 3600  # Another process of this host may be downloading.


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A data set of tensorflow_datasets with encoded images; --data.path is its data_dir, by default its own."""

    name: str = option("", "as tensorflow_datasets names it: cifar10, or my_set:1.0.0")
    split: str = option("train", "which of its splits")
    image_feature: str = option("image", "the feature with the image")
    label_feature: str = option("label", "the feature with the label; empty is none")

    def open(self, data: DataConfig) -> Encoded:
        if not self.name:
            raise UserError("--data.source=tfds needs --data.tfds.name")
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise UserError(
                f"--data.source=tfds needs tensorflow_datasets ({error}): pip install 'distgan[tfds]'"
            ) from None
        from filelock import FileLock, Timeout

        where = f"--data.tfds.name={self.name}"
        try:
            builder = tfds.builder(self.name, data_dir=data.path or None)
            folder = Path(builder.data_dir)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock", timeout=_LOCK_SECONDS):
                builder.download_and_prepare()
        except Timeout:
            raise UserError(f"{where}: another process has held {folder}.lock for {_LOCK_SECONDS} seconds") from None
        except Exception as error:  # Whatever a builder raises: no such set, no network, a version that is not there.
            raise UserError(f"{where}: {(str(error) or type(error).__name__).splitlines()[0]}") from None
        splits = builder.info.splits
        if self.split not in splits:
            raise UserError(f"--data.tfds.split={self.split} is not one of {', '.join(sorted(splits))}")
        shards = [Path(path) for path in splits[self.split].filepaths]
        if not shards or ".tfrecord" not in shards[0].name:
            raise UserError(f"{where} is not kept as TFRecords")
        features = builder.info.features
        names = getattr(features[self.label_feature], "names", ()) if self.label_feature in features else ()
        cache_dir = Path(data.cache_dir or folder)
        return open_shards(shards, self.image_feature, self.label_feature, cache_dir, data, tuple(names))
