"""Integer features after an attack: from the rows that it found in the dummy data to tokens, and what is claimed.

The gradient of a table has a row that is not zero for each token that is in the
batch, whatever the model and the batch size: dE[t] = Σ over the places with
token t of ∂L/∂row. So the set of tokens leaks by itself, and each row that an
attack found is taken for the nearest one of the table among those. What an
attack found counts only if the gradients of the unchanged network at these
tokens, the tables' included, are the shared ones. Behind a defence that is
known, the tokens whose rows it cannot have made count by themselves, see
`dlg.attack.table_rows`.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from dlg.attack.dummies import fed_label, recovered_label
from dlg.attack.features import PADDING, UNREAD, Layout, Rows
from dlg.attack.losses import gradient_matching_loss
from dlg.attack.objective import Objective
from dlg.attack.optimizers import DummyBatch
from dlg.attack.shared_step import SharedStep
from dlg.attack.stages import begin_stage
from dlg.attack.strategy import Strategy
from dlg.attack.table_rows import may_hide_rows, rows_of_batch
from dlg.attack.verdict import EXPLAINED, FAILED, MATCHED, UNDETERMINED, Verdict, failure_advice, failure_reason
from dlg.attack.verification import UnchangedNetwork
from dlg.defense_knowledge import NOTHING
from dlg.errors import PrecisionError, ProgramError
from dlg.graph.label_readers import LabelKind
from dlg.graph.values import numpy_dtype
from dlg.options import AttackOptions

# A place whose row has a gradient below this share of the largest is one that the loss does not depend on: float32's
# rounding.
_NO_GRADIENT = 1e-7
# Which other classes are put in the place of a label, to see whether the loss depends on it.
_OTHER_CLASSES = (1, 2)
# What is said of tokens that the tables' gradients alone name.
_OF_BATCH = "the tokens that are named are in the batch; of which texts, in what order and how often is open"


def tokens_present(step: SharedStep, objective: Objective) -> dict[str, np.ndarray]:
    """The rows of each table's shared gradient that only a token of the batch can have.

    Without a defence, those that are not zero; see `dlg.attack.table_rows`. A
    token has no such row where it is the table's ``padding_idx``, or where the
    loss does not depend on any of its places, as under a mask. A table that the
    network uses elsewhere too, as its last layer for one, has a gradient without
    zeros; all of its rows are then given.

    Returns
    -------
    dict of str to ndarray, int64
        By the trained name of each table that a gradient was shared of.
    """
    storage = dict(zip(step.gradients, step.storage_variances))
    return {
        trained: rows_of_batch(step.gradients[trained], step.knowledge, storage[trained])
        if name in objective.lookup_tables
        else np.arange(len(step.gradients[trained]))
        for name, trained in objective.tables.items()
        if trained in step.gradients
    }


def tokens_named(step: SharedStep, objective: Objective) -> dict[int, np.ndarray] | None:
    """The tokens that the tables' gradients alone name, each once, in the order of the table.

    Which text has which of them, in what order and how often is open.

    Parameters
    ----------
    step : SharedStep
    objective : Objective
        Its layout and tables.

    Returns
    -------
    dict of int to ndarray, (B, ...), int64, or None
        By the number of the feature; `UNREAD` where nothing more is named. None
        where no token is: of an update of several local steps, where a table
        serves several lookups or is used for more, where `UNREAD` is no number of
        the feature's dtype, and where more tokens are named than the batch has,
        which shows that the defence was another one.
    """
    if step.local_steps is not None:
        return None
    present, layout = tokens_present(step, objective), objective.layout
    found = {rows.feature: np.full((step.batch_size, *layout.shapes[rows.feature]), UNREAD) for rows in layout.rows}
    is_named = False
    for rows in layout.rows:
        is_alone = [each.table for each in layout.rows].count(rows.table) == 1 and np.ptp(rows.offsets) == 0
        is_signed = np.issubdtype(layout.dtypes[rows.feature], np.signedinteger)
        trained = objective.tables.get(rows.table) if rows.table in objective.lookup_tables else None
        if trained not in present or not (is_alone and is_signed):
            continue
        named = present[trained] - rows.offsets[0]
        flat = found[rows.feature].reshape(step.batch_size, -1)
        places = np.unique(rows.places)
        if len(named) > step.batch_size * len(places):
            return None
        listed = np.full((step.batch_size, len(places)), UNREAD)
        listed.flat[: len(named)] = named
        flat[:, places], is_named = listed, is_named or len(named) > 0
    return found if is_named else None


def _rows_not_zero(step: SharedStep, objective: Objective) -> dict[str, np.ndarray]:
    """The rows of each table's shared gradient that are not zero, by the table's trained name."""
    return {
        trained: np.flatnonzero(np.any(step.gradients[trained] != 0, axis=1))
        for trained in objective.tables.values()
        if trained in step.gradients
    }


def nearest_tokens(step: SharedStep, objective: Objective, data: np.ndarray) -> dict[int, np.ndarray]:
    """The tokens whose rows are nearest to those in dummy data.

    Where several lookups read a token, the squared distances are added.

    Parameters
    ----------
    step : SharedStep
        Its gradients say which tokens are in the batch.
    objective : Objective
        Its layout and tables.
    data : ndarray, (B, n)
        Dummy data.

    Returns
    -------
    dict of int to ndarray, (B, ...), int64
        By the number of the feature. `UNREAD` stands where no lookup reads the
        feature.
    """
    tables, present = objective.table_weights(), _rows_not_zero(step, objective)
    layout = objective.layout
    found: dict[int, np.ndarray] = {}
    for feature in dict.fromkeys(rows.feature for rows in layout.rows):
        lookups = [rows for rows in layout.rows if rows.feature == feature]
        shape = layout.shapes[feature]
        tokens = np.full((len(data), int(np.prod(shape))), UNREAD, np.int64)
        for place in np.unique(np.concatenate([rows.places for rows in lookups])):
            candidates, distances = _distances(int(place), lookups, objective, tables, present, data)
            tokens[:, place] = candidates[distances.argmin(axis=1)]
        found[feature] = tokens.reshape(len(data), *shape)
    return found


def _distances(
    place: int,
    lookups: list[Rows],
    objective: Objective,
    tables: dict[str, np.ndarray],
    present: dict[str, np.ndarray],
    data: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be at a place, (n,), and how far each one's rows are from those found, (B, n)."""
    readers = [(rows, int(index)) for rows in lookups for index in np.flatnonzero(rows.places == place)]
    candidates = _candidates(readers, objective, tables, present)
    distances = np.zeros((len(data), len(candidates)))
    for rows, index in readers:
        indices = candidates + rows.offsets[index]
        of_table = tables[rows.table][indices]
        if rows.padding is not None:
            of_table = np.where(indices[:, None] == rows.padding, 0, of_table)
        distances += cdist(rows.of(data)[:, index], of_table, "sqeuclidean")
    return candidates, distances


def _candidates(
    readers: list[tuple[Rows, int]],
    objective: Objective,
    tables: dict[str, np.ndarray],
    present: dict[str, np.ndarray],
) -> np.ndarray:
    """The tokens that every lookup of a place may have read there."""
    possible: np.ndarray | None = None
    for rows, index in readers:
        indices = present.get(objective.tables.get(rows.table, ""), np.arange(len(tables[rows.table])))
        # Padding has no gradient, and so no row.
        if rows.padding is not None:
            indices = np.union1d(indices, [rows.padding])
        elif objective.is_read_elsewhere(rows.feature):
            indices = np.union1d(indices, [PADDING])
        tokens = indices - rows.offsets[index]
        tokens = tokens[tokens >= 0]
        both = tokens if possible is None else np.intersect1d(possible, tokens)
        # Where no token fits all lookups, the gradients are not those of any batch; what is found will not match.
        possible = both if len(both) or possible is None else possible
    return possible if possible is not None and len(possible) else np.zeros(1, np.int64)


def judge_tokens(
    step: SharedStep,
    strategy: Strategy,
    answer: DummyBatch,
    tokens: dict[int, np.ndarray],
    options: AttackOptions,
    ended: str,
) -> Verdict:
    """Say what may be claimed of tokens, by the gradients of the unchanged network at them.

    Parameters
    ----------
    step, strategy, answer, options, ended
        See `dlg.attack.verdict.judge`.
    tokens : dict of int to ndarray
        From `nearest_tokens`.
    """
    begin_stage("checking the tokens by the whole gradient")
    check = _Check(step, strategy, answer)
    mismatch = check.mismatch(tokens)
    known = _known(step, strategy.objective)
    matches_bounds = step.knowledge.bounds is not None and not step.knowledge.noise
    if not mismatch <= MATCHED and matches_bounds and check.mismatch_of_bounds(tokens) <= MATCHED:
        return _verdict_within_bounds(check, tokens, strategy, known, mismatch)
    if not mismatch <= MATCHED:
        why = failure_reason(mismatch, ended, known="nothing else is known")
        reason = "; ".join([known, *strategy.findings, why])
        # Behind a defence the right tokens do not match either. Without one, the set-up may be wrong, see the advice.
        if step.knowledge != NOTHING and tokens_named(step, strategy.objective) is not None:
            return Verdict(UNDETERMINED, f"{_OF_BATCH}; {reason}", mismatch, of_batch=True)
        return Verdict(FAILED, reason, mismatch, advice=failure_advice(options, ended))
    match = (
        "the unchanged network's gradients at the recovered tokens, the tables' included, match the shared ones to"
        f" {mismatch:.0e} of their size"
    )
    open_parts = []
    rolled = rolled_within_samples(tokens, strategy.objective.layout)
    if rolled is not None and check.mismatch(rolled) <= MATCHED:
        open_parts.append("the order of a sample's tokens, which these gradients do not depend on")
    if masked := check.labels_without_gradient(tokens):
        open_parts.append(f"{masked} labels that the loss does not depend on, as under a mask")
    exchanged = labels_exchanged(tokens, check.labels)
    if exchanged is not None and check.mismatch(tokens, exchanged) <= MATCHED:
        open_parts.append("which of the texts that begin alike has which label where they still are alike")
    if unread := check.places_without_gradient(tokens):
        open_parts.append(f"{unread} tokens whose places the loss does not depend on, as under a mask")
    if open_parts:
        return Verdict(UNDETERMINED, f"{known}; {match}, but leave open {' and '.join(open_parts)}", mismatch)
    return Verdict(EXPLAINED, match, mismatch)


def _verdict_within_bounds(
    check: _Check, tokens: dict[int, np.ndarray], strategy: Strategy, known: str, mismatch: float
) -> Verdict:
    """What is claimed of tokens whose gradients a defence could have made the shared ones. Others may match as well."""
    rolled = rolled_within_samples(tokens, strategy.objective.layout)
    is_ordered = rolled is None or not check.mismatch_of_bounds(rolled) <= MATCHED
    order = "" if is_ordered else "; the order of a sample's tokens is open, for these gradients do not depend on it"
    match = "the unchanged network's gradients at the recovered tokens are within what the defence leaves open"
    return Verdict(UNDETERMINED, f"{known}; {match}, where others may be too{order}", mismatch)


def _known(step: SharedStep, objective: Objective) -> str:
    """What the tables' gradients alone say, in words."""
    present = tokens_present(step, objective)
    if not present:
        return "no gradient of a table was shared, so any token may be in the batch"
    is_hiding = may_hide_rows(step.knowledge)
    return "; ".join(_shown(name, len(rows), len(step.gradients[name]), is_hiding) for name, rows in present.items())


def _shown(table: str, count: int, size: int, is_hiding: bool) -> str:
    """What one table's gradient shows."""
    if is_hiding and count < size:
        return (
            f"the gradient of {table!r} shows {count} of {size} tokens to be in the batch for certain, and the defence"
            " may hide others"
        )
    if count == size:
        return f"the gradient of {table!r} has no row of zeros, and so does not show which tokens are in the batch"
    return f"the gradient of {table!r} shows which tokens are in the batch, {count} of {size}"


def rolled_within_samples(tokens: dict[int, np.ndarray], layout: Layout) -> dict[int, np.ndarray] | None:
    """The same tokens of each sample in another order; None where that is not another batch."""
    rolled = {feature: values.copy() for feature, values in tokens.items()}
    for rows in layout.rows:
        flat = rolled[rows.feature].reshape(len(tokens[rows.feature]), -1)
        original = tokens[rows.feature].reshape(flat.shape)
        if len(set(rows.places.tolist())) > 1 and (rows.offsets == rows.offsets[0]).all():
            flat[:, rows.places] = np.roll(original[:, rows.places], 1, axis=1)
    is_other = any((rolled[feature] != tokens[feature]).any() for feature in tokens)
    return rolled if is_other else None


def labels_exchanged(tokens: dict[int, np.ndarray], labels: np.ndarray) -> np.ndarray | None:
    """The same labels, of which some are exchanged between texts that are alike up to the labels' place.

    Of each group of such texts, those at the last place where they differ. Where
    a network sees the tokens up to a place alone, as under a causal mask, the
    gradients do not depend on this.

    Parameters
    ----------
    tokens : dict of int to ndarray, (B, ...), int64
    labels : ndarray, (B, ...), int64

    Returns
    -------
    ndarray or None
        None where there is not one label for each token, or this is no other
        batch.
    """
    (texts, *others) = tokens.values()
    if others or labels.size != texts.size:
        return None
    texts, flat = texts.reshape(len(texts), -1), labels.reshape(len(texts), -1)
    exchanged, is_exchanged = flat.copy(), np.zeros(len(texts), bool)
    for place in reversed(range(texts.shape[1])):
        _, alike = np.unique(texts[:, : place + 1], axis=0, return_inverse=True)
        for number in range(alike.max() + 1):
            group = np.flatnonzero(alike.ravel() == number)
            rolled = flat[group].copy()
            rolled[:, place] = np.roll(rolled[:, place], 1)
            # Equal texts may only change places.
            if not is_exchanged[group].any() and _samples(texts[group], rolled) != _samples(texts[group], flat[group]):
                exchanged[group], is_exchanged[group] = rolled, True
    return exchanged.reshape(labels.shape) if is_exchanged.any() else None


def _samples(texts: np.ndarray, labels: np.ndarray) -> list[tuple[int, ...]]:
    """Texts and their labels, both (B, N), in an order that does not depend on theirs."""
    return sorted(map(tuple, np.column_stack([texts, labels]).tolist()))


class _Check:
    """The unchanged network at an answer whose integer features are tokens."""

    def __init__(self, step: SharedStep, strategy: Strategy, answer: DummyBatch) -> None:
        self._objective = strategy.objective
        self._step, self._answer, self._scale = step, answer, strategy.gradient_scale
        try:
            self._network = UnchangedNetwork(step, strategy.objective, "float64", with_tables=True)
        except (PrecisionError, ProgramError):
            self._network = UnchangedNetwork(step, strategy.objective, "float32", with_tables=True)

    def mismatch(self, tokens: dict[int, np.ndarray], labels: np.ndarray | None = None) -> float:
        """The mismatch of all gradients, see `dlg.attack.verdict.Verdict`; by default with the answer's labels."""
        found, shared = self._gradients(tokens, labels)
        shared = [each / self._scale for each in shared]
        batch_size = self._step.batch_size
        loss = float(gradient_matching_loss(found, shared, batch_size))
        largest = float(gradient_matching_loss([np.zeros_like(each) for each in shared], shared, batch_size))
        return float(np.sqrt(loss / largest)) if largest else np.inf

    def mismatch_of_bounds(self, tokens: dict[int, np.ndarray]) -> float:
        """How far the gradients are outside of what the defence leaves open, relative to their size."""
        found, shared = self._gradients(tokens)
        knowledge, batch_size = self._step.knowledge, self._step.batch_size
        nearest = [np.clip(ours, *knowledge.bounds_of(theirs)) for ours, theirs in zip(found, shared)]
        loss = float(gradient_matching_loss(found, nearest, batch_size))
        size = float(gradient_matching_loss(found, [np.zeros_like(each) for each in found], batch_size))
        return float(np.sqrt(loss / size)) if size else np.inf

    def _gradients(
        self, tokens: dict[int, np.ndarray], labels: np.ndarray | None = None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The network's gradients and the shared ones, in float64; by default with the answer's labels."""
        names = self._objective.trained | self._objective.tables
        ours = self._network.gradients(self._features(tokens), self._labels if labels is None else self._fed(labels))
        compared = [name for name in ours if names[name] in self._step.gradients]
        found = [np.asarray(ours[name], np.float64) for name in compared]
        return found, [np.asarray(self._step.gradients[names[name]], np.float64) for name in compared]

    def places_without_gradient(self, tokens: dict[int, np.ndarray]) -> int:
        """How many tokens no gradient depends on, nor anything else."""
        lengths = [
            np.linalg.norm(gradient.reshape(-1, gradient.shape[-1]), axis=1)
            for gradient in self._network.row_gradients(self._features(tokens), self._labels)
        ]
        # A frozen table has no such gradients, which says nothing about its tokens.
        largest = max((float(length.max(initial=0)) for length in lengths), default=0.0)
        unread = sum(int(np.sum(values == UNREAD)) for values in tokens.values())
        return unread + sum(int(np.sum(length <= _NO_GRADIENT * largest)) for length in lengths)

    def labels_without_gradient(self, tokens: dict[int, np.ndarray]) -> int:
        """How many labels the loss does not depend on: its gradient by the prediction is zero whatever they are."""
        if self._objective.label_kind is not LabelKind.CLASS:
            return 0
        classes = self._objective.label_probability.shape[-1]
        is_zero = np.ones(self.labels.size, bool)
        # An answer that the network is sure of, and one that the loss ignores, have no gradient either.
        for shift in _OTHER_CLASSES:
            fed = self._fed((self.labels + shift) % classes)
            gradient = self._network.prediction_gradient(self._features(tokens), fed)
            if gradient is None or gradient.shape[-1] != classes or gradient.size != is_zero.size * classes:
                return 0
            sizes = np.abs(gradient).reshape(-1, classes).max(axis=1)
            is_zero &= sizes <= _NO_GRADIENT * sizes.max()
        return int(is_zero.sum())

    @property
    def labels(self) -> np.ndarray:
        """The labels that the answer's probabilities say, see `recovered_label`."""
        return recovered_label(self._objective.label_kind, self._answer.label_probability)

    @property
    def _labels(self) -> np.ndarray:
        if self._objective.label_kind is LabelKind.PROBABILITY:
            return self._answer.label_probability
        return self._fed(self.labels)

    def _fed(self, labels: np.ndarray) -> np.ndarray:
        label = self._network.call.label
        return fed_label(labels, label.shape, numpy_dtype(label), self._objective.label_kind)

    def _features(self, tokens: dict[int, np.ndarray]) -> list[np.ndarray]:
        fed = {feature: np.where(values == UNREAD, 0, values) for feature, values in tokens.items()}
        return self._objective.layout.features(self._answer.values[0], fed)
