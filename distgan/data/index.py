"""Which image of the data set is image number k of the run, and which numbers are whose. Pure integers.

Image numbers count on through all epochs: number k is place k mod n of epoch k // n. Each epoch has its own permutation,
worked out for any k at once and without a table: a Feistel network over the smallest even-bit domain that holds n, walked
on until the value is below n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

from __future__ import annotations

import functools

import numpy as np

from distgan import seeds

_ROUNDS = 8


def permute(places: np.ndarray, size: int, key: int) -> np.ndarray:
    """A permutation of range(size), keyed by a 64-bit key, at the given places (int64 [N], each below `size`)."""
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    round_keys = seeds.bits(key, np.arange(_ROUNDS))
    values = places.astype(np.uint64)
    outside = np.ones(values.shape, bool)
    while outside.any():
        left, right = values[outside] >> half_bits, values[outside] & mask
        for round_key in round_keys:
            left, right = right, left ^ (seeds.bits(int(round_key), right) & mask)
        values[outside] = left << half_bits | right
        outside = values >= size
    return values.astype(np.int64)


def dataset_indices(image_numbers: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The index in a data set of `size` images of each image number of the run (int64 [N] -> int64 [N])."""
    epochs, places = np.divmod(image_numbers, size)
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
        members = epochs == epoch
        indices[members] = permute(places[members], size, seeds.key(seed, f"order/{epoch}"))
    return indices


def share(images: int, num_replicas: int, replica: int) -> range:
    """Which of a micro-batch's images are a replica's: contiguous, and as many as any other's, or one more or less."""
    return range(images * replica // num_replicas, images * (replica + 1) // num_replicas)


def dealt(places: np.ndarray, global_batch: int, micro_batches: int, num_replicas: int, replicas: range) -> np.ndarray:
    """The image numbers of a worker's own stream at the given places (int64 [N] -> int64 [N]).

    The stream is the share of each of the worker's `replicas` in batch 0, one after the other, then in batch 1, and so on.
    Micro-batch i of all replicas together is the i-th contiguous part of the global batch, so that what depends on who
    shares a micro-batch (batch norm) does not depend on the number of replicas.
    """
    first = _first_batch(global_batch, micro_batches, num_replicas, replicas)
    batch, place = np.divmod(places, len(first))
    return batch * global_batch + first[place]


@functools.cache
def _first_batch(global_batch: int, micro_batches: int, num_replicas: int, replicas: range) -> np.ndarray:
    """The numbers of batch 0 that are a worker's, in its order."""
    images = global_batch // micro_batches
    shares = [share(images, num_replicas, replica) for replica in replicas]
    return np.concatenate([step * images + np.array(each) for each in shares for step in range(micro_batches)])
