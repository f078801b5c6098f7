"""What a server saw of a client in a round, and what became of the attack on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlg.errors import InputError, quoted

# What a row says of an update: its attack is not over yet, it was attacked, or it could not be.
WAITING, ATTACKED, NOT_ATTACKED = "waiting", "attacked", "not attacked"


@dataclasses.dataclass
class SeenUpdate:
    """A row of the audit: one client in one round.

    Attributes
    ----------
    server_round : int
        The round, counted from 1.
    client : int
        Flower's number of the node.
    folder : Path
        Where the client's weights and the attack's results are, if there are any.
    batch_size : int or None
        How many samples are behind the update; None where there is no update.
    state : str
        `WAITING`, `ATTACKED` or `NOT_ATTACKED`.
    verdict : str or None
        That of the attack, see `dlg.Reconstruction`; None where there was none.
    reason : str
        Why, in one sentence.
    advice : str
        What to check where the attack has failed.
    labels : list
        The recovered labels.
    gradient_scale : float or None
        The factor on the update that the attack found.
    seconds : float or None
        How long the attack took.
    iterations : int or None
        The number in the name of the attack's last picture.
    """

    server_round: int
    client: int
    folder: Path
    batch_size: int | None = None
    state: str = WAITING
    verdict: str | None = None
    reason: str = ""
    advice: str = ""
    labels: list = dataclasses.field(default_factory=list)
    gradient_scale: float | None = None
    seconds: float | None = None
    iterations: int | None = None

    def not_attacked(self, reason: str) -> None:
        """Say why there was no attack, or no end of it."""
        self.state, self.reason = NOT_ATTACKED, reason

    def attacked(self, summary: Mapping[str, Any]) -> None:
        """Take over what the attack's summary.json says."""
        self.state, self.labels = ATTACKED, summary["recovered_labels"]
        for name in ("verdict", "reason", "advice", "gradient_scale", "seconds", "iterations"):
            setattr(self, name, summary[name])

    @property
    def picture(self) -> Path | None:
        """What was recovered, as a picture; None where there is none."""
        path = self.folder / f"result_{self.iterations}.png"
        return path if self.state == ATTACKED and path.is_file() else None

    @property
    def text(self) -> str | None:
        """What was recovered, as text; None where there is none."""
        path = self.folder / "result.txt"
        return path.read_text() if self.state == ATTACKED and path.is_file() else None


def weights_by_name(content: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The weights in a message of Flower's, by the names that the model has for them.

    Parameters
    ----------
    content : flwr.app.RecordDict
        What the message carries. The first of its ArrayRecords that fits the model
        is taken.
    shapes : mapping of str to tuple of int
        The shape of each tensor in the model's ``state_dict()``, in its order.

    Returns
    -------
    dict of str to ndarray
        The arrays of a record with the model's names, or, of one with other names
        and as many arrays, in the model's order.

    Raises
    ------
    InputError
        Where no record fits the model.
    """
    why = "the message carries no arrays"
    for record in content.array_records.values():
        arrays = {name: array.numpy() for name, array in record.items()}
        if set(arrays) != set(shapes) and len(arrays) == len(shapes):
            arrays = dict(zip(shapes, arrays.values()))
        misfit = _misfit(arrays, shapes)
        if misfit is None:
            return {name: arrays[name] for name in shapes}
        why = misfit
    raise InputError(f"{why}; send the model's state_dict(), by its names or in its order")


def _misfit(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why arrays are not those of a model; None where they may be."""
    if set(arrays) != set(shapes):
        return f"the message carries {len(arrays)} arrays, and the model has {len(shapes)} ({', '.join(shapes)})"
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            return f"{quoted(name)} is shaped {arrays[name].shape} in the message and {shape} in the model"
    return None
