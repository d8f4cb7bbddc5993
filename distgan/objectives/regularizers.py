"""What is added to the adversarial loss: each a value of its options, with the function, the weight and the interval.

The functions are in `penalties.py`; here stands what they are given, how much they weigh and what they go with. All give a
number per example, whose mean over the global batch, times the weight, is added to the loss of the networks named. To add
one, write such a part and a line in `distgan.objectives.REGULARIZERS`; your own is named `my_package.my_module:MyRegularizer`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from distgan.config import Config
from distgan.schedules import Schedule, schedule
from distgan.schema import option
from distgan.seeds import Draws


class Seen(Protocol):
    """What a phase sees of a micro-batch of N images; each thing is worked out when it is first asked for, and once.

    Images are float [N, H, W, C] in [-1, 1], before augmentation; labels int32 [N]; outputs of the discriminator float32
    (float64 under --precision=float64) [N, 1] or, with an auxiliary head, [N, 1 + K].
    """

    real_images: Any
    fake_images: Any
    real_labels: Any
    fake_labels: Any
    real_outputs: Any
    fake_outputs: Any
    real_logits: Any
    """float32 [N]: the first of each image's outputs."""
    fake_logits: Any
    real_augmented: Any
    fake_augmented: Any
    images_seen: Any
    """int64 scalar: before this step."""
    draws: Draws

    def judge(self, images: Any, labels: Any, name: str) -> Any:
        """The outputs of another pass of the discriminator over images that are augmented already."""

    def gradients_at(self, images: Any, labels: Any, name: str) -> Any:
        """float32 [N, H, W, C]: of the logits of another pass, by its images before augmentation."""

    def gradients_of_logits(self, kind: str) -> Any:
        """The same of the `real` or `fake` logits by their images; in the pass of the loss, where that computes in float32."""

    def kept(self, name: str) -> Mapping[str, Any]:
        """What a regularizer keeps from step to step, as float64 scalars."""

    def kernels(self, network: str) -> list[Any]:
        """The trained weights of a network with two or more axes, the last of them that of the outputs.

        An embedding of the class that all blocks share (BigGAN's) is not among them.
        """

    def everywhere(self, values: Any, name: str) -> Any:
        """The values ([N]) of all images of the global batch, in the order of their numbers: [B], without gradients."""

    def sum_over_replicas(self, tensor: Any, name: str) -> Any:
        """The tensor's sum over all replicas."""

    def value_of(self, schedule: Schedule) -> Any:
        """A schedule's value in this step, as a float64 scalar."""


class Regularizer:
    """What a part must have, and what it has unless it says otherwise."""

    networks: tuple[str, ...] = ("discriminator",)
    """To whose loss its penalty is added; empty where it has none."""
    interval: int = 1
    """Steps between two steps with it. Above 1 it has a phase of its own (lazy regularization; Karras et al. 2020b, appendix
    B): the weight times the interval, and the optimizer's learning rate and betas to the share of updates without it."""
    weight: Schedule = schedule(1.0)
    """Factor of the penalty."""
    differentiates: tuple[str, ...] = ()
    """The kinds of images, `real` or `fake`, whose `gradients_of_logits` it takes."""
    takes_gradients: bool = False
    """Whether it takes gradients by images, those or others."""
    whole_batch: bool = False
    """Whether it looks at all images of the global batch at once."""

    def requires(self, config: Config) -> Iterator[str]:
        """Yields what it does not go with."""
        yield from ()

    def penalty(self, seen: Seen, network: str) -> Any:
        """float32 [N], or a scalar for all images alike: what is added to the loss of a network, before the weight."""

    def initial(self) -> dict[str, float]:
        """The values that it keeps from step to step, as they are at the start of a run."""
        return {}

    def update(self, kept: Mapping[str, Any], measured: Mapping[str, Any], images_seen: Any) -> dict[str, Any]:
        """Their next values, after a discriminator update that measured this over the global batch (float64 scalars)."""
        return {}

    def project(self, variable: Any) -> Any:
        """What becomes of a discriminator's weight after an update; None leaves it."""

    def weigh_fakes(self, seen: Seen) -> Any:
        """float32 [N]: factors of the generator's adversarial loss; None is 1 for all."""


def _needs_independent_logits(config: Config, name: str) -> Iterator[str]:
    if getattr(config.model.name.options, "batch_dependent", False):
        yield (
            f"--objective.regularizers={name} takes gradients image by image, and the discriminator's batch norm mixes the "
            "images of a batch: use --model.discriminator_norm=none or spectral"
        )


def _names(config: Config) -> set[str]:
    return {each.name for each in config.objective.regularizers}


class _ByImage(Regularizer):
    """What takes gradients by images, which a batch norm in the discriminator would mix."""

    name: str
    takes_gradients = True

    def requires(self, config: Config) -> Iterator[str]:
        yield from _needs_independent_logits(config, self.name)


@dataclasses.dataclass(frozen=True)
class R1(_ByImage):
    """gamma/2 ||grad D(x)||^2 on real images (Mescheder et al. 2018, eq. 9)."""

    gamma: Schedule = option(schedule(10.0), "weight; the half is included", minimum=0)
    interval: int = option(1, "steps between two steps with it", minimum=1)
    name = "r1"
    differentiates = ("real",)

    @property
    def weight(self) -> Schedule:  # type: ignore[override]
        return self.gamma

    def penalty(self, seen: Seen, network: str) -> Any:
        from distgan.objectives import penalties

        [kind] = self.differentiates
        return penalties.half_squared_norm(seen.gradients_of_logits(kind))


@dataclasses.dataclass(frozen=True)
class R2(R1):
    """gamma/2 ||grad D(G(z))||^2 on fakes (Mescheder et al. 2018, eq. 10)."""

    name = "r2"
    differentiates = ("fake",)


@dataclasses.dataclass(frozen=True)
class GradientPenalty(_ByImage):
    """(||grad D(a x + (1 - a) G(z))|| - target)^2, a uniform (Gulrajani et al. 2017, eq. 3); target 0: Thanh-Tung et al. 2019."""

    weight: Schedule = option(schedule(10.0), "factor", minimum=0)
    target: float = option(1.0, "length that gradients shall have", minimum=0)
    one_sided: bool = option(False, "only gradients longer than the target count")
    interval: int = option(1, "steps between two steps with it", minimum=1)
    name = "gradient_penalty"

    def penalty(self, seen: Seen, network: str) -> Any:
        from distgan.objectives import penalties

        share = penalties.per_image(seen.draws.uniform("gradient_penalty/share"), seen.real_images)
        between = share * seen.real_images + (1 - share) * seen.fake_images
        gradients = seen.gradients_at(between, seen.real_labels, "gradient_penalty")
        return penalties.norm_penalty(gradients, self.target, self.one_sided)


@dataclasses.dataclass(frozen=True)
class Dragan(_ByImage):
    """(||grad D(x + a s/2 u)|| - 1)^2, with a and u uniform in [0, 1) and s the deviation of the reals (Kodali et al. 2017).

    s is one number for all pixels of the global batch. The noise is one-sided, as in the authors' code.
    """

    weight: Schedule = option(schedule(10.0), "factor", minimum=0)
    interval: int = option(1, "steps between two steps with it", minimum=1)
    name = "dragan"
    whole_batch = True

    def penalty(self, seen: Seen, network: str) -> Any:
        from distgan.objectives import penalties

        images = seen.real_images
        deviation = penalties.deviation(images, lambda moments: seen.sum_over_replicas(moments, "dragan"))
        noise = penalties.per_image(seen.draws.uniform("dragan/noise", tuple(images.shape[1:])), images)
        share = penalties.per_image(seen.draws.uniform("dragan/share"), images)
        near = images + share * 0.5 * deviation * noise
        return penalties.norm_penalty(seen.gradients_at(near, seen.real_labels, "dragan"), 1.0, False)


@dataclasses.dataclass(frozen=True)
class LeCam(Regularizer):
    """relu(D(x) - m_f)^2 + relu(m_r - D(G(z)))^2, with m the moving means of the logits (Tseng et al. 2021, eq. 4).

    The paper's squares without relu pull logits back that are on the right side too; its code has the relu. The means start as
    those of the run's first update, which they add nothing to; the code starts them at 0, which weighs for hundreds of updates
    where `start_kimg` is 0.
    """

    weight: Schedule = option(schedule(0.3), "factor", minimum=0)
    decay: float = option(0.99, "of the moving means, per discriminator update", minimum=0, maximum=1)
    start_kimg: float = option(0.0, "before, nothing is added, and the means are those of the last update", minimum=0)

    def requires(self, config: Config) -> Iterator[str]:
        if config.objective.loss.name == "wasserstein":
            yield (
                "--objective.regularizers=lecam does not go with --objective.loss=wasserstein, whose logits have no fixed "
                "level: use hinge, non_saturating or least_squares"
            )

    def penalty(self, seen: Seen, network: str) -> Any:
        import tensorflow as tf

        from distgan.objectives import penalties

        kept = seen.kept("lecam")
        value = penalties.lecam(seen.real_logits, seen.fake_logits, kept["real_mean"], kept["fake_mean"])
        value *= tf.cast(~_is_first_update(kept, seen.images_seen), value.dtype)
        return penalties.from_image(value, seen.images_seen, 1000 * self.start_kimg)

    def initial(self) -> dict[str, float]:
        return {"real_mean": 0.0, "fake_mean": 0.0}

    def update(self, kept: Mapping[str, Any], measured: Mapping[str, Any], images_seen: Any) -> dict[str, Any]:
        import tensorflow as tf

        from distgan.objectives import penalties

        decay = penalties.from_image(self.decay, images_seen, 1000 * self.start_kimg)
        decay = tf.where(_is_first_update(kept, images_seen), tf.zeros_like(decay), decay)
        now = {name: measured[f"d_logits/{name}"] for name in kept}
        return {name: decay * kept[name] + (1 - decay) * now[name] for name in kept}


def _is_first_update(means: Mapping[str, Any], images_seen: Any) -> Any:
    """Whether no logits were averaged yet, a bool scalar.

    The means alone do not say: a checkpoint's go on as they are, though they be 0. Nor does the clock: a step may have several
    updates.
    """
    import tensorflow as tf

    return (images_seen == 0) & tf.reduce_all([mean == 0 for mean in means.values()])


@dataclasses.dataclass(frozen=True)
class Consistency(Regularizer):
    """(D(x) - D(T x))^2 on reals (Zhang et al. 2020), and on fakes too where they weigh (balanced; Zhao et al. 2021).

    T mirrors with probability 1/2 and shifts by up to `shift` of the side, with the border reflected.
    """

    weight: Schedule = option(schedule(10.0), "factor of the reals", minimum=0)
    fake_weight: float = option(0.0, "of fakes, as a multiple of the reals' factor; 1 is the balanced form", minimum=0)
    shift: float = option(0.125, "largest shift, as a share of the side", minimum=0, maximum=0.5)

    def requires(self, config: Config) -> Iterator[str]:
        if config.objective.loss.name == "wasserstein" and "weight_clip" in _names(config):
            yield (
                "--objective.regularizers=consistency,weight_clip: clipped weights leave the squared difference no scale: "
                "drop weight_clip"
            )

    def penalty(self, seen: Seen, network: str) -> Any:
        from distgan.objectives import penalties

        def differs(kind: str, images: Any, labels: Any, logits: Any) -> Any:
            name = f"consistency/{kind}"
            moved = penalties.mirror_and_shift(images, self.shift, seen.draws.within(name))
            return (logits - seen.judge(moved, labels, name)[:, 0]) ** 2

        value = differs("real", seen.real_augmented, seen.real_labels, seen.real_logits)
        if self.fake_weight:
            value += self.fake_weight * differs("fake", seen.fake_augmented, seen.fake_labels, seen.fake_logits)
        return value


@dataclasses.dataclass(frozen=True)
class Orthogonal(Regularizer):
    """||W^T W - diag(W^T W)||^2 summed over the kernels, W as [inputs, outputs] (Brock et al. 2019, eq. 3).

    BigGAN's shared class embedding is left out, as in the authors' code: its rows are classes, and no inputs.
    """

    weight: Schedule = option(schedule(1e-4), "factor", minimum=0)
    network: str = option("generator", "whose kernels", choices=("generator", "discriminator"))

    @property
    def networks(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.network,)

    def penalty(self, seen: Seen, network: str) -> Any:
        from distgan.objectives import penalties

        return penalties.orthogonal(seen.kernels(network))


@dataclasses.dataclass(frozen=True)
class Auxiliary(Regularizer):
    """-log P(class): the discriminator names the class of each image, and the generator helps it (Odena et al. 2017, eq. 3)."""

    weight: Schedule = option(schedule(1.0), "factor", minimum=0)
    fakes: bool = option(
        True, "the discriminator learns the classes of fakes too, as in the paper; else of reals alone"
    )
    networks = ("discriminator", "generator")

    def requires(self, config: Config) -> Iterator[str]:
        if getattr(config.model.name.options, "head", "") != "auxiliary" or not config.model.conditional:
            yield "--objective.regularizers=auxiliary needs --model.head=auxiliary (resnet, biggan) and --model.conditional"

    def penalty(self, seen: Seen, network: str) -> Any:
        from distgan.objectives import penalties

        fakes = penalties.cross_entropy(seen.fake_outputs[:, 1:], seen.fake_labels)
        if network == "generator":
            return fakes
        reals = penalties.cross_entropy(seen.real_outputs[:, 1:], seen.real_labels)
        return reals + fakes if self.fakes else reals


@dataclasses.dataclass(frozen=True)
class WeightClip(Regularizer):
    """Discriminator weights are cut to [-limit, limit] after each update (Arjovsky et al. 2017, algorithm 1)."""

    limit: float = option(0.01, "largest weight", above=0)
    networks = ()

    def requires(self, config: Config) -> Iterator[str]:
        if getattr(config.model.name.options, "discriminator_norm", "") == "spectral":
            yield (
                "--objective.regularizers=weight_clip has no effect on kernels that --model.discriminator_norm=spectral scales: "
                "use --model.discriminator_norm=none"
            )
        if "lecam" in _names(config):
            yield "--objective.regularizers=lecam,weight_clip: both bound the discriminator, by other means: drop one"

    def project(self, variable: Any) -> Any:
        from distgan.objectives import penalties

        return penalties.clip(variable, self.limit)


@dataclasses.dataclass(frozen=True)
class TopK(Regularizer):
    """The generator learns from the k fakes of the global batch with the largest logits (Sinha et al. 2020)."""

    k: Schedule = option(schedule(32.0), "fakes that count, as linear:64:32:1000", minimum=1)
    networks = ()
    whole_batch = True

    def requires(self, config: Config) -> Iterator[str]:
        largest, batch = max(self.k.start, self.k.end), config.train.global_batch
        if largest > batch:
            yield f"--objective.top_k.k={self.k} is more than --train.global_batch={batch}: {batch} is the most"

    def weigh_fakes(self, seen: Seen) -> Any:
        from distgan.objectives import penalties

        return penalties.top_k_weights(
            seen.fake_logits, seen.everywhere(seen.fake_logits, "top_k"), seen.value_of(self.k)
        )
