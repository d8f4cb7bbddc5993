"""Which numbers of a run are looked at together: the same sections and charts in `distgan report` and in a W&B workspace."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True)
class Panel:
    """A chart."""

    title: str
    keys: tuple[str, ...]
    """Keys of rows; `*` stands for any text."""
    log: bool = False
    """Whether the y axis is logarithmic unless one says otherwise."""

    def matches(self, key: str) -> bool:
        """Whether a key of rows belongs here."""
        return any(fnmatch.fnmatchcase(key, pattern) for pattern in self.keys)


QUALITY = "Quality"
SECTIONS: Mapping[str, tuple[Panel, ...]] = {
    QUALITY: (
        Panel("Frechet distance", ("eval/fid*", "eval/class_fid*"), log=True),
        Panel("Kernel distance", ("eval/kid*",), log=True),
        Panel("Precision and recall", ("eval/precision*", "eval/recall*")),
        Panel("Density and coverage", ("eval/density*", "eval/coverage*")),
    ),
    "Balance": (
        Panel("Losses", ("loss/discriminator", "loss/generator")),
        Panel("Terms of the losses", ("loss/*",)),
        Panel("Mean logits", ("d_logits/real_mean", "d_logits/fake_mean")),
        Panel("Spread of the logits", ("d_logits/real_std", "d_logits/fake_std")),
        Panel("Signs of the logits", ("d_sign/real", "d_sign/fake")),
        Panel("Gradient norms", ("grad_norm/*",), log=True),
    ),
    "Speed": (
        Panel("Images a second", ("throughput/images_per_second",)),
        Panel("Images a second and replica", ("throughput/images_per_second_per_replica",)),
        Panel("Step", ("time/step_ms",)),
        Panel("Waiting within a step", ("time/data_wait_ms", "time/reduction_wait_ms")),
        Panel("Step by worker", ("workers/step_ms_*",)),
        Panel("Slowest worker", ("workers/slowest_rank",)),
    ),
    "Machines": (
        Panel("GPU utilization", ("node/*/gpu_utilization",)),
        Panel("GPU memory", ("node/*/gpu_memory_gb",)),
        Panel("GPU power", ("node/*/gpu_power_watts",)),
        Panel("Peak memory", ("memory/*",)),
    ),
    "Schedules and health": (
        Panel("Learning rates", ("lr/*",)),
        Panel("Average", ("ema/*",)),
        Panel("Loss scales", ("loss_scale/*",), log=True),
        Panel("Augmentation", ("augmentation/*",)),
        Panel("Evaluation and checkpoint", ("time/evaluation_s", "time/checkpoint_s")),
        Panel("Health", ("health/*",)),
        Panel("Restarts", ("progress/restarts",)),
    ),
}


def arrange(keys: Iterable[str]) -> dict[str, list[tuple[Panel, list[str]]]]:
    """The sections with the keys that there are: each key in the first panel that it matches, the others under `More`.

    >>> for section, charts in arrange(["loss/generator", "loss/r1", "mine/number", "progress/step"]).items():
    ...     print(section, [(panel.title, keys) for panel, keys in charts])
    Balance [('Losses', ['loss/generator']), ('Terms of the losses', ['loss/r1'])]
    More [('mine', ['mine/number'])]
    """
    left = [key for key in keys if not key.startswith("progress/") or key == "progress/restarts"]
    found: dict[str, list[tuple[Panel, list[str]]]] = {}
    for section, panels in SECTIONS.items():
        for panel in panels:
            if here := [key for key in left if panel.matches(key)]:
                found.setdefault(section, []).append((panel, here))
                left = [key for key in left if key not in here]
    for prefix in sorted({key.partition("/")[0] for key in left}):
        here = [key for key in left if key.partition("/")[0] == prefix]
        found.setdefault("More", []).append((Panel(prefix, (f"{prefix}/*",)), here))
    return found
