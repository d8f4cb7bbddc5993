"""Scores of generated images, from what an extractor said of them: functions of arrays, in float64 whatever comes in.

Legend: N reals, M fakes, D features, K classes. Features are float32 or float64 [N, D], a row an image. What compares all pairs
goes block by block, so memory beyond the features stays below 0.5 GiB at D = 2,048, however many images there are.

Distances are worked out as |a|^2 + |b|^2 - 2 a.b, about the reals' mean. Where a definition asks whether an image lies within a
radius, squares that differ by less than the bound on their rounding count as equal (`_squared_radii`), so that ties and copies
are decided as the definition says and not by rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from distgan import seeds
from distgan.errors import UserError

_BLOCK_ROWS = 2048
_EPSILON = float(np.finfo(np.float64).eps)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over images from which mean and covariance follow: add those of batches, replicas or workers in any order.

    The sums are plain, so a variance has a relative error of about 1e-16 (mean^2 + variance) / variance, times the square root
    of the count: good to 1e-9 where features spread by a thousandth of their mean.
    """

    count: int
    total: np.ndarray
    """float64 [D]: the sum of the features."""
    outer: np.ndarray
    """float64 [D, D]: the sum of the outer products f f^T."""

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """The moments of features [N, D]; NaN and infinity stay in the sums, and are found where these are used."""
        size = features.shape[1]
        total, outer = np.zeros(size), np.zeros((size, size))
        for rows in _slices(len(features)):
            block = features[rows].astype(np.float64)
            total += block.sum(0)
            outer += block.T @ block
        return cls(len(features), total, outer)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> np.ndarray:
        """float64 [D]."""
        return self.total / self.count

    @property
    def covariance(self) -> np.ndarray:
        """float64 [D, D], divided by N - 1; of N <= D images it has a rank of N - 1 at most."""
        return (self.outer - np.outer(self.total, self.mean)) / (self.count - 1)


def frechet_distance(real: Moments, fake: Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)): between two Gaussians (Heusel et al. 2017, eq. 6; Dowson and Landau 1982).

    With S1 = A A^T and S2 = B B^T, the eigenvalues of S1 S2 are the squared singular values of A^T B, whose sum therefore is
    the trace of the root. A and B come from symmetric eigendecompositions without the directions in which there is only
    rounding, so fewer images than features do no harm: neither an offset on the diagonal nor a complex part arises. Of two equal
    sets the sum may round to as little as -1e-13 of its terms; it is then 0, as no distance is negative.

    Raises:
      UserError: fewer than 2 images on a side, other sizes of features, NaN or infinity.
    """
    for moments, side in ((real, "real"), (fake, "fake")):
        _check_count(moments.count, f"{side} images", 2)
        _check_finite(moments.outer, f"{side} features")
    _check_sizes(real.total, fake.total)
    cross = np.linalg.svd(_factor(real).T @ _factor(fake), compute_uv=False).sum()
    offset = np.square(real.mean - fake.mean).sum()
    distance = offset + np.trace(real.covariance) + np.trace(fake.covariance) - 2 * cross
    return float(np.maximum(distance, 0))


def _factor(moments: Moments) -> np.ndarray:
    """A with A A^T = covariance, a column for each direction in which the images differ: [D, rank]."""
    values, vectors = np.linalg.eigh(moments.covariance)
    # What two sums of outer products, each rounded, may leave of a variance that is zero.
    rounding = _EPSILON * np.trace(moments.outer) / (moments.count - 1)
    first = max(len(values) - (moments.count - 1), int((values <= rounding).sum()))
    return vectors[:, first:] * np.sqrt(values[first:])


def class_frechet_distances(
    real: np.ndarray, real_labels: np.ndarray, fake: np.ndarray, fake_labels: np.ndarray
) -> dict[int, float]:
    """The Frechet distance of each class by its label; their mean is the intra-FID (Miyato and Koyama 2018).

    Few images of a class raise its distance: compare only at equal counts.

    Raises:
      UserError: a class with fewer than 2 reals or fakes; what `frechet_distance` refuses.
    """
    distances = {}
    for label in np.union1d(real_labels, fake_labels).tolist():
        reals, fakes = real[real_labels == label], fake[fake_labels == label]
        for features, side in ((reals, "real"), (fakes, "fake")):
            _check_count(len(features), f"{side} images of class {label}", 2)
        distances[label] = frechet_distance(Moments.of(reals), Moments.of(fakes))
    return distances


def kernel_distance(
    real: np.ndarray, fake: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation (ddof 0) over subsets of the unbiased MMD^2 (Binkowski et al. 2018).

    The kernel is k(a, b) = (a.b / D + 1)^3. Each subset is drawn from either side without replacement, keyed by (seed, side,
    subset). Unbiased, so it may be below 0, and is for identical sets.

    Raises:
      UserError: fewer images than `subset_size`, or a size below 2; other sizes of features, NaN or infinity.
    """
    if subset_size < 2:
        raise UserError(f"a subset of {subset_size} has no pairs: 2 images are needed")
    _check_features(real, fake, subset_size)
    found = [
        _squared_discrepancy(
            real[_subset(seed, f"real/{number}", len(real), subset_size)],
            fake[_subset(seed, f"fake/{number}", len(fake), subset_size)],
        )
        for number in range(subsets)
    ]
    return float(np.mean(found)), float(np.std(found))


def kernel_distance_full(real: np.ndarray, fake: np.ndarray) -> float:
    """The unbiased MMD^2 of `kernel_distance` over all pairs at once: no subsets, so no spread.

    Raises:
      UserError: fewer than 2 images on a side, other sizes of features, NaN or infinity.
    """
    _check_features(real, fake, 2)
    return _squared_discrepancy(real, fake)


def _subset(seed: int, purpose: str, count: int, size: int) -> np.ndarray:
    """`size` different numbers below `count`."""
    drawn = seeds.bits(seeds.key(seed, f"kernel_distance/{purpose}"), np.arange(count))
    return np.argsort(drawn, kind="stable")[:size]


def _squared_discrepancy(real: np.ndarray, fake: np.ndarray) -> float:
    num_real, num_fake = len(real), len(fake)
    within_real = _kernel_sum(real) / (num_real * (num_real - 1))
    within_fake = _kernel_sum(fake) / (num_fake * (num_fake - 1))
    return within_real + within_fake - 2 * _kernel_sum(real, fake) / (num_real * num_fake)


def _kernel_sum(one: np.ndarray, other: np.ndarray | None = None) -> float:
    """The sum of k over all pairs; of one set alone over its ordered pairs of different images."""
    total = 0.0
    for rows, columns in _pairs(len(one), None if other is None else len(other)):
        left, right = one[rows].astype(np.float64), (one if other is None else other)[columns].astype(np.float64)
        base = left @ right.T
        base /= left.shape[1]
        base += 1
        cubes = float(np.vdot(base * base, base))
        if other is None:
            # Every pair of blocks stands for both orders; the diagonal pairs images with themselves.
            cubes = cubes - float((np.diagonal(base) ** 3).sum()) if rows == columns else 2 * cubes
        total += cubes
    return total


def inception_score(probabilities: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """exp(E KL(p(y|x) || p(y))) (Salimans et al. 2016, section 4): mean and standard deviation (ddof 0) over splits.

    `probabilities` [M, K] has a row an image. Split s of S are the images s M // S to (s + 1) M // S, in order.

    Raises:
      UserError: fewer images than splits; rows that are no probabilities.
    """
    _check_count(len(probabilities), "fake images", splits)
    _check_finite(probabilities, "fake probabilities")
    # Logits given in their place would score, and mean nothing.
    if (probabilities < 0).any() or (abs(probabilities.sum(1, dtype=np.float64) - 1) > 1e-3).any():
        raise UserError("the probabilities of a fake image are below 0 or do not add up to 1")
    scores = []
    for split in range(splits):
        rows = slice(split * len(probabilities) // splits, (split + 1) * len(probabilities) // splits)
        part = probabilities[rows].astype(np.float64)
        # 0 log 0 is 0; where a row is above 0, so is the mean of all rows.
        ratio = np.divide(part, part.mean(0), out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratio)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2).

    The radius of an image is the distance to the k-th nearest other image of its own set; a copy of it is another, at 0.
    Precision is the share of fakes within (<=) the radius of some real; recall that of reals within the radius of some fake.

    Raises:
      UserError: fewer than k + 1 images on a side, other sizes of features, NaN or infinity.
    """
    _check_features(real, fake, k + 1)
    centre = real.mean(0, dtype=np.float64)
    real_radii, fake_radii = (np.add(*_squared_radii(side, k, centre)) for side in (real, fake))
    is_precise, is_recalled = np.zeros(len(fake), bool), np.zeros(len(real), bool)
    for rows, columns, squares in _squared_distances(centre, real, fake):
        is_precise[columns] |= (squares <= real_radii[rows, None]).any(0)
        is_recalled[rows] |= (squares <= fake_radii[columns]).any(1)
    return float(is_precise.mean()), float(is_recalled.mean())


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020), with radii as in `precision_recall`.

    Density is the number of pairs of a fake strictly within a real's radius, over k M: it may be above 1. Coverage is the share
    of reals with a fake strictly within their radius, so a real with k copies among the reals, whose radius is 0, has none.

    Raises:
      UserError: fewer than k + 1 reals or no fakes, other sizes of features, NaN or infinity.
    """
    _check_features(real, fake, k + 1, 1)
    centre = real.mean(0, dtype=np.float64)
    radii, rounding = _squared_radii(real, k, centre)
    pairs, is_covered = 0, np.zeros(len(real), bool)
    for rows, _, squares in _squared_distances(centre, real, fake):
        inside = squares < (radii - rounding)[rows, None]
        pairs += int(inside.sum())
        is_covered[rows] |= inside.any(1)
    return pairs / (k * len(fake)), float(is_covered.mean())


@dataclasses.dataclass(frozen=True)
class NearestReport:
    """How near the fakes are to the reals, for a look at what was learned by heart."""

    distances: np.ndarray
    """float64 [M]: of each fake to the real nearest to it; exactly 0 where their features are the same."""
    indices: np.ndarray
    """int64 [M]: which real that is; one of them, where several are as near."""
    real_distances: np.ndarray
    """float64 [N]: of each real to the other real nearest to it."""
    threshold: float
    """The quantile of `real_distances` that was asked for."""

    @property
    def share(self) -> float:
        """The share of fakes that are nearer than the threshold or at it, so that copies count where reals have copies too."""
        return float((self.distances <= self.threshold).mean())


def nearest_report(real: np.ndarray, fake: np.ndarray, quantile: float = 0.05) -> NearestReport:
    """Each fake's nearest real, beside the distances between the reals (a test of memorization, as Meehan et al. 2020 have it).

    Raises:
      UserError: fewer than 2 reals or no fakes, other sizes of features, NaN or infinity.
    """
    _check_features(real, fake, 2, 1)
    centre = real.mean(0, dtype=np.float64)
    distances, indices = _nearest(centre, fake, real)
    real_distances, _ = _nearest(centre, real)
    return NearestReport(distances, indices, real_distances, float(np.quantile(real_distances, quantile)))


def mode_coverage(fake_modes: np.ndarray, num_modes: int, real_modes: np.ndarray | None = None) -> tuple[int, float]:
    """How many modes of the data there are among the fakes, and KL(fakes || data) in nats (Srivastava et al. 2017).

    Modes are integers in [0, num_modes), as a classifier reads the images: int [M] of fakes, int [N] of reals. Without
    reals, the data has all modes alike. The divergence is infinite where a fake is of a mode that the data lacks.

    Raises:
      UserError: no fakes, or no reals.
    """
    _check_count(len(fake_modes), "fake images", 1)
    expected: np.ndarray = np.ones(num_modes)
    if real_modes is not None:
        _check_count(len(real_modes), "real images", 1)
        expected = np.bincount(real_modes, minlength=num_modes)
    found = np.bincount(fake_modes, minlength=num_modes)
    is_there = found > 0
    if (expected[is_there] == 0).any():
        return int((is_there & (expected > 0)).sum()), math.inf
    shares, data_shares = found[is_there] / found.sum(), expected[is_there] / expected.sum()
    return int(is_there.sum()), float((shares * np.log(shares / data_shares)).sum())


def _squared_distances(
    centre: np.ndarray, one: np.ndarray, other: np.ndarray | None = None
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Squared distances of all pairs by blocks: rows of `one`, rows of `other`, float64 [rows, columns].

    Of one set alone each pair of blocks comes once, and the distance of an image to itself is infinite.
    """
    for rows, columns in _pairs(len(one), None if other is None else len(other)):
        left, right = one[rows] - centre, (one if other is None else other)[columns] - centre
        squares = left @ right.T
        squares *= -2
        squares += np.square(left).sum(1)[:, None]
        squares += np.square(right).sum(1)
        np.maximum(squares, 0, out=squares)
        if other is None and rows == columns:
            np.fill_diagonal(squares, np.inf)
        yield rows, columns, squares


def _squared_radii(points: np.ndarray, k: int, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The squared distance of each point to the k-th nearest other, and how far from it rounding puts equal ones: float64 [N].

    The square of the distance of a and b is off by at most (D + 2) eps / 2 times (|a| + |b|)^2, in whatever order its sums are
    taken. Where it is near the squared radius r^2 of a, |b| is at most |a| + r; so two squares, this and the radius', are apart
    by at most (D + 2) eps (2 |a| + r)^2 <= 8 (D + 2) eps (|a|^2 + r^2). The rest is for the centre's subtraction.
    """
    nearest = np.full((len(points), k), np.inf)

    def keep(rows: slice, squares: np.ndarray) -> None:
        nearest[rows] = np.partition(np.concatenate([nearest[rows], squares], axis=1), k - 1, axis=1)[:, :k]

    for rows, columns, squares in _squared_distances(centre, points):
        keep(rows, squares)
        if rows != columns:
            keep(columns, squares.T)
    radii = nearest.max(1)
    norms = np.concatenate([np.square(points[rows] - centre).sum(1) for rows in _slices(len(points))])
    return radii, 8 * (len(centre) + 4) * _EPSILON * (norms + radii)


def _nearest(centre: np.ndarray, points: np.ndarray, others: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Distance and index of the nearest of the others to each point; without others, of the other points."""
    best, indices = np.full(len(points), np.inf), np.zeros(len(points), np.int64)

    def keep(rows: slice, squares: np.ndarray, first: int) -> None:
        place, least = squares.argmin(1), squares.min(1)
        is_nearer = least < best[rows]
        indices[rows] = np.where(is_nearer, place + first, indices[rows])
        best[rows] = np.where(is_nearer, least, best[rows])

    for rows, columns, squares in _squared_distances(centre, points, others):
        keep(rows, squares, columns.start)
        if others is None and rows != columns:
            keep(columns, squares.T, rows.start)
    # Anew, by differences: a copy shall be at 0, not at the root of a rounding.
    targets = points if others is None else others
    for rows in _slices(len(points)):
        best[rows] = np.linalg.norm(points[rows].astype(np.float64) - targets[indices[rows]], axis=1)
    return best, indices


def _slices(count: int) -> Iterator[slice]:
    return (slice(first, min(first + _BLOCK_ROWS, count)) for first in range(0, count, _BLOCK_ROWS))


def _pairs(count: int, other: int | None) -> Iterator[tuple[slice, slice]]:
    """All pairs of blocks of two sets; of one set alone each pair once, with columns not before rows."""
    for rows in _slices(count):
        for columns in _slices(count if other is None else other):
            if other is not None or columns.start >= rows.start:
                yield rows, columns


def _check_features(real: np.ndarray, fake: np.ndarray, needed: int, needed_fakes: int | None = None) -> None:
    _check_count(len(real), "real images", needed)
    _check_count(len(fake), "fake images", needed if needed_fakes is None else needed_fakes)
    _check_sizes(real[0], fake[0])
    _check_finite(real, "real features")
    _check_finite(fake, "fake features")


def _check_count(count: int, what: str, needed: int) -> None:
    if count < needed:
        raise UserError(f"{needed} {what} are needed for this metric, and there are {count}")


def _check_sizes(real: np.ndarray, fake: np.ndarray) -> None:
    if len(real) != len(fake):
        raise UserError(f"real images have {len(real)} features and fake ones {len(fake)}: of different extractors")


def _check_finite(values: np.ndarray, what: str) -> None:
    if not all(np.isfinite(values[rows]).all() for rows in _slices(len(values))):
        raise UserError(f"{what} hold NaN or infinity")
