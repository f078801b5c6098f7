"""The grid of an audit: its cells, and the grids that the command has."""

from __future__ import annotations

import re

import pytest

from dlg.audit.grid import DEFAULT_GRID, MOST_CELLS, QUICK_GRID, THOROUGH_GRID, Cell, Grid
from dlg.errors import InputError
from dlg import defenses
from dlg.participant.networks import NETWORKS


def test_a_grid_has_a_cell_for_each_combination_seeds_running_fastest():
    grid = Grid(networks=["mlp", "lenet"], batch_sizes=[1, 2], defenses=["none", "int8"], seeds=2, iterations=9)
    cells = grid.cells()
    assert len(cells) == 2 * 2 * 2 * 2
    assert cells[:3] == [Cell("mlp", 1, "none", 0), Cell("mlp", 1, "none", 1), Cell("mlp", 1, "int8", 0)]
    assert cells[-1] == Cell("lenet", 2, "int8", 1)


def test_a_combination_that_is_given_twice_is_one_cell():
    grid = Grid(networks=["mlp", "mlp"], batch_sizes=[2, 2], defenses=["none"], seeds=1, iterations=9)
    assert grid.cells() == [Cell("mlp", 2, "none", 0)]


@pytest.mark.parametrize("seeds", [MOST_CELLS // 2 + 1, 10**30])
def test_a_grid_of_too_many_cells_is_refused_before_it_is_made(seeds):
    grid = Grid(networks=["mlp"], batch_sizes=[1, 1], defenses=["none", "int8"], seeds=seeds, iterations=9)
    with pytest.raises(InputError, match=f"has {2 * seeds:,} cells, expected at most {MOST_CELLS:,}"):
        grid.cells()


@pytest.mark.parametrize("grid", [DEFAULT_GRID, QUICK_GRID, THOROUGH_GRID])
def test_the_commands_grids_are_of_known_networks_and_defences(grid):
    assert set(grid.networks) <= set(NETWORKS)
    assert all(defenses.parse(spec) for spec in grid.defenses)
    # The defended cells are compared with these.
    assert "none" in grid.defenses


def test_every_cell_has_a_key_of_its_own_that_can_be_part_of_a_file_name():
    keys = [cell.key for cell in DEFAULT_GRID.cells()]
    assert len(set(keys)) == len(keys) == 3 * 2 * 21 * 5
    assert all(re.fullmatch(r"[\w.+-]+", key) for key in keys)
