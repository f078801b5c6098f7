"""What comes back of tokens, categories and patches: 20 seeded batches of each kind of network.

python -m benchmarks.tokens [--row NAME ...] [--seeds 20]

Each row is one network and batch size, attacked with ``--optimizer auto``. Texts
are random tokens with repetitions: each is drawn from Zipf's law over the
vocabulary. Colour pictures are crops of scikit-image's photographs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import skimage.data
import skimage.transform
from paddle import nn

import dlg
from benchmarks.attacks import print_row
from benchmarks.command import end_with
from benchmarks.machine import machine
from benchmarks.participant import FeatureStep, feature_step, fresh_scope
from dlg.options import OneLineParser, argument_type, integer_between
from dlg.participant import data, networks
from dlg.results import metrics

# Tokens of the encoder and of the bag of words.
VOCABULARY = 10_000
# Classes of all networks here.
CLASSES = 10
# How many categories each categorical column has.
CATEGORIES = (12, 7, 150, 40)
# A number of a table counts as recovered from this error on.
NUMBER_ERROR = 1e-3
# Singular values of a gradient below this share of the largest are float32's rounding.
RANK_TOLERANCE = 1.5e-7
# What a causal mask adds to the score of a token that must not be seen.
HIDDEN_SCORE = -1e9
# The least side of a crop of a photograph.
CROP = 96
# The side that crops are scaled to.
SIDE = 32
PHOTOGRAPHS = ("astronaut", "cat", "chelsea", "coffee", "rocket")


def embedding(vocabulary: int, width: int) -> nn.Embedding:
    """A table with rows from N(0, 1), as other frameworks draw them."""
    return nn.Embedding(vocabulary, width, weight_attr=nn.initializer.Normal())


def classified(hidden: Any, label: Any) -> tuple:
    prediction = nn.Linear(hidden.shape[1], CLASSES)(hidden)
    return prediction, F.cross_entropy(prediction, label)


def encoder(feature: Any, label: Any, width: int = 96, make_table: Callable = embedding) -> tuple:
    """Two encoder layers with trained positions, and the mean over the tokens."""
    positions = paddle.create_parameter([1, feature.shape[1], width], paddle.get_default_dtype())
    hidden = make_table(VOCABULARY, width)(feature) + positions
    layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation="gelu")
    return classified(paddle.mean(nn.TransformerEncoder(layer, 2)(hidden), axis=1), label)


def decoder(feature: Any, label: Any, width: int = 128) -> tuple:
    """Two layers under a causal mask, normalised before, with trained positions, and the last token."""
    return classified(_decoded(feature, width)[:, -1], label)


def language_model(feature: Any, label: Any, width: int = 128) -> tuple:
    """The same layers, and the next token at each place."""
    prediction = nn.Linear(width, VOCABULARY)(_decoded(feature, width))
    return prediction, F.cross_entropy(prediction, label)


def tied_language_model(feature: Any, label: Any, width: int = 128) -> tuple:
    """The same, with the table for the last layer's weight."""
    table = embedding(VOCABULARY, width)
    prediction = paddle.matmul(_decoded(feature, width, table), table.weight, transpose_y=True)
    return prediction, F.cross_entropy(prediction, label)


def _decoded(feature: Any, width: int, table: nn.Embedding | None = None) -> Any:
    dtype, length = paddle.get_default_dtype(), feature.shape[1]
    hidden = (table or embedding(VOCABULARY, width))(feature) + paddle.create_parameter([1, length, width], dtype)
    mask = paddle.triu(paddle.full([length, length], HIDDEN_SCORE, dtype), 1)
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, activation="gelu", normalize_before=True)
    return nn.LayerNorm(width)(nn.TransformerEncoder(layer, 2)(hidden, mask))


def bag_of_words(feature: Any, label: Any, width: int = 64, make_table: Callable = embedding) -> tuple:
    """The mean of the tokens' rows, and a perceptron with 128 hidden units."""
    mean = paddle.mean(make_table(VOCABULARY, width)(feature), axis=1)
    return classified(F.relu(nn.Linear(width, 128)(mean)), label)


def table_row(features: Any, label: Any, make_table: Callable = embedding) -> tuple:
    """Four categorical columns with a table of eight numbers for each category, six numbers, and a perceptron."""
    categories, numbers = features
    columns = [make_table(count, 8)(categories[:, index]) for index, count in enumerate(CATEGORIES)]
    hidden = paddle.concat([*columns, numbers], axis=1)
    return classified(F.relu(nn.Linear(hidden.shape[1], 128)(hidden)), label)


def small_patches(feature: Any, label: Any, width: int = 96) -> tuple:
    """A vision transformer on patches of 4 by 4 pixels, with a class token."""
    patches = nn.Conv2D(feature.shape[1], width, 4, stride=4)(feature)
    tokens = paddle.transpose(paddle.flatten(patches, start_axis=2), [0, 2, 1])
    class_token = paddle.create_parameter([1, 1, width], paddle.get_default_dtype())
    tokens = paddle.concat([class_token, tokens], axis=1)
    tokens = tokens + paddle.create_parameter([1, tokens.shape[1], width], paddle.get_default_dtype())
    layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation="gelu")
    return classified(nn.LayerNorm(width)(nn.TransformerEncoder(layer, 2)(tokens)[:, 0]), label)


# Draws a batch: features and labels.
Draw = Callable[[np.random.Generator, int], tuple[Any, np.ndarray]]
# From the true features and what was recovered to how many of how many units came back.
Score = Callable[[Any, dlg.Reconstruction], tuple[int, int]]


def labels_of(rng: np.random.Generator, batch_size: int) -> np.ndarray:
    return rng.integers(0, CLASSES, (batch_size, 1))


def texts(rng: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens by Zipf's law, so that some are repeated."""
    weights = 1 / np.arange(1, VOCABULARY + 1)
    tokens = rng.choice(VOCABULARY, (batch_size, length), p=weights / weights.sum())
    return tokens, labels_of(rng, batch_size)


def continued_texts(rng: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts whose labels are the next tokens."""
    tokens, _ = texts(rng, batch_size, length + 1)
    return tokens[:, :-1], tokens[:, 1:, None]


def texts_that_begin_alike(rng: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts that share their first half, with their next tokens."""
    tokens, _ = texts(rng, batch_size, length + 1)
    tokens[:, : length // 2] = tokens[0, : length // 2]
    return tokens[:, :-1], tokens[:, 1:, None]


def table_rows(rng: np.random.Generator, batch_size: int) -> tuple[list[np.ndarray], np.ndarray]:
    categories = np.stack([rng.integers(0, count, batch_size) for count in CATEGORIES], axis=1)
    numbers = rng.standard_normal((batch_size, 6)).astype(np.float32)
    return [categories, numbers], labels_of(rng, batch_size)


def digits(rng: np.random.Generator, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    return data.first_batch(*data.load(["bundled"]), batch_size, int(rng.integers(2**31)))


def photographs(rng: np.random.Generator, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random crops, scaled to 32 by 32."""
    pictures = []
    for _ in range(batch_size):
        picture = getattr(skimage.data, str(rng.choice(PHOTOGRAPHS)))()
        side = int(rng.integers(CROP, min(picture.shape[:2]) + 1))
        top, left = (int(rng.integers(0, size - side + 1)) for size in picture.shape[:2])
        crop = skimage.transform.resize(picture[top : top + side, left : left + side], (SIDE, SIDE), anti_aliasing=True)
        pictures.append(crop.transpose(2, 0, 1))
    return np.array(pictures, np.float32), labels_of(rng, batch_size)


def in_order(true: np.ndarray, result: dlg.Reconstruction) -> tuple[int, int]:
    """How many tokens are right at their places, in samples that are matched to the true ones."""
    from scipy.optimize import linear_sum_assignment

    right = (true[:, None] == result.feature[None]).sum(axis=2)
    rows, columns = linear_sum_assignment(-right)
    return int(right[rows, columns].sum()), true.size


def counted(true: np.ndarray, result: dlg.Reconstruction) -> tuple[int, int]:
    """How many tokens are right, their order in each sample aside."""
    return matched(true, result.feature, lambda ours, theirs: sum(np.minimum(ours, theirs))), true.size


def matched(true: np.ndarray, found: np.ndarray, agreement: Callable) -> int:
    """The agreement of the counts of each true sample with those of the recovered one that it is matched to."""
    from scipy.optimize import linear_sum_assignment

    counts = [np.stack([np.bincount(each, minlength=VOCABULARY) for each in batch]) for batch in (true, found)]
    common = np.array([[agreement(ours, theirs) for theirs in counts[1]] for ours in counts[0]])
    rows, columns = linear_sum_assignment(-common)
    return int(common[rows, columns].sum())


def rows_right(true: list[np.ndarray], result: dlg.Reconstruction) -> tuple[int, int]:
    """How many categories are right in samples whose numbers are right too."""
    from scipy.optimize import linear_sum_assignment

    categories, numbers = result.feature
    errors = np.abs(true[1][:, None] - numbers[None]).max(axis=2)
    right = (true[0][:, None] == categories[None]).sum(axis=2) * (errors <= NUMBER_ERROR)
    rows, columns = linear_sum_assignment(-right)
    return int(right[rows, columns].sum()), true[0].size


def above(psnr: float, true: np.ndarray, result: dlg.Reconstruction) -> tuple[int, int]:
    """How many pictures reach a PSNR."""
    return sum(score.psnr >= psnr for score in metrics.compare(true, result.feature)), len(true)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes
    ----------
    name : str
        What ``--row`` calls it.
    unit : str
        What is counted.
    network : callable
    draw : callable
    score : callable
    batch_sizes : tuple of int
    """

    name: str
    unit: str
    network: Callable
    draw: Draw
    score: Score
    batch_sizes: tuple[int, ...]


ROWS = (
    Row("encoder", "tokens in order", encoder, partial(texts, length=64), in_order, (1,)),
    Row(
        "encoder-paddle",
        "tokens in order",
        partial(encoder, make_table=nn.Embedding),
        partial(texts, length=64),
        in_order,
        (1,),
    ),
    Row(
        "encoder-batch",
        "tokens in order",
        partial(encoder, width=128),
        partial(texts, length=12),
        in_order,
        (2, 4, 6),
    ),
    Row("decoder", "tokens in order", decoder, partial(texts, length=16), in_order, (1, 4)),
    Row("language-model", "tokens in order", language_model, partial(continued_texts, length=16), in_order, (4,)),
    Row(
        "language-model-alike",
        "tokens in order",
        language_model,
        partial(texts_that_begin_alike, length=16),
        in_order,
        (4,),
    ),
    Row(
        "language-model-tied",
        "tokens in order",
        tied_language_model,
        partial(continued_texts, length=16),
        in_order,
        (4,),
    ),
    Row("bag", "tokens counted", bag_of_words, partial(texts, length=32), counted, (1, 8, 16)),
    Row(
        "bag-paddle",
        "tokens counted",
        partial(bag_of_words, make_table=nn.Embedding),
        partial(texts, length=32),
        counted,
        (1, 8, 16),
    ),
    Row("table", "categories, numbers to 1e-3", table_row, table_rows, rows_right, (1, 8)),
    Row(
        "table-paddle",
        "categories, numbers to 1e-3",
        partial(table_row, make_table=nn.Embedding),
        table_rows,
        rows_right,
        (1, 8),
    ),
    Row("vit-grey", "pictures at 60 dB", networks.vit, digits, partial(above, 60.0), (1,)),
    Row("vit-colour", "pictures at 60 dB", networks.vit, photographs, partial(above, 60.0), (1,)),
    Row("vit-patch4", "pictures at 40 dB", small_patches, photographs, partial(above, 40.0), (1,)),
)


def attacked(step: FeatureStep, seed: int) -> dlg.Reconstruction:
    """Attack a step. It prints nothing and keeps no files."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = SimpleNamespace(batch_size=step.batch_size, optimizer="auto", seed=seed, result_dir=folder)
        return dlg.dlg_attack(options, *step.attack_arguments)


def rank_of_first_layer(gradients: dict[str, np.ndarray]) -> tuple[int, int] | None:
    """The rank of the gradients of the first attention's queries, keys and values, and the most it can be; or None."""
    names = [name for name in ("linear_0.w_0", "linear_1.w_0", "linear_2.w_0") if name in gradients]
    if len(names) < 3 or len({gradients[name].shape for name in names}) > 1:
        return None
    stacked = np.concatenate([gradients[name] for name in names], axis=1).astype(np.float64)
    values = np.linalg.svd(stacked, compute_uv=False)
    return int(np.sum(values > RANK_TOLERANCE * values[0])), len(values)


def ranks_in_words(ranks: Sequence[tuple[int, int] | None]) -> str:
    """From what to what the ranks go, and the most that they can be."""
    found = [rank for rank in ranks if rank is not None]
    return f"{min(found)[0]} to {max(found)[0]} of {found[0][1]}" if found else "-"


def measured(row: Row, batch_size: int, seeds: int) -> list[str]:
    """The cells of a row of the table."""
    right = total = whole = 0
    seconds: list[float] = []
    ranks: list[tuple[int, int] | None] = []
    verdicts: dict[str, int] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        with fresh_scope():
            features, labels = row.draw(rng, batch_size)
            step = feature_step(row.network, features, labels, seed)
            ranks.append(rank_of_first_layer(step.gradients))
            started = time.process_time()
            result = attacked(step, seed)
            seconds.append(time.process_time() - started)
        found, of = row.score(features, result)
        right, total, whole = right + found, total + of, whole + (found == of)
        verdicts[result.verdict] = verdicts.get(result.verdict, 0) + 1
    low, high = metrics.wilson_interval(whole, seeds)
    shares = f"{right / total:.2%} of {total} {row.unit}"
    batches = f"{whole} of {seeds} ({low:.0%} to {high:.0%})"
    said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    return [
        row.name,
        str(batch_size),
        shares,
        batches,
        said,
        ranks_in_words(ranks),
        f"{statistics.median(seconds):.1f}",
        f"{max(seconds):.1f}",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m benchmarks.tokens", description=__doc__.splitlines()[0])
    parser.add_argument("--row", nargs="+", choices=[row.name for row in ROWS], default=[row.name for row in ROWS])
    parser.add_argument(
        "--seeds",
        type=argument_type(integer_between(1)),
        default=20,
        help="the number of batches; their seeds are 0, 1, ...",
    )
    args = parser.parse_args(argv)
    paddle.enable_static()
    print(f"{machine()}\nseeds 0 to {args.seeds - 1}, weights as initialised\n")
    columns = [
        "network",
        "batch",
        "recovered",
        "whole batches (95 %)",
        "verdicts",
        "rank of layer one",
        "median CPU s",
        "longest",
    ]
    print_row(columns)
    print_row(["---"] * len(columns))
    for row in ROWS:
        for batch_size in row.batch_sizes if row.name in args.row else ():
            print_row(measured(row, batch_size, args.seeds))


if __name__ == "__main__":
    end_with(main, "python -m benchmarks.tokens")
