"""How far a run is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys

from tqdm import tqdm


class Progress:
    """A bar with the time left on a terminal; elsewhere a line for each report.

    Parameters
    ----------
    total : int
        How many units there are.
    unit : str
        What is counted, in the singular.
    description : str
        What stands before the bar.
    done : int
        How many units were done before.
    """

    def __init__(self, total: int, unit: str, description: str, done: int = 0) -> None:
        self._bar = tqdm(
            total=total,
            initial=done,
            unit=unit,
            desc=description,
            file=sys.stdout,
            disable=sys.stdout is None or not sys.stdout.isatty(),
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def restart(self, description: str) -> None:
        """Begin anew, from none done."""
        if not self._bar.disable:
            self._bar.reset()
            self._bar.set_description(description)

    def report(self, done: int, line: str, beside_bar: str) -> None:
        """Show how far the run is.

        Parameters
        ----------
        done : int
            How many units of `total` are done.
        line : str
            What is printed where there is no terminal.
        beside_bar : str
            What stands beside the bar where there is one.
        """
        if self._bar.disable:
            with contextlib.suppress(BrokenPipeError):  # nobody reads on; the run goes on
                print(line, flush=True)
        else:
            self._bar.set_postfix_str(beside_bar, refresh=False)
            self._bar.update(done - self._bar.n)
