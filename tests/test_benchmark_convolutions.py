"""benchmarks.convolutions: the rows of its table, and the reference that it compares with."""

from __future__ import annotations

import argparse

import numpy as np
import paddle
import pytest
from benchmarks import convolutions
from benchmarks.attack_target import check_reference
from benchmarks.convolutions import Attacked, attack_by_reference, colour_crops, row, set_norms
from benchmarks.participant import participant


def test_a_row_counts_what_came_back():
    found = [Attacked([130.0], [130.0], 2.0, 1.0), Attacked([12.0], [31.0], 4.0, 3.0)]
    assert row("lenet", found, 1) == "| lenet | 1 | 1 of 2 | 9% to 91% | 2 | 71.0 dB | 3.0 (4.0) | 2.0 (3.0) |"


def test_crops_may_have_their_picture_for_a_label():
    pytest.importorskip("skimage")
    images, labels = colour_crops(3, 2, by_picture=True)
    assert np.array_equal(images, colour_crops(3, 2)[0])
    assert labels.shape == (2, 1)
    assert set(labels.ravel()) <= set(range(4))


def test_a_network_that_the_reference_does_not_have_is_refused(capsys):
    pytest.importorskip("torch")
    with pytest.raises(SystemExit):
        check_reference(argparse.ArgumentParser(), "torch_geiping", ["resnet8-normed", "lenet-trained"])
    assert capsys.readouterr().err.endswith(" resnet18-normed, got lenet-trained\n")


@pytest.mark.parametrize("name", ["zhu-sigmoid-colour", "resnet8-normed"])
def test_the_reference_has_the_same_weights_and_comes_nearer_with_time(name, capsys):
    pytest.importorskip("torch")
    from benchmarks import torch_geiping

    images, labels = colour_crops(0, 1)
    case = convolutions.NETWORKS[name]
    target = participant(case.network, images, labels, 0)
    if case.in_training_mode is not None:
        set_norms(target, case.in_training_mode, 0)
    # Where its gradients were others, it would raise an AssertionError.
    attacked = attack_by_reference(name, target, images, labels, 0, Attacked([], [20.0], 0.0, 0.5))
    assert len(attacked) == len(torch_geiping.TOTAL_VARIATIONS)
    assert all(each.psnrs[0] > 5 and 0.5 <= each.processor < 2 for each in attacked.values())
    assert capsys.readouterr().out.count("cosine distance") == 3


def test_weights_that_are_not_the_same_are_an_error():
    pytest.importorskip("torch")
    from benchmarks import torch_dlg, torch_geiping

    images, labels = colour_crops(0, 1)
    target = participant(convolutions.NETWORKS["zhu-colour"].network, images, labels, 0)
    scope, shared = paddle.static.global_scope(), target.step()
    value = {name: np.array(scope.find_var(name).get_tensor()) for name in shared}
    network, names = torch_geiping.copied_network("zhu-colour", lambda name: 1.01 * value[name])
    with pytest.raises(AssertionError, match="zhu-colour: the gradient of parameter"):
        torch_dlg.check_gradients("zhu-colour", network, images, labels, [shared[name] for name in names])
