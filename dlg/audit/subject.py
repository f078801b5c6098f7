"""The networks that an audit attacks: those of the project, and the user's own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from dlg.attack.layer_step import step_of_layer
from dlg.attack.shared_step import Preparations, SharedStep
from dlg.audit.samples import Batch
from dlg.defense_knowledge import DefenseKnowledge
from dlg.errors import InputError, one_line, quoted
from dlg.graph.programs import dynamic_mode
from dlg.graph.traced_layer import TracedLayer
from dlg.graph.values import Network
from dlg.interrupts import interrupts_deferred
from dlg.options import AttackOptions
from dlg.participant.networks import NETWORKS
from dlg.participant.training_step import TrainingStep
from dlg.shared_update import load_weights


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network to audit. It is made of strings, so that other processes can be told of it.

    Attributes
    ----------
    name : str
        What rows call it: a key of `NETWORKS`, or a name in `file`.
    file : str or None
        The file of Python that has the network, as it was typed. None for the
        project's own.
    weights : str or None
        The path of a file that `paddle.save` made of its weights, as it was typed.
        None where each seed draws its own, or a layer has them.
    folder : str
        Where both paths start, for another process may run in another folder.
    """

    name: str
    file: str | None = None
    weights: str | None = None
    folder: str = ""

    @classmethod
    def parse(cls, spec: str, weights: str | None = None) -> Subject:
        """Read ``NETWORK`` or ``FILE.py:NAME``.

        Raises
        ------
        ValueError
            Where there is no such network, or no such file.
        """
        folder = os.getcwd()
        if spec in NETWORKS:
            return cls(spec, None, weights, folder)
        file, _, name = spec.rpartition(":")
        if not file.endswith(".py") or not name.isidentifier():
            raise ValueError(
                f"no such network: {quoted(spec)}; expected {', '.join(NETWORKS)}, or FILE.py:NAME, which is a callable"
                " (feature, label) -> (prediction, loss), a paddle.nn.Layer or a class of one"
            )
        if not Path(file).is_file():
            raise ValueError(f"{quoted(spec)}: there is no file {quoted(file)}; give the path of one that is there")
        if name in NETWORKS:
            raise ValueError(f"{quoted(spec)}: {name!r} is a network of the project; give yours another name")
        return cls(name, os.path.normpath(file), weights, folder)

    @property
    def fingerprint(self) -> str | None:
        """A hash of its own files, so that an audit does not go on with changed ones. None without such files."""
        files = [file for file in (self.file, self.weights) if file is not None]
        if not files:
            return None
        digest = hashlib.sha256()
        for file in files:
            digest.update(Path(self.folder, file).read_bytes())
        return digest.hexdigest()

    @property
    def spec(self) -> str:
        """Its spelling as an option."""
        return self.name if self.file is None else f"{self.file}:{self.name}"

    def check(self) -> None:
        """Raise InputError where the network or its weights cannot be loaded."""
        with dynamic_mode():
            self._load()
        if self.weights is not None:
            _weights_in(self.weights, self.folder)

    def _load(self) -> Any:
        where = NETWORKS if self.file is None else vars(_module(self.file, self.folder))
        found = where.get(self.name)
        if not callable(found):
            is_there = "is not" if found is None else f"is {quoted(found)}"
            raise InputError(
                f"{self.spec}: {self.name!r} {is_there} there, expected a callable (feature, label) ->"
                " (prediction, loss), a paddle.nn.Layer or a class of one"
            )
        return found

    @contextlib.contextmanager
    def trained_on(self, batch: Batch, seed: int, preparations: Preparations | None = None) -> Iterator[Trained]:
        """Train one step on a batch; its weights are in the current scope within the context.

        Parameters
        ----------
        batch : Batch
        seed : int
            Draws the weights where neither `weights` nor a layer has them.
        preparations : Preparations, optional
            What attacks on this network and batch size have made already.

        Raises
        ------
        InputError
            Where the network cannot be made or trained.
        """
        with dynamic_mode():
            found = self._load()
            if isinstance(found, type) and issubclass(found, paddle.nn.Layer):
                paddle.seed(seed)
                found = found()
            if isinstance(found, paddle.nn.Layer) and self.weights is not None:
                own = _weights_in(self.weights, self.folder)
                own.refuse_others({name: tuple(each.shape) for name, each in found.state_dict().items()})
                found.set_state_dict(dict(own.arrays))
        if isinstance(found, paddle.nn.Layer):
            yield from _layer_trained_on(found, batch, preparations)
        else:
            weights = None if self.weights is None else _weights_in(self.weights, self.folder)
            yield _function_trained_on(found, batch, seed, weights, preparations)


def subjects_of(specs: Sequence[str], weights: str | None) -> dict[str, Subject]:
    """The networks of an audit by their names in rows.

    Parameters
    ----------
    specs : sequence of str
        See `Subject.parse`.
    weights : str or None
        The path of the weights of the one network.

    Raises
    ------
    ValueError
        Where a network is not known, two have one name, or several share the
        weights.
    """
    subjects: dict[str, Subject] = {}
    for spec in specs:
        subject = Subject.parse(spec, weights)
        if subjects.setdefault(subject.name, subject) != subject:
            raise ValueError(f"{quoted(spec)}: another network has the name {subject.name!r}; give one of them another")
    if weights is not None and len(subjects) > 1:
        raise ValueError(f"--weights {quoted(weights)}: these are of one network, got {', '.join(subjects)}")
    return subjects


@dataclasses.dataclass(frozen=True)
class Trained:
    """A training step that was done.

    Attributes
    ----------
    gradients : dict of str to ndarray
        What the participant would share without a defence.
    step_of : callable (gradients, DefenseKnowledge) -> SharedStep
        What an attacker holds who is given these gradients, and told so much of
        a defence.
    """

    gradients: dict[str, np.ndarray]
    step_of: Callable[[Mapping[str, np.ndarray], DefenseKnowledge], SharedStep]


def _function_trained_on(
    network: Network, batch: Batch, seed: int, weights: _Weights | None, preparations: Preparations | None
) -> Trained:
    # PaddlePaddle calls Python while it adds ops to a program, and executors add some too, to fetch values. A
    # KeyboardInterrupt in there is a segmentation fault, which ended 1 in 100 interrupted audits.
    with interrupts_deferred():
        step = TrainingStep(
            network,
            batch.features.shape[1:],
            paddle.CPUPlace(),
            seed,
            str(batch.features.dtype),
            batch.labels.shape[1:],
            str(batch.labels.dtype),
        )
        if weights is not None:
            _put_into_scope(step, weights)
        gradients = step.capture(batch.features, batch.labels)

    def step_of(shared: Mapping[str, np.ndarray], knowledge: DefenseKnowledge) -> SharedStep:
        known = step.network, step.feature, step.label, len(batch.features)
        return SharedStep(*known, shared, step.exe.place, knowledge, preparations=preparations)

    return Trained(gradients, step_of)


def _layer_trained_on(layer: paddle.nn.Layer, batch: Batch, preparations: Preparations | None) -> Iterator[Trained]:
    loss = _mean_squared_error if batch.labels.dtype.kind == "f" else _cross_entropy
    feature, label = (
        paddle.static.InputSpec([None, *each.shape[1:]], str(each.dtype)) for each in (batch.features, batch.labels)
    )
    with interrupts_deferred():
        gradients = TracedLayer(layer, loss, str(batch.features.dtype)).gradients([batch.features], batch.labels)
    if gradients is None:
        raise InputError(
            "the layer is random: it gives other gradients the second time, as one with dropout does; call its"
            " eval(), or set the dropout to 0"
        )
    value_range, size = AttackOptions(feature_range=batch.feature_range).range, len(batch.features)
    with interrupts_deferred():
        known = step_of_layer(layer, loss, gradients, feature, label, size, None, paddle.CPUPlace(), value_range)

    def step_of(shared: Mapping[str, np.ndarray], knowledge: DefenseKnowledge) -> SharedStep:
        return dataclasses.replace(
            known.step, gradients=dict(shared), knowledge=knowledge, preparations=preparations or Preparations()
        )

    with paddle.static.scope_guard(known.scope):
        yield Trained(gradients, step_of)


def _cross_entropy(prediction: Any, label: Any) -> Any:
    return F.cross_entropy(prediction, label)


def _mean_squared_error(prediction: Any, label: Any) -> Any:
    return F.mse_loss(prediction, label)


@functools.cache
def _module(file: str, folder: str) -> Any:
    """A file of Python as a module, in the mode of PaddlePaddle that is current."""
    path = Path(os.path.abspath(os.path.join(folder, file)))
    spec = importlib.util.spec_from_file_location(f"audited_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{quoted(file)}: Python cannot import this file")
    module = importlib.util.module_from_spec(spec)
    # It may import its neighbours, as it could if Python were given the file to run.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{quoted(file)}: importing it ended in {type(error).__name__}: {one_line(error)}; give a file that Python"
            " can import"
        ) from None
    return module


@dataclasses.dataclass(frozen=True)
class _Weights:
    """A file of weights.

    Attributes
    ----------
    file : str
        Its path, as it was typed.
    arrays : mapping of str to ndarray
        What it holds, by name.
    """

    file: str
    arrays: Mapping[str, np.ndarray]

    def refuse_others(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise InputError where an array of one of these names is missing, or has another shape."""
        for name, shape in shapes.items():
            found = self.arrays.get(name)
            if found is None or found.shape != shape:
                is_there = f"missing (it has {', '.join(self.arrays)})" if found is None else f"shaped {found.shape}"
                raise InputError(f"--weights {quoted(self.file)}: {name!r} is {is_there}, expected {shape}")


@functools.cache
def _weights_in(file: str, folder: str) -> _Weights:
    """The weights in a file. It is not trusted."""
    # From here, so that an error shows what was typed.
    path = file if os.path.isabs(file) else os.path.relpath(os.path.join(folder, file))
    try:
        found = load_weights(path)
    except InputError as error:
        raise InputError(f"--weights: {error}") from None
    return _Weights(file, {name: value for name, value in found.items() if isinstance(value, np.ndarray)})


def _put_into_scope(step: TrainingStep, weights: _Weights) -> None:
    """Replace the weights that were drawn; the file has them by the names of the program's parameters."""
    weights.refuse_others({parameter.name: tuple(parameter.shape) for parameter in step.parameters})
    scope, place = paddle.static.global_scope(), step.exe.place
    for parameter in step.parameters:
        tensor = scope.find_var(parameter.name).get_tensor()
        tensor.set(weights.arrays[parameter.name].astype(np.array(tensor).dtype), place)
