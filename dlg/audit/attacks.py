"""The attacks on what a cell shared: what each recovered, and which of them an attacker believes."""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dlg.attack.attempts import Attempts
from dlg.attack.deadline import Deadline
from dlg.attack.determination import seen_numbers
from dlg.attack.dummies import recovered_label
from dlg.attack.objective import Objective, build_objective, build_precise_objective
from dlg.attack.optimizers import DummyBatch
from dlg.attack.shared_step import SharedStep
from dlg.attack.strategy import Strategy
from dlg.attack.tokens import judge_tokens, nearest_tokens, tokens_named
from dlg.attack.verdict import EXPLAINED, Verdict, judge, mismatch_at
from dlg.defense_knowledge import NOTHING
from dlg.dlg import prepare
from dlg.errors import InputError, PrecisionError, one_line
from dlg.graph.label_readers import LabelKind
from dlg.options import NO_DEFENSE, AttackOptions
from dlg.results.folder import ResultFolder


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack on a cell.

    Attributes
    ----------
    options : mapping of str to str
        The options of `dlg.dlg.dlg_attack` that it sets.
    share : float
        Which share of the audit's iterations it does.
    knows : bool
        Whether it is told the defence.
    """

    options: Mapping[str, str]
    share: float
    knows: bool


# The share for auto, whose least-squares iterations are the slowest, and which needs few of them. On LeNet with a batch
# of two under gaussian:1e-3, 60 of its iterations took 21 s and reached 34 dB, and 300 of Adam's took 1.6 s.
_AUTO_SHARE = 0.2

# The seconds for an attack where the ones before it took the cell's whole time: it gives its start.
_LEAST_TIME = 1e-3

# Every attack by its name in a row. A defence is public, so the strongest attack is told.
ATTACKS = {
    "auto": Attack({"optimizer": "auto"}, share=_AUTO_SHARE, knows=True),
    # The cosine distance ignores how long the gradient is, and clipping and signs change just that. It is for an
    # attacker who is not told the defence.
    "cosine": Attack({"optimizer": "adam", "labels": "infer", "loss": "cosine"}, share=1.0, knows=False),
}
# What these are compared with, by name: the strongest attack without being told, and that of Zhu et al. (2019), L-BFGS
# on the squared difference with the labels optimised. An attacker who has the others' answers needs neither.
COMPARED = {
    "ignorant": Attack({"optimizer": "auto"}, share=_AUTO_SHARE, knows=False),
    "zhu": Attack({"optimizer": "lbfgs"}, share=1.0, knows=False),
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What an attack recovered. It is judged where the verdict is asked for, which may take longer than the attack.

    Attributes
    ----------
    attack : str
        A key of `ATTACKS` or `COMPARED`.
    step : SharedStep
        What was attacked.
    options : AttackOptions
    strategy : Strategy
    batch : DummyBatch
        Where the best start ended.
    ended : str
        How, see `dlg.dlg.Reconstruction`.
    widths : ndarray, optional
        See `dlg.attack.verdict.judge`.
    """

    attack: str
    step: SharedStep
    options: AttackOptions
    strategy: Strategy
    batch: DummyBatch
    ended: str
    widths: np.ndarray | None = None

    @functools.cached_property
    def verdict(self) -> Verdict:
        """What may be claimed of it without the true batch."""
        if self._tokens:
            return judge_tokens(self.step, self.strategy, self.batch, self._tokens, self.options, self.ended)
        # To an attack that is not told of a defence, a mismatch may be the defence, which no polish removes.
        may_polish = (ATTACKS | COMPARED)[self.attack].knows
        return judge(
            self.step, self.strategy, self.batch, self.options, self.ended, may_polish=may_polish, widths=self.widths
        )

    @property
    def feature(self) -> np.ndarray:
        """The recovered samples, (B, ...), in the feature's dtype."""
        return self._feature(self._tokens)

    @property
    def named(self) -> np.ndarray | None:
        """The tokens that tables' gradients name of the whole batch, (B, ...), see `tokens_named`. None for others."""
        found = tokens_named(self.step, self.strategy.objective) if self._tokens else None
        return None if found is None else self._feature(found)

    @property
    def shown(self) -> np.ndarray:
        """What may be claimed of the samples: the recovered ones, or the tokens that are named."""
        named = self.named if self.verdict.of_batch else None
        return self.feature if named is None else named

    def _feature(self, tokens: dict[int, np.ndarray]) -> np.ndarray:
        layout = self.strategy.objective.layout
        (values,) = layout.features(self.batch.values[0], tokens)
        return values.astype(layout.dtypes[0])

    @property
    def label(self) -> np.ndarray:
        """The recovered labels, as in `dlg.dlg.Reconstruction`."""
        return recovered_label(self.label_kind, self.batch.label_probability)

    @property
    def label_kind(self) -> LabelKind:
        """What a label says of a sample."""
        return self.strategy.objective.label_kind

    @functools.cached_property
    def _tokens(self) -> dict[int, np.ndarray]:
        objective = self.strategy.objective
        return nearest_tokens(self.step, objective, self.batch.values[0]) if objective.layout.rows else {}

    def mismatch_by(self, yardstick: Objective) -> float:
        """How far its gradients are from the shared ones, relative to their size, by another objective."""
        objective = yardstick.with_labels(self.label)
        values = [self.batch.values[0].astype("float64" if objective.is_precise else "float32")]
        if objective.knowledge.is_scaled:
            objective = objective.with_gradient_scale(objective.gradient_scale_at(values))
        return mismatch_at(objective, values)


def answers(
    step: SharedStep,
    defense: str,
    iterations: int,
    seed: int,
    feature_range: str,
    time_limit: float | None,
    compare: bool = False,
    widths: np.ndarray | None = None,
) -> tuple[list[Answer], list[str]]:
    """Attack the gradients of a cell by each of `ATTACKS`, and to compare, by each of `COMPARED`.

    Gradients without a defence are attacked by ``auto``, which is then
    ``ignorant`` too, and not by ``cosine``. Where ``auto`` has found the batch
    that explains defended gradients, ``cosine`` is left out: no other batch has
    these gradients.

    Parameters
    ----------
    step : SharedStep
        What was shared, as an attacker sees it who is told the defence.
    defense : str
        What the gradients went through.
    iterations : int
        The most iterations of an attack.
    seed : int
        Of the attacks' random numbers.
    feature_range : str
        The known range of the features, an option of the attack.
    time_limit : float or None
        The most seconds for all attacks together. Each gets an equal share of
        what is left.
    compare : bool
        Whether those of `COMPARED` are run too.
    widths : ndarray, optional
        See `dlg.attack.verdict.judge`.

    Returns
    -------
    answers : list of Answer
    failures : list of str
        Why the other attacks could not be run.

    Raises
    ------
    KeyboardInterrupt
        Where an attack was interrupted.
    """
    found: list[Answer] = []
    failures: list[str] = []
    is_defended = defense != NO_DEFENSE
    started = time.monotonic()
    attacks = ATTACKS | COMPARED if compare else ATTACKS
    names = [name for name in attacks if is_defended or name != "ignorant"]
    for index, name in enumerate(names):
        attack = attacks[name]
        if name == "cosine" and found and (not is_defended or found[0].verdict.kind == EXPLAINED):
            continue
        options = AttackOptions.from_keywords(
            batch_size=step.batch_size,
            iterations=math.ceil(attack.share * iterations),
            seed=seed,
            feature_range=feature_range,
            # One start saves time: no start explains what a defence changed much, so that all three would be run.
            restarts=1 if is_defended else None,
            # Without a defence, cosine is run only where auto cannot be.
            time_limit=_share_of_time(time_limit, started, max(len(names) - index - (not is_defended), 1)),
            **attack.options,
        )
        if attack.knows:
            # Unchecked: a defence of one's own is spelt as from the folder where the audit was started.
            options = dataclasses.replace(options, knows=defense)
        attacked = step if attack.knows else dataclasses.replace(step, knowledge=NOTHING)
        try:
            found.append(answer_of(name, attacked, options, widths))
        except InputError as error:
            failures.append(f"{name}: {one_line(error)}")
    if compare and not is_defended and found and found[0].attack == "auto":
        found.insert(1, dataclasses.replace(found[0], attack="ignorant"))
    return found, failures


def answer_of(name: str, step: SharedStep, options: AttackOptions, widths: np.ndarray | None = None) -> Answer:
    """Run one attack on what was shared.

    Parameters
    ----------
    name : str
        What the answer calls it.
    step : SharedStep
        The attack's programs are shared with other steps that have the same
        `Preparations`.
    options : AttackOptions
    widths : ndarray, optional
        See `dlg.attack.verdict.judge`.

    Raises
    ------
    InputError
        See `dlg.dlg.prepare`.
    KeyboardInterrupt
        Where it was interrupted.
    """
    started = time.monotonic()
    strategy, first = prepare(step, options)
    with tempfile.TemporaryDirectory() as folder:
        deadline = Deadline(options.time_limit, started)
        attempts = Attempts(strategy, options, ResultFolder(Path(folder)), first, deadline)
        attempts.run()
    if attempts.cut_short == "interrupted":
        raise KeyboardInterrupt
    ended = attempts.cut_short or attempts.best.ended
    return Answer(name, step, options, strategy, attempts.best.last, ended, widths)


def believed(step: SharedStep, found: Sequence[Answer]) -> Answer:
    """The answer that an attacker takes who knows the defence: the one whose gradients are nearest to the shared ones.

    Those of `COMPARED` are not taken, unless no other attack could be run.

    Parameters
    ----------
    step : SharedStep
        What was shared, as an attacker sees it who is told the defence.
    found : sequence of Answer
        One or more.
    """
    found = [answer for answer in found if answer.attack in ATTACKS] or found
    # Named tokens are certain, and an answer that matches less badly is not.
    found = [answer for answer in found if answer.named is not None and answer.verdict.of_batch] or found
    if len(found) == 1:
        return found[0]
    yardstick = _yardstick(step, found)
    return min(found, key=lambda answer: answer.mismatch_by(yardstick))


def seen_by_gradients(step: SharedStep, answer: Answer) -> np.ndarray | None:
    """Which numbers of an answer, (B, ...), some gradient depends on; None where that is not known.

    Parameters
    ----------
    step : SharedStep
        What was shared, as an attacker sees it who is told the defence.
    answer : Answer
    """
    objective = _yardstick(step, [answer]).with_labels(answer.label)
    if not objective.is_precise or step.knowledge.has_signs_only:
        return None
    return seen_numbers(objective, answer.batch.values[0].astype(np.float64))


def _yardstick(step: SharedStep, found: Sequence[Answer]) -> Objective:
    """An objective that compares gradients with what is known of the defence, its labels fixed."""
    for objective in (answer.strategy.objective for answer in found if answer.step is step):
        if objective.is_least_squares and objective.fixed_label is not None:
            return objective
    try:
        return build_precise_objective(step, fixed_label=found[0].label)
    except PrecisionError:
        return build_objective(step, fixed_label=found[0].label)


def _share_of_time(time_limit: float | None, started: float, attacks: int) -> float | None:
    """The seconds for the next of some attacks, of which each gets as many. None where there is no limit."""
    if time_limit is None:
        return None
    return max(started + time_limit - time.monotonic(), _LEAST_TIME) / attacks
