"""Which image is number k: checked for any size, seed, batch and number of replicas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distgan.config import DataConfig, TrainConfig
from distgan.data import index, pipeline
from distgan.data.arrays import Synthetic

sizes = st.integers(1, 3000)
seeds = st.integers(0, 2**31)


@given(sizes, seeds, st.integers(0, 10**6))
def test_each_epoch_is_a_permutation(size, seed, epoch):
    numbers = np.arange(size, dtype=np.int64) + epoch * size
    assert sorted(index.dataset_indices(numbers, size, seed)) == list(range(size))


@given(sizes, seeds, st.integers(0, 10**12), st.integers(1, 50))
def test_starting_at_k_equals_skipping_k(size, seed, start, count):
    numbers = np.arange(start, start + count, dtype=np.int64)
    together = index.dataset_indices(numbers, size, seed)
    one_by_one = [index.dataset_indices(numbers[i : i + 1], size, seed)[0] for i in range(count)]
    assert together.tolist() == one_by_one


@given(st.integers(1, 8), st.integers(1, 40), st.integers(1, 4), st.integers(0, 10**9))
def test_shares_are_disjoint_and_complete(replicas, images, steps, batch):
    total = images * steps

    def own(among):
        """The numbers that a worker of these replicas takes from a batch, [steps of each]."""
        sizes = [len(index.share(images, replicas, replica)) for replica in among]
        assert max(sizes) - min(sizes) <= 1
        places = np.arange(steps * sum(sizes)) + batch * steps * sum(sizes)
        return index.dealt(places, total, steps, replicas, among), sizes

    shares = []
    for replica in range(replicas):
        numbers, [size] = own(range(replica, replica + 1))
        shares.append(numbers.reshape(steps, size))
    # A worker of all replicas takes their shares one after the other.
    whole, sizes = own(range(replicas))
    assert sum(sizes) == images
    assert whole.tolist() == np.concatenate(shares, axis=None).tolist()
    assert sorted(whole) == list(range(batch * total, (batch + 1) * total))
    for step in range(steps):
        # Micro-batch i of all replicas together does not depend on how many they are.
        first = batch * total + step * images
        together = np.concatenate([share[step] for share in shares])
        assert together.tolist() == list(range(first, first + images))


def test_epochs_and_seeds_differ():
    numbers = np.arange(1000, dtype=np.int64)
    orders = [index.dataset_indices(numbers + epoch * 1000, 1000, seed) for epoch in (0, 1) for seed in (0, 1)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            # Two random permutations agree at one place on average.
            assert (first == second).sum() < 10


def test_order_is_well_mixed():
    # Neighbours in the run are not neighbours in the data: the mean distance in a random order is a third of the size.
    order = index.dataset_indices(np.arange(1797, dtype=np.int64), 1797, 0)
    assert np.abs(np.diff(order)).mean() == pytest.approx(1797 / 3, rel=0.1)


def test_memory_does_not_grow_with_the_data():
    size = 10**12
    found = index.dataset_indices(np.arange(5, dtype=np.int64) + 7 * size, size, 0)
    assert len(set(found)) == 5
    assert (found < size).all()


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_pipeline_serves_the_same_images_at_any_scale(replicas):
    images = Synthetic(num_images=50, native_resolution=8, channels=1).open(DataConfig())
    data, train = DataConfig(flip=True), TrainConfig(global_batch=12, accumulation_steps=2)
    first_batch, reader = 3, pipeline.Reader(images, data, 0)
    dataset = pipeline.batches(reader, first_batch, train, replicas, range(replicas)).take(4 * replicas)
    served = {}
    for batch in dataset.as_numpy_iterator():
        for pixels, labels, first in zip(batch.images, batch.labels, batch.first, strict=True):
            for offset, (image, label) in enumerate(zip(pixels, labels, strict=True)):
                served[int(first) + offset] = (image.tobytes(), int(label))
    assert sorted(served) == list(range(36, 84))
    pixels, labels = reader(np.arange(36, 84))
    expected = [(image.tobytes(), int(label)) for image, label in zip(pixels, labels, strict=True)]
    assert [served[number] for number in sorted(served)] == expected


def test_workers_of_uneven_shares():
    images = Synthetic(num_images=50, native_resolution=8, channels=1).open(DataConfig())
    train, reader = TrainConfig(global_batch=14, accumulation_steps=2), pipeline.Reader(images, DataConfig(), 0)
    served = []
    for replica, size in enumerate((2, 2, 3)):
        for batch in pipeline.batches(reader, 1, train, 3, range(replica, replica + 1)).take(2).as_numpy_iterator():
            assert batch.images.shape == (2, size, 8, 8, 1)
            served += [int(first) + offset for first in batch.first for offset in range(size)]
    assert sorted(served) == list(range(14, 42))


def test_flips_are_keyed_by_image_number():
    images = Synthetic(num_images=500, native_resolution=8, channels=1).open(DataConfig())
    numbers = np.arange(500)
    plain, labels = pipeline.Reader(images, DataConfig(), 0)(numbers)
    flipped, _ = pipeline.Reader(images, DataConfig(flip=True), 0)(numbers)
    mirrored = np.array([not np.array_equal(a, b) for a, b in zip(plain, flipped, strict=True)])
    assert 200 < mirrored.sum() < 300
    assert np.array_equal(flipped[mirrored], plain[mirrored][:, :, ::-1])
    assert np.array_equal(labels, index.dataset_indices(numbers, 500, 0) % 10)
