"""The rules for sampling at computed positions: each is right in every mode, and still needed."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from examples import BATCH, PICTURES, batch_of, check, classifier, gradient_ops, rules_of
from paddle import nn

from dlg.graph.rules import sampling


def transform(x, rows=2):
    """A matrix for each picture that reaches beyond it."""
    return (0.7 * nn.Linear(50, rows * (rows + 1))(x.flatten(1))).reshape([BATCH, rows, rows + 1])


def unmoved(x):
    """A matrix that leaves each picture where it is, as spatial transformers begin."""
    identity = nn.initializer.Assign(np.eye(2, 3, dtype="float32").ravel())
    layer = nn.Linear(50, 6, weight_attr=nn.initializer.Constant(0.0), bias_attr=identity)
    return layer(x.flatten(1)).reshape([BATCH, 2, 3])


def picture(x):
    return nn.Conv2D(2, 4, 2)(x)


def spatial_transformer(x, matrix=transform, sizes=(4, 5, 5), align_corners=True, **options):
    grid = F.affine_grid(matrix(x), [BATCH, *sizes], align_corners=align_corners)
    # PaddlePaddle does not know the shape.
    return F.grid_sample(picture(x), grid, align_corners=align_corners, **options).reshape([BATCH, *sizes])


def grid(x, **options):
    return F.affine_grid(transform(x), [BATCH, 4, 3, 3], **options).reshape([BATCH, 18])


def sampled_volume(x):
    grid = F.affine_grid(transform(x, 3), [BATCH, 2, 2, 3, 3])
    return F.grid_sample(picture(x).reshape([BATCH, 2, 2, 4, 4]), grid).reshape([BATCH, 2, 2, 3, 3])


LAYERS = {
    "affine grid": lambda x: F.affine_grid(transform(x), [BATCH, 4, 3, 3]).reshape([BATCH, 18]),
    "affine grid, pixels' centres": lambda x: F.affine_grid(
        transform(x), [BATCH, 4, 3, 3], align_corners=False
    ).reshape([BATCH, 18]),
    "volumes": sampled_volume,
    "a transformer that leaves pictures where they are": lambda x: spatial_transformer(x, unmoved, (4, 4, 4)),
    "positions of one's own": lambda x: F.grid_sample(
        picture(x), nn.Linear(50, 24)(x.flatten(1)).reshape([BATCH, 3, 4, 2])
    ),
}


def test_the_rules_are_those_that_have_an_example():
    assert rules_of(sampling) == {"affine_grid", "grid_sample"}


@pytest.mark.parametrize("layer", LAYERS)
def test_derivatives_through_sampling_are_right(layer):
    check(classifier(lambda x: paddle.tanh(LAYERS[layer](x))), *batch_of(PICTURES))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_derivatives_of_each_mode_are_right(mode, padding_mode, align_corners):
    options = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    check(classifier(lambda x: paddle.tanh(spatial_transformer(x, **options))), *batch_of(PICTURES))


@pytest.mark.parametrize("op", ["affine_grid_grad", "grid_sample_grad"])
def test_each_rule_is_still_needed(op):
    """A rule can go when PaddlePaddle differentiates the op itself."""
    ops = gradient_ops(classifier(spatial_transformer), *batch_of(PICTURES))
    assert not paddle.base.core.has_vjp(ops[f"pd_op.{op}"])
