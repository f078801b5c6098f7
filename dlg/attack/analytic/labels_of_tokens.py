"""The labels of a batch whose tokens are known, from the gradient of the last layer.

With the tokens, the last layer's inputs h_i and its probabilities p_i are known,
for each sample or for each place of a text. Under cross entropy with the weights
c_i, and a factor s on all gradients, the last layer's weight has the gradient

    dW = s Σ_i c_i h_i (p_i − y_i)ᵀ.

So the labels solve s Σ_i c_i h_i y_iᵀ = s Σ_i c_i h_i p_iᵀ − dW. Inputs that are
equal, as those of texts that begin alike, have only the sum of their labels in
it: how often each class is among them. Which of them has which is then taken to
be the next token of each text, as in a language model, and open. Where there are
more inputs than the layer is wide, nonnegative least squares solves it class by
class.

Where the last layer's weight is the table that the tokens are looked up in, the
table's gradient has the lookups' gradients besides, which depend on the labels.
Its rows of other tokens show the labels that are no tokens of the texts.
Between these and the tokens another layer decides, the last one before it on
each token: with its inputs a_i, the gradient Σ_i a_i d_iᵀ of its weight gives
each d_i, which depends on the label i alone. The label is the one whose d_i is
nearest.

The weights c_i are those of the network's own gradient at labels that are
known. The equation is tested there, so the loss is not assumed.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.optimize import nnls
from scipy.spatial.distance import cdist
from scipy.special import softmax

from dlg import random_streams
from dlg.attack.analytic.gradient_scale import but_for_rounding
from dlg.attack.analytic.reading import Reading
from dlg.attack.analytic.token_layers import TextNetwork, read_at_tokens
from dlg.attack.deadline import check_deadline
from dlg.attack.dummies import fed_label
from dlg.attack.verification import UnchangedNetwork
from dlg.graph.label_readers import LabelKind
from dlg.graph.linear_layers import PROBABILITIES, is_parameter, maker
from dlg.graph.values import Value, numpy_dtype

# How closely the equation must hold at labels that are known, in float64, relative to the gradient's size.
_TOLERANCE = 1e-6
# Two inputs are equal where they differ by less than this share of their length, far below float32's rounding of dW.
_SAME_INPUT = 1e-9
# Inputs whose weight is below this share of the largest are under a mask.
_NO_WEIGHT = 1e-9
# Singular values of the inputs below this share of the largest leave labels to float32's rounding.
_RANK_TOLERANCE = 1e-6
# A label is whole where each entry is this near to a whole number.
_WHOLE = 0.2
# A class is nobody's label where its equation's right side is below this share of the shortest input's.
_NOBODYS = 0.1
# A label is another one than expected where the gradient at a layer's outputs is off by this share of the median size.
_OTHER_LABEL = 1e-3
# What a number is divided by where it would be divided by zero.
_TINY = float(np.finfo(np.float64).tiny)


class LabelsOfTokens:
    """Reads the labels of batches whose tokens are known off the last layer's gradient.

    Parameters
    ----------
    reading : Reading
        Of a network with one lookup and no other feature.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._network = UnchangedNetwork(reading.step, reading.probe, "float64", with_tables=True)
        self._layer = find_last_layer(self._network)
        self._layer_name = "" if self._layer is None else self._layer.weight

    def of(self, tokens: dict[int, np.ndarray]) -> np.ndarray | None:
        """The labels of tokens.

        Parameters
        ----------
        tokens : dict of int to ndarray, (B, ...), int64
            By the number of the feature.

        Returns
        -------
        ndarray, shape (B,) or (B, ...), int64, or None
            None where a label is no class, the network does not end in a fully
            connected layer under cross entropy, or no whole labels solve the
            equation.

        Raises
        ------
        TimeLimitReachedError
            Where the time of the deadline in force is over.
        """
        layer = self._known_layer(tokens)
        if layer is None:
            return None
        expected = layer.next_tokens()
        if layer.is_table:
            expected = self._beside_lookups(layer, expected)
        labels, is_whole = layer.solved(expected)
        if layer.is_table and (labels != expected).any():
            # The lookups' gradients were those of other labels.
            return None
        return labels.reshape(self._reading.probe.label_probability.shape[:-1]) if is_whole else None

    def _beside_lookups(self, layer: _KnownLayer, expected: np.ndarray) -> np.ndarray:
        """The labels, (n,), where the last layer's gradient has that of the lookups besides.

        Those that are expected are kept where they give the layer before its gradient.
        """
        network = TextNetwork(self._reading)
        (texts,) = layer.tokens.values()
        rows = texts.reshape(len(texts), -1)[:, network.rows.places] + network.rows.offsets
        read = [(value, names[0]) for value, names in read_at_tokens(network) if names[0] != self._layer_name]
        if not read or len(expected) != rows.size:
            return expected
        value, name = read[-1]
        (inputs,) = network.evaluate(rows, [value])
        solution = np.linalg.pinv(inputs.reshape(len(expected), -1).T, rcond=_RANK_TOLERANCE)

        def at_outputs(labels: np.ndarray) -> np.ndarray:
            check_deadline()
            fed = _fed(self._reading, self._network, layer.tokens, labels)
            return solution @ self._network.gradients(*fed)[name]

        shared = solution @ self._reading.step.gradients[self._reading.probe.trained[name]].astype(np.float64)
        tokens = np.unique(rows)
        of_expected = at_outputs(expected)
        # Most labels are the expected ones. So their gradients show the factor.
        squares = np.maximum(np.sum(of_expected**2, axis=1), _TINY)
        factor = float(np.median(np.sum(shared * of_expected, axis=1) / squares))

        def distances(outputs: np.ndarray) -> np.ndarray:
            return np.linalg.norm(shared - factor * outputs, axis=1)

        is_other = distances(of_expected) > _OTHER_LABEL * np.median(np.linalg.norm(shared, axis=1))
        if not is_other.any():
            return expected
        # The rows of the table that are no tokens of the texts have no lookup's gradient.
        others = layer.solved(expected, left_out=tokens)[0]
        tried = [others, *(np.full(len(expected), token) for token in tokens)]
        nearest = np.argmin([distances(at_outputs(labels)) for labels in tried], axis=0)
        return np.where(is_other, np.array(tried)[nearest, np.arange(len(expected))], expected)

    def copies(self, tokens: dict[int, np.ndarray], count: int) -> np.ndarray | None:
        """How often each of the texts that differ is in the batch, by the classes that are nobody's label.

        Of m copies of a text, these classes' errors are m c_i p_i.

        Parameters
        ----------
        tokens : dict of int to ndarray, (B, ...), int64
            The texts that differ first, then any of them again.
        count : int
            How many differ.

        Returns
        -------
        ndarray, shape (count,), int64, or None
            None where the numbers are not whole, or are not B together.
        """
        layer = self._known_layer(tokens)
        return None if layer is None or layer.is_table else layer.copies(count, self._reading.batch_size)

    def _known_layer(self, tokens: dict[int, np.ndarray]) -> _KnownLayer | None:
        """The last layer at tokens; None where there is none, or its equation does not hold."""
        probe, step, network, layer = self._reading.probe, self._reading.step, self._network, self._layer
        trained = probe.trained | probe.tables
        if probe.label_kind not in (LabelKind.CLASS, LabelKind.PROBABILITY):
            return None
        if layer is None or trained.get(layer.weight) not in step.gradients:
            return None
        *places, classes = probe.label_probability.shape
        count = int(np.prod(places))
        any_labels = random_streams.probe().integers(0, classes, count)
        fed = _fed(self._reading, network, tokens, any_labels)
        hidden, logits = (
            np.asarray(each).reshape(-1, each.shape[-1])
            for each in network.evaluate(*fed, [layer.hidden, layer.logits])
        )
        if logits.shape != (count, classes):
            return None
        # A label that the network is sure of has no gradient, and does not show its weight.
        any_labels = np.where(any_labels == logits.argmax(axis=1), (any_labels + 1) % classes, any_labels)
        fed = _fed(self._reading, network, tokens, any_labels)
        shared, own = step.gradients[trained[layer.weight]].astype(np.float64), network.gradients(*fed)[layer.weight]
        if layer.is_transposed:
            shared, own = shared.T, own.T
        known = _KnownLayer(
            self._reading,
            network,
            tokens,
            shared,
            hidden,
            softmax(logits, axis=1),
            np.ones(count),
            layer.weight in probe.tables,
        )
        errors = known.probabilities - np.eye(classes)[any_labels]
        weights = _weights(hidden, errors, known.without_lookups(own, any_labels))
        return None if weights is None else dataclasses.replace(known, weights=weights)


@dataclasses.dataclass(frozen=True)
class _KnownLayer:
    """A last layer whose inputs are known.

    Attributes
    ----------
    reading : Reading
    network : UnchangedNetwork
    tokens : dict of int to ndarray
    gradient : ndarray, shape (k, C), float64
        dW, as it was shared.
    hidden : ndarray, shape (n, k), float64
        h_i.
    probabilities : ndarray, shape (n, C), float64
        p_i.
    weights : ndarray, shape (n,), float64
        c_i.
    is_table : bool
        Whether W is the table that the tokens are looked up in.
    """

    reading: Reading
    network: UnchangedNetwork
    tokens: dict[int, np.ndarray]
    gradient: np.ndarray
    hidden: np.ndarray
    probabilities: np.ndarray
    weights: np.ndarray
    is_table: bool

    def next_tokens(self) -> np.ndarray:
        """The next token of each place, (n,), where labels are as many as tokens; else 0. 0 is the last place's."""
        (texts,) = self.tokens.values()
        texts = texts.reshape(len(texts), -1)
        if texts.size != len(self.hidden):
            return np.zeros(len(self.hidden), np.int64)
        following = np.pad(texts[:, 1:], ((0, 0), (0, 1))).ravel()
        return np.where(following < self.probabilities.shape[1], following, 0).astype(np.int64)

    def solved(self, labels: np.ndarray, left_out: np.ndarray | None = None) -> tuple[np.ndarray, bool]:
        """The labels by the equation, (n,), with the lookups' gradients at other labels; and whether they are whole.

        Classes that are left out are nobody's label.
        """
        gradient = self.without_lookups(self.gradient, labels)
        groups = _equal_inputs(self.hidden, self.weights)
        first = [group[0] for group in groups]
        sizes = np.array([len(group) for group in groups])
        totals = np.array([self.weights[group].sum() for group in groups])
        counts = _counts(self.hidden[first], self.probabilities[first], totals, sizes, gradient)
        if left_out is not None:
            counts[:, left_out] = 0
        whole = np.rint(counts)
        is_whole = bool(np.abs(counts - whole).max() < _WHOLE and (whole.sum(axis=1) == sizes).all())
        found = labels.copy()
        for group, of_group in zip(groups, counts):
            found[group] = _assigned(of_group, labels[group])
        return found, is_whole and whole.min() >= 0

    def copies(self, count: int, batch_size: int) -> np.ndarray | None:
        """See `LabelsOfTokens.copies`."""
        groups = _equal_inputs(self.hidden, self.weights)
        first = [group[0] for group in groups]
        values = np.linalg.svd(self.hidden[first], compute_uv=False)
        if len(first) > self.hidden.shape[1] or values[-1] <= _RANK_TOLERANCE * values[0]:
            return None
        errors = np.linalg.lstsq(self.hidden[first].T, self.gradient, rcond=None)[0]
        places = len(self.hidden) // batch_size
        # The last place that the loss depends on tells texts apart that begin alike.
        last = [
            max((number for number, group in enumerate(groups) if (group // places == text).any()), default=-1)
            for text in range(count)
        ]
        if min(last) < 0:
            return None
        weights = np.array([self.weights[groups[number]].mean() for number in last])
        expected = weights[:, None] * self.probabilities[[first[number] for number in last]]
        copies = np.median(errors[last] / np.maximum(expected, _TINY), axis=1)
        whole = np.rint(copies).astype(np.int64)
        is_whole = np.abs(copies - whole).max() < _WHOLE and whole.min() > 0 and whole.sum() == batch_size
        return whole if is_whole else None

    def without_lookups(self, gradient: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """A gradient of the last layer's weight less that of the lookups at labels, where both are of one table."""
        if not self.is_table:
            return gradient
        features, fed = _fed(self.reading, self.network, self.tokens, labels)
        (rows,) = self.reading.probe.layout.rows
        (texts,) = self.tokens.values()
        (at_rows,) = self.network.row_gradients(features, fed)
        indices = texts.reshape(len(texts), -1)[:, rows.places] + rows.offsets
        of_lookups = np.zeros(gradient.shape[::-1])
        np.add.at(of_lookups, indices.ravel(), np.asarray(at_rows).reshape(-1, rows.width))
        if rows.padding is not None:
            of_lookups[rows.padding] = 0
        return gradient - of_lookups.T


@dataclasses.dataclass(frozen=True)
class LastLayer:
    """The fully connected layer that gives the logits.

    Attributes
    ----------
    hidden, logits : Value, (..., k) and (..., C)
        What it reads and gives, in the unchanged network's program.
    weight : str
        The attack's name of its weight.
    is_transposed : bool
        Whether the weight is shaped (C, k), as a table is.
    """

    hidden: Value
    logits: Value
    weight: str
    is_transposed: bool


def find_last_layer(network: UnchangedNetwork) -> LastLayer | None:
    """Find the layer that gives the logits; None where they do not come out of one."""
    op = maker(network.call.prediction, (*PROBABILITIES, "pd_op.reshape"))
    if op is None:
        return None
    logits = op.result(0)
    if op.name() == "pd_op.add" and is_parameter(op.operand_source(1).get_defining_op()):
        op = op.operand_source(0).get_defining_op()
    if op is None or op.name() != "pd_op.matmul" or not is_parameter(op.operand_source(1).get_defining_op()):
        return None
    weight = network.names.get(op.operand_source(1).name)
    if weight is None or op.attrs()["transpose_x"]:
        return None
    return LastLayer(op.operand_source(0), logits, weight, bool(op.attrs()["transpose_y"]))


def _fed(
    reading: Reading, network: UnchangedNetwork, tokens: dict[int, np.ndarray], labels: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """What the unchanged network is fed for tokens and labels."""
    probe, label = reading.probe, network.call.label
    features = probe.layout.features(np.zeros(probe.dummies[0].shape), tokens)
    return features, fed_label(labels, label.shape, numpy_dtype(label), probe.label_kind)


def _weights(hidden: np.ndarray, errors: np.ndarray, gradient: np.ndarray) -> np.ndarray | None:
    """c_i of dW = Σ c_i h_i e_iᵀ, (n,); None where no weights solve it."""
    normal = (hidden @ hidden.T) * (errors @ errors.T)
    right = np.sum((hidden @ gradient) * errors, axis=1)
    weights = np.linalg.lstsq(normal, right, rcond=None)[0]
    rest = np.linalg.norm(gradient - hidden.T @ (weights[:, None] * errors))
    return weights if weights.max() > 0 and rest <= _TOLERANCE * np.linalg.norm(gradient) else None


def _equal_inputs(hidden: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """Which inputs of the layer are equal, by their numbers; those without weight are in no group."""
    lengths = np.linalg.norm(hidden, axis=1)
    is_same = cdist(hidden, hidden) <= _SAME_INPUT * np.maximum(lengths, lengths[:, None])
    has_weight = weights > _NO_WEIGHT * weights.max()
    first = np.where(has_weight, is_same.argmax(axis=1), -1)
    return [np.flatnonzero(first == number) for number in np.unique(first[has_weight])]


def _counts(
    hidden: np.ndarray, probabilities: np.ndarray, totals: np.ndarray, sizes: np.ndarray, gradient: np.ndarray
) -> np.ndarray:
    """How often each class is among the labels of equal inputs, (groups, C), in real numbers.

    Parameters
    ----------
    hidden, probabilities : ndarray, (groups, k) and (groups, C)
        Of the groups, which differ.
    totals : ndarray, shape (groups,)
        The sum of the weights c_i of each.
    sizes : ndarray, shape (groups,)
        How many inputs are in each.
    gradient : ndarray, shape (k, C)
        dW.
    """
    values = np.linalg.svd(hidden, compute_uv=False)
    expected = totals[:, None] * probabilities
    each = (totals / sizes)[:, None]
    if len(hidden) <= hidden.shape[1] and values[-1] > _RANK_TOLERANCE * values[0]:
        errors = np.linalg.lstsq(hidden.T, gradient, rcond=None)[0]
        alone = np.flatnonzero(sizes == 1)
        labels = errors[alone].argmin(axis=1)
        # The error of an input's one label is −s c (1 − p).
        missing = each[alone, 0] * (1 - probabilities[alone, labels])
        scale = _scale(float(np.median(-errors[alone, labels] / np.maximum(missing, _TINY)))) if len(alone) else 1.0
        return expected / each - errors / (scale * each)
    of_expected = hidden.T @ expected
    # Most classes are nobody's label: their part of dW is that of the probabilities.
    products, squares = np.sum(of_expected * gradient, axis=0), np.sum(of_expected**2, axis=0)
    scale = _scale(float(np.median(products / np.maximum(squares, _TINY))))
    right = scale * of_expected - gradient
    weighted = scale * each * hidden
    counts = np.zeros(probabilities.shape)
    shortest = np.linalg.norm(weighted, axis=1).min()
    for chosen in np.flatnonzero(np.linalg.norm(right, axis=0) > _NOBODYS * shortest):
        check_deadline()
        counts[:, chosen] = nnls(weighted.T, right[:, chosen])[0]
    return counts


def _scale(factor: float) -> float:
    """A factor on the gradients; 1 where it is 1 but for rounding, or not positive."""
    return 1.0 if factor <= 0 else but_for_rounding(factor)


def _assigned(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The labels that counts stand for, (m,), each in the place where it is expected, if it is there."""
    left, labels = counts.copy(), []
    for _ in expected:
        labels.append(int(left.argmax()))
        left[labels[-1]] -= 1
    assigned = np.full(len(expected), -1, np.int64)
    for place, label in enumerate(expected.tolist()):
        if label in labels:
            assigned[place] = label
            labels.remove(label)
    assigned[assigned < 0] = labels
    return assigned
