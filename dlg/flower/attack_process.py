"""An attack in a process of its own, so that training does not wait for it and goes on if the attack fails."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from dlg import attack_layer
from dlg.errors import InputError, one_line
from dlg.shared_update import SharedUpdate, load_weights

# The process is of the lowest priority but one step: training goes first.
_NICENESS = 18
# How many seconds an attack may take besides its time limit: to build and verify its program, and to judge its answer.
# On 2 cores, the first two took 185 s for mobilenet_v2 (docs/networks.md).
MOST_BESIDES = 300
# What the attack printed, in its folder. Its last line says why it failed.
LOG = "attack.log"
# What the new Python runs. A module started by -m would be imported once more, under another name.
_CODE = "from dlg.flower.attack_process import main; main()"
# Of a failed process, as many characters of its last line are quoted.
_MOST_QUOTED = 300

_STOPPED = "the training was stopped, and the attack with it"


class AttackError(Exception):
    """An attack that came to no result. The message says why."""


@dataclasses.dataclass(frozen=True)
class Target:
    """The model that a server audits.

    Attributes
    ----------
    layer : paddle.nn.Layer
    loss : callable (prediction, label) -> scalar
    feature, label : tuple of (shape, dtype)
        What `paddle.static.InputSpec` takes.
    """

    layer: paddle.nn.Layer
    loss: Any
    feature: tuple[tuple, str]
    label: tuple[tuple, str]


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be attacked.

    Attributes
    ----------
    target : bytes
        What `pickled` made of the `Target`.
    before, after : Path
        The weights around the local steps.
    rule : dict of str to object
        The other arguments of `dlg.SharedUpdate`.
    folder : Path
        Where the results go.
    options : dict of str to object
        The other arguments of `dlg.attack_layer`.
    """

    target: bytes
    before: Path
    after: Path
    rule: dict[str, Any]
    folder: Path
    options: dict[str, Any]


class _Pickler(pickle.Pickler):
    """Pickles layers. PaddlePaddle 3.0 does not pickle parameters, and later versions make plain tensors of them."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, paddle.base.framework.EagerParamBase):
            return _parameter, (value.numpy(), str(value.dtype).rpartition(".")[2], value.stop_gradient)
        if isinstance(value, paddle.Tensor):
            return _tensor, (value.numpy(), str(value.dtype).rpartition(".")[2], value.stop_gradient)
        return NotImplemented


def _tensor(array: np.ndarray, dtype: str, stop_gradient: bool) -> paddle.Tensor:
    tensor = paddle.to_tensor(array, dtype=dtype)
    tensor.stop_gradient = stop_gradient
    return tensor


def _parameter(array: np.ndarray, dtype: str, stop_gradient: bool) -> paddle.Tensor:
    return paddle.base.framework.EagerParamBase.from_tensor(
        _tensor(array, dtype, stop_gradient), trainable=not stop_gradient
    )


def pickled(target: Target) -> bytes:
    """A model as the bytes from which another process makes it.

    Raises
    ------
    InputError
        Where that is not possible: the other process imports classes and functions
        by their names.
    """
    for role, part in (("the model", type(target.layer)), ("the loss", _named(target.loss))):
        if part.__module__ == "__main__":
            raise InputError(
                f"{role} is {part.__qualname__} of the file that was started, and the attack's process cannot import"
                " that; move it into a module of its own"
            )
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(target)
    except Exception as error:  # what is in a layer decides what is raised
        raise InputError(
            f"the model or the loss cannot be handed to the attack's process: {one_line(error)}; give a layer and a"
            " loss whose classes and functions are in modules, and no lambda"
        ) from error
    return buffer.getvalue()


def _named(loss: Any) -> Any:
    """What the loss is found by: a function, or its class."""
    return loss if hasattr(loss, "__qualname__") else type(loss)


class AttackProcess:
    """Runs attacks, one after the other, each in a new process."""

    def __init__(self) -> None:
        self._running: subprocess.Popen | None = None
        self._stopped = False

    def run(self, order: Order, time_limit: float) -> dict[str, Any]:
        """Attack, and wait for the end.

        Parameters
        ----------
        order : Order
        time_limit : float
            In seconds. The attack ends itself then, with what it has. A process that
            does not is killed some time later.

        Returns
        -------
        dict of str to object
            What summary.json says.

        Raises
        ------
        AttackError
            Where the attack came to no result.
        """
        if self._stopped:
            raise AttackError(_STOPPED)
        # The modules of the model are found where this process finds them.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with open(order.folder / LOG, "wb") as log:
            self._running = subprocess.Popen(
                [sys.executable, "-c", _CODE], stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
            )
            if self._stopped:  # while it was started
                self._running.kill()
            try:
                self._running.communicate(pickle.dumps(order), time_limit + MOST_BESIDES)
            except subprocess.TimeoutExpired:
                self._running.kill()
                self._running.communicate()
                raise AttackError(f"the attack did not end within {time_limit + MOST_BESIDES:g} s") from None
        if self._stopped:
            raise AttackError(_STOPPED)
        if self._running.returncode:
            raise AttackError(_why(order.folder / LOG, self._running.returncode))
        return json.loads((order.folder / "summary.json").read_text())

    def stop(self) -> None:
        """End the attack that runs, and all that would follow."""
        self._stopped = True
        if self._running is not None:
            self._running.kill()


def _why(log: Path, code: int) -> str:
    """Why a process failed, by the last line that it printed."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip()[:_MOST_QUOTED] if lines else "it printed nothing"
    return last if code == 1 else f"the attack's process ended with code {code}: {last}"


def main() -> None:
    """Attack what is ordered on the standard input. An error is the last line that is printed, and the exit code 1."""
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    order = pickle.load(sys.stdin.buffer)
    try:
        attack(order)
    except Exception as error:
        print(one_line(error) if isinstance(error, InputError) else f"{type(error).__name__}: {one_line(error)}")
        sys.exit(1)


def attack(order: Order) -> None:
    """Attack an update, and write what was recovered into its folder, as arrays too."""
    target: Target = pickle.loads(order.target)
    before = load_weights(order.before)
    # Buffers, such as the running averages of batch norm, are as the server sent them too.
    target.layer.set_state_dict(before)
    after = load_weights(order.after)
    trained = [name for name, parameter in target.layer.named_parameters() if not parameter.stop_gradient]
    states = [{name: state[name] for name in trained} for state in (before, after)]
    update = SharedUpdate(states[0], states[1], **order.rule)
    result = attack_layer(
        target.layer,
        target.loss,
        update,
        feature=_spec(target.feature),
        label=_spec(target.label),
        result_dir=order.folder,
        **order.options,
    )
    np.savez(order.folder / "recovered.npz", feature=result.feature, label=result.label)


def _spec(shape_and_dtype: tuple[tuple, str]) -> paddle.static.InputSpec:
    return paddle.static.InputSpec(*shape_and_dtype)


def as_shape_and_dtype(spec: paddle.static.InputSpec) -> tuple[tuple, str]:
    """A specification as another process can make it anew."""
    return tuple(spec.shape), str(spec.dtype).rpartition(".")[2]


def save_weights(weights: Mapping[str, np.ndarray], path: Path) -> None:
    """Write weights as `dlg.shared_update.load_weights` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    paddle.save(dict(weights), str(path))
