"""Small networks with integer features, and batches for them."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

VOCABULARY, WIDTH, LENGTH, CLASSES = 60, 16, 6, 10


def texts(batch_size, seed=0, vocabulary=VOCABULARY):
    """Tokens from 1 on, for 0 is padding by convention, and labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, vocabulary, (batch_size, LENGTH)), rng.integers(0, CLASSES, (batch_size, 1))


def embedding(vocabulary=VOCABULARY, width=WIDTH, trainable=True, **options):
    weight = paddle.ParamAttr(initializer=nn.initializer.Normal(), trainable=trainable)
    return nn.Embedding(vocabulary, width, weight_attr=weight, **options)


def table(vocabulary=VOCABULARY, width=WIDTH):
    return paddle.create_parameter([vocabulary, width], paddle.get_default_dtype())


def classified(hidden, label):
    prediction = nn.Linear(hidden.shape[-1], CLASSES)(hidden)
    return prediction, F.cross_entropy(prediction, label)


def perceptron_on(hidden, label):
    hidden = paddle.flatten(hidden, 1)
    return classified(F.relu(nn.Linear(hidden.shape[1], 64)(hidden)), label)


def side_by_side(feature, label):
    """The rows of all tokens, one beside the other, into a perceptron."""
    return perceptron_on(embedding()(feature), label)


def bag(feature, label):
    """The mean of the rows, into a perceptron."""
    return perceptron_on(paddle.mean(embedding()(feature), axis=1), label)


def masked_bag(feature, label):
    """The mean of the rows of what is no padding."""
    mask = paddle.unsqueeze(paddle.cast(feature != 0, paddle.get_default_dtype()), -1)
    return perceptron_on(paddle.sum(embedding()(feature) * mask, axis=1) / paddle.sum(mask, axis=1), label)


def encoder(feature, label):
    """One encoder layer, with trained positions."""
    hidden = 2 * embedding()(feature) + table(LENGTH)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, dropout=0.0)
    return classified(paddle.mean(nn.TransformerEncoder(layer, 1)(hidden), axis=1), label)


def hidden_of_layers(feature, mask=None, width=32, tokens=None):
    """Two encoder layers with trained positions, wide enough for the spans of two texts."""
    hidden = (tokens or embedding(width=width))(feature) + table(feature.shape[1], width)
    layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, activation="gelu")
    return nn.TransformerEncoder(layer, 2)(hidden, mask)


def causal_mask(length=LENGTH):
    return paddle.triu(paddle.full([length, length], -1e9, paddle.get_default_dtype()), 1)


def wide_encoder(feature, label):
    """Every token sees every other one."""
    return classified(paddle.mean(hidden_of_layers(feature), axis=1), label)


def decoder(feature, label):
    """Each token sees those before it; the last one is classified."""
    return classified(hidden_of_layers(feature, causal_mask())[:, -1], label)


def language_model(feature, label):
    """Each token sees those before it, and the next one is predicted."""
    prediction = nn.Linear(32, VOCABULARY)(hidden_of_layers(feature, causal_mask()))
    return prediction, F.cross_entropy(prediction, label)


def masked_language_model(feature, label):
    """The next token is predicted, and the loss leaves the first two places out."""
    prediction = nn.Linear(32, VOCABULARY)(hidden_of_layers(feature, causal_mask()))
    losses = F.cross_entropy(prediction, label, reduction="none")
    return prediction, paddle.mean(losses[:, 2:])


def tied_language_model(feature, label):
    """The same, with the table for the last layer's weight."""
    tokens = embedding(width=32)
    hidden = hidden_of_layers(feature, causal_mask(), tokens=tokens)
    prediction = paddle.matmul(hidden, tokens.weight, transpose_y=True)
    return prediction, F.cross_entropy(prediction, label)


def padded_encoder(feature, label):
    """No token sees padding, and the mean is over the others."""
    keep = paddle.cast(feature != 0, paddle.get_default_dtype())
    hidden = hidden_of_layers(feature, paddle.reshape((1 - keep) * -1e9, [-1, 1, 1, LENGTH]))
    keep = paddle.unsqueeze(keep, -1)
    return classified(paddle.sum(hidden * keep, axis=1) / paddle.sum(keep, axis=1), label)


def padded_decoder(feature, label):
    """Each token sees those before it, and the mean is over what is no padding."""
    keep = paddle.unsqueeze(paddle.cast(feature != 0, paddle.get_default_dtype()), -1)
    hidden = hidden_of_layers(feature, causal_mask())
    return classified(paddle.sum(hidden * keep, axis=1) / paddle.sum(keep, axis=1), label)


def row_of_a_table(features, label):
    """Two categorical columns and three numbers into a perceptron."""
    categories, numbers = features
    columns = [embedding(9, 4)(categories[:, 0]), embedding(20, 4)(categories[:, 1])]
    return perceptron_on(paddle.concat([*columns, numbers], axis=1), label)


def same_samples(found, true):
    """Whether two batches have the same samples, in whatever order."""
    return sorted(map(tuple, found.tolist())) == sorted(map(tuple, true.tolist()))
