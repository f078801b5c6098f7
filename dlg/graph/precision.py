"""The floating-point type of parameters that were made in another program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import paddle

from dlg.graph.values import Value

# The types that stand for one another: parameters of these become parameters of the type asked for. Half precision is
# left out, for a network in it has casts of its own.
EXCHANGED = (paddle.float32, paddle.float64)


@contextlib.contextmanager
def typed_as(parameters: Sequence[Value], dtype: str | None) -> Iterator[None]:
    """Let parameters have another floating-point type while a network that reads them is called.

    PaddlePaddle derives the type of each op's result from its operands when the
    op is built. So a layer that was made in a float32 program can only be called
    in a float64 one while its parameters say that they are float64. The types
    are put back at the end of the block, also after an error; no op of the
    parameters' own program is built meanwhile, so nothing there changes.

    Parameters
    ----------
    parameters : sequence of Value
        Parameters of any program.
    dtype : str or None
        The type that those in float32 or float64 have meanwhile. None leaves
        them as they are.
    """
    wanted = getattr(paddle, dtype) if dtype else None
    exchanged = [p for p in parameters if wanted and p.dtype in EXCHANGED and p.dtype != wanted]
    before = [parameter.type() for parameter in exchanged]
    scratch = paddle.static.Program()
    with paddle.static.program_guard(scratch, paddle.static.Program()):
        after = [paddle.static.data(f"like_{n}", p.shape, dtype).type() for n, p in enumerate(exchanged)]
    try:
        for parameter, new in zip(exchanged, after):
            parameter.set_type(new)
        yield
    finally:
        for parameter, old in zip(exchanged, before):
            parameter.set_type(old)
