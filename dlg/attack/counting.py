"""How many numbers of a batch the gradients can determine at most, by counting alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dlg.graph.convolution_blocks import ConvolutionBlock
from dlg.graph.linear_layers import AffineOps


def most_determined(
    sizes: Mapping[str, int], blocks: Sequence[ConvolutionBlock], layers: Sequence[AffineOps], batch_size: int
) -> int:
    """The rank that the Jacobian of the gradients by the batch has at most.

    The gradients of a layer and of those behind it depend on the batch only
    through the layer's input, which has B · n numbers. So the rank is at most
    B · n, plus the number of entries of all other gradients. This holds at every
    layer around which no shortcut leads, and the least of these bounds counts.
    Labels are fixed. The gradient of a parameter that several layers share belongs
    to the first of them.

    Parameters
    ----------
    sizes : mapping of str to int
        How many entries each gradient has, by its parameter.
    blocks : sequence of ConvolutionBlock
        The convolutions before the layers, where the two are the whole network.
    layers : sequence of AffineOps
        The fully connected layers that the network ends in. The loss depends on
        the data through the last of them alone.
    batch_size : int
        B.

    Returns
    -------
    int
    """
    parts: list[tuple[set[str], int | None]] = [
        (block.parameters, batch_size * block.input_size if _is_only_way(blocks, place) else None)
        for place, block in enumerate(blocks)
    ]
    parts += [({layer.weight, layer.bias}, math.prod(layer.inputs.shape)) for layer in layers]
    least = sum(sizes.values())
    for number, (_, input_size) in enumerate(parts):
        if input_size is None:
            continue
        needed_before: set[str] = set().union(*(names for names, _ in parts[:number]))
        behind: set[str] = set().union(*(names for names, _ in parts[number:])) - needed_before
        others = sum(size for name, size in sizes.items() if name not in behind)
        least = min(least, others + input_size)
    return least


def _is_only_way(blocks: Sequence[ConvolutionBlock], place: int) -> bool:
    """Whether this block and those behind it read nothing before it but its own input."""
    known = {blocks[place].source, *range(place, len(blocks))}
    return all(block.source in known and block.shortcut in {None, *known} for block in blocks[place:])
