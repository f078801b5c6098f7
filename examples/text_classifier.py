"""Recovers a sentence from the gradients of a text classifier in dynamic mode.

Run it from the project's folder: ``python -m examples.text_classifier``
"""

from __future__ import annotations

import numpy as np
import paddle

import dlg

SENTENCE = "the old man said that the sea is kind but that the night on the sea is long"
# As many words as a small classifier knows; those that the sentence does not use are numbered.
WORDS = sorted(set(SENTENCE.split())) + [f"word{number}" for number in range(2000)]
WIDTH = 64


class TextClassifier(paddle.nn.Layer):
    """An encoder with trained positions, and the mean over the tokens."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.tokens = paddle.nn.Embedding(len(WORDS), WIDTH)
        self.positions = paddle.nn.Embedding(length, WIDTH)
        self.encoder = paddle.nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0)
        self.last = paddle.nn.Linear(WIDTH, 2)

    def forward(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """The logits of the two classes, (B, 2), of tokens, (B, L)."""
        hidden = self.tokens(tokens) + self.positions(paddle.arange(tokens.shape[1]))
        return self.last(paddle.mean(self.encoder(hidden), axis=1))


def main() -> None:
    paddle.seed(0)
    tokens = np.array([[WORDS.index(word) for word in SENTENCE.split()]])
    layer = TextClassifier(tokens.shape[1])
    loss = paddle.nn.functional.cross_entropy
    loss(layer(paddle.to_tensor(tokens)), paddle.to_tensor([[1]])).backward()
    result = dlg.attack_layer(
        layer,
        loss,
        {name: parameter.grad for name, parameter in layer.named_parameters()},
        feature=paddle.static.InputSpec([None, tokens.shape[1]], "int64"),
        label=paddle.static.InputSpec([None, 1], "int64"),
        batch_size=1,
        optimizer="auto",
        vocabulary=WORDS,
    )
    print(f"true:      {SENTENCE}")
    print(f"recovered: {' '.join(WORDS[token] for token in result.feature[0])}")


if __name__ == "__main__":
    main()
