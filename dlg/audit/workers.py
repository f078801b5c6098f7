"""Where cells run: in this process, in several processes of this machine, or on a Dask cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from dlg.audit.cell_result import CellResult, Outcome
from dlg.audit.grid import Cell
from dlg.errors import InputError, one_line, quoted

# Loky replaces a worker whose memory has grown. That costs next to nothing, so the user need not know.
warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)

# The most processes that are started unless the user says otherwise: each takes up to 1.2 GiB.
_MOST_DEFAULT_JOBS = 4
# Seconds until a Dask scheduler that does not answer is given up: on a local network it answers within one.
SCHEDULER_TIMEOUT = 10
# Seconds until a cluster without a worker is given up. A worker takes several to start, importing PaddlePaddle.
WORKERS_TIMEOUT = 30


class ClusterLostError(OSError):
    """The Dask cluster is no longer there."""


@dataclasses.dataclass(frozen=True)
class Workers:
    """What runs cells.

    Attributes
    ----------
    jobs : int
        How many processes of this machine. 1 is this process itself.
    client : distributed.Client or None
        The Dask cluster to run on instead.
    """

    jobs: int
    client: Any = None

    def outcomes(
        self,
        cells: Sequence[Cell],
        function: Callable[..., Outcome],
        arguments: Callable[[Cell], tuple[Any, ...]],
    ) -> Generator[Outcome, None, None]:
        """Run the cells, and give the outcome of each as it finishes.

        When a process is killed, for want of memory for example, the cells of
        other processes are lost with it. All of these are run again, one at a
        time. A cell whose process is killed again is to blame, and its outcome
        says so.

        Parameters
        ----------
        cells : sequence of Cell
            What to run.
        function : callable (cell, *arguments) -> Outcome
            What runs a cell. Other processes must be able to import it.
        arguments : callable Cell -> tuple
            What `function` is given after the cell.

        Raises
        ------
        ClusterLostError
            Where the connection to the Dask cluster is lost.
        """
        waiting: list[Cell] = list(cells)
        suspects: list[Cell] = []
        while waiting or suspects:
            alone = not waiting
            group = suspects if alone else waiting
            dispatched: list[Cell] = []
            finished: set[Cell] = set()
            try:
                calls = _calls(list(group), function, arguments, dispatched)
                for outcome in self._in_parallel(calls, alone):
                    finished.add(outcome.result.cell)
                    yield outcome
            except self._deaths() as death:
                victims = [cell for cell in dispatched if cell not in finished]
                if alone:
                    for cell in victims:
                        yield _killed_twice(cell, death)
                    finished.update(victims)
                else:
                    suspects = victims
            waiting = [] if alone else [cell for cell in group if cell not in finished and cell not in suspects]
            suspects = [cell for cell in suspects if cell not in finished]

    def _in_parallel(self, calls: Iterable[Any], alone: bool) -> Iterator[Outcome]:
        """What each call returns, as it finishes. With `alone`, a call begins when the one before it is done."""
        with self._backend(), self._connection():
            parallel = joblib.Parallel(
                return_as="generator_unordered", batch_size=1, pre_dispatch=self._pre_dispatch(alone)
            )
            with contextlib.closing(parallel(calls)) as outcomes:
                yield from outcomes

    def _pre_dispatch(self, alone: bool) -> int | str:
        """How many calls are handed out at a time, as joblib takes it."""
        if alone:
            return 1
        # Over a network, each worker has one call waiting while it runs another.
        return "n_jobs" if self.client is None else "2*n_jobs"

    def _backend(self) -> Any:
        """The context in which joblib runs calls here or on the cluster."""
        if self.client is not None:
            return joblib.parallel_config("dask", client=self.client, wait_for_workers_timeout=WORKERS_TIMEOUT)
        # With one thread each, sums are rounded alike however many processes there are.
        threads = 1 if self.jobs > 1 else None
        return joblib.parallel_config("loky", n_jobs=self.jobs, inner_max_num_threads=threads)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[None]:
        """Say that the connection was lost where Dask says that its futures were cancelled."""
        if self.client is None:
            yield
            return
        from distributed.client import FutureCancelledError

        try:
            yield
        except FutureCancelledError:
            address = self.client.scheduler.address if self.client.scheduler else "its scheduler"
            raise ClusterLostError(f"the connection to {address} was lost; --resume goes on") from None

    def _deaths(self) -> tuple[type[BaseException], ...]:
        """The exceptions that say that a process was killed."""
        if self.client is None:
            return (TerminatedWorkerError,)
        from distributed import KilledWorker

        return (KilledWorker,)


def default_jobs() -> int:
    """How many processes run cells unless the user says otherwise: one for each core, to a limit.

    Raises
    ------
    InputError
        Where joblib cannot read its variable of the environment.
    """
    try:
        cores: int = joblib.cpu_count()
    except ValueError as error:
        raise InputError(
            f"LOKY_MAX_CPU_COUNT={quoted(os.environ.get('LOKY_MAX_CPU_COUNT'))}: expected a number of cores"
            f" ({one_line(error)}); correct this variable of the environment, or unset it"
        ) from None
    return min(cores, _MOST_DEFAULT_JOBS)


def connect(address: str) -> Any:
    """Connect to a Dask cluster that has workers.

    Parameters
    ----------
    address : str
        Its scheduler's, ``tcp://HOST:PORT``.

    Returns
    -------
    distributed.Client

    Raises
    ------
    InputError
        Where Dask is not installed, nothing answers there, or there are no
        workers.
    """
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise InputError("--dask needs Dask on this machine and on its workers: pip install 'distributed'") from None
    try:
        client = _client(address)
        try:
            client.wait_for_workers(1, timeout=WORKERS_TIMEOUT)
        except BaseException:
            with contextlib.suppress(Exception):
                client.close()
            raise
    except (AssertionError, OSError, ValueError, TypeError, ImportError) as error:
        raise InputError(
            f"--dask {address}: cannot work with a Dask scheduler there ({_reason(error)}); expected tcp://HOST:PORT,"
            " with `dask scheduler` running there and a `dask worker` connected to it"
        ) from None
    return client


def _client(address: str) -> Any:
    """A client of the scheduler at this address."""
    import distributed

    class ClosedOnFailure(distributed.Client):
        """A client that is closed at once where it cannot connect.

        Otherwise the garbage collector closes it. Where that happens while another
        client starts, it waits for a lock that its own thread holds.
        """

        def __init__(self) -> None:
            try:
                super().__init__(address, timeout=SCHEDULER_TIMEOUT, set_as_default=False)
            except BaseException:
                # Unlike close, it does nothing where Dask's loop was never started.
                with contextlib.suppress(Exception):
                    self.__del__()
                raise

    return ClosedOnFailure()


def _reason(error: Exception) -> str:
    """Why there is no client, in one line."""
    if isinstance(error, AssertionError):
        # Dask asserts, without a message, that its thread is there after ten seconds. On a busy machine it may not be.
        return "Dask's thread did not start within ten seconds, since this machine is busy; try again"
    if isinstance(error, TimeoutError) and "workers" in str(error):
        return "it has no workers"
    return one_line(error)


def _calls(
    cells: Iterable[Cell],
    function: Callable[..., Outcome],
    arguments: Callable[[Cell], tuple[Any, ...]],
    dispatched: list[Cell],
) -> Iterator[Any]:
    """The calls for joblib, made one by one as it takes them; each cell taken is added to `dispatched`."""
    for cell in cells:
        dispatched.append(cell)
        yield joblib.delayed(function)(cell, *arguments(cell))


def _killed_twice(cell: Cell, death: BaseException) -> Outcome:
    reason = f"its process was killed twice, perhaps for want of memory ({type(death).__name__})"
    return Outcome(CellResult(cell, None, None, reason))
