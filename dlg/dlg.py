"""The front doors: dlg_attack for static graphs, attack_layer for dynamic ones.

Both recover a training batch from the gradients it left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import paddle

from dlg.attack.attempts import Attempts
from dlg.attack.deadline import Deadline, deadline_in_force
from dlg.attack.dummies import recovered_label
from dlg.attack.features import Layout
from dlg.attack.layer_step import step_of_layer
from dlg.attack.objective import Objective
from dlg.attack.optimizers import DummyBatch
from dlg.attack.parameters import Gradients
from dlg.attack.shared_step import SharedStep
from dlg.attack.stages import begin_stage, end_stage, stages_told
from dlg.attack.strategy import Strategy, choose
from dlg.attack.tokens import judge_tokens, nearest_tokens, tokens_named, tokens_present
from dlg.attack.verdict import Verdict, judge
from dlg.errors import InputError, quoted
from dlg.graph.label_readers import LabelKind
from dlg.graph.programs import refuse_flags, static_mode
from dlg.graph.values import Network, Value, is_real, numpy_dtype
from dlg.interrupts import interrupts_ignored, sigterm_as_ctrl_c
from dlg.options import AttackOptions
from dlg.results.outcome import RESULT_FILES, print_outcome, write_results
from dlg.results.pictures import SNAPSHOTS
from dlg.results.replacement import replaced_results
from dlg.results.text import TEXT_PATTERN, write_texts
from dlg.shared_update import SharedUpdate


@dataclasses.dataclass(frozen=True)
class Start:
    """One start of an attack: the loss it reached, its iterations, and how it ended.

    ``ended`` is as in `Reconstruction`, or ``"abandoned"`` where the best start
    before it had come much further by the same iteration.
    """

    loss: float
    iterations: int
    ended: str


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What an attack recovered.

    Attributes
    ----------
    feature : ndarray, shape (B, ...), or list of ndarray
        The recovered samples, in the feature's dtype, as the attack left them
        (not clipped); a list where the network takes several features. Their
        order in the batch is not in a gradient, and so not here either. An
        integer feature is tokens: those whose rows of the table are nearest to
        what the attack found, -1 where no lookup reads one.
    label : ndarray, shape (B,) or (B, ...)
        Where `label_kind` is ``"class"`` or ``"probability"``, the most probable
        class of each sample, (B,), int64, or of each of its positions; where it
        is ``"several"``, 1 for yes and 0 for no, shaped as the label, int64;
        where it is ``"value"``, the recovered numbers, shaped as the label, in
        the feature's dtype.
    label_probability : ndarray or None, in the feature's dtype
        The probability of each class, (B, C), or (B, ..., C) for one class for
        each position; the probability of each yes, shaped as the label; None for
        values.
    label_kind : str
        What a label says of a sample, as the network's loss reads it:
        ``"class"``, one of C; ``"probability"``, one for each class;
        ``"several"``, numbers that are each 0 or 1; ``"value"``, real numbers.
    loss : float
        The gradient-matching loss reached.
    history : list of (int, float)
        Iteration and loss at each snapshot.
    iterations : int
        Iterations done.
    evaluations : int
        How often the loss's gradient was computed, over all starts.
    seconds : float
        Wall time from the call to the end, without the pictures' comparison.
    ended : str
        ``"iterations"`` when all of them were done, ``"floor"`` when the
        gradients agreed as closely as float32 can tell, ``"converged"`` when
        no further step was found or the last gained little, ``"diverged"`` when the
        loss left the range of numbers, ``"abandoned"`` where that start was
        still the best, ``"time limit"`` when the option ``time_limit`` ended
        the attack, ``"interrupted"`` on Ctrl-C.
    strategy : str
        What the attack was, in a few words.
    starts : list of Start
        Every start of the attack. All else here is of the one that reached the
        lowest loss, the attacker's only yardstick.
    verdict : str
        What may be claimed of it. ``"explained"``: the gradients of the whole
        network at this batch match the shared ones as closely as their rounding
        allows, and those of no batch near it do. ``"undetermined"``: they match,
        and leave a part of the batch open, or tokens are all that is known to be in
        it, see `of_batch`. ``"failed"``: they do not match. Nothing is
        then known about what leaks, and that is not safety.
    reason : str
        Why, in one sentence.
    mismatch : float
        The root of the gradient-matching loss, relative to that of gradients of
        zero: 0 where all gradients are equal.
    rank : int or None
        How many numbers of the batch the gradients determine, by an estimate;
        None where it was not estimated.
    gradient_scale : float
        The factor on the shared gradients that was found, 1 for the gradients
        of the network's own loss. Of an update of several local steps, the factor
        on the learning rate, or on the whole update.
    tokens : dict of str to ndarray, int64, or None
        For each table that an integer feature is looked up in, the tokens that
        its gradient shows to be in the batch, whatever else was recovered; see
        `dlg.attack.tokens.tokens_present`. None without integer features.
    advice : str
        What to check where it has failed; empty otherwise.
    of_batch : bool
        Whether `feature` lists tokens that the batch has for certain, each once
        and in the order of the table, with -1 behind them. Which text has which, in
        what order and how often is open.
    """

    feature: Any
    label: np.ndarray
    label_probability: np.ndarray | None
    label_kind: str
    loss: float
    history: list[tuple[int, float]]
    iterations: int
    evaluations: int
    seconds: float
    ended: str
    strategy: str
    starts: list[Start]
    verdict: str
    reason: str
    mismatch: float
    rank: int | None
    gradient_scale: float
    tokens: dict[str, np.ndarray] | None = None
    advice: str = ""
    of_batch: bool = False


class AttackInterrupted(KeyboardInterrupt):
    """Ctrl-C during an attack; `reconstruction` has what was recovered until then.

    As a KeyboardInterrupt it passes ``except Exception``, and ends a program that
    knows nothing of it. Python's exit code is then 1, for it ends by the signal,
    130 in a shell, on a plain KeyboardInterrupt alone; a program that shall end so
    catches this one and raises that.
    """

    def __init__(self, reconstruction: Reconstruction) -> None:
        super().__init__("the attack was interrupted")
        self.reconstruction = reconstruction


@sigterm_as_ctrl_c()
def dlg_attack(
    args: Any,
    feature: Value | Sequence[Value],
    label: Value,
    network: Network,
    exe: paddle.static.Executor,
    origin_grad: Gradients | SharedUpdate,
    *,
    vocabulary: Sequence[str] | None = None,
) -> Reconstruction:
    """Recover the batch behind the gradients of one training step.

    Writes ``result_NUM.png`` into ``args.result_dir``, for the random start,
    every ``args.snapshot_every`` iterations and the end, and shows its
    progress. Until the attack has ended they are in the folder
    ``unfinished_run`` there, and an earlier attack's stay as they are. Then
    these go, with its ``summary.json``, ``target.png`` and ``progress.png``. The
    method is that of Zhu, Liu and Han, "Deep Leakage from Gradients", NeurIPS
    2019.

    Parameters
    ----------
    args : any namespace
        ``batch_size``, ``iterations``, ``learning_rate``, ``result_dir`` and
        the other fields of `dlg.options.AttackOptions`. What it lacks has the
        command's default.
    feature : paddle.pir.Value, (B or None, ...), floating or integer; or a sequence of them
        The training program's feature variable, from ``paddle.static.data``, or
        several, which the network then takes as a list. Samples shaped
        (1, H, W), (3, H, W), (H, W) or (H·H,) give pictures. Integers must be
        looked up in a trained table, as by ``paddle.nn.Embedding``.
    label : paddle.pir.Value, (B or None, ...), integer or floating
        The training program's label variable. What its numbers are, the attack
        tells from the loss; see `Reconstruction`.
    network : callable (feature, label) -> (prediction, loss)
        The callable that built the training program, unmodified.
    exe : paddle.static.Executor
        The training's executor, whose place the attack runs on. The weights
        are read from the current scope, ``paddle.static.global_scope()``.
        Nothing in it is changed.
    origin_grad : sequence of ndarray, mapping of str to ndarray, sequence of pairs, or SharedUpdate
        The shared gradients: in the order of the trainable parameters in the
        training program's ``all_parameters()``, by parameter name, or as pairs
        of a parameter, or its name, and its gradient. Or the weights around
        local steps, see `dlg.shared_update.SharedUpdate`; those before the steps
        are then taken in the place of the scope's.
    vocabulary : sequence of str, optional
        The word of each token, for a network with one integer feature. What was
        recovered is then written as text too, into ``result.txt``.

    Returns
    -------
    Reconstruction

    Raises
    ------
    InputError
        Where an option, a shape, a gradient or the network is not one the
        attack can take, or another run writes into the same folder; before any
        file is written.
    SecondDerivativeError
        Where the network has an op that cannot be differentiated twice, or a
        derivative that fails its check.
    OSError
        Where a picture cannot be written, the disk being full for one. The files
        of an earlier attack are as they were.
    AttackInterrupted
        On Ctrl-C, a KeyboardInterrupt with what was recovered until then. A
        plain KeyboardInterrupt while the attack is still being prepared. On
        SIGTERM the same files are written, and then the process ends, unless the
        program has a handler of SIGTERM's own.
    """
    started = time.monotonic()
    options = AttackOptions.from_args(args)
    _check_arguments(feature, label, network, exe)
    step = SharedStep(network, feature, label, options.batch_size, origin_grad, exe.place, options.knowledge)
    _check_vocabulary(vocabulary, step)
    options = _without_range_of_rows(options, step)
    with stages_told(_print_stage):
        return _run(step, options, *prepare(step, options, started), started, vocabulary)


@sigterm_as_ctrl_c()
def attack_layer(
    layer: paddle.nn.Layer,
    loss: Callable[[Any, Any], Any],
    gradients: Mapping[str, Any] | Sequence[Any] | SharedUpdate,
    *,
    feature: paddle.static.InputSpec | Sequence[paddle.static.InputSpec],
    label: paddle.static.InputSpec,
    batch_size: int,
    weights: Mapping[str, Any] | str | os.PathLike | None = None,
    place: Any = None,
    target: Any = None,
    target_label: Any = None,
    vocabulary: Sequence[str] | None = None,
    **options: Any,
) -> Reconstruction:
    """Recover the batch behind the gradients of a `paddle.nn.Layer`, as ``loss.backward()`` leaves them.

    It does what `dlg_attack` does, and writes ``summary.json`` besides. It may be
    called in dynamic and in static mode. The mode, the layer, its weights, its
    gradients and the state of PaddlePaddle's random numbers are the same
    afterwards.

    The program that PaddlePaddle makes of the layer must have the layer's own
    gradients. Both are computed at a random batch before the attack and compared,
    unless the layer is random, as one with dropout is.

    Parameters
    ----------
    layer : paddle.nn.Layer
        The trained layer. It returns one variable, the prediction, (B, C). It is
        attacked in the mode that it is in, ``train()`` or ``eval()``, which must be
        the mode in which the gradients were computed.
    loss : callable (prediction, label) -> scalar
        The loss, such as `paddle.nn.functional.cross_entropy` or a
        `paddle.nn.CrossEntropyLoss`.
    gradients : mapping of str to array, sequence of array, or SharedUpdate
        The shared gradients, as arrays or as PaddlePaddle's tensors: by the names
        of ``layer.named_parameters()``, or in the order of ``layer.parameters()``,
        all or the trainable ones. None is a gradient that was not shared. Or the
        weights around local steps, by the names of ``layer.state_dict()``; those
        before the steps are then taken in the place of the layer's.
    feature, label : paddle.static.InputSpec
        The shapes and dtypes of the layer's input and of the label. The first
        size, the batch, may be None. A layer that is called on several inputs,
        ``layer(picture, row)``, has a list of theirs in `feature`.
    batch_size : int
        B, the number of samples behind the gradients.
    weights : mapping of str to array, or path, optional
        The weights at which the gradients were computed: a ``state_dict()``, or
        the path of a file that `paddle.save` made of one. By default the layer's own.
    place : paddle.CPUPlace, paddle.CUDAPlace or str, optional
        Where the attack runs. By default on the device that is set, see
        `paddle.get_device`.
    target : array, (B, ...), floating, in [0, 1], or integer, or sequence of arrays, optional
        The true batch; tokens where the layer takes integers. It is looked at after
        the attack alone, to compare what was recovered with it: the comparison is
        printed and written into ``summary.json``, with ``target.png`` and
        ``progress.png`` where samples are pictures. Tokens are compared one by one.
        It needs `target_label` too. Of several inputs, give a list with one for
        each; the first that is a picture is compared.
    target_label : array, (B,) or (B, 1), integer, optional
        The labels of `target`.
    vocabulary : sequence of str, optional
        See `dlg_attack`.
    **options
        The other fields of `dlg.options.AttackOptions`, such as ``optimizer`` and
        ``result_dir``.

    Returns
    -------
    Reconstruction

    Raises
    ------
    InputError, SecondDerivativeError, OSError, AttackInterrupted
        As `dlg_attack` does.
    """
    started = time.monotonic()
    chosen = AttackOptions.from_keywords(batch_size=batch_size, **options)
    refuse_flags()
    truth = _checked_target(target, target_label, chosen.batch_size, feature, label)
    with static_mode():
        known = step_of_layer(
            layer, loss, gradients, feature, label, chosen.batch_size, weights, _device(place), chosen.range
        )
        known.step.knowledge = chosen.knowledge
        _check_vocabulary(vocabulary, known.step)
        chosen = _without_range_of_rows(chosen, known.step)
        with paddle.static.scope_guard(known.scope), stages_told(_print_stage):
            strategy, first = prepare(known.step, chosen, started)
            if truth:
                _check_classes(truth[1], strategy.objective)
            shown = _shown_feature(strategy.objective.layout)
            with replaced_results(chosen.result_dir, RESULT_FILES) as folder:
                try:
                    recovered = _run(known.step, chosen, strategy, first, started, vocabulary)
                except AttackInterrupted as interruption:
                    recovered = interruption.reconstruction
                samples, labels = (truth[0][shown], truth[1]) if truth else (None, None)
                seen = _with_one_feature(recovered, shown)
                with interrupts_ignored():
                    rows = write_results(folder, dataclasses.asdict(chosen), seen, samples, labels)
    print_outcome(seen, rows, chosen.result_dir)
    if recovered.ended == "interrupted":
        raise AttackInterrupted(recovered)
    return recovered


def _print_stage(stage: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads on; the attack goes on
        print(stage, flush=True)


def _without_range_of_rows(options: AttackOptions, step: SharedStep) -> AttackOptions:
    """The options without a range where a feature is integers: their rows of a table have a range of their own."""
    if all(is_real(each) for each in step.features):
        return options
    return dataclasses.replace(options, feature_range="none")


def prepare(step: SharedStep, options: AttackOptions, started: float | None = None) -> tuple[Strategy, DummyBatch]:
    """Choose and build the attack, verify its derivatives, and make its first start.

    Parameters
    ----------
    step : SharedStep
        What was shared.
    options : AttackOptions
    started : float, optional
        When the attack's time began, as ``time.monotonic`` has it; by default now.

    Returns
    -------
    strategy : Strategy
    first : DummyBatch
        Its loss is finite.

    Raises
    ------
    InputError
        Where an option does not suit the network, or the loss is not finite at
        the first start.
    SecondDerivativeError
        Where the network's derivatives cannot be computed or verified.
    """
    started = time.monotonic() if started is None else started
    with deadline_in_force(Deadline(options.time_limit, started)):
        strategy = choose(step, options)
    begin_stage("making the first start")
    first = strategy.optimizer.start(options.seed, 0)
    if not math.isfinite(first.loss):
        raise InputError(
            f"the gradient-matching loss at the random start is {first.loss}: either the gradients are too large for"
            " their parameters' precision, or the network is not defined for all numbers, as a logarithm and a root are"
            " not; for such a network, let it take what is below its domain too, by paddle.clip for one"
        )
    return strategy, first


def _run(
    step: SharedStep,
    options: AttackOptions,
    strategy: Strategy,
    first: DummyBatch,
    started: float,
    vocabulary: Sequence[str] | None,
) -> Reconstruction:
    """Run an attack on a step whose weights are in the current scope; see `dlg_attack`."""
    with replaced_results(options.result_dir, f"{SNAPSHOTS}|{RESULT_FILES}") as folder:
        if strategy.name != options.optimizer:
            why = f" ({strategy.fallback})" if strategy.fallback else ""
            print(f"{options.optimizer}: {strategy.name}{why}")
        for note in strategy.notes:
            print(note)
        end_stage()
        attempts = Attempts(strategy, options, folder, first, Deadline(options.time_limit, started))
        attempts.run()
    begin_stage("looking at what the gradients leave open")
    ended = attempts.cut_short or attempts.best.ended
    answer = attempts.best.last
    tokens = nearest_tokens(step, strategy.objective, answer.values[0]) if strategy.objective.layout.rows else {}
    try:
        verdict = _verdict(step, strategy, answer, tokens, options, ended)
    except KeyboardInterrupt:
        ended = "interrupted"
        verdict = _verdict(step, strategy, answer, tokens, options, ended)
    if verdict.of_batch:
        tokens = tokens_named(step, strategy.objective) or tokens
    reconstruction = _reconstruction(step, attempts, strategy, verdict, tokens, ended, started)
    if tokens:
        _write_texts(reconstruction, tokens, vocabulary, options)
    for finding in strategy.optimizer.findings:
        print(finding)
    print(verdict.line)
    if ended == "interrupted":
        raise AttackInterrupted(reconstruction)
    return reconstruction


def _verdict(
    step: SharedStep,
    strategy: Strategy,
    answer: DummyBatch,
    tokens: dict[int, np.ndarray],
    options: AttackOptions,
    ended: str,
) -> Verdict:
    if tokens:
        return judge_tokens(step, strategy, answer, tokens, options, ended)
    return judge(step, strategy, answer, options, ended)


def _reconstruction(
    step: SharedStep,
    attempts: Attempts,
    strategy: Strategy,
    verdict: Verdict,
    tokens: dict[int, np.ndarray],
    ended: str,
    started: float,
) -> Reconstruction:
    """What the best start recovered, in the features' dtypes."""
    best, kind, layout = attempts.best, strategy.objective.label_kind, strategy.objective.layout
    recovered = layout.features(best.last.values[0], tokens)
    features = [values.astype(own) for values, own in zip(recovered, layout.dtypes)]
    label, dtype = recovered_label(kind, best.last.label_probability), _probability_dtype(layout)
    return Reconstruction(
        feature=features if isinstance(step.feature, (list, tuple)) else features[0],
        label=label.astype(dtype) if kind is LabelKind.VALUE else label,
        label_probability=None if kind is LabelKind.VALUE else best.last.label_probability.astype(dtype),
        label_kind=kind.value,
        loss=best.last.loss,
        history=best.history,
        iterations=best.iteration,
        evaluations=strategy.optimizer.evaluations,
        seconds=time.monotonic() - started,
        ended=ended,
        strategy=strategy.name,
        starts=[Start(attempt.last.loss, attempt.iteration, attempt.ended) for attempt in attempts.started],
        verdict=verdict.kind,
        reason=verdict.reason,
        advice=verdict.advice,
        mismatch=verdict.mismatch,
        rank=verdict.rank,
        gradient_scale=verdict.gradient_scale,
        tokens=tokens_present(step, strategy.objective) if layout.rows else None,
        of_batch=verdict.of_batch,
    )


def _write_texts(
    reconstruction: Reconstruction,
    tokens: dict[int, np.ndarray],
    vocabulary: Sequence[str] | None,
    options: AttackOptions,
) -> None:
    """Write the recovered texts where there is a vocabulary. An earlier attack's go in any case."""
    with replaced_results(options.result_dir, TEXT_PATTERN) as folder:
        if vocabulary is not None:
            (recovered,) = tokens.values()
            present = [token for found in (reconstruction.tokens or {}).values() for token in found]
            claim = f"{reconstruction.verdict}: {reconstruction.reason}"
            write_texts(folder, claim, recovered, sorted(set(present)), vocabulary)


def _check_vocabulary(vocabulary: Any, step: SharedStep) -> None:
    if vocabulary is None:
        return
    if (
        isinstance(vocabulary, str)
        or not isinstance(vocabulary, (Sequence, np.ndarray))
        or not all(isinstance(word, str) for word in vocabulary)
    ):
        raise InputError("vocabulary: expected a list of strings, the word of each token")
    integers = [feature.name for feature in step.features if not is_real(feature)]
    if len(integers) != 1:
        raise InputError(
            f"vocabulary: the network has {len(integers)} integer features, expected one; leave the vocabulary away"
        )


def _probability_dtype(layout: Layout) -> str:
    """The first real feature's dtype; float32 where all are integers."""
    return layout.dtypes[layout.numbers[0].feature] if layout.numbers else "float32"


def _check_arguments(feature: Any, label: Any, network: Any, exe: Any) -> None:
    refuse_flags()
    if paddle.in_dynamic_mode():
        raise InputError("PaddlePaddle is in dynamic mode; call paddle.enable_static() before the network is built")
    several = feature if isinstance(feature, (list, tuple)) and feature else [feature]
    for name, value in (*(("feature", each) for each in several), ("label", label)):
        if not isinstance(value, paddle.pir.Value):
            raise InputError(f"{name} is a {type(value).__name__}, expected the training program's paddle.static.data")
    if not callable(network):
        raise InputError(f"network is {network!r}, expected a callable (feature, label) -> (prediction, loss)")
    if not isinstance(exe, paddle.static.Executor):
        raise InputError(f"exe is a {type(exe).__name__}, expected the training's paddle.static.Executor")


def _device(place: Any) -> Any:
    """The place on which an attack runs; by default the device that is set."""
    if isinstance(place, paddle.base.core.Place):
        return place
    name = paddle.get_device() if place is None else place
    kind, _, number = name.partition(":") if isinstance(name, str) else ("", "", "")
    if name == "cpu":
        return paddle.CPUPlace()
    if kind == "gpu" and (number or "0").isdecimal() and paddle.is_compiled_with_cuda():
        return paddle.CUDAPlace(int(number or 0))
    raise InputError(f"place is {quoted(name)}, expected 'cpu', or 'gpu:0' with PaddlePaddle's build for GPUs")


def _shown_feature(layout: Layout) -> int:
    """Which of several features is compared with its target and shown: the first that is a picture, or is real."""
    parts = [layout.picture_part, *layout.numbers]
    return next((part.feature for part in parts if part is not None), 0)


def _with_one_feature(recovered: Reconstruction, number: int) -> Reconstruction:
    """The same with one of its features alone."""
    several = isinstance(recovered.feature, list)
    return dataclasses.replace(recovered, feature=recovered.feature[number]) if several else recovered


def _checked_target(
    target: Any, target_label: Any, batch_size: int, feature: Any, label: Any
) -> tuple[list[np.ndarray], np.ndarray] | None:
    """The features of the true batch and its labels as arrays, to be kept until the attack is over."""
    if target is None and target_label is None:
        return None
    if target is None or target_label is None:
        raise InputError("target and target_label belong together: give both, or neither")
    given = [target]
    if isinstance(feature, (list, tuple)):
        if not isinstance(target, (list, tuple)) or len(target) != len(feature):
            given_as = f"{len(target)} arrays" if isinstance(target, (list, tuple)) else f"a {type(target).__name__}"
            raise InputError(f"target is {given_as}, expected a list of {len(feature)}, one for each of the features")
        given = list(target)
    samples = [_as_array(each) for each in given]
    specs = feature if isinstance(feature, (list, tuple)) else [feature]
    real = [(array, spec) for array, spec in zip(samples, specs) if not _takes_integers(spec)]
    for array, spec in real:
        _check_samples(array, batch_size, spec)
    if not real:
        for array, spec in zip(samples, specs):
            _check_tokens(array, batch_size, spec)
    labels = _as_array(target_label)
    # Of probabilities, a class for each sample may be given.
    sizes = {batch_size, batch_size * _numbers_of_sample(label)}
    if labels.ndim == 0 or len(labels) != batch_size or (labels.size not in sizes and min(sizes) > 0):
        raise InputError(
            f"target_label is {labels.dtype} and shaped {labels.shape}, expected {batch_size} labels; give one for each"
            " sample of target"
        )
    return samples, labels.reshape(batch_size) if labels.size == batch_size else labels


def _check_classes(labels: np.ndarray, objective: Objective) -> None:
    """Raise InputError where a label is not one of the network's classes."""
    classes = objective.label_probability.shape[-1]
    if objective.label_kind is LabelKind.CLASS and not np.isin(labels, np.arange(classes)).all():
        raise InputError(
            f"target_label has {quoted(np.unique(labels).tolist())}, expected classes from 0 to {classes - 1}, for the"
            f" network has {classes}; give the label of each sample of target"
        )


def _as_array(given: Any) -> np.ndarray:
    return np.asarray(given.numpy() if isinstance(given, paddle.Tensor) else given)


def _takes_integers(spec: Any) -> bool:
    return isinstance(spec, paddle.static.InputSpec) and np.issubdtype(numpy_dtype(spec), np.integer)


def _check_tokens(tokens: np.ndarray, batch_size: int, spec: paddle.static.InputSpec) -> None:
    """Raise InputError where a comparison cannot take tokens."""
    shape = (batch_size, *spec.shape[1:])
    if tokens.shape != shape or not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(
            f"target is {tokens.dtype} and shaped {tokens.shape}, expected integers shaped {shape}; give the whole"
            " batch's tokens"
        )


def _numbers_of_sample(spec: Any) -> int:
    """How many numbers a sample has; negative where its size is not known."""
    shape = spec.shape[1:] if isinstance(spec, paddle.static.InputSpec) else [-1]
    return -1 if any(size in (None, -1) for size in shape) else math.prod(shape)


def _check_samples(samples: np.ndarray, batch_size: int, spec: Any) -> None:
    """Raise InputError where a comparison cannot take samples."""
    is_batch = samples.ndim > 0 and len(samples) == batch_size and np.issubdtype(samples.dtype, np.floating)
    numbers = _numbers_of_sample(spec)
    if not is_batch or (numbers >= 0 and samples.shape[1:] != tuple(spec.shape[1:])):
        shape = f" shaped {(batch_size, *spec.shape[1:])}" if numbers >= 0 else ""
        raise InputError(
            f"target is {samples.dtype} and shaped {samples.shape}, expected {batch_size} floating samples{shape}; give"
            " the whole batch, as numbers from 0 to 1"
        )
    # Written so that NaN is refused too.
    if not (samples.min() >= 0 and samples.max() <= 1):
        raise InputError(
            f"target has numbers from {samples.min():g} to {samples.max():g}, expected 0 to 1, which the comparison"
            " needs; leave target away, or scale in the layer and not before it"
        )
