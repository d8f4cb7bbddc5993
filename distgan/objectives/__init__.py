"""What the networks minimize: logits and images to per-example numbers, and how images are changed on the way."""

from distgan.registry import Table

LOSSES = Table(
    "loss",
    {
        "non_saturating": "distgan.objectives.losses:NON_SATURATING",
        "minimax": "distgan.objectives.losses:MINIMAX",
        "hinge": "distgan.objectives.losses:HINGE",
        "least_squares": "distgan.objectives.losses:LEAST_SQUARES",
        "wasserstein": "distgan.objectives.losses:WASSERSTEIN",
        "relativistic": "distgan.objectives.losses:RELATIVISTIC",
        "relativistic_average": "distgan.objectives.losses:RELATIVISTIC_AVERAGE",
    },
    plain=True,
)

REGULARIZERS = Table(
    "regularizer",
    {
        "r1": "distgan.objectives.regularizers:R1",
        "r2": "distgan.objectives.regularizers:R2",
        "gradient_penalty": "distgan.objectives.regularizers:GradientPenalty",
        "dragan": "distgan.objectives.regularizers:Dragan",
        "lecam": "distgan.objectives.regularizers:LeCam",
        "consistency": "distgan.objectives.regularizers:Consistency",
        "orthogonal": "distgan.objectives.regularizers:Orthogonal",
        "auxiliary": "distgan.objectives.regularizers:Auxiliary",
        "weight_clip": "distgan.objectives.regularizers:WeightClip",
        "top_k": "distgan.objectives.regularizers:TopK",
    },
    offers=(
        "networks",
        "interval",
        "weight",
        "differentiates",
        "takes_gradients",
        "whole_batch",
        "penalty",
        "initial",
        "update",
        "project",
        "weigh_fakes",
    ),
)

AUGMENTATIONS = Table(
    "augmentation",
    {
        "none": "distgan.objectives.augment:Unchanged",
        "diffaugment": "distgan.objectives.augment:DiffAugment",
        "ada": "distgan.objectives.ada:Ada",
        "fixed": "distgan.objectives.ada:Fixed",
    },
    offers=("initial", "update", "probability", "augment"),
)
