"""Metrics against closed forms and the definitions' own loops, for every entry of the table."""

import dataclasses
import math

import numpy as np
import pytest

from distgan import registry, schema
from distgan.config import Config
from distgan.errors import UserError
from distgan.evaluation import metrics
from distgan.evaluation.metrics import Moments
from distgan.evaluation.protocols import METRICS, Collected


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def rotation(size, seed=0):
    return np.linalg.qr(normal(size, size, seed=seed))[0]


def moments_of(mean, covariance, count=1000):
    """Moments that have exactly this mean and covariance."""
    mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
    return Moments(count, count * mean, (count - 1) * covariance + count * np.outer(mean, mean))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.fixture
def _small_blocks(monkeypatch):
    monkeypatch.setattr(metrics, "_BLOCK_ROWS", 7)


class TestMoments:
    def test_of_uneven_parts(self):
        features = normal(5000, 6).astype(np.float32) + 3
        parts = [Moments.of(part) for part in np.split(features, [0, 1, 8, 4000])]
        merged = sum(parts[1:], parts[0])
        whole = features.astype(np.float64)
        assert merged.count == 5000
        close(merged.mean, whole.mean(0))
        close(merged.covariance, np.cov(whole, rowvar=False))

    def test_far_from_the_origin(self):
        features = normal(4000, 3) + 1000
        np.testing.assert_allclose(Moments.of(features).covariance, np.cov(features, rowvar=False), atol=1e-8)


class TestFrechet:
    def test_two_normals(self):
        close(metrics.frechet_distance(moments_of([1], [[4]]), moments_of([3], [[0.25]])), 4 + (2 - 0.5) ** 2)

    def test_of_samples_in_one_dimension(self):
        real, fake = normal(300, 1), 2 * normal(200, 1, seed=1) + 1
        expected = (real.mean() - fake.mean()) ** 2 + (real.std(ddof=1) - fake.std(ddof=1)) ** 2
        close(metrics.frechet_distance(Moments.of(real), Moments.of(fake)), expected)

    @pytest.mark.parametrize("turned", [False, True])
    def test_common_axes(self, turned):
        """Covariances that commute: the squared differences of the deviations."""
        one, other = np.linspace(0.01, 3, 40), np.linspace(5, 0.2, 40)
        axes = rotation(40) if turned else np.eye(40)
        mean = normal(40)
        found = metrics.frechet_distance(
            moments_of(np.zeros(40), axes * one @ axes.T), moments_of(mean, axes * other @ axes.T)
        )
        close(found, (mean**2).sum() + ((np.sqrt(one) - np.sqrt(other)) ** 2).sum())

    def test_two_dimensions(self):
        """The root's trace of 2x2 matrices: sqrt(tr P + 2 sqrt(det P)) of their product P."""
        one, other = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
        product = one @ other
        root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
        found = metrics.frechet_distance(moments_of([0, 0], one), moments_of([0, 0], other))
        close(found, np.trace(one + other) - 2 * root)

    def test_general_covariances(self):
        """Against the square root that scipy finds without symmetry."""
        linalg = pytest.importorskip("scipy.linalg")
        real, fake = normal(500, 20) @ normal(20, 20, seed=1), normal(300, 20, seed=2) @ normal(20, 20, seed=3)
        one, other = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
        expected = ((real.mean(0) - fake.mean(0)) ** 2).sum() + np.trace(
            one + other - 2 * linalg.sqrtm(one @ other).real
        )
        close(metrics.frechet_distance(Moments.of(real), Moments.of(fake)), expected)

    @pytest.mark.parametrize(("num_real", "num_fake"), [(12, 30), (9, 400), (2, 3)])
    def test_fewer_images_than_features(self, num_real, num_fake):
        """In the images' space, which is small: tr (S1 S2)^(1/2) is the sum of the singular values of X^T Y."""
        real, fake = normal(num_real, 200) + 1, normal(num_fake, 200, seed=1) @ (rotation(200) * 0.5)
        one, other = (each - each.mean(0) for each in (real, fake))
        inner = np.linalg.svd(one @ other.T, compute_uv=False).sum() / math.sqrt((num_real - 1) * (num_fake - 1))
        expected = ((real.mean(0) - fake.mean(0)) ** 2).sum() - 2 * inner
        expected += (one**2).sum() / (num_real - 1) + (other**2).sum() / (num_fake - 1)
        close(metrics.frechet_distance(Moments.of(real), Moments.of(fake)), expected)

    def test_spaces_without_a_common_direction(self):
        """Here, what rounding leaves of a variance of 0 would count with its root."""
        axes = rotation(60)
        real, fake = normal(500, 5) @ axes[:5], normal(500, 5, seed=1) @ axes[5:10]
        expected = sum(np.trace(np.cov(each, rowvar=False)) for each in (real, fake))
        expected += ((real.mean(0) - fake.mean(0)) ** 2).sum()
        close(metrics.frechet_distance(Moments.of(real), Moments.of(fake)), expected)

    @pytest.mark.parametrize("count", [20, 1000])
    def test_identical_sets(self, count):
        for seed in range(10):
            moments = Moments.of(normal(count, 100, seed=seed) + 5)
            assert 0 <= metrics.frechet_distance(moments, moments) < 1e-10 * np.trace(moments.covariance)

    def test_all_images_alike(self):
        real, fake = normal(50, 8), np.full((30, 8), 0.3)
        expected = ((real.mean(0) - 0.3) ** 2).sum() + np.trace(np.cov(real, rowvar=False))
        close(metrics.frechet_distance(Moments.of(real), Moments.of(fake)), expected)
        assert metrics.frechet_distance(Moments.of(fake), Moments.of(fake)) == pytest.approx(0, abs=1e-12)

    def test_by_class(self):
        real, fake = normal(60, 4), normal(50, 4, seed=1)
        real_labels, fake_labels = np.arange(60) % 3, np.arange(50) // 17
        found = metrics.class_frechet_distances(real, real_labels, fake, fake_labels)
        assert list(found) == [0, 1, 2]
        for label, distance in found.items():
            one, other = Moments.of(real[label::3]), Moments.of(fake[17 * label : 17 * label + 17])
            assert distance == metrics.frechet_distance(one, other)


def discrepancy(real, fake):
    """Unbiased MMD^2, pair by pair."""

    def kernel(a, b):
        return (sum(x * y for x, y in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def mean_of_others(points):
        pairs = [(i, j) for i in range(len(points)) for j in range(len(points)) if i != j]
        return sum(kernel(points[i], points[j]) for i, j in pairs) / len(pairs)

    across = sum(kernel(a, b) for a in real for b in fake) / (len(real) * len(fake))
    return mean_of_others(real) + mean_of_others(fake) - 2 * across


class TestKernelDistance:
    real, fake = normal(23, 4) + 1, 1.5 * normal(17, 4, seed=1)

    def test_all_pairs(self):
        close(metrics.kernel_distance_full(self.real, self.fake), discrepancy(self.real, self.fake))

    @pytest.mark.usefixtures("_small_blocks")
    def test_all_pairs_by_blocks(self):
        close(metrics.kernel_distance_full(self.real, self.fake), discrepancy(self.real, self.fake))

    def test_a_subset_of_all(self):
        found = metrics.kernel_distance(self.real[:17], self.fake, subsets=3, subset_size=17)
        close(found[0], discrepancy(self.real[:17], self.fake))
        assert found[1] < 1e-12

    def test_subsets(self, monkeypatch):
        drawn = []
        subset = metrics._subset
        monkeypatch.setattr(metrics, "_subset", lambda *words: drawn.append(subset(*words)) or drawn[-1])
        mean, deviation = metrics.kernel_distance(self.real, self.fake, subsets=4, subset_size=9, seed=3)
        assert all(len(set(each.tolist())) == 9 for each in drawn)
        assert len({tuple(each) for each in drawn}) == 8
        each = [discrepancy(self.real[drawn[i]], self.fake[drawn[i + 1]]) for i in range(0, 8, 2)]
        close([mean, deviation], [np.mean(each), np.std(each)])
        again = metrics.kernel_distance(self.real, self.fake, subsets=4, subset_size=9, seed=3)
        assert again == (mean, deviation)
        assert metrics.kernel_distance(self.real, self.fake, subsets=4, subset_size=9, seed=4) != again

    def test_identical_sets_are_below_zero(self):
        assert metrics.kernel_distance_full(self.real, self.real) < 0
        assert metrics.kernel_distance_full(self.real, self.real) == pytest.approx(discrepancy(self.real, self.real))


class TestInceptionScore:
    def test_all_images_alike(self):
        close(metrics.inception_score(np.full((100, 10), 0.1, np.float32)), (1, 0))

    def test_sure_and_balanced(self):
        close(metrics.inception_score(np.eye(8)[np.arange(80) % 8]), (8, 0))

    def test_splits_in_order(self):
        """Of 7 images in 2 splits the first has 3: two classes there, one in the rest."""
        found = metrics.inception_score(np.eye(3)[[0, 1, 1, 2, 2, 2, 2]], splits=2)
        first = math.exp(-(1 / 3) * math.log(1 / 3) - (2 / 3) * math.log(2 / 3))
        close(found, ((first + 1) / 2, (first - 1) / 2))

    def test_a_value(self):
        probabilities = np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
        marginal = [0.3, 0.35, 0.35]
        divergences = [
            sum(p * math.log(p / m) for p, m in zip(row, marginal, strict=True) if p) for row in probabilities
        ]
        close(metrics.inception_score(probabilities, 1)[0], math.exp(sum(divergences) / 2))


def distances(one, other):
    return np.array([[math.dist(a, b) for b in other] for a in one])


def radii(points, k):
    """The distance to the k-th nearest other point, by the definition."""
    between = distances(points, points)
    return np.array([sorted(np.delete(row, i))[k - 1] for i, row in enumerate(between)])


def by_definition(real, fake, k):
    between, real_radii, fake_radii = distances(real, fake), radii(real, k), radii(fake, k)
    precision = np.mean([any(between[i, j] <= real_radii[i] for i in range(len(real))) for j in range(len(fake))])
    recall = np.mean([any(between[i, j] <= fake_radii[j] for j in range(len(fake))) for i in range(len(real))])
    density = sum(between[i, j] < real_radii[i] for i in range(len(real)) for j in range(len(fake))) / (k * len(fake))
    coverage = np.mean([between[i].min() < real_radii[i] for i in range(len(real))])
    return (precision, recall), (density, coverage)


SETS = {
    "spread": (normal(40, 3), 0.8 * normal(31, 3, seed=1) + 0.5),
    # Points of a small grid: many are copies, and most distances are ties.
    "grid": (np.round(normal(40, 2)), np.round(1.5 * normal(31, 2, seed=1))),
    "halves far away": (np.round(2 * normal(40, 3)) / 2 + 1e3, np.round(2 * normal(31, 3, seed=1)) / 2 + 1e3),
    "fakes all alike": (normal(40, 3), np.full((31, 3), 0.1)),
    "one fake far away": (normal(40, 3), np.concatenate([0.8 * normal(30, 3, seed=1), np.full((1, 3), 1e8)])),
    "some copies": (normal(40, 3), np.concatenate([normal(40, 3)[:10], 4 * normal(21, 3, seed=1)])),
}


class TestNeighbours:
    @pytest.mark.parametrize("k", [1, 3, 5])
    @pytest.mark.parametrize("name", SETS)
    @pytest.mark.usefixtures("_small_blocks")
    def test_definitions_by_blocks(self, name, k):
        real, fake = SETS[name]
        expected = by_definition(real, fake, k)
        close(metrics.precision_recall(real, fake, k), expected[0])
        close(metrics.density_coverage(real, fake, k), expected[1])

    @pytest.mark.parametrize("name", SETS)
    def test_definitions_at_once(self, name):
        real, fake = SETS[name]
        close(metrics.precision_recall(real, fake), by_definition(real, fake, 3)[0])
        close(metrics.density_coverage(real, fake), by_definition(real, fake, 5)[1])

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.usefixtures("_small_blocks")
    def test_identical_sets(self, dtype):
        real = (normal(50, 300) * 7 + 3).astype(dtype)
        assert metrics.precision_recall(real, real[::-1].copy()) == (1, 1)
        density, coverage = metrics.density_coverage(real, real[::-1].copy())
        assert coverage == 1
        # Each real has itself and k - 1 others strictly within its radius.
        assert density == 1

    def test_nothing_but_copies(self):
        """A radius of 0 holds a copy by <=, and nothing by <."""
        real = np.full((20, 300), 1 / 3)
        assert metrics.precision_recall(real, real) == (1, 1)
        assert metrics.density_coverage(real, real) == (0, 0)

    def test_disjoint_sets(self):
        real, fake = normal(30, 4), normal(30, 4, seed=1) + 100
        assert metrics.precision_recall(real, fake) == (0, 0)
        assert metrics.density_coverage(real, fake) == (0, 0)

    def test_dense_fakes(self):
        """Three reals in a row, whose radii are 1 with k = 1, and all fakes at one place."""
        real = np.array([[-1.0], [0.0], [1.0]])
        assert metrics.density_coverage(real, np.full((4, 1), 0.25), 1) == (2, 2 / 3)
        assert metrics.density_coverage(real, np.full((4, 1), 2.0), 1) == (0, 0)
        assert metrics.precision_recall(real, np.full((4, 1), 2.0), 1) == (1, 0)


class TestNearest:
    @pytest.mark.parametrize("rows", [3, 100])
    def test_report(self, rows, monkeypatch):
        monkeypatch.setattr(metrics, "_BLOCK_ROWS", rows)
        real, fake = normal(25, 4).astype(np.float32), normal(13, 4, seed=1)
        fake[5] = real[17]
        report = metrics.nearest_report(real, fake, 0.5)
        between, own = distances(fake, real), radii(real, 1)
        assert report.indices.tolist() == between.argmin(1).tolist()
        close(report.distances, between.min(1))
        assert report.distances[5] == 0
        close(report.real_distances, own)
        close(report.threshold, np.quantile(own, 0.5))
        close(report.share, (between.min(1) <= np.quantile(own, 0.5)).mean())

    def test_copies_among_the_reals(self):
        real = np.repeat(normal(10, 30), 2, axis=0) * 100
        report = metrics.nearest_report(real, np.concatenate([real[:4], real[4:8] + 50]))
        assert report.threshold == 0
        assert (report.real_distances == 0).all()
        assert report.share == 0.5


class TestModes:
    def test_against_all_alike(self):
        modes, divergence = metrics.mode_coverage(np.array([0, 0, 0, 2]), 4)
        assert modes == 2
        close(divergence, 0.75 * math.log(3) + 0.25 * math.log(1))

    def test_against_the_data(self):
        modes, divergence = metrics.mode_coverage(np.array([0, 0, 0, 2]), 4, np.array([0, 2, 2, 2, 3]))
        assert modes == 2
        close(divergence, 0.75 * math.log(0.75 / 0.2) + 0.25 * math.log(0.25 / 0.6))

    def test_as_the_data(self):
        assert metrics.mode_coverage(np.arange(6) % 3, 3, np.arange(9) % 3) == (3, 0)

    def test_outside_of_the_data(self):
        assert metrics.mode_coverage(np.array([0, 1]), 3, np.array([0, 2])) == (1, math.inf)


GOOD = normal(20, 4)
BROKEN = np.where(np.arange(80).reshape(20, 4) == 7, np.nan, GOOD)
ENDLESS = np.where(np.arange(80).reshape(20, 4) == 7, np.inf, GOOD)
LABELS = np.zeros(20, int)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.frechet_distance(Moments.of(GOOD), Moments.of(BROKEN)), "fake features hold NaN or infinity"),
        (lambda: metrics.frechet_distance(Moments.of(ENDLESS), Moments.of(GOOD)), "real features hold NaN or infinity"),
        (lambda: metrics.frechet_distance(Moments.of(GOOD[:1]), Moments.of(GOOD)), "2 real images .* there are 1"),
        (lambda: metrics.frechet_distance(Moments.of(GOOD), Moments.of(GOOD[:, :3])), "4 features and fake ones 3"),
        (lambda: metrics.class_frechet_distances(GOOD, LABELS, GOOD, LABELS + 1), "2 fake images of class 0"),
        (lambda: metrics.kernel_distance(GOOD, GOOD), "1000 real images .* there are 20"),
        (lambda: metrics.kernel_distance(GOOD, GOOD, subset_size=1), "2 images are needed"),
        (lambda: metrics.kernel_distance(GOOD, BROKEN, subset_size=9), "fake features hold NaN"),
        (lambda: metrics.kernel_distance_full(GOOD, GOOD[:1]), "2 fake images"),
        (lambda: metrics.inception_score(np.full((9, 2), 0.5)), "10 fake images .* there are 9"),
        (lambda: metrics.inception_score(GOOD), "do not add up to 1"),
        (lambda: metrics.inception_score(BROKEN), "NaN"),
        (lambda: metrics.precision_recall(GOOD, GOOD[:3]), "4 fake images .* there are 3"),
        (lambda: metrics.precision_recall(ENDLESS, GOOD), "real features hold"),
        (lambda: metrics.density_coverage(GOOD[:5], GOOD), "6 real images .* there are 5"),
        (lambda: metrics.density_coverage(GOOD, GOOD[:, :2]), "4 features and fake ones 2"),
        (lambda: metrics.nearest_report(GOOD[:1], GOOD), "2 real images"),
        (lambda: metrics.mode_coverage(LABELS[:0], 3), "1 fake images"),
    ],
)
def test_errors(call, message):
    with pytest.raises(UserError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def collected(what, seed):
    """Made-up values of the fields that are asked for, and no others."""
    whole = {
        "features": normal(300, 6, seed=seed),
        "moments": Moments.of(normal(300, 6, seed=seed)),
        "probabilities": np.random.default_rng(seed).dirichlet(np.ones(4), 300),
        "labels": np.arange(300) % 5,
        "images": np.zeros((300, 4, 4, 1), np.uint8),
    }
    return Collected(300, **{name: whole[name] for name in what})


def metric_of(name):
    """An entry of the table, which draws small subsets if any."""
    metric = registry.resolve(METRICS, name)()
    return dataclasses.replace(metric, subset_size=40) if hasattr(metric, "subset_size") else metric


@pytest.mark.parametrize("name", METRICS.parts)
class TestTable:
    def test_computes_from_what_it_needs(self, name):
        metric = metric_of(name)
        found = metric.compute(collected(metric.needs_real, 0), collected(metric.needs_fake, 1))
        assert metric.main in found
        for key, value in found.items():
            assert isinstance(value, float), key
            assert math.isfinite(value), key
        assert isinstance(metric.lower_is_better, bool)
        assert metric.name == name
        assert metric.needs_real | metric.needs_fake <= {field.name for field in dataclasses.fields(Collected)}

    def test_smallest(self, name):
        """As many images as it says are enough, where each has what it needs."""
        metric = metric_of(name)
        sides = [collected(needs, seed) for seed, needs in enumerate((metric.needs_real, metric.needs_fake))]
        for side in sides:
            for field in ("features", "probabilities", "labels"):
                if getattr(side, field) is not None:
                    setattr(side, field, getattr(side, field)[: metric.smallest])
            side.count = metric.smallest
            side.moments = Moments.of(normal(metric.smallest, 6)) if side.moments else None
            side.labels = np.zeros(metric.smallest, int) if side.labels is not None else None
        assert metric.main in metric.compute(*sides)

    def test_options(self, name):
        """A protocol's name settles its counts, which flags cannot change; all options may change on resume."""
        metric = registry.resolve(METRICS, name)()
        entries = {entry.name: entry for entry in schema.entries(metric)}
        assert all(entry.may_change for entry in entries.values())
        if "50k" not in name:
            assert metric.count == 10_000
            return
        assert metric.count == 50_000
        for option in entries.keys() - {"seed"}:
            with pytest.raises(ValueError, match=f"is not one of {entries[option].value}"):
                entries[option].parse("7")
        assert metric.main.startswith(name)


class TestRequires:
    def test_too_few(self):
        kid = registry.resolve(METRICS, "kid")
        [problem] = kid(count=500).requires(Config())
        assert problem == "--evaluation.kid.count=500 is too few: --evaluation.metrics=kid needs 1000"
        assert len(list(kid(count=500, real_count=10).requires(Config()))) == 2
        assert not list(kid(count=500, subset_size=100).requires(Config()))

    def test_classes(self):
        metric = registry.resolve(METRICS, "class_fid")()
        [problem] = metric.requires(Config())
        assert "needs --model.conditional" in problem
        assert not list(metric.requires(schema.build(Config, {"model.conditional": True})))

    def test_modes_look_at_reals_where_asked(self):
        modes = registry.resolve(METRICS, "modes")(expected="uniform")
        assert modes.needs_real == frozenset()
        assert modes.compute(Collected(0), collected(modes.needs_fake, 0))["modes"] == 4
