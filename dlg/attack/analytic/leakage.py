"""What a network's gradients give away without any input being optimised, by the analytic attacks in turn.

To add an analytic attack, write a module with a function from a `Reading` to a
`Leakage` or None, and list the function below.
"""

from __future__ import annotations

from collections.abc import Callable

from dlg.attack.analytic import (
    bags,
    convolutions,
    local_steps,
    perceptron,
    single_sample,
    softmax_regression,
    token_spans,
    transformer,
)
from dlg.attack.analytic.reading import Leakage, Reading
from dlg.attack.shared_step import SharedStep
from dlg.attack.stages import begin_stage

# Tried in this order; the first that applies decides. What recovers whole inputs comes before what recovers features.
ANALYTIC_ATTACKS: tuple[Callable[[Reading], Leakage | None], ...] = (
    bags.read_off,
    perceptron.read_off,
    convolutions.read_off,
    transformer.read_off,
    token_spans.read_off,
    single_sample.read_off,
    softmax_regression.read_off,
)
# The same for the update of several local steps.
ATTACKS_ON_LOCAL_STEPS: tuple[Callable[[Reading], Leakage | None], ...] = (local_steps.read_off,)


def find_leakage(
    step: SharedStep, seed: int, *, nonnegative: bool, value_range: tuple[float, float] | None = None
) -> Leakage | None:
    """Read labels, and the inputs or features that come with them, off the gradients.

    Parameters
    ----------
    step : SharedStep
        The network and its gradients.
    seed : int
        Of the random streams within. The same seed gives the same leakage.
    nonnegative : bool
        Whether the network's inputs are known not to be negative, like pixels.
    value_range : tuple of float, optional
        The lowest and the highest value of the network's inputs.

    Returns
    -------
    Leakage or None
        None where no analytic attack applies. All of them need a network that
        ends in a fully connected layer with a bias, and, but for batches of one,
        softmax cross entropy, averaged over the batch.

    Raises
    ------
    PrecisionError
        Where the network cannot be built in float64.
    """
    reading = Reading.of(step, seed, nonnegative=nonnegative, value_range=value_range)
    for attack in ANALYTIC_ATTACKS if step.local_steps is None else ATTACKS_ON_LOCAL_STEPS:
        begin_stage(f"reading the batch off the gradients: {attack.__module__.rpartition('.')[2].replace('_', ' ')}")
        leakage = attack(reading)
        if leakage is not None:
            return leakage
    return None
