"""What goes wrong for reasons the user can mend."""


class InputError(ValueError):
    """An option, a file, a network or a gradient that the attack cannot take.

    The message names the value that was wrong, what was expected and what to
    do about it, in one line.
    """


class SecondDerivativeError(InputError):
    """A network with an op that cannot be differentiated twice."""


class LabelError(SecondDerivativeError):
    """A network that reads its label in a way that a probability vector cannot stand in for."""


class PrecisionError(InputError):
    """A network that runs in its own precision and not in float64, which an attack needs."""
