"""What the networks minimize: logits to per-example numbers."""

from distgan.registry import Table

LOSSES = Table(
    "loss",
    {
        "non_saturating": "distgan.objectives.losses:NON_SATURATING",
        "minimax": "distgan.objectives.losses:MINIMAX",
    },
    plain=True,
)
