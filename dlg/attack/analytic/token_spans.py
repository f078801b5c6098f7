"""The tokens of a batch, in order, from the spans of a transformer's weight gradients.

The layers on tokens are those of `dlg.attack.analytic.token_layers`. A text is
right only if its inputs lie in their spans.

1. Before the first attention, an input depends on its token and its place
   alone. So each pair of both is tested by itself.
2. Under a causal mask, an input depends on the tokens up to its place. So texts
   are built up token by token, and those that leave a span are dropped.
3. Without a mask, the attention's own equations say which pairs stand in one
   text, see `dlg.attack.analytic.attention_members`.

The first two are the span check of Petrov et al. (2024), who test the queries of
the first two blocks. Here every layer on tokens is tested: the one after a
block's activation is the widest, and tells texts apart where B · N is beyond the
width of the others.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from dlg.attack.analytic import softmax_regression
from dlg.attack.analytic.attention_members import texts_by_attention
from dlg.attack.analytic.gradient_scale import but_for_rounding
from dlg.attack.analytic.labels_of_tokens import LabelsOfTokens
from dlg.attack.analytic.reading import Leakage, Reading
from dlg.attack.analytic.token_layers import IN_SPAN, TextNetwork, TokenLayer, find_token_layers
from dlg.attack.deadline import check_deadline
from dlg.attack.stages import begin_stage
from dlg.errors import TimeLimitReachedError

# How many prefixes are followed, for each sample of the batch.
_PREFIXES_PER_SAMPLE = 16
# How many texts are evaluated at most.
_MOST_TEXTS = 50_000
# How many texts beyond B are kept to choose the batch from, and how many batches of them are tried.
_MOST_SPARE_TEXTS = 6
_MOST_BATCHES = 50


def read_off(reading: Reading) -> Leakage | None:
    """Read the texts off the spans of the weight gradients.

    Returns
    -------
    Leakage or None
        With the rows of the tokens. Where fewer texts are found than the batch
        has samples, with what is known of them in its findings. None for a
        network with other features, or whose spans tell no texts apart, and
        where the labels cannot be read off the last layer.
    """
    layout = reading.probe.layout
    if len(layout.rows) != 1 or layout.numbers or layout.rows[0].length == 1:
        return None
    network = TextNetwork(reading)
    try:
        layers = find_token_layers(network)
        if all(layer.is_pointwise for layer in layers):
            return None
        candidates = candidates_at_places(network, layers)
        texts = find_texts(network, layers, candidates)
    except TimeLimitReachedError:
        return None
    leakage = _leakage(reading, network, texts) if len(texts) else None
    return _partial_leakage(reading, network, texts, candidates) if leakage is None else leakage


def find_texts(network: TextNetwork, layers: Sequence[TokenLayer], candidates: Sequence[np.ndarray]) -> np.ndarray:
    """Find the texts whose inputs lie in the spans of all layers.

    Parameters
    ----------
    network : TextNetwork
    layers : sequence of TokenLayer
        From `find_token_layers`.
    candidates : sequence of ndarray, int64
        The rows of the table that each place may look up, from
        `candidates_at_places`.

    Returns
    -------
    ndarray, shape (K, N), int64
        The texts that were found, by their rows of the table.

    Raises
    ------
    TimeLimitReachedError
        Where the time of the deadline in force is over.
    """
    if all(layer.is_causal for layer in layers):
        return texts_in_spans(network, layers, candidates)
    return texts_by_attention(network, layers, candidates)


def candidates_at_places(network: TextNetwork, layers: Sequence[TokenLayer]) -> list[np.ndarray]:
    """The rows of the table whose inputs lie in the spans of the pointwise layers, for each place."""
    pointwise = [layer for layer in layers if layer.is_pointwise]
    present = network.rows_present()
    if not pointwise:
        return [present] * network.length
    distances = network.distances(pointwise, np.repeat(present[:, None], network.length, axis=1))
    return [present[at_place <= IN_SPAN] for at_place in distances.T]


def texts_in_spans(network: TextNetwork, layers: Sequence[TokenLayer], candidates: Sequence[np.ndarray]) -> np.ndarray:
    """The texts whose inputs lie in the spans of causal layers at all places.

    Parameters
    ----------
    network : TextNetwork
    layers : sequence of TokenLayer
        All with `is_causal`.
    candidates : sequence of ndarray
        The rows of the table that each place may look up.

    Returns
    -------
    ndarray, shape (K, N), int64
        The nearest to the spans first, then those that padding fills up, the
        longest first. None are returned where too many would have to be tested.
    """
    prefixes, ended, left = np.zeros((1, 0), np.int64), [], _MOST_TEXTS
    for place, rows in enumerate(candidates):
        rows = rows[rows != network.padding]
        longer = np.column_stack([np.repeat(prefixes, len(rows), axis=0), np.tile(rows, len(prefixes))])
        left -= len(longer)
        if left < 0:
            return np.zeros((0, network.length), np.int64)
        check_deadline()
        begin_stage(f"building up texts: {place} of {network.length} tokens, {len(prefixes)} beginnings")
        # What stands behind a place does not matter.
        texts = np.pad(longer, ((0, 0), (0, network.length - place - 1)), mode="edge")
        distances = network.distances(layers, texts)[:, place]
        order = np.argsort(distances)[: _PREFIXES_PER_SAMPLE * network.batch_size]
        kept = order[distances[order] <= IN_SPAN]
        if network.padding is not None and place:
            last = np.delete(prefixes, kept // len(rows), axis=0)
            filling = ((0, 0), (0, network.length - place))
            ended.append(np.pad(last, filling, constant_values=network.padding))
        prefixes = longer[kept]
    return np.concatenate([prefixes, *ended[::-1]])


def _leakage(reading: Reading, network: TextNetwork, texts: np.ndarray) -> Leakage | None:
    """What is claimed of the batch of these texts that matches the whole gradient best; None where no labels fit.

    Where there are fewer texts than samples, some are in the batch more than once.
    A factor on the gradients is claimed only where the whole gradient matches with it.
    """
    reader, best = LabelsOfTokens(reading), None
    if len(texts) < reading.batch_size:
        missing = np.repeat(texts[:1], reading.batch_size - len(texts), axis=0)
        copies = reader.copies(network.tokens(np.concatenate([texts, missing])), len(texts))
        if copies is None:
            return None
        texts = np.repeat(texts, copies, axis=0)
    numbers = range(min(len(texts), reading.batch_size + _MOST_SPARE_TEXTS))
    # The texts that are nearest to the spans come first.
    batches = sorted(itertools.combinations(numbers, reading.batch_size), key=sum)
    for chosen in batches[:_MOST_BATCHES]:
        begin_stage("reading the labels of texts off the last layer")
        batch = texts[list(chosen)]
        try:
            labels, data = reader.of(network.tokens(batch)), network.data(batch)
        except TimeLimitReachedError:
            break
        if labels is None:
            continue
        objective = reading.probe.with_tokens_read_elsewhere(network.tokens(batch)).with_labels(labels)
        scale = but_for_rounding(objective.gradient_scale_at([data]))
        scaled = objective.with_gradient_scale(scale)
        loss = scaled.gradient_matching_loss_at([data])
        if scaled.explains(loss):
            source = "the layers on tokens"
            return Leakage(scaled, labels, certain=True, inputs=data, gradient_scale=scale, source=source)
        if best is None or loss < best[0]:
            best = loss, Leakage(objective, labels, certain=False, start=data)
    return None if best is None else best[1]


def _partial_leakage(
    reading: Reading, network: TextNetwork, texts: np.ndarray, candidates: Sequence[np.ndarray]
) -> Leakage | None:
    """What the last layer gives away, and what is known of the texts; None where the last layer gives nothing."""
    leakage = softmax_regression.read_off(reading) if reading.batch_size > 1 else None
    if leakage is None:
        return None
    found = _findings(texts - network.rows.offsets, [*map(np.subtract, candidates, network.rows.offsets)], reading)
    return dataclasses.replace(leakage, findings=[*leakage.findings, *found])


def _findings(texts: np.ndarray, candidates: Sequence[np.ndarray], reading: Reading) -> list[str]:
    """What is known of the texts, in words."""
    findings = []
    if len(texts):
        lines = ", ".join(" ".join(map(str, text)) for text in texts.tolist())
        findings.append(f"{len(texts)} of {reading.batch_size} texts lie in the spans of the layers on tokens: {lines}")
    tight = {place: tokens for place, tokens in enumerate(candidates) if 0 < len(tokens) <= reading.batch_size}
    if tight:
        lines = ", ".join(f"{' '.join(map(str, tokens.tolist()))} at place {place}" for place, tokens in tight.items())
        findings.append(f"at {len(tight)} places the first layers' spans hold no more tokens than texts: {lines}")
    return findings
