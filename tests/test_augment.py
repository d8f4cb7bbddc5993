"""Augmentations against other ways to work them out: loops in plain numpy, padded convolutions, scipy, finite differences."""

import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from distgan import registry, seeds
from distgan.objectives import AUGMENTATIONS, pipe
from distgan.objectives.ada import Ada, Fixed
from distgan.objectives.augment import DiffAugment, draws_as, split_alpha
from distgan.schedules import schedule

EVERYTHING = {"filter": 1.0, "noise": 1.0, "cutout": 1.0}
COLOURS = {"brightness": 0.7, "contrast": -0.9, "luma_flip": 0.6, "hue": 0.8, "saturation": 0.4}


def random_images(*shape, dtype=np.float32):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(dtype)


def smooth_images(size, count=1):
    """Waves of several directions, long beside the pixels, float64 [N, size, size, 3]."""
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(5 * x + 3 * y + k) * np.cos(4 * y - x * k) for k in range(3)]
    return np.repeat(np.stack(waves, -1)[None], count, 0)


def numbered(count, first=0):
    """The draws of the images of a run from number `first`."""

    def make(kind, name, shape):
        return getattr(seeds, kind)(seeds.key(0, name), tf.constant(first, tf.int64), count, shape)

    return seeds.Draws(make)


def given(**values):
    """Draws of these values; of the transforms that have gates only those named pass, for any p above 0 and at most 1."""

    def make(kind, name, shape):
        value = float(name.removesuffix("/gate") not in values) if name.endswith("/gate") else values.get(name, 0.3)
        value = np.asarray(value, np.float32)
        return tf.broadcast_to(value.reshape(value.shape + (1,) * (len(shape) - value.ndim)), (1, *shape))

    return seeds.Draws(make)


def every_entry():
    for name in AUGMENTATIONS.parts:
        yield registry.resolve(AUGMENTATIONS, name)()
    yield Fixed(**EVERYTHING)


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
    assert "--objective.ada.most=0.5" in next(Ada(start=0.7, most=0.5).fits((16, 16, 3)))
    assert "--objective.fixed.p=linear:0.0:1.5" in next(Fixed(p=schedule("linear:0:1.5")).fits((16, 16, 3)))


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_moved_but_not_coloured(channels):
    images = tf.constant(random_images(4, 16, 16, channels))
    colouring = Fixed(blit=0, geom=0, filter=1, noise=1)
    for augmentation, p in ((colouring, 1.0), (DiffAugment("color"), 1.0)):
        changed = augmentation.augment(images, numbered(4), p)
        assert np.array_equal(split_alpha(changed)[1], split_alpha(images)[1])
        assert np.abs(split_alpha(changed)[0] - split_alpha(images)[0]).max() > 0.1
    # An image that is alpha throughout stays so under what moves it.
    same = tf.repeat(images[..., :1], channels, -1)
    for augmentation in (Fixed(color=0, cutout=1), DiffAugment("translation,cutout")):
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


# ADA's geometry.


def test_wavelets():
    for taps, moments in ((pipe.SYM2, 2), (pipe.SYM6, 6)):
        assert math.isclose(taps.sum(), math.sqrt(2), rel_tol=1e-12)
        for shift in range(0, len(taps), 2):
            product = np.sum(taps[shift:] * taps[: len(taps) - shift])
            assert math.isclose(product, float(shift == 0), abs_tol=1e-12)
        high = taps * (-1.0) ** np.arange(len(taps))
        centred = np.arange(len(taps)) - len(taps) / 2
        for moment in range(moments):
            assert abs(np.sum(high * centred**moment)) < 1e-9 * 6**moment


def affine(**values):
    """The map from output to input of an image of 24 rows and 16 columns."""
    one = tf.constant(1, tf.float64)
    return pipe.geometry(draws_as(tf.float64, given(**values)), one, one, (24, 16))[0].numpy()


def scaled(x, y):
    return np.diag([x, y, 1.0])


def rotated(angle):
    """Counter-clockwise to the eye, as y goes down."""
    return np.array([[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]])


def shifted(x, y):
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def test_geometry_is_the_product_of_its_transforms():
    """Forward maps in the paper's order, then one inverse."""
    drawn = {
        "flip": 0.6,
        "quarters": 0.3,
        "whole_shift": [0.95, 0.2],
        "scale": 0.7,
        "first_rotation": 0.6,
        "stretch": -1.2,
        "second_rotation": 0.45,
        "shift": [0.4, -0.8],
    }
    forward = {
        "flip": scaled(-1, 1),
        "quarters": rotated(math.pi / 2),
        "whole_shift": shifted(round(0.9 * 0.125 * 16), round(-0.6 * 0.125 * 24)),
        "scale": scaled(2**0.14, 2**0.14),
        "first_rotation": rotated(0.2 * math.pi),
        "stretch": scaled(2**-0.24, 2**0.24),
        "second_rotation": rotated(-0.1 * math.pi),
        "shift": shifted(0.4 * 0.125 * 16, -0.8 * 0.125 * 24),
    }
    product = np.eye(3)
    for name, matrix in forward.items():
        np.testing.assert_allclose(affine(**{name: drawn[name]}), np.linalg.inv(matrix), atol=1e-6)
        product = matrix @ product
    np.testing.assert_allclose(affine(**drawn), np.linalg.inv(product), atol=1e-5)
    assert np.array_equal(affine(), np.eye(3))


def geometry_only(images, **values):
    return Fixed(color=0).augment(tf.constant(images), given(**values), 1.0).numpy()[0]


def test_whole_pixels():
    """Shifts are exact, flips and quarter turns to a tenth of a pixel, by which sym6 is off its middle."""
    images = random_images(1, 16, 16, 3)
    padded = np.pad(images[0], [(2, 2), (2, 2), (0, 0)], mode="reflect")
    moved = geometry_only(images, whole_shift=[0.9, 0.3])  # 1.6 and -0.8 pixels, rounded
    np.testing.assert_allclose(moved, padded[3:19, 0:16], atol=2e-6)
    smooth = smooth_images(24)
    for values, wanted in (
        ({"flip": 0.9}, smooth[0][:, ::-1]),
        ({"flip": 0.1}, smooth[0]),
        *(({"quarters": (k + 0.5) / 4}, np.rot90(smooth[0], k)) for k in range(4)),
    ):
        found = geometry_only(smooth, **values)
        np.testing.assert_allclose(found[3:-3, 3:-3], wanted[3:-3, 3:-3], atol=0.05)


@pytest.mark.parametrize(
    "values", [{"first_rotation": 0.6}, {"scale": 1.5}, {"scale": -1.0}, {"stretch": 1.0, "shift": [0.3, -0.7]}]
)
def test_geometry_against_splines(values):
    images, one = smooth_images(32), tf.constant(1, tf.float64)
    x_first = pipe.geometry(draws_as(tf.float64, given(**values)), one, one, (32, 32))[0].numpy()
    matrix = x_first[[1, 0]][:, [1, 0, 2]]  # Row before column.
    offset = matrix[:, 2] + 15.5 - matrix[:, :2] @ [15.5, 15.5]
    found = geometry_only(images, **values)
    for channel in range(3):
        spline = scipy.ndimage.affine_transform(images[0, ..., channel], matrix[:, :2], offset, order=3, mode="mirror")
        # Mirrored waves have a kink at the border, which filters see differently.
        np.testing.assert_allclose(found[8:-8, 8:-8, channel], spline[8:-8, 8:-8], atol=0.02)


def warp_by_padding(image, inverse):
    """As the paper describes it: reflect by all that one reflection gives, double, sample bilinearly, halve. image is [H, W]."""
    height, width = image.shape
    margin = np.array([height - 1, width - 1])
    x = np.pad(image, [(m, m) for m in margin], mode="reflect")
    low = pipe.SYM6 / math.sqrt(2)
    for axis in (0, 1):
        spread = np.zeros([2 * n if a == axis else n for a, n in enumerate(x.shape)])
        spread[(slice(None), slice(None, None, 2)) if axis else slice(None, None, 2)] = 2 * x
        x = np.apply_along_axis(lambda line: np.convolve(line, low)[5 : 5 + len(line)], axis, spread)
    rows, columns = np.mgrid[-5 : 2 * height + 5, -5 : 2 * width + 5] / 2.0
    places = np.stack([columns - (width - 1) / 2, rows - (height - 1) / 2, np.ones_like(rows)])
    across, down, _ = np.tensordot(inverse, places, 1)
    taken = [2 * (down + (height - 1) / 2 + margin[0]), 2 * (across + (width - 1) / 2 + margin[1])]
    x = scipy.ndimage.map_coordinates(x, taken, order=1, mode="grid-constant")
    for axis in (0, 1):
        x = np.apply_along_axis(lambda line: np.correlate(line, low, "valid")[::2], axis, x)
    return x


def test_warp_is_padding_doubling_sampling_and_halving():
    images = random_images(16, 18, 20, 2, dtype=np.float64)
    one = tf.constant(1, tf.float64)
    inverse = pipe.geometry(draws_as(tf.float64, numbered(16)), one, one, (18, 20)).numpy()
    found = pipe.warp(tf.constant(images), tf.constant(inverse)).numpy()
    corners = np.array([[x, y, 1] for x in (-13, 13) for y in (-12, 12)]).T
    compared = 0
    for n in range(16):
        reach = np.abs(inverse[n, :2] @ corners).max(1)
        if (reach < [1.5 * 19 - 4, 1.5 * 17 - 4]).all():  # One reflection is enough.
            compared += 1
            for channel in range(2):
                wanted = warp_by_padding(images[n, ..., channel], inverse[n])
                np.testing.assert_allclose(found[n, ..., channel], wanted, atol=1e-10)
    assert compared >= 8


# ADA's colours.


def colour_matrix(**values):
    """The 3x4 matrix that the pipe applies, read off its images."""
    pixels = np.concatenate([np.zeros((1, 3)), np.eye(3)]).reshape(1, 2, 2, 3)
    found = pipe.recolor(tf.constant(pixels), draws_as(tf.float64, given(**values)), tf.constant(1, tf.float64))
    added, *rest = found.numpy().reshape(4, 3)
    return np.concatenate([np.stack(rest, 1) - added[:, None], added[:, None]], 1)


def homogeneous(matrix, added=(0, 0, 0)):
    return np.block([[np.asarray(matrix), np.reshape(added, (3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]])


def test_colours_are_the_product_of_their_transforms():
    axis = np.ones(3) / math.sqrt(3)
    across = np.eye(3) - np.outer(axis, axis)
    angle = 0.6 * math.pi
    # Any orthonormal frame of the plane, turned: the hue's rotation without Rodrigues' formula.
    first = np.array([1, -1, 0]) / math.sqrt(2)
    second = np.cross(axis, first)
    frame = np.stack([axis, first, second])
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    forward = {
        "brightness": homogeneous(np.eye(3), np.full(3, 0.14)),
        "contrast": homogeneous(np.eye(3) * 2**-0.45),
        "luma_flip": homogeneous(np.eye(3) - 2 * np.outer(axis, axis)),
        "hue": homogeneous(frame.T @ turn @ frame),
        "saturation": homogeneous(np.outer(axis, axis) + 2**0.4 * across),
    }
    product = np.eye(4)
    for name, matrix in forward.items():
        np.testing.assert_allclose(colour_matrix(**{name: COLOURS[name]}), matrix[:3], atol=1e-6)
        product = matrix @ product
    np.testing.assert_allclose(colour_matrix(**COLOURS), product[:3], atol=1e-6)

    flip = colour_matrix(luma_flip=0.9)[:, :3]
    np.testing.assert_allclose(flip @ flip, np.eye(3), atol=1e-6)
    assert math.isclose(np.linalg.det(flip), -1, rel_tol=1e-6)
    np.testing.assert_allclose(colour_matrix(hue=0.8)[:, :3].sum(0), np.ones(3), atol=1e-6)

    # Gray is the mean of what becomes of three equal channels.
    gray = np.linspace(-1, 1, 4).reshape(1, 2, 2, 1)
    found = pipe.recolor(tf.constant(gray), draws_as(tf.float64, given(**COLOURS)), tf.constant(1, tf.float64))
    mean = product[:3].mean(0)
    np.testing.assert_allclose(found, gray * mean[:3].sum() + mean[3], atol=1e-6)


# The filter, the noise and cutout.


def test_bands():
    bands = pipe.band_filters()
    np.testing.assert_allclose(bands.sum(0), np.eye(43)[21], atol=1e-12)
    np.testing.assert_allclose(bands, bands[:, ::-1], atol=1e-12)
    # Each passes its octave (in cycles a pixel) more than any other does, and none amplifies.
    response = np.abs(np.fft.rfft(bands, 512))
    assert response.max() < 1 + 1e-12
    for band, frequency in enumerate((0, 0.09, 0.18, 0.5)):
        assert response[:, int(512 * frequency)].argmax() == band


def equalized(images, draws):
    return pipe.equalize(tf.constant(images), draws_as(images.dtype, draws), tf.constant(1, images.dtype)).numpy()


def test_filter_is_a_convolution_of_the_padded_image():
    images = random_images(4, 24, 24, 2, dtype=np.float64)
    drawn = numbered(4).normal("bands", (4,)).numpy().astype(np.float64)
    found = equalized(images, numbered(4))
    power = np.array([10, 1, 1, 1]) / 13
    for n in range(4):
        gains = np.ones(4)
        for band in range(4):
            one = np.ones(4)
            one[band] = 2 ** drawn[n, band]
            gains *= one / math.sqrt(np.sum(power * one**2))
        taps = gains @ pipe.band_filters()
        for channel in range(2):
            x = np.pad(images[n, ..., channel], 21, mode="reflect")
            for axis in (0, 1):
                x = np.apply_along_axis(lambda line, taps=taps: np.convolve(line, taps, "valid"), axis, x)
            np.testing.assert_allclose(found[n, ..., channel], x, atol=1e-7)


def test_gains_of_one_change_nothing():
    images = random_images(1, 16, 16, 3, dtype=np.float64)
    np.testing.assert_allclose(equalized(images, given(bands=0.0)), images, atol=1e-12)


def test_noise_has_the_strength_drawn():
    images = tf.zeros([64, 32, 32, 3])
    strength = np.abs(numbered(64).normal("noise_strength")) * 0.1
    found = pipe.add_noise(images, numbered(64), tf.constant(1.0)).numpy()
    np.testing.assert_allclose(found.std((1, 2, 3)), strength, rtol=0.1)
    assert np.array_equal(pipe.add_noise(images, numbered(64), tf.constant(0.0)), images)


def test_cutout_blanks_half_a_side():
    images = tf.ones([1, 16, 20, 3])
    found = pipe.cut_out(images, given(cutout=[0.5, 0.25]), tf.constant(1.0)).numpy()[0, ..., 0]
    wanted = np.ones((16, 20))
    wanted[0:8, 5:15] = 0
    assert np.array_equal(found, wanted)


# How often.


@pytest.mark.parametrize("p", [0.2, 0.7])
def test_transforms_come_with_probability_p(p):
    count, p64 = 4096, tf.constant(p, tf.float64)
    draws = draws_as(tf.float64, numbered(count))
    none = tf.constant(0, tf.float64)

    def share(changed, wanted):
        assert abs(np.mean(changed) - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / count)

    blit, geom = pipe.geometry(draws, p64, none, (16, 16)).numpy(), pipe.geometry(draws, none, p64, (16, 16)).numpy()
    share(np.linalg.det(blit) < 0, p / 2)
    # Two of the four quarter turns exchange the axes.
    share(np.abs(blit[:, 0, 0]) < 0.5, p / 2)
    share(
        np.abs(blit[:, :2, 2]).max(1) > 0.5, p * 15 / 16
    )  # A quarter of the shifts by up to 2 rounds to 0, on each axis.
    share(np.abs(np.linalg.det(geom) - 1) > 1e-9, p)
    share(np.abs(geom[:, 0, 1]) > 1e-12, p)  # Two rotations, of which either may be.
    share(np.abs(geom[:, :2, 2]).max(1) > 1e-12, p)

    pixels = np.tile(
        np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, -1.0, 0.0]]).reshape(1, 1, 3, 3), (count, 1, 1, 1)
    )
    black, white, chroma = np.moveaxis(pipe.recolor(tf.constant(pixels), draws, p64).numpy()[:, 0], 1, 0)
    share(np.abs(black).max(1) > 1e-9, p)
    luma, plane = (white - black)[:, 0], np.linalg.norm(chroma - black, axis=1)
    share(luma < 0, p / 2)
    share(np.abs(np.abs(luma) - 1) > 1e-9, p)
    share(np.abs(plane / np.abs(luma) - math.sqrt(2)) > 1e-9, p)
    share(np.abs((chroma - black)[:, 2]) > 1e-9, p)

    waves = random_images(1, 16, 16, 1, dtype=np.float64)
    filtered = pipe.equalize(tf.constant(np.tile(waves, (count, 1, 1, 1))), draws, p64).numpy()
    share(np.abs(filtered - waves).max((1, 2, 3)) > 1e-9, 1 - (1 - p) ** 4)
    blank = pipe.cut_out(tf.ones([count, 16, 16, 1], tf.float64), draws, p64).numpy()
    share((blank == 0).any((1, 2, 3)), p)
    noisy = pipe.add_noise(tf.zeros([count, 2, 2, 1], tf.float64), draws, p64).numpy()
    share((noisy != 0).any((1, 2, 3)), p)


def test_multipliers():
    """A group's multiplier takes part in its probability; of 0 it draws nothing."""
    images = tf.constant(random_images(512, 16, 16, 1))
    half = Fixed(blit=0, geom=0, color=0, cutout=0.5).augment(images, numbered(512), 0.8).numpy()
    assert abs((half == 0).any((1, 2, 3)).mean() - 0.4) < 0.1
    nothing = seeds.Draws(lambda *asked: pytest.fail(f"drew {asked}"))
    assert np.array_equal(Fixed(blit=0, geom=0, color=0).augment(images, nothing, 1.0), images)


# What p is.


def follow(ada, signs, images_per_step=64):
    """p after each update."""
    kept = {name: tf.constant(value, tf.float64) for name, value in ada.initial().items()}
    update = tf.function(lambda kept, sign: ada.update(kept, {"d_sign/real": sign}, images_per_step))
    for sign in signs:
        kept = update(kept, tf.constant(sign, tf.float64))
        assert all(value.dtype == tf.float64 and value.shape == () for value in kept.values())
        assert set(kept) == set(ada.initial())
        yield float(ada.probability(kept, tf.constant(0, tf.int64), 1.0))


def test_p_follows_the_mean_sign():
    # Means of four: 0.7 is above the target, 0.575 below it, 0.6 may be either for rounding, hence 0.65.
    signs = [1, 1, 1, -0.2, 0.5, 0.6, 0.6, 0.6, 1, 1, 0.3, 0.3]
    step = 64 * 4 / 500_000
    expected = np.repeat([0, 1, 0, 1], [3, 4, 4, 1]) * step
    np.testing.assert_allclose(list(follow(Ada(), signs)), expected, rtol=1e-12)


def test_p_stays_between_0_and_most():
    ada = Ada(speed_kimg=1.0, interval=2, most=0.3, start=0.1)
    steps = [0.1, 0.228, 0.228, 0.3, 0.3, 0.3, 0.3, 0.172, 0.172, 0.044, 0.044, 0, 0, 0]
    np.testing.assert_allclose(list(follow(ada, [1] * 6 + [-1] * 8)), steps, atol=1e-12)


def test_p_takes_its_time():
    """500 kimg from 0 to 1."""
    values = list(follow(Ada(), [1] * 500, images_per_step=1000))
    assert math.isclose(values[-1], 1, rel_tol=1e-9)
    assert values[-5] < 1 - 1e-3


def test_what_the_others_keep():
    for augmentation in every_entry():
        assert bool(augmentation.initial()) == isinstance(augmentation, Ada)
    fixed, seen = Fixed(p=schedule("cosine:0:0.55:20000")), tf.constant(10_000_000, tf.int64)
    assert fixed.update({}, {}, 64) == {}
    assert math.isclose(fixed.probability({}, seen, 1.0), 0.275, rel_tol=1e-9)
    assert DiffAugment().probability({}, seen, 1.0) == 1
