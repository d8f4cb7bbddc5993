"""Augmentations against other ways to work them out: loops in plain numpy, finite differences."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from distgan import registry, seeds
from distgan.objectives import AUGMENTATIONS
from distgan.objectives.augment import DiffAugment, split_alpha


def random_images(*shape, dtype=np.float32):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(dtype)


def numbered(count, first=0):
    """The draws of the images of a run from number `first`."""

    def make(kind, name, shape):
        return getattr(seeds, kind)(seeds.key(0, name), tf.constant(first, tf.int64), count, shape)

    return seeds.Draws(make)


def every_entry():
    for name in AUGMENTATIONS.parts:
        yield registry.resolve(AUGMENTATIONS, name)()


# What all of them do.


@pytest.mark.parametrize("augmentation", every_entry(), ids=lambda a: type(a).__name__)
@pytest.mark.parametrize(("size", "channels"), [(16, 1), (17, 2), (32, 3), (16, 4)])
def test_any_size_and_channels(augmentation, size, channels):
    assert not list(augmentation.fits((size, size, channels)))
    images = tf.constant(random_images(8, size, size, channels))
    whole = augmentation.augment(images, numbered(8, 16), tf.constant(0.8, tf.float64))
    assert whole.shape == images.shape
    assert whole.dtype == tf.float32
    assert np.isfinite(whole).all()
    halves = [augmentation.augment(images[k : k + 4], numbered(4, 16 + k), 0.8) for k in (0, 4)]
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-4)
    if not isinstance(augmentation, DiffAugment):
        # Resampling at the identity is exact but for rounding, since the wavelet is orthogonal.
        np.testing.assert_allclose(augmentation.augment(images, numbered(8), 0.0), images, atol=2e-6)


@pytest.mark.parametrize("augmentation", every_entry(), ids=lambda a: type(a).__name__)
def test_compiled_and_in_float64(augmentation):
    images = tf.constant(random_images(4, 16, 16, 3))

    def augment(images):
        return augmentation.augment(images, numbered(4), tf.constant(0.8, tf.float64))

    eager = augment(images)
    for jit_compile in (False, True):
        np.testing.assert_allclose(tf.function(augment, jit_compile=jit_compile)(images), eager, atol=2e-4)
    exact = tf.function(augment)(tf.cast(images, tf.float64))
    assert exact.dtype == tf.float64
    np.testing.assert_allclose(exact, eager, atol=2e-4)


@pytest.mark.parametrize("augmentation", every_entry(), ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_gradients(augmentation, jit_compile):
    """Of a third power of the augmented images, and of the squared norm of that gradient, against central differences."""
    images = random_images(2, 16, 16, 3, dtype=np.float64)
    direction = np.random.default_rng(1).normal(size=images.shape)

    @tf.function(jit_compile=jit_compile)
    def both(images):
        with tf.GradientTape() as outer:
            outer.watch(images)
            with tf.GradientTape() as inner:
                inner.watch(images)
                value = tf.reduce_sum(augmentation.augment(images, numbered(2), 0.8) ** 3)
            first = inner.gradient(value, images)
            penalty = tf.reduce_sum(first**2)
        return value, first, penalty, outer.gradient(penalty, images)

    _, first, _, second = both(tf.constant(images))
    above, below = (both(tf.constant(images + step * direction)) for step in (1e-6, -1e-6))
    np.testing.assert_allclose((above[0] - below[0]) / 2e-6, np.sum(first * direction), rtol=1e-5)
    np.testing.assert_allclose((above[2] - below[2]) / 2e-6, np.sum(second * direction), rtol=1e-5)


def test_every_name_is_drawn_once():
    for augmentation in every_entry():
        names = []
        draws = seeds.Draws(
            lambda kind, name, shape, names=names: names.append(name) or numbered(1).make(kind, name, shape)
        )
        augmentation.augment(tf.zeros([1, 16, 16, 3]), draws, 0.5)
        assert len(names) == len(set(names))


def test_what_does_not_fit():
    for augmentation in every_entry():
        small, deep = list(augmentation.fits((8, 8, 3))), list(augmentation.fits((16, 16, 5)))
        if type(augmentation).__name__ == "Unchanged":
            assert not small + deep
        else:
            assert "--data.resolution=8" in small[0]
            assert "--objective.augmentation=none" in small[0]
            assert "5 channels" in deep[0]
    unknown = list(DiffAugment("color,cut").fits((16, 16, 3)))
    assert unknown == ["--objective.diffaugment.policy=color,cut: 'cut' is not one of color, translation, cutout"]
    assert "twice" in next(DiffAugment("color,color").fits((16, 16, 3)))


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_moved_but_not_coloured(channels):
    images = tf.constant(random_images(4, 16, 16, channels))
    for augmentation in (DiffAugment("color"),):
        changed = augmentation.augment(images, numbered(4), 1.0)
        assert np.array_equal(split_alpha(changed)[1], split_alpha(images)[1])
        assert np.abs(split_alpha(changed)[0] - split_alpha(images)[0]).max() > 0.1
    # An image that is alpha throughout stays so under what moves it.
    same = tf.repeat(images[..., :1], channels, -1)
    for augmentation in (DiffAugment("translation,cutout"),):
        moved = augmentation.augment(same, numbered(4), 1.0).numpy()
        assert np.array_equal(moved[..., 0], moved[..., -1])
        assert np.abs(moved - same).max() > 0.1


# DiffAugment.


def diffaugment_loop(images, draws):
    """Pixel by pixel, from the authors' description."""
    result = []
    size = images.shape[1]
    reach, side = int(size * 0.125 + 0.5), int(size * 0.5 + 0.5)
    for n, image in enumerate(images.astype(np.float64)):
        image = image + draws["brightness"][n] - 0.5
        gray = image.mean(-1, keepdims=True)
        image = (image - gray) * 2 * draws["saturation"][n] + gray
        image = (image - image.mean()) * (draws["contrast"][n] + 0.5) + image.mean()
        up, left = (int(u * (2 * reach + 1)) - reach for u in draws["translation"][n].ravel())
        moved = np.zeros_like(image)
        for i, j in itertools.product(range(size), repeat=2):
            if 0 <= i + up < size and 0 <= j + left < size:
                moved[i, j] = image[i + up, j + left]
        row, column = (int(u * (size + 1 - side % 2)) for u in draws["cutout"][n].ravel())
        for i, j in itertools.product(range(side), repeat=2):
            moved[min(max(row + i - side // 2, 0), size - 1), min(max(column + j - side // 2, 0), size - 1)] = 0
        result.append(moved)
    return np.stack(result)


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (17, 3), (20, 3)])
def test_diffaugment_is_the_loop(size, channels):
    images = random_images(32, size, size, channels)
    shapes = dict.fromkeys(("brightness", "saturation", "contrast"), (1, 1, 1))
    shapes |= dict.fromkeys(("translation", "cutout"), (2, 1))
    draws = {name: numbered(32).uniform(name, shape).numpy() for name, shape in shapes.items()}
    found = DiffAugment().augment(tf.constant(images), numbered(32), 1.0)
    np.testing.assert_allclose(found, diffaugment_loop(images, draws), atol=1e-5)


def test_diffaugment_follows_the_order_of_the_policy():
    images = tf.constant(random_images(8, 16, 16, 3))
    first, last = (DiffAugment(p).augment(images, numbered(8), 1.0).numpy() for p in ("cutout,color", "color,cutout"))
    assert (last == 0).any()
    assert not (first == 0).any()
