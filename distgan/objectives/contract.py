"""What a loss must be: a function per network that gives a number per example. A user's own is tried before it is used."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distgan import registry
from distgan.errors import UserError, in_one_line
from distgan.objectives import LOSSES

if TYPE_CHECKING:
    from distgan.objectives.losses import Loss

_NEAR = 1e-5


@functools.cache
def find_loss(name: str) -> Loss:
    """The loss called `name`: of `LOSSES`, or a user's own, which is a `Loss` or a pair of functions.

    The generator's function of a pair may leave the real logits alone, and gets None for them; where it fails with None, it
    gets them.

    Raises:
      UserError: the user's own is neither, or a function of it gives something else than a number per example.
    """
    found = registry.resolve(LOSSES, name)
    return found if name in LOSSES.parts else _own_loss(name, found)


def _own_loss(name: str, found: Any) -> Loss:
    import tensorflow as tf

    from distgan.objectives.losses import Loss

    reals, fakes = tf.constant([0.5, -1.0, 2.0, 0.25]), tf.constant([-0.5, 1.5, 0.75, -2.0])
    if isinstance(found, tuple | list) and len(found) == 2 and all(map(callable, found)):
        found = Loss(*found)
        try:
            found.generator(None, fakes)
        except Exception:
            found = dataclasses.replace(found, pairs=True)
    if not isinstance(found, Loss):
        raise UserError(
            f"{name} is a {type(found).__name__}; a loss is distgan.objectives.losses.Loss, or a pair (discriminator, generator) "
            "of functions of real_logits and fake_logits, which give a number per example"
        )
    _try(f"{name}: the discriminator's loss", found.discriminator, (reals, fakes))
    _try(f"{name}: the generator's loss", found.generator, (reals if found.pairs else None, fakes))
    return found


def _try(which: str, function: Callable[..., Any], logits: tuple[Any, Any]) -> None:
    """Refuses a function that gives no number per example, or one that depends on other examples: they may lie elsewhere."""
    import tensorflow as tf

    def value(count: int) -> Any:
        try:
            return tf.convert_to_tensor(function(*(each if each is None else each[:count] for each in logits)))
        except Exception as error:
            raise UserError(f"{which} failed on logits float32 [{count}]: {in_one_line(error)}") from error

    four, two = value(4), value(2)
    if four.shape != [4]:
        raise UserError(
            f"{which} gives {list(four.shape)} for 4 examples, not a number each: leave out its mean or sum"
        )
    if not bool(tf.reduce_all(tf.abs(four[:2] - two) <= _NEAR)):
        raise UserError(
            f"{which} makes an example's number depend on the other examples, which may lie on other replicas; "
            "Loss(..., opposed=True) gives it logits relative to the means of the global batch"
        )
