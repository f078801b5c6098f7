"""What every analytic attack is given, a `Reading`, and what it gives back, a `Leakage`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import scipy.special

from dlg import random_streams
from dlg.attack.analytic.convolution_layer import ConvolutionLayer, forward, read_convolutions
from dlg.attack.analytic.embeddings import InputMap, Table, dummy_data_of, find_input_map, input_gradients
from dlg.attack.analytic.layers import Layer
from dlg.attack.determination import OpenPart
from dlg.attack.objective import Objective, build_precise_objective
from dlg.attack.shared_step import SharedStep
from dlg.graph.label_readers import LabelKind
from dlg.graph.linear_layers import AffineOps, input_layer, reads
from dlg.graph.values import Value
from dlg.shared_update import SharedUpdate

# How closely layers that were read off the graph must give the network's own gradients and features, both in float64.
_TOLERANCE = 1e-6
# By how much the labels of the batches that a loss is examined at are shifted, after a batch of one class.
_PROBED_SHIFTS = (1, 2, 3)
# A network is certain of a batch's labels where no probability is off by more than this.
_CERTAIN = 1e-8
# How many of these batches must have a gradient.
_TELLING_BATCHES = 2


@dataclasses.dataclass(frozen=True)
class Leakage:
    """What was read off the gradients. Labels, inputs and features have the samples in the same order.

    Attributes
    ----------
    objective : Objective
        In float64, with these labels fixed; it matches gradients and features.
    labels : ndarray, shape (B,), int64, or (B, ...) where each label is several numbers
        The labels; where they are not certain, the likeliest.
    certain : bool
        Whether labels and inputs, or labels and features, explain the gradients
        of their layers to float32's rounding.
    inputs : ndarray, shape (k, ...), float64, optional
        The network's inputs for the first k samples, exactly. None where no
        input was recovered.
    features : ndarray, shape (B, d), float64, optional
        The last layer's inputs. They mean nothing unless `certain`.
    feature_errors : ndarray, shape (B,), float64, optional
        How far off each sample's features may be, relative to how much the
        samples differ. They mean nothing unless `certain`.
    gradient_scale : float
        The factor on the gradients that the recovery found: the shared ones are
        this many times the network's own. 1 where it found none. The objective
        compares with the shared ones divided by it.
    source : str
        Whose gradients gave the inputs away, in words.
    findings : list of str
        What was found out on the way, a line each.
    start : ndarray, shape (B, ...), float64, optional
        Inputs that do not explain the gradients, from which a search may start.
    open_part : OpenPart, optional
        What of the inputs the gradients leave open, where the recovery tells.
    approximate : bool
        Whether the whole network's gradients at the inputs, of all samples, do
        not match to float32's rounding. They are then a start.
    inputs_alone : bool
        Whether the first layer's gradients are those of the inputs to float32's
        rounding, and no labels explain the others.
    """

    objective: Objective
    labels: np.ndarray
    certain: bool
    inputs: np.ndarray | None = None
    features: np.ndarray | None = None
    feature_errors: np.ndarray | None = None
    gradient_scale: float = 1.0
    source: str = "the fully connected layers"
    findings: list[str] = dataclasses.field(default_factory=list)
    start: np.ndarray | None = None
    open_part: OpenPart | None = None
    approximate: bool = False
    inputs_alone: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether every sample was recovered exactly."""
        return self.certain and self.inputs is not None


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an analytic attack is given: the network, and its fully connected layers as numbers.

    Attributes
    ----------
    probe : Objective
        In float64, to evaluate the network. It matches features. Its labels
        are fixed to any; see `Objective.with_labels`.
    layers : list of Layer or None
        The fully connected layers that the network ends in, first to last. None
        in place of a layer that no gradient was shared of.
    batch_size : int
        B.
    seed : int
        Of the searches' random streams.
    nonnegative : bool
        Whether the network's inputs are known not to be negative, like pixels.
    step : SharedStep
        What the attacker holds.
    value_range : tuple of float, optional
        The lowest and the highest value of the network's inputs.
    convolutions : list of ConvolutionLayer
        The convolutions before those layers, first to last, where the two are
        the whole network and all have gradients.
    rule : SharedUpdate or None
        The rule of several local steps, whose update the layers' gradients are
        then the mean gradients of. The probe has the samples of one step.
    """

    probe: Objective
    layers: list[Layer | None]
    batch_size: int
    seed: int
    nonnegative: bool
    step: SharedStep
    value_range: tuple[float, float] | None = None
    convolutions: list[ConvolutionLayer] = dataclasses.field(default_factory=list)
    rule: SharedUpdate | None = None
    # What analytic attacks found that others ask for too, by their names.
    found: dict[str, Leakage | None] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, step: SharedStep, seed: int, *, nonnegative: bool, value_range: tuple[float, float] | None = None
    ) -> Reading:
        """Read the layers off the network's graph.

        Raises
        ------
        PrecisionError
            Where the network cannot be built in float64.
        """
        one_step = step.of_one_local_step()
        # One number a sample, whatever shape its label has.
        any_labels = np.zeros(one_step.batch_size, np.int64)
        probe = build_precise_objective(one_step, fixed_label=any_labels, match_features=True)
        layers = [_as_numbers(layer, step, probe) for layer in probe.layers]
        convolutions = read_convolutions(probe, step.gradients) if step.local_steps is None else []
        return cls(probe, layers, step.batch_size, seed, nonnegative, step, value_range, convolutions, step.local_steps)

    @functools.cached_property
    def softmax_regression(self) -> Layer | None:
        """The last layer, if it is softmax regression, as if its loss were the mean cross entropy.

        The network's own gradients at a random batch decide. A network whose
        loss is a multiple of the mean cross entropy, the sum for one, has its
        layer's gradients divided by that multiple. Label smoothing, class weights
        or another loss fails.
        """
        multiple = self.loss_multiple
        if multiple is None:
            return None
        last = self.layers[-1]
        return last if last is None or multiple == 1 else last.divided_by(multiple)

    @functools.cached_property
    def loss_multiple(self) -> float | None:
        """By what the network's loss exceeds the mean cross entropy; B for the sum. None for another loss.

        Two batches with different labels decide: one alone says nothing of a loss
        that weighs its samples, by their classes or by how well they are
        classified.
        """
        last = self.layers[-1] if self.layers else None
        if last is None or self.probe.label_kind not in (LabelKind.CLASS, LabelKind.PROBABILITY):
            return None
        classes = len(last.bias)
        multiples = [self._multiple_at(self.probe, last)]
        for shift in _PROBED_SHIFTS:
            labels = np.arange(shift, shift + self.probe.dummies[0].shape[0]) % classes
            multiples.append(self._multiple_at(self.probe.with_labels(labels), last))
        if None in multiples:
            return None
        telling = [multiple for multiple in multiples if multiple]
        if len(telling) < _TELLING_BATCHES or max(telling) / min(telling) - 1 > _TOLERANCE:
            return None
        return telling[0]

    def _multiple_at(self, probe: Objective, last: Layer) -> float | None:
        """The multiple of the mean cross entropy at a random batch with a probe's labels; 0 without a gradient."""
        names = probe.layers[-1].weight, probe.layers[-1].bias
        features, labels, weight_gradient, bias_gradient = at_random_batch(
            probe, [probe.features, probe.label_probability, *(probe.dummy_gradients[name] for name in names)]
        )
        logits = features @ last.weight + last.bias
        if labels.shape != logits.shape:
            # A sequence has one label for each position.
            return None
        delta = (scipy.special.softmax(logits, axis=1) - labels) / len(labels)
        of_mean = features.T @ delta
        square = np.sum(of_mean * of_mean)
        if np.abs(delta).max() < _CERTAIN or not square:
            # The network is certain of these labels, and rounding is most of what is left; or its features are zero.
            return 0.0
        multiple = float(np.sum(weight_gradient * of_mean) / square)
        # Exactly 1 for the mean, so that no gradient is rounded again.
        multiple = 1.0 if abs(multiple - 1) < _TOLERANCE else multiple
        agrees = _agree(weight_gradient, multiple * of_mean) and _agree(bias_gradient, multiple * delta.sum(axis=0))
        return multiple if agrees and multiple > 0 else None

    @functools.cached_property
    def perceptron(self) -> list[Layer] | None:
        """All layers, if the network has no others, and all have gradients and known activations.

        The network's own features at a random batch decide.
        """
        probe, layers = self.probe, [layer for layer in self.layers if layer is not None]
        if probe.features is None or len(layers) < len(self.layers):
            return None
        if not self.reads_dummy_data and self.input_map is None:
            return None
        activations = [known for layer in layers[:-1] if (known := layer.known_activation) is not None]
        if len(activations) < len(layers) - 1:
            return None
        first = probe.dummies[0] if self.reads_dummy_data else probe.layers[0].inputs
        data, features = at_random_batch(probe, [first, probe.features])
        hidden = data.reshape(len(data), -1)
        for layer, activation in zip(layers, activations):
            hidden = activation.function(hidden @ layer.weight + layer.bias)
        return layers if _agree(hidden, features) else None

    @functools.cached_property
    def convolutional_network(self) -> list[ConvolutionLayer] | None:
        """All convolutions, if the network consists of them and of the fully connected layers.

        The network's own features at a random batch decide.
        """
        probe, layers = self.probe, [layer for layer in self.layers if layer is not None]
        if probe.features is None or not self.convolutions or len(layers) < len(self.layers):
            return None
        activations = [known for layer in layers[:-1] if (known := layer.applied_activation) is not None]
        if len(activations) < len(layers) - 1:
            return None
        data, features = at_random_batch(probe, [probe.dummies[0], probe.features])
        hidden = np.stack([forward(self.convolutions, image) for image in data]).reshape(len(data), -1)
        if hidden.shape[1] != len(layers[0].weight):
            return None
        for layer, activation in zip(layers, activations):
            hidden = activation.function(hidden @ layer.weight + layer.bias)
        return self.convolutions if _agree(hidden, features) else None

    @functools.cached_property
    def input_layer(self) -> Layer | None:
        """A fully connected layer whose input is the dummy data, flattened, whatever follows it.

        None where there is no such layer with a bias, or no gradients of it were
        shared.
        """
        probe = self.probe
        ops = input_layer(list(probe.dummy_gradients.values()), probe.dummies[0])
        return None if ops is None else _as_numbers(ops, self.step, probe)

    @property
    def reads_dummy_data(self) -> bool:
        """Whether the first layer's input is the dummy data, flattened."""
        return bool(self.probe.layers) and reads(self.probe.layers[0], self.probe.dummies[0])

    @functools.cached_property
    def input_map(self) -> InputMap | None:
        """How the first layer's input is made of several features, or of rows. None for another network."""
        probe = self.probe
        if probe.layout.is_single or not probe.layers:
            return None
        first = probe.layers[0].inputs
        return find_input_map(probe.layout, lambda data: probe.evaluate([data], [first])[0], self.batch_size)

    @functools.cached_property
    def tables(self) -> dict[str, Table]:
        """The tables that integer features are looked up in, by the attack's names."""
        shared = self.step.gradients
        return {
            name: Table(weight.astype(np.float64), shared.get(self.probe.tables.get(name, "")))
            for name, weight in self.probe.table_weights().items()
        }

    def dummy_data(self, inputs: np.ndarray, labels: np.ndarray, multiple: float) -> np.ndarray | None:
        """The dummy data that gives a perceptron's first layer these inputs.

        Parameters
        ----------
        inputs : ndarray, shape (k, in), float64
            Of all samples or of some.
        labels : ndarray, shape (k,), int64
            Theirs.
        multiple : float
            How many times the gradients of the mean cross entropy the shared
            ones are.

        Returns
        -------
        ndarray, shape (k, ...), float64, or None
            None where it cannot be told, see `embeddings.dummy_data_of`.
        """
        if self.reads_dummy_data:
            return inputs.reshape(-1, *self.probe.dummies[0].shape[1:])
        layers, input_map = self.perceptron, self.input_map
        if layers is None or input_map is None:
            return None
        gradients = multiple * input_gradients(layers, inputs, labels)
        return dummy_data_of(input_map, self.probe.layout, self.tables, inputs, gradients, self.batch_size)

    def random_stream(self) -> np.random.Generator:
        """The stream of a search, from its beginning."""
        return random_streams.analytic_search(self.seed)


def at_random_batch(probe: Objective, fetched: Sequence[Value]) -> list[np.ndarray]:
    """Values of a probe's program at a batch from N(0, 1), always the same."""
    data = random_streams.probe().standard_normal(probe.dummies[0].shape)
    return probe.evaluate([data], fetched)


def _as_numbers(layer: AffineOps, step: SharedStep, probe: Objective) -> Layer | None:
    """A layer's weights and gradients. None where it has no gradients."""
    if not {layer.weight, layer.bias} <= set(probe.trained):
        return None
    return Layer(
        weight=np.array(probe.scope.find_var(layer.weight).get_tensor()),
        bias=np.array(probe.scope.find_var(layer.bias).get_tensor()),
        weight_gradient=step.gradients[probe.trained[layer.weight]],
        bias_gradient=step.gradients[probe.trained[layer.bias]],
        activation=layer.activation,
        storage_variance=dict(zip(step.gradients, step.storage_variances))[probe.trained[layer.weight]],
    )


def _agree(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.shape == theirs.shape and bool(np.allclose(ours, theirs, _TOLERANCE, _TOLERANCE * np.abs(theirs).max()))
