"""Builds networks, and checks that a user's own network trains the same on any number of replicas.

A user's model may return any Keras model. It is called as distgan's own networks are, with the labels and the pass, and is
refused by name where it would train wrongly without a word:

- a layer draws its own random numbers, or keeps its own statistics: each replica would draw or keep different ones;
- a weight is not Keras' to train and save, or two weights share a name;
- one image's outputs depend on the other images of the batch, some of which lie on other replicas;
- the outputs have another shape, or end in a sigmoid.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.utils import naming

from distgan.errors import UserError, in_one_line
from distgan.models.layers import Chain, Pass
from distgan.seeds import Draws

_BATCH = 3  # Of the images that a user's network is tried on.
_DRAWN = 0.99  # Stands for every random number in a trial: dropout keeps everything.
_NEAR = 1e-3
_PASSED_ON = ("Identity", "Cast", "Reshape", "Squeeze", "StopGradient")
_INSTEAD = {
    "Dropout": "use distgan.models.layers.Dropout, whose masks belong to the images",
    "BatchNormalization": "use distgan.models.layers.BatchNorm, which takes the moments of the global batch",
    "SpectralNormalization": "use the layers of distgan.models.spectral",
}


class Wrapped(keras.Model):
    """A user's Keras model, called as distgan calls networks: it gets what its `call` takes of labels, pass and `training`."""

    def __init__(self, network: Any, name: str):
        super().__init__(name=name)
        self.network = network
        self.taken = inspect.signature(network.call).parameters.keys() & {"labels", "context"}

    @property
    def layers(self) -> list[Any]:
        """Those of the user's model."""
        return self.network.layers

    def call(self, inputs: tf.Tensor, labels: tf.Tensor | None = None, context: Pass | None = None) -> tf.Tensor:
        known = {"labels": labels, "context": context}
        given = {name: known[name] for name in self.taken}
        outputs = self.network(inputs, training=context is not None, **given)
        return tf.cast(outputs, self.variable_dtype) if tf.is_tensor(outputs) else outputs


def build(model: Any, kind: str, image_shape: tuple[int, int, int], num_classes: int, name: str) -> Any:
    """A network with fresh weights: float [N, ...], labels int32 [N] -> float32 (or float64) [N, ...].

    Args:
      model: the options of a model part.
      kind: `generator`, latents [N, Z] to images [N, H, W, C], or `discriminator`, images to logits [N, 1].
      image_shape: (H, W, C).
      num_classes: 0 is unconditional.
      name: of the network, with which the names of its variables begin.

    Raises:
      UserError: a user's model gives something that would not train as it should; names the layer.
    """
    naming.reset_uids()  # Layers without a name are numbered from here on, so that their names are the same in every process.
    with keras.name_scope(name):  # For weights that are made before the first call.
        network = getattr(model, kind)(image_shape, num_classes, name)
    own = type(model).__module__.partition(".")[0] != "distgan"
    which = f"{kind}() of {type(model).__module__}:{type(model).__name__}"
    if own:
        network = _wrap(network, which, num_classes, name)
    shape = (model.latent_size,) if kind == "generator" else image_shape
    inputs, labels = tf.zeros([1, *shape], keras.config.floatx()), tf.zeros([1], tf.int32)
    if own:
        problem = next(_Trial(network, kind, shape, image_shape, num_classes).problems(inputs, labels), None)
        if problem:
            raise UserError(f"{which}: {problem}")
    else:
        network(inputs, labels=labels)
    return network


def _wrap(network: Any, which: str, num_classes: int, name: str) -> Any:
    """A user's Keras model as distgan calls networks; layers of a `keras.Sequential` get the labels and passes they take."""
    if not isinstance(network, keras.Model):
        raise UserError(f"{which} gives a {type(network).__name__}, not a keras.Model")
    sequential = isinstance(network, keras.Sequential)
    if not sequential and len(getattr(network, "inputs", None) or [0]) > 1:
        raise UserError(
            f"{which} gives a model of {len(network.inputs)} inputs; write a class whose call(inputs, labels) takes the labels, "
            "or a keras.Sequential whose layers do"
        )
    taken = [inspect.signature(each.call).parameters.keys() for each in (network.layers if sequential else [network])]
    if num_classes and not any("labels" in each for each in taken):
        raise UserError(
            f"{which} takes no labels, and --model.conditional=true gives it some: add distgan.models.layers.ConcatLabel to a "
            "keras.Sequential, or `labels` to the parameters of call"
        )
    if sequential:
        return Chain(network.layers, name)
    return network if network.name == name and {"labels", "context"} <= taken[0] else Wrapped(network, name)


class _Trial:
    """A user's network, called as training calls it, and what is wrong with it."""

    def __init__(
        self, network: Any, kind: str, shape: tuple[int, ...], image_shape: tuple[int, int, int], num_classes: int
    ):
        self.network, self.kind, self.shape = network, kind, shape
        self.allowed = [image_shape] if kind == "generator" else [(1,), *([(1 + num_classes,)] if num_classes else [])]
        self.sums: list[str] = []  # What was summed over replicas.
        self.changed: list[Any] = []  # The variables that a call changed.

    def problems(self, inputs: tf.Tensor, labels: tf.Tensor) -> Iterator[str]:
        """Builds the network; yields what is wrong, the plainest first."""
        try:
            outputs = self.network(inputs, labels=labels)
        except Exception as error:
            yield f"a call on {self._words(inputs)} failed: {in_one_line(error)}"
            return
        yield from self._shape(outputs)
        yield from self._names()
        step = tf.function(self._train, autograph=False)
        with _recording([layer for layer in self._layers() if _takes_context(layer)]) as called:
            try:
                trial = step.get_concrete_function(
                    tf.TensorSpec([_BATCH, *self.shape], inputs.dtype), tf.TensorSpec([_BATCH], tf.int32)
                )
            except Exception as error:
                yield f"a call in training failed: {in_one_line(error)}"
                return
        yield from self._state()
        yield from self._unknown_variables(trial)
        yield from self._draws(trial)
        yield from self._contexts(called)
        yield from self._squashed(trial)
        yield from self._coupled(trial, inputs.dtype)

    def _words(self, inputs: tf.Tensor) -> str:
        return f"{'latents' if self.kind == 'generator' else 'images'} {inputs.dtype.name} {list(inputs.shape)}"

    def _shape(self, outputs: Any) -> Iterator[str]:
        if not tf.is_tensor(outputs):
            yield f"its outputs are a {type(outputs).__name__}, not a tensor"
        elif tuple(outputs.shape[1:]) not in self.allowed:
            needed = " or ".join(map(_batch_of, self.allowed))
            what = "images" if self.kind == "generator" else "logits"
            yield f"its outputs are {_batch_of(outputs.shape[1:])}, not {what} {needed}"
        elif outputs.dtype != self.network.variable_dtype:
            yield f"its outputs are {outputs.dtype.name}: cast them to {self.network.variable_dtype}, self.variable_dtype"

    def _names(self) -> Iterator[str]:
        if not self.network.trainable_variables:
            yield "it has no weights to train"
        paths = [variable.path for variable in self.network.variables]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        if twice:
            yield f"two of its variables are called {twice[0]}: give each layer a name of its own"
        foreign = [path for path in paths if not path.startswith(f"{self.network.name}/")]
        if foreign:
            yield f"the variable {foreign[0]} was made elsewhere: make all layers within {self.kind}()"

    def _layers(self) -> list[Any]:
        return [layer for layer in self.network._flatten_layers() if layer is not self.network]

    def _train(self, inputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        def make(kind: str, name: str, shape: tuple[int, ...]) -> tf.Tensor:
            return tf.fill([_BATCH, *shape], _DRAWN)

        def total(tensor: tf.Tensor, layer: str) -> tf.Tensor:
            self.sums.append(layer)
            return tensor

        context = Pass(Draws(make), total, [], {})
        with keras.StatelessScope() as scope:
            outputs = self.network(inputs, labels=labels, context=context, training=True)
        self.changed = [v for v in self.network.variables if scope.get_current_value(v) is not None]
        return outputs

    def _owner(self, variable: Any) -> Any:
        """The innermost layer that has a variable."""
        holders = [each for each in self.network._flatten_layers() if any(v is variable for v in each.variables)]
        return min(holders, key=lambda layer: len(layer._flatten_layers()))

    def _state(self) -> Iterator[str]:
        for variable in sorted(self.changed, key=lambda variable: variable.trainable):
            layer = self._owner(variable)
            does = "draws random numbers" if "seed" in variable.path else "keeps statistics"
            remedy = next((words for each, words in _INSTEAD.items() if each in type(layer).__name__), None)
            remedy = remedy or "write a layer whose call takes `context`, as those of distgan.models.layers do"
            yield f"{_named(layer)} {does} of its own, which every replica would do apart: {remedy}"

    def _unknown_variables(self, trial: Any) -> Iterator[str]:
        known = {id(each) for v in self.network.variables for each in _components(v.value)}
        # TensorFlow gives them in any order.
        for variable in sorted(trial.graph.variables, key=lambda variable: variable.name):
            if not {id(each) for each in _components(variable)} & known:
                yield (
                    f"it computes with the variable {variable.name}, which is none of its own, so that it would neither be "
                    "trained nor saved: assign the layer that has it to an attribute of the model"
                )

    def _draws(self, trial: Any) -> Iterator[str]:
        for node in _nodes(trial.graph):
            if "Random" in node.op or "Multinomial" in node.op or "TruncatedNormal" in node.op:
                yield (
                    f"the op {node.name} draws random numbers of its own, which would depend on the number of replicas: take "
                    "them from context.draws, as distgan.models.layers.Dropout does"
                )

    def _contexts(self, called: list[Any]) -> Iterator[str]:
        for layer in self._layers():
            if _takes_context(layer) and not any(each is layer for each in called):
                yield (
                    f"{_named(layer)} is not given the `context` of the pass that its call takes: hand it on from the call of "
                    "the model, or put the layer directly into a keras.Sequential"
                )

    def _squashed(self, trial: Any) -> Iterator[str]:
        op = trial.graph.outputs[0].op
        while op.type in _PASSED_ON:
            op = op.inputs[0].op
        if op.type in ("Sigmoid", "Softmax"):
            yield (
                f"its outputs are those of a {op.type.lower()}, from 0 to 1; "
                + (
                    "images are from -1 to 1: use tanh"
                    if self.kind == "generator"
                    else "losses take logits: leave it out"
                )
            )

    def _coupled(self, trial: Any, dtype: Any) -> Iterator[str]:
        if self.sums:
            return
        inputs = tf.constant(np.random.default_rng(0).standard_normal([_BATCH, *self.shape]), dtype)
        labels = tf.zeros([_BATCH], tf.int32)
        first = trial(inputs, labels)[0]
        others = trial(tf.concat([inputs[:1], -2 * inputs[1:]], 0), labels)[0]
        if not bool(tf.reduce_all(tf.abs(first - others) <= _NEAR * (1 + tf.abs(first)))):
            yield (
                "what it gives for an image depends on the other images of its batch, which may lie on other replicas: take "
                "what they share from context.sum_over_replicas, as distgan.models.layers.BatchNorm does"
            )


@contextlib.contextmanager
def _recording(layers: Sequence[Any]) -> Iterator[list[Any]]:
    """Gives a list that fills with those of the layers that are called with a pass."""
    called: list[Any] = []

    def recorded(layer: Any, call: Any) -> Any:
        @functools.wraps(call)
        def recording(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("context") is not None:
                called.append(layer)
            return call(*args, **kwargs)

        return recording

    for layer in layers:
        layer.call = recorded(layer, layer.call)
    try:
        yield called
    finally:
        for layer in layers:
            del layer.call


def _takes_context(layer: Any) -> bool:
    return "context" in inspect.signature(layer.call).parameters


def _batch_of(shape: Sequence[int]) -> str:
    """A shape with N in front: `[N, 1]`."""
    return f"[{', '.join(['N', *map(str, shape)])}]"


def _named(layer: Any) -> str:
    return f"{layer.path or layer.name} ({type(layer).__name__})"


def _components(variable: Any) -> list[Any]:
    """A variable, or those on each device of one that is mirrored."""
    return list(getattr(variable, "values", [variable]))


def _nodes(graph: Any) -> Iterator[Any]:
    definition = graph.as_graph_def()
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def
