"""A Flower strategy that attacks what each client sends, beside the training that it wraps."""

from __future__ import annotations

import concurrent.futures
import contextlib
import numbers
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from dlg.errors import InputError, one_line, quoted
from dlg.flower.attack_process import (
    AttackError,
    AttackProcess,
    Order,
    Target,
    as_shape_and_dtype,
    pickled,
    save_weights,
)
from dlg.flower.report import REPORT, describe, write_report
from dlg.flower.seen_update import SeenUpdate, weights_by_name
from dlg.options import AttackOptions
from dlg.shared_update import SharedUpdate

# The metric in which Flower's clients say how many samples they trained on; its strategies weight by it.
NUM_EXAMPLES = "num-examples"
# The folders of a round, which a later audit replaces.
_ROUND = re.compile(r"round_\d{3,}")
# What the audit calls the clients' rule where `dlg.SharedUpdate` has the names that the attack's options have too.
_ARGUMENTS = {"learning_rate": "local_learning_rate", "optimizer": "local_optimizer"}
# Why a reply is not attacked where an error, a full disk for one, was logged when the server sent its weights.
_NOT_KEPT = "the weights that the server sent were not kept"
# How long an attack may take by default, in seconds.
_TIME_LIMIT = 600.0


class LeakageAudit(Strategy):
    """Train by another strategy, and attack what each client sends.

    The training is the other strategy's: it gets the same calls, and its messages
    and replies pass as they are. What the server saw is written down before the
    strategy gets it. The attacks run after that, one after the other, in processes
    of their own. `start` waits for them when the training has ended. The audit
    never ends a training: what goes wrong with an attack is in the report.

    What is attacked is what reached the server, so after all that the client did
    to it, such as Flower's mods ``LocalDpMod`` and ``fixedclipping_mod``, and
    before all that the wrapped strategy does, such as clipping and noise on the
    server.

    Parameters
    ----------
    strategy : flwr.serverapp.strategy.Strategy
        How to train. Wrap the outermost strategy: one that is given this audit as
        its inner strategy may have changed what the clients sent.
    model : paddle.nn.Layer
        The model, in the mode, ``train()`` or ``eval()``, in which the clients
        compute gradients. Messages carry its ``state_dict()``, by its names or in
        its order. Its class must be in a module.
    loss : callable (prediction, label) -> scalar
        The clients' loss.
    feature, label : paddle.static.InputSpec
        As for `dlg.attack_layer`.
    local_learning_rate : float
        The learning rate of the clients' steps.
    local_steps : int
        How many steps a client takes in a round: E epochs over n minibatches are
        E · n.
    local_batch_size : int, optional
        How many samples a step takes. By default each takes all samples.
    local_optimizer, momentum, weight_decay
        The rule of the steps: ``optimizer``, ``momentum`` and ``weight_decay`` of
        `dlg.SharedUpdate`.
    batch_size : int, optional
        How many samples are behind an update. By default what the client says in
        its metric ``num-examples``.
    rounds : collection of int, optional
        The rounds that are audited; by default all.
    result_dir : path-like
        Where the report goes, and a folder for each client and round. Those of an
        earlier audit are replaced.
    time_limit : float
        How many seconds an attack may take.
    **options
        The other options of `dlg.attack_layer`, such as ``seed`` and ``vocabulary``.
        ``optimizer`` is ``"auto"`` by default.

    Attributes
    ----------
    strategy : Strategy
        The wrapped one.
    updates : list of SeenUpdate
        What was seen, and what became of its attack.

    Raises
    ------
    InputError
        Where an argument cannot be taken; before the training starts.
    """

    def __init__(
        self,
        strategy: Strategy,
        model: paddle.nn.Layer,
        loss: Callable[[Any, Any], Any],
        *,
        feature: paddle.static.InputSpec,
        label: paddle.static.InputSpec,
        local_learning_rate: float,
        local_steps: int = 1,
        local_batch_size: int | None = None,
        local_optimizer: str = "sgd",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        batch_size: int | None = None,
        rounds: Collection[int] | None = None,
        result_dir: Any = "flower_audit_results",
        time_limit: float = _TIME_LIMIT,
        **options: Any,
    ) -> None:
        if not isinstance(strategy, Strategy):
            raise InputError(f"strategy is a {type(strategy).__name__}, expected a strategy of flwr.serverapp.strategy")
        if not isinstance(model, paddle.nn.Layer):
            raise InputError(f"model is a {type(model).__name__}, expected a paddle.nn.Layer")
        for name, spec in (("feature", feature), ("label", label)):
            if not isinstance(spec, paddle.static.InputSpec):
                raise InputError(f"{name} is a {type(spec).__name__}, expected a paddle.static.InputSpec")
        for name in ("place", "target", "target_label", "weights"):
            if name in options:
                raise InputError(
                    f"{name} is no option of the audit, which attacks what the server sent and got, without the true"
                    " samples; leave it away"
                )
        options = {"optimizer": "auto", "time_limit": time_limit} | options
        AttackOptions.from_keywords(
            batch_size=1 if batch_size is None else batch_size,
            result_dir=result_dir,
            **{k: v for k, v in options.items() if k != "vocabulary"},
        )
        if rounds is not None and not (
            isinstance(rounds, Collection) and all(isinstance(each, numbers.Integral) for each in rounds)
        ):
            raise InputError(f"rounds is {quoted(rounds)}, expected the numbers of rounds, such as [1, 5]")
        self.strategy = strategy
        self.updates: list[SeenUpdate] = []
        self._rule = {
            "learning_rate": local_learning_rate,
            "local_steps": local_steps,
            "optimizer": local_optimizer,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "local_batch_size": local_batch_size,
        }
        _check_rule(self._rule)
        self._target = pickled(Target(model, loss, as_shape_and_dtype(feature), as_shape_and_dtype(label)))
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._batch_size, self._rounds, self._time_limit, self._options = batch_size, rounds, time_limit, options
        self._folder = _emptied(Path(result_dir).absolute())
        # Where the weights are that each client of the round got; why they are of no use, where they are not.
        self._sent: dict[int, Path | str] = {}
        # The attacks wait for each other, and the training for none of them.
        self._attacks = concurrent.futures.ThreadPoolExecutor(1, "leakage-audit")
        self._ordered: list[concurrent.futures.Future] = []
        self._process = AttackProcess()
        self._changed = threading.Lock()
        # While the strategy is started, its own methods are hidden by those of the audit.
        self._configure_train, self._aggregate_train = strategy.configure_train, strategy.aggregate_train

    def start(self, *args: Any, **keywords: Any) -> Result:
        """Train as the wrapped strategy does, and then wait for the attacks; the arguments are the strategy's.

        The attacks are stopped where the training is stopped, by Ctrl-C for one.
        """
        with self._stopped_with_the_training(), self._in_place_of_the_strategy():
            result = self.strategy.start(*args, **keywords)
        self.wait()
        return result

    def wait(self) -> None:
        """Wait for the attacks, and write the report."""
        concurrent.futures.wait(self._ordered)
        self._write_report()

    @contextlib.contextmanager
    def _in_place_of_the_strategy(self) -> Iterator[None]:
        """Let the strategy's own `start` call the audit: it may be another than that of `Strategy`."""
        hidden = {"configure_train": self.configure_train, "aggregate_train": self.aggregate_train}
        vars(self.strategy).update(hidden)
        try:
            yield
        finally:
            for name in hidden:
                vars(self.strategy).pop(name, None)

    @contextlib.contextmanager
    def _stopped_with_the_training(self) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self._process.stop()
            self.wait()
            raise
        except BaseException:  # old versions of Flower end a run by one that is no Exception
            # The training failed. What the clients sent before is attacked all the same.
            self.wait()
            raise

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy choose clients and messages, and keep the weights that it sends."""
        messages = list(self._configure_train(server_round, arrays, config, grid))
        self._sent = {}
        with self._never_in_the_way("what the server sent"):
            if self._is_audited(server_round):
                self._sent = self._kept_weights(server_round, messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Keep what the clients sent, order its attack, and let the strategy aggregate it."""
        replies = list(replies)
        with self._never_in_the_way("what the clients sent"):
            if self._is_audited(server_round):
                self._see(server_round, replies)
        return self._aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See the wrapped strategy."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """See the wrapped strategy."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log where the report will be, and the wrapped strategy's summary."""
        log(INFO, "\t├──> Leakage audit: %s", self._folder / REPORT)
        self.strategy.summary()

    def _is_audited(self, server_round: int) -> bool:
        return self._rounds is None or server_round in self._rounds

    @contextlib.contextmanager
    def _never_in_the_way(self, what: str) -> Iterator[None]:
        """Log an error, a full disk for one, and let the training go on."""
        try:
            yield
        except Exception as error:
            log(WARNING, "leakage audit: %s cannot be kept: %s", what, one_line(error))

    def _kept_weights(self, server_round: int, messages: Sequence[Message]) -> dict[int, Path | str]:
        """Write the weights of a round's messages, those of equal content once."""
        written: dict[int, Path | str] = {}
        for message in messages:
            if id(message.content) not in written:
                number = f"_{len(written) + 1}" if written else ""
                path = self._folder / f"round_{server_round:03d}" / f"before{number}.pdparams"
                try:
                    save_weights(weights_by_name(message.content, self._shapes), path)
                    written[id(message.content)] = path
                except InputError as error:
                    written[id(message.content)] = f"what the server sent does not fit the model: {error}"
        return {message.metadata.dst_node_id: written[id(message.content)] for message in messages}

    def _see(self, server_round: int, replies: Sequence[Message]) -> None:
        """Write down a round's replies, and order the attacks."""
        waiting = dict(self._sent)
        for reply in replies:
            client = reply.metadata.src_node_id
            self._see_reply(self._new_row(server_round, client), waiting.pop(client, _NOT_KEPT), reply)
        for client in waiting:
            self._new_row(server_round, client).not_attacked("no reply came")
        self._write_report()

    def _new_row(self, server_round: int, client: int) -> SeenUpdate:
        update = SeenUpdate(server_round, client, self._folder / f"round_{server_round:03d}" / f"client_{client}")
        self.updates.append(update)
        return update

    def _see_reply(self, update: SeenUpdate, before: Path | str, reply: Message) -> None:
        try:
            if reply.has_error():
                raise InputError(f"the client replied with error {reply.error.code}: {quoted(reply.error.reason)}")
            if isinstance(before, str):
                raise InputError(before)
            update.batch_size = self._batch_size or _num_examples(reply)
            after = update.folder / "after.pdparams"
            save_weights(weights_by_name(reply.content, self._shapes), after)
        except (InputError, OSError) as error:
            update.not_attacked(one_line(error))
            return
        options = self._options | {"batch_size": update.batch_size}
        order = Order(self._target, before, after, self._rule, update.folder, options)
        self._ordered.append(self._attacks.submit(self._attack, update, order))

    def _attack(self, update: SeenUpdate, order: Order) -> None:
        try:
            update.attacked(self._process.run(order, self._time_limit))
        except AttackError as error:
            update.not_attacked(str(error))
        except Exception as error:
            update.not_attacked(f"{type(error).__name__}: {one_line(error)}")
        log(
            INFO,
            "leakage audit: round %d, client %d: %s",
            update.server_round,
            update.client,
            update.verdict or update.state,
        )
        with self._never_in_the_way("the report"):
            self._write_report()

    def _write_report(self) -> None:
        with self._changed:
            rule = {_ARGUMENTS.get(name, name): value for name, value in self._rule.items()}
            write_report(self._folder, list(self.updates), describe(self.strategy), rule | self._options)


def _check_rule(rule: dict[str, Any]) -> None:
    """Raise InputError where `dlg.SharedUpdate` does not take the clients' rule, before anything is trained."""
    SharedUpdate({"w": np.ones(1)}, {"w": np.zeros(1)}, **rule)


def _num_examples(reply: Message) -> int:
    """How many samples a client says that it trained on."""
    for metrics in reply.content.metric_records.values():
        number = metrics.get(NUM_EXAMPLES)
        if isinstance(number, (int, float)) and number >= 1 and number == int(number):
            return int(number)
    raise InputError(
        f"the reply has no whole number over 0 as metric {NUM_EXAMPLES!r}; give batch_size, or let the clients say it"
    )


def _emptied(folder: Path) -> Path:
    """The folder, without the rounds and the report of an earlier audit."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if _ROUND.fullmatch(old.name) and old.is_dir():
                shutil.rmtree(old)
        (folder / REPORT).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"result_dir {quoted(str(folder))} cannot be used: {error.strerror or error}") from error
    return folder
