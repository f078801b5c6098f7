"""How close a reconstruction is to the batch it was made from."""

from __future__ import annotations

import dataclasses

import numpy as np

from dlg.results.pictures import picture_shape

# From this PSNR, in dB, an image is hard to tell from its original: it counts as recovered.
RECOVERED = 30.0


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """One true image and the recovered image matched to it.

    Attributes
    ----------
    image, recovered : int
        Their places in the true and in the recovered batch.
    mse : float
        Mean squared error, pixels in [0, 1].
    psnr : float
        Peak signal-to-noise ratio, in dB, with a peak of 1; infinite where the
        images are equal.
    ssim : float
        Structural similarity (Wang et al. 2004), 1 for equal images; NaN where
        the samples are not pictures of at least 7 by 7 pixels.
    """

    image: int
    recovered: int
    mse: float
    psnr: float
    ssim: float


def compare(target: np.ndarray, recovered: np.ndarray) -> list[ImageScore]:
    """Score a reconstruction against the true batch.

    A gradient does not say in which order its batch was, so recovered images
    are assigned to true ones such that the total squared error is least.

    Parameters
    ----------
    target, recovered : ndarray, shape (B, ...), float
        Pixels in [0, 1]; recovered ones outside are clipped, as they are in
        the pictures.

    Returns
    -------
    list of ImageScore
        One per true image, in the order of `target`.
    """
    # Imported here: only the comparison needs SciPy, and an attack starts sooner without it.
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


def _ssim(target: np.ndarray, recovered: np.ndarray) -> float:
    from skimage.metrics import structural_similarity

    shape = picture_shape(target.shape)
    if shape is None or min(shape[-2:]) < 7:
        return float("nan")
    colour = 0 if len(shape) == 3 else None
    return float(
        structural_similarity(target.reshape(shape), recovered.reshape(shape), data_range=1.0, channel_axis=colour)
    )
