"""Metrics by name: what each needs of reals and fakes, how many of them, and which numbers it gives.

The functions are in `metrics.py`. A plain metric (`fid`) has its counts as options; a named protocol (`fid50k_full`) has them
in its name, and refuses others. To add one, write such a part and a line in `METRICS`; your own is named
`my_package.my_module:MyMetric`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from distgan.config import Config
from distgan.evaluation import metrics
from distgan.registry import Table
from distgan.schema import option

METRICS = Table(
    "metric",
    {
        "fid": "distgan.evaluation.protocols:Fid",
        "kid": "distgan.evaluation.protocols:Kid",
        "is": "distgan.evaluation.protocols:InceptionScore",
        "pr": "distgan.evaluation.protocols:PrecisionRecall",
        "dc": "distgan.evaluation.protocols:DensityCoverage",
        "class_fid": "distgan.evaluation.protocols:ClassFid",
        "modes": "distgan.evaluation.protocols:Modes",
        "nearest": "distgan.evaluation.protocols:Nearest",
        "fid50k_full": "distgan.evaluation.protocols:Fid50kFull",
        "kid50k_full": "distgan.evaluation.protocols:Kid50kFull",
        "is50k": "distgan.evaluation.protocols:InceptionScore50k",
        "pr50k": "distgan.evaluation.protocols:PrecisionRecall50k",
        "dc50k": "distgan.evaluation.protocols:DensityCoverage50k",
    },
    offers=(
        "count",
        "name",
        "main",
        "smallest",
        "needs_real",
        "needs_fake",
        "labelled",
        "lower_is_better",
        "requires",
        "compute",
    ),
)


@dataclasses.dataclass
class Collected:
    """What is known of the reals, or of the fakes; None where no metric needs it. Arrays are in one order: a row an image."""

    count: int
    moments: Any = None
    """`metrics.Moments` of the features."""
    features: Any = None
    """float32 or float64 [N, D]."""
    probabilities: Any = None
    """float [N, K]: of the extractor's classes."""
    labels: Any = None
    """int [N]: the data's own classes, those that fakes were asked to be of."""
    images: Any = None
    """uint8 [N, H, W, C]."""


def _option(default: Any, doc: str, **limits: Any) -> Any:
    """An option that a run may go on with another value of: scores change no weights."""
    return option(default, doc, may_change=True, **limits)


def _fixed(value: int, doc: str) -> Any:
    """An option that a protocol's name settles."""
    return _option(value, doc, choices=(value,))


@dataclasses.dataclass(frozen=True)
class Metric(abc.ABC):
    """What a part must have, and what it has unless it says otherwise."""

    count: int = _option(10_000, "fakes", minimum=1)
    name: ClassVar[str]
    needs_real: ClassVar[frozenset[str]] = frozenset()
    """Which fields of `Collected` it reads of the reals."""
    needs_fake: ClassVar[frozenset[str]]
    """The same of the fakes."""
    labelled: ClassVar[bool] = False
    """Whether fakes must have been asked to be of classes."""
    lower_is_better: ClassVar[bool]
    """By which of two values of `main` the better checkpoint is told."""

    @property
    def main(self) -> str:
        """The key of the number that stands for all."""
        return self.name

    @property
    def smallest(self) -> int:
        """How many images it needs of each side that it looks at."""
        return 2

    def requires(self, config: Config) -> Iterator[str]:
        """Yields what is wrong with the options, or does not go with the run."""
        # A count of 0 is all of them, and how many that is shows later.
        for count in ("count", "real_count"):
            if 0 < getattr(self, count, 0) < self.smallest:
                yield (
                    f"--evaluation.{self.name}.{count}={getattr(self, count)} is too few: "
                    f"--evaluation.metrics={self.name} needs {self.smallest}"
                )
        if self.labelled and not config.model.conditional:
            yield f"--evaluation.metrics={self.name} compares class by class: it needs --model.conditional"

    @abc.abstractmethod
    def compute(self, real: Collected, fake: Collected) -> dict[str, float]:
        """The numbers by key, from what was collected of `real_count` reals and `count` fakes.

        Raises:
          UserError: too few images, or what no metric takes: NaN, infinity.
        """


@dataclasses.dataclass(frozen=True)
class _Compared(Metric):
    """What compares fakes with reals."""

    real_count: int = _option(0, "reals at most; 0 is all of the data", minimum=0)
    needs_real: ClassVar[frozenset[str]] = frozenset({"features"})
    needs_fake: ClassVar[frozenset[str]] = frozenset({"features"})


@dataclasses.dataclass(frozen=True)
class Fid(_Compared):
    """Frechet distance of the features' Gaussians (Heusel et al. 2017). It falls with the count: compare equal ones only."""

    name = "fid"
    needs_real = frozenset({"moments"})
    needs_fake = frozenset({"moments"})
    lower_is_better = True

    def compute(self, real: Collected, fake: Collected) -> dict[str, float]:
        return {self.name: metrics.frechet_distance(real.moments, fake.moments)}


@dataclasses.dataclass(frozen=True)
class Kid(_Compared):
    """Unbiased squared MMD with a cubic kernel (Binkowski et al. 2018); not times 1,000."""

    subsets: int = _option(100, "whose mean it is; 0 is all pairs of images at once, without a deviation", minimum=0)
    subset_size: int = _option(1000, "reals and fakes in each", minimum=2)
    seed: int = _option(0, "of the subsets", minimum=0)
    name = "kid"
    lower_is_better = True

    @property
    def smallest(self) -> int:
        return self.subset_size if self.subsets else 2

    def compute(self, real: Collected, fake: Collected) -> dict[str, float]:
        if not self.subsets:
            return {self.name: metrics.kernel_distance_full(real.features, fake.features)}
        mean, deviation = metrics.kernel_distance(
            real.features, fake.features, self.subsets, self.subset_size, self.seed
        )
        return {self.name: mean, f"{self.name}_std": deviation}


@dataclasses.dataclass(frozen=True)
class InceptionScore(Metric):
    """exp of the mean divergence of an image's classes from all images' (Salimans et al. 2016); it looks at no reals."""

    splits: int = _option(10, "of the fakes, whose mean and deviation it is", minimum=1)
    name = "is"
    needs_fake = frozenset({"probabilities"})
    lower_is_better = False

    @property
    def smallest(self) -> int:
        return self.splits

    def compute(self, real: Collected, fake: Collected) -> dict[str, float]:
        mean, deviation = metrics.inception_score(fake.probabilities, self.splits)
        return {self.name: mean, f"{self.name}_std": deviation}


@dataclasses.dataclass(frozen=True)
class PrecisionRecall(_Compared):
    """Share of fakes among the reals, and of reals among the fakes (Kynkaanniemi et al. 2019)."""

    k: int = _option(3, "neighbours within the radius of an image", minimum=1)
    name = "pr"
    prefix: ClassVar[str] = ""
    lower_is_better = False

    @property
    def main(self) -> str:
        return f"{self.prefix}precision"

    @property
    def smallest(self) -> int:
        return self.k + 1

    def compute(self, real: Collected, fake: Collected) -> dict[str, float]:
        precision, recall = metrics.precision_recall(real.features, fake.features, self.k)
        return {f"{self.prefix}precision": precision, f"{self.prefix}recall": recall}


@dataclasses.dataclass(frozen=True)
class DensityCoverage(_Compared):
    """How many reals a fake is near to, and share of reals with a fake near (Naeem et al. 2020)."""

    k: int = _option(5, "neighbours within the radius of a real", minimum=1)
    name = "dc"
    prefix: ClassVar[str] = ""
    lower_is_better = False

    @property
    def main(self) -> str:
        return f"{self.prefix}coverage"

    @property
    def smallest(self) -> int:
        return self.k + 1

    def compute(self, real: Collected, fake: Collected) -> dict[str, float]:
        density, coverage = metrics.density_coverage(real.features, fake.features, self.k)
        return {f"{self.prefix}density": density, f"{self.prefix}coverage": coverage}


@dataclasses.dataclass(frozen=True)
class ClassFid(_Compared):
    """Frechet distance class by class (Miyato and Koyama 2018): the mean over the classes, and the worst."""

    name = "class_fid"
    needs_real = frozenset({"features", "labels"})
    needs_fake = frozenset({"features", "labels"})
    labelled = True
    lower_is_better = True

    def compute(self, real: Collected, fake: Collected) -> dict[str, float]:
        distances = metrics.class_frechet_distances(real.features, real.labels, fake.features, fake.labels).values()
        return {"class_fid": float(np.mean(list(distances))), "class_fid_worst": max(distances)}


@dataclasses.dataclass(frozen=True)
class Modes(_Compared):
    """How many classes there are among the fakes, as the extractor reads them, and KL(fakes || data) in nats."""

    expected: str = _option(
        "data", "shares of the classes: as the extractor reads the reals, or all alike", choices=("data", "uniform")
    )
    name = "modes"
    needs_fake = frozenset({"probabilities"})
    lower_is_better = False

    @property
    def needs_real(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"probabilities"} if self.expected == "data" else ())

    @property
    def smallest(self) -> int:
        return 1

    def compute(self, real: Collected, fake: Collected) -> dict[str, float]:
        """The divergence is infinite where a fake is of a class that the data lacks."""
        reals = real.probabilities.argmax(1) if self.expected == "data" else None
        modes, divergence = metrics.mode_coverage(
            fake.probabilities.argmax(1), fake.probabilities.shape[1], real_modes=reals
        )
        return {"modes": float(modes), "kl": divergence}


@dataclasses.dataclass(frozen=True)
class Nearest(_Compared):
    """Whether reals were learned by heart: the fakes' distances to their nearest reals, beside those between reals."""

    quantile: float = _option(
        0.05, "of the reals' distances to each other, below which a fake is near", minimum=0, maximum=1
    )
    name = "nearest"
    lower_is_better = True

    @property
    def main(self) -> str:
        return "nearest_share"

    def compute(self, real: Collected, fake: Collected) -> dict[str, float]:
        report = metrics.nearest_report(real.features, fake.features, self.quantile)
        return {
            "nearest_share": report.share,
            "nearest_min": float(report.distances.min()),
            "nearest_median": float(np.median(report.distances)),
            "nearest_threshold": report.threshold,
        }


_FAKES = "fakes, as the name says"
_ALL_REALS = "0: all reals, as the name says"


@dataclasses.dataclass(frozen=True)
class Fid50kFull(Fid):
    """`fid` of 50,000 fakes and all reals: the number that papers give."""

    count: int = _fixed(50_000, _FAKES)
    real_count: int = _fixed(0, _ALL_REALS)
    name = "fid50k_full"


@dataclasses.dataclass(frozen=True)
class Kid50kFull(Kid):
    """`kid` by 100 subsets of 1,000 out of 50,000 fakes and all reals."""

    count: int = _fixed(50_000, _FAKES)
    real_count: int = _fixed(0, _ALL_REALS)
    subsets: int = _fixed(100, "whose mean it is")
    subset_size: int = _fixed(1000, "reals and fakes in each")
    name = "kid50k_full"


@dataclasses.dataclass(frozen=True)
class InceptionScore50k(InceptionScore):
    """`is` of 50,000 fakes in 10 splits."""

    count: int = _fixed(50_000, _FAKES)
    splits: int = _fixed(10, "of the fakes")
    name = "is50k"


@dataclasses.dataclass(frozen=True)
class PrecisionRecall50k(PrecisionRecall):
    """`pr` of 50,000 fakes and at most 50,000 reals, by 3 neighbours."""

    count: int = _fixed(50_000, _FAKES)
    real_count: int = _fixed(50_000, "reals at most, as the name says")
    k: int = _fixed(3, "neighbours within the radius of an image")
    name = "pr50k"
    prefix = "pr50k_"


@dataclasses.dataclass(frozen=True)
class DensityCoverage50k(DensityCoverage):
    """`dc` of 50,000 fakes and at most 50,000 reals, by 5 neighbours."""

    count: int = _fixed(50_000, _FAKES)
    real_count: int = _fixed(50_000, "reals at most, as the name says")
    k: int = _fixed(5, "neighbours within the radius of a real")
    name = "dc50k"
    prefix = "dc50k_"
