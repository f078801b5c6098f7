"""How close recovered images are to the true ones."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from dlg.results.pictures import picture_shape

# The PSNR, in dB, from which an image counts as recovered: it is then hard to tell from its original.
RECOVERED = 30.0
# The side of the square window in which scikit-image compares two images; SSIM needs images of at least this size.
_SSIM_WINDOW = 7


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """How close one recovered image is to the true image that it was matched to.

    Attributes
    ----------
    image : int
        The index of the true image in its batch.
    recovered : int
        The index of the recovered image in its batch.
    mse : float
        Mean squared error, with pixels in [0, 1].
    psnr : float
        Peak signal-to-noise ratio in dB, -10 · log10(mse), with a peak of 1.
        Infinite where the images are equal.
    ssim : float
        Structural similarity (Wang et al. 2004), 1 for equal images. NaN where
        the samples are not pictures of at least 7 by 7 pixels.
    """

    image: int
    recovered: int
    mse: float
    psnr: float
    ssim: float


def compare(target: np.ndarray, recovered: np.ndarray) -> list[ImageScore]:
    """Match recovered images to the true ones, and score each pair.

    The gradients of a batch do not depend on the order of its samples. So each
    recovered image is assigned to one true image such that the sum of the mean
    squared errors is least.

    Parameters
    ----------
    target : ndarray, shape (B, ...), float
        The true images, with pixels in [0, 1].
    recovered : ndarray, shape (B, ...), float
        The recovered images, in any order. Pixels outside [0, 1] are clipped, as
        they are in the pictures.

    Returns
    -------
    list of ImageScore
        One for each true image, in the order of `target`.
    """
    # Imported here, because only the comparison needs it and an attack starts sooner without it.
    from scipy.optimize import linear_sum_assignment

    target = np.asarray(target, np.float64)
    recovered = np.clip(np.asarray(recovered, np.float64), 0, 1)
    flat_target, flat_recovered = target.reshape(len(target), -1), recovered.reshape(len(recovered), -1)
    mse = np.stack([np.mean((image - flat_recovered) ** 2, axis=1) for image in flat_target])
    scores = []
    for image, match in zip(*linear_sum_assignment(mse)):
        error = float(mse[image, match])
        psnr = -10 * np.log10(error) if error else np.inf
        scores.append(ImageScore(int(image), int(match), error, float(psnr), _ssim(target[image], recovered[match])))
    return scores


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a rate, at 95 % (Wilson 1927); from 0 to 1 where nothing was tried."""
    # Imported here, because only tables of rates need it.
    from scipy.stats import binomtest

    if not trials:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return interval.low, interval.high


def decibels(psnr: float | None) -> str:
    """A PSNR as tables and pictures show it: "34.5 dB", or "equal" where it is infinite or None."""
    return "equal" if psnr is None or math.isinf(psnr) else f"{psnr:.1f} dB"


def _ssim(target: np.ndarray, recovered: np.ndarray) -> float:
    """The structural similarity of two samples, NaN where they are no pictures or too small."""
    from skimage.metrics import structural_similarity

    shape = picture_shape(target.shape)
    if shape is None or min(shape[-2:]) < _SSIM_WINDOW:
        return float("nan")
    colour_axis = 0 if len(shape) == 3 else None
    return float(
        structural_similarity(
            target.reshape(shape),
            recovered.reshape(shape),
            win_size=_SSIM_WINDOW,
            data_range=1.0,
            channel_axis=colour_axis,
        )
    )
