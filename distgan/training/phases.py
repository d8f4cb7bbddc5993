"""The plan of a step, from the config alone: which updates, from which terms, how often, and what each measures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from distgan.config import Config
from distgan.objectives.contract import find_loss

NETWORKS = ("discriminator", "generator")
_MEASURED = {
    "discriminator": (
        "loss/discriminator",
        "d_logits/real_mean",
        "d_logits/fake_mean",
        "d_logits/real_square",
        "d_logits/fake_square",
        "d_sign/real",
        "d_sign/fake",
    ),
    "generator": ("loss/generator",),
}


@dataclasses.dataclass(frozen=True)
class Phase:
    """One update within a step."""

    name: str
    trains: tuple[str, ...]
    """The networks that are updated, of NETWORKS, from one forward pass."""
    takes_batch: bool
    """Whether it takes fresh real images, or looks at those of the phase before."""
    regularizers: tuple[str, ...] = ()
    """Those that are added here."""
    adversarial: bool = True
    """Whether the adversarial loss is taken, or regularizers alone."""
    interval: int = 1
    """Steps between two steps with this phase."""
    fake_batches: int = 1
    """Global batches of fakes that it learns from."""


def phases(config: Config) -> tuple[Phase, ...]:
    """The phases of a step, in order; those with an interval are left out of the steps between."""
    train = config.train

    def every_step(*networks: str) -> tuple[str, ...]:
        return tuple(
            name
            for name, part in regularizers(config).items()
            if part.interval == 1 and (set(networks) & set(part.networks) or not part.networks)
        )

    if train.update_order == "simultaneous":
        both = Phase("both", NETWORKS, True, every_step(*NETWORKS))
        return (both, *_lazy(config, "discriminator"), *_lazy(config, "generator"))
    first = [
        Phase(f"discriminator{i}", ("discriminator",), True, every_step("discriminator"))
        for i in range(train.discriminator_updates)
    ]
    generator = Phase(
        "generator", ("generator",), False, every_step("generator"), fake_batches=train.generator_batch_multiple
    )
    return (*first, *_lazy(config, "discriminator"), generator, *_lazy(config, "generator"))


def _lazy(config: Config, network: str) -> Iterator[Phase]:
    """A phase for each interval above 1 of a network's regularizers."""
    parts = {name: part for name, part in regularizers(config).items() if network in part.networks}
    for interval in sorted({part.interval for part in parts.values()} - {1}):
        names = tuple(name for name, part in parts.items() if part.interval == interval)
        yield Phase(f"{network}_every_{interval}", (network,), False, names, adversarial=False, interval=interval)


def regularizers(config: Config) -> dict[str, Any]:
    """The chosen regularizers by name."""
    return {each.name: each.options for each in config.objective.regularizers}


def due(plan: Sequence[Phase], step: int) -> tuple[Phase, ...]:
    """The phases of a step by its number.

    >>> plan = [Phase("both", NETWORKS, True), Phase("lazy", ("discriminator",), False, interval=4)]
    >>> [len(due(plan, step)) for step in range(6)]
    [2, 1, 1, 1, 2, 1]
    """
    return tuple(phase for phase in plan if step % phase.interval == 0)


def cycle(plan: Sequence[Phase]) -> int:
    """Steps after which the due phases come round again."""
    return math.lcm(*(phase.interval for phase in plan))


def update_share(plan: Sequence[Phase], network: str) -> float:
    """The share of a network's updates that are adversarial: k / (k + 1) with one lazy phase every k steps.

    Learning rate and betas are set by it (Karras et al. 2020b, appendix B).
    """
    regular = sum(network in phase.trains and phase.adversarial for phase in plan)
    lazy = sum(1 / phase.interval for phase in plan if network in phase.trains and not phase.adversarial)
    return regular / (regular + lazy)


def batches_per_step(config: Config) -> int:
    """Global batches of real images that a step shows."""
    return sum(phase.takes_batch for phase in phases(config))


def measured_keys(config: Config) -> tuple[tuple[str, str], ...]:
    """(phase, key) of everything that a step measures, in the order of its evidence vector."""
    return tuple((phase.name, key) for phase in phases(config) for key in keys(config, phase))


def keys(config: Config, phase: Phase) -> list[str]:
    """What a phase measures: losses and terms of each network it trains, then the norms of their gradients."""
    measured = [key for network in phase.trains for key in network_keys(config, phase, network)]
    return measured + [f"grad_norm/{network if phase.adversarial else phase.name}" for network in phase.trains]


def network_keys(config: Config, phase: Phase, network: str) -> list[str]:
    """What a phase measures of one network."""
    parts = regularizers(config)
    added = [term_key(name, parts[name], network) for name in phase.regularizers if network in parts[name].networks]
    return [*(_MEASURED[network] if phase.adversarial else ()), *added]


def term_key(name: str, part: Any, network: str) -> str:
    """`loss/r1`; `loss/auxiliary_generator` of a part that is added to both networks' losses."""
    suffix = "_generator" if network == "generator" and len(part.networks) > 1 else ""
    return f"loss/{name.split(':')[-1]}{suffix}"


def problems(config: Config, num_replicas: int) -> Iterator[str]:
    """Yields what of the config no step can do with so many replicas."""
    loss, train = config.objective.loss.name, config.train
    whole = [f"--objective.regularizers={name}" for name, part in regularizers(config).items() if part.whole_batch]
    if find_loss(loss).opposed:
        whole.insert(0, f"--objective.loss={loss}")
    if whole and train.accumulation_steps > 1:
        yield (
            f"--train.accumulation_steps={train.accumulation_steps} does not go with {whole[0]}, which looks at the whole "
            "batch: 1 does"
        )
    if whole and config.jit_compile and num_replicas > 1:
        yield (
            f"--jit_compile with {num_replicas} replicas does not go with {whole[0]}, which looks at the whole batch: use "
            "--strategy=single"
        )
    if loss == "relativistic" and config.model.conditional and train.fake_labels != "paired":
        yield (
            f"--objective.loss={loss} compares a fake with a real image of its class: use --train.fake_labels=paired with "
            "--model.conditional"
        )
