"""Real images: which one is number k of the run, and how they become batches."""

from distgan.registry import Table

SOURCES = Table(
    "source",
    {
        "digits": "distgan.data.arrays:Digits",
        "mnist": "distgan.data.arrays:Mnist",
        "cifar10": "distgan.data.arrays:Cifar10",
        "stacked_digits": "distgan.data.arrays:StackedDigits",
        "npz": "distgan.data.arrays:Npz",
        "folder": "distgan.data.folder:Folder",
        "zip": "distgan.data.folder:Zip",
        "tfrecord": "distgan.data.tfrecord:TfRecord",
        "tfds": "distgan.data.tfds:Tfds",
        "synthetic": "distgan.data.arrays:Synthetic",
    },
    offers=("open",),
)
