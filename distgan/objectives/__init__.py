"""What the networks minimize: logits to per-example numbers."""

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

AUGMENTATIONS = Table(
    "augmentation",
    {
        "none": "distgan.objectives.augment:Unchanged",
        "diffaugment": "distgan.objectives.augment:DiffAugment",
        "ada": "distgan.objectives.ada:Ada",
        "fixed": "distgan.objectives.ada:Fixed",
    },
)
