"""The grid of an audit: what is attacked, one cell for each combination."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from urllib.parse import quote

from dlg.errors import InputError

# The most cells of an audit: four times those of the thorough grid, so that a mistyped grid is refused before it runs
# for days.
MOST_CELLS = 10_000
# The most iterations of an attack. On LeNet, 300 of Adam's took 1.6 seconds, so that these take an hour and a half.
MOST_ITERATIONS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of the grid: whose gradients are attacked, and which defence changed them.

    Attributes
    ----------
    network : str
        The name of a `dlg.audit.subject.Subject`.
    batch_size : int
    defense : str
        The canonical spelling of a defence; see `dlg.defenses.parse`.
    seed : int
        It chooses the batch, the weights, the noise and the attack's start.
    """

    network: str
    batch_size: int
    defense: str
    seed: int

    @property
    def key(self) -> str:
        """A name for the cell that may be part of a file's name."""
        # A defence of one's own may have folders in its spelling.
        defense = quote(self.defense.replace(":", "_"), safe="+")
        return f"{self.network}-b{self.batch_size}-{defense}-s{self.seed}"


@dataclasses.dataclass(frozen=True)
class Grid:
    """What an audit attacks. Its fields are options of the command.

    Attributes
    ----------
    networks : sequence of str
    batch_sizes : sequence of int
    defenses : sequence of str
        Spellings of defences.
    seeds : int
        How many seeds there are: 0 up to, but without, this number.
    iterations : int
        The most iterations of an attack.
    compare : bool
        Whether the attacks of `dlg.audit.attacks.COMPARED` are run too.
    """

    networks: Sequence[str]
    batch_sizes: Sequence[int]
    defenses: Sequence[str]
    seeds: int
    iterations: int
    compare: bool = False

    def cells(self) -> list[Cell]:
        """Every combination once, in the order of the rows of results.json.

        Raises
        ------
        InputError
            Where there are more than `MOST_CELLS`.
        """
        number = math.prod(len(set(values)) for values in (self.networks, self.batch_sizes, self.defenses)) * self.seeds
        if number > MOST_CELLS:
            raise InputError(
                f"the grid has {number:,} cells, expected at most {MOST_CELLS:,}; take fewer seeds, batch sizes,"
                " defenses or networks, or several audits, each with a --result_dir of its own"
            )
        combinations = itertools.product(self.networks, self.batch_sizes, self.defenses, range(self.seeds))
        return list(dict.fromkeys(itertools.starmap(Cell, combinations)))


# The defences of section 5 of Zhu et al. (2019), with the paper's numbers and some weaker or stronger ones, and with
# clipping and signs.
DEFAULT_GRID = Grid(
    networks=("softmax", "mlp", "lenet"),
    batch_sizes=(1, 4),
    defenses=(
        "none",
        "gaussian:1e-4",
        "gaussian:1e-3",
        "gaussian:1e-2",
        "gaussian:1e-1",
        "laplacian:1e-4",
        "laplacian:1e-3",
        "laplacian:1e-2",
        "laplacian:1e-1",
        "prune:0.1",
        "prune:0.2",
        "prune:0.5",
        "prune:0.9",
        "clip:1:1e-4",
        "clip:1:1e-3",
        "clip:1:1e-2",
        "clip:1:1",
        "fp16",
        "bf16",
        "int8",
        "sign",
    ),
    seeds=5,
    iterations=300,
)

# For rates with narrow intervals, and to see what it is worth to know the defence.
THOROUGH_GRID = dataclasses.replace(DEFAULT_GRID, seeds=20, compare=True)

# For a first look.
QUICK_GRID = Grid(
    networks=("softmax", "lenet"),
    batch_sizes=(1,),
    defenses=("none", "gaussian:1e-3", "gaussian:1e-1", "prune:0.5", "int8"),
    seeds=1,
    iterations=100,
)
