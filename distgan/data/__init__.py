"""Real images: which one is number k of the run, and how they become batches."""

from distgan.registry import Table

SOURCES = Table(
    "source",
    {
        "digits": "distgan.data.arrays:Digits",
        "mnist": "distgan.data.arrays:Mnist",
        "cifar10": "distgan.data.arrays:Cifar10",
        "npz": "distgan.data.arrays:Npz",
        "synthetic": "distgan.data.arrays:Synthetic",
    },
)
