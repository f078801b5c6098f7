"""How single ops are rewritten, so that PaddlePaddle can differentiate a network twice.

A rule is a function under the name of its op. It is given the op and returns the
values that take the place of the op's results. There is one file for each family
of ops:

- `activations`, `arithmetic`, `complex_numbers`, `convolutions`, `elementwise`,
  `embedding`, `indexing`, `interpolation`, `layers`, `linear_algebra`, `losses`,
  `normalisation`, `pooling`, `products`, `recurrent`, `reductions`, `sampling`,
  `shapes`: ops that PaddlePaddle cannot differentiate twice;
- `corrections`: ops for which PaddlePaddle claims a second derivative that is
  wrong, or fails when it runs;
- `simplifications`: ops that have a form with the same values at less cost.

To add a rule, write one function in the file of its family, and an example in
that family's test file.

The gradient of an op is written out after the first differentiation, so a rule
may use any op whose own gradient PaddlePaddle has. A rule must compute anew, from
the op's inputs, what the forward op gives besides its main result: the softmax of
a cross entropy, the mean and variance of a normalisation. PaddlePaddle does not
differentiate through those. `dlg.attack.verification` refuses a network for which
a rule is wrong.
"""

from dlg.graph.rules import (
    activations,
    arithmetic,
    complex_numbers,
    convolutions,
    corrections,
    embedding,
    indexing,
    interpolation,
    layers,
    linear_algebra,
    losses,
    normalisation,
    pooling,
    products,
    recurrent,
    reductions,
    sampling,
    shapes,
    simplifications,
)
from dlg.graph.rules.registry import (
    DROPOUT_RULES,
    FORWARD_CORRECTIONS,
    FORWARD_RULES,
    FORWARD_SIMPLIFICATIONS,
    GRADIENT_CORRECTIONS,
    GRADIENT_RULES,
    SIMPLIFICATIONS,
    TABLES,
    ProbabilityOf,
    Rule,
    Table,
)

__all__ = [
    "DROPOUT_RULES",
    "FORWARD_CORRECTIONS",
    "FORWARD_RULES",
    "FORWARD_SIMPLIFICATIONS",
    "GRADIENT_CORRECTIONS",
    "GRADIENT_RULES",
    "SIMPLIFICATIONS",
    "TABLES",
    "ProbabilityOf",
    "Rule",
    "Table",
    "activations",
    "arithmetic",
    "complex_numbers",
    "convolutions",
    "corrections",
    "embedding",
    "indexing",
    "interpolation",
    "layers",
    "linear_algebra",
    "losses",
    "normalisation",
    "pooling",
    "products",
    "recurrent",
    "reductions",
    "sampling",
    "shapes",
    "simplifications",
]
