"""report.html of a federation: per client and round what leaked, on one page that needs no other file."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy

from dlg.flower.seen_update import ATTACKED, NOT_ATTACKED, WAITING, SeenUpdate
from dlg.results.folder import write_whole
from dlg.results.label_rows import label_text
from dlg.results.pages import png_uri, template_environment
from dlg.results.versions import versions

REPORT = "report.html"
# The same rows for programs.
ROWS = "audit.json"
# No more labels of an update are listed.
_MOST_LABELS = 32
# How the names of Flower's strategies begin that clip on the server or have the clients clip. Old versions of Flower do
# not have all of these classes.
_ON_THE_SERVER, _ON_THE_CLIENTS = "DifferentialPrivacyServerSide", "DifferentialPrivacyClientSide"


def describe(strategy: Strategy) -> list[str]:
    """Say what is between the clients' training and the updates that were attacked.

    Parameters
    ----------
    strategy : Strategy
        The strategy that the audit wraps. Inner strategies are found as its
        attribute ``strategy``.

    Returns
    -------
    list of str
        Sentences.
    """
    said = [
        f"The strategy is {_named(strategy)}.",
        "Attacked is what the clients sent, after all that they did to it: with a mod such as LocalDpMod or"
        " fixedclipping_mod, the clipped or noisy update. The server cannot tell which mods a client runs.",
    ]
    inner: Any = strategy
    while inner is not None:
        name = type(inner).__name__
        if _is_a(inner, _ON_THE_SERVER):
            said.append(
                f"{name} clips and adds noise on the server, after the updates came. So the raw updates were attacked:"
                " they are what the server sees. Its defence is against those who get the aggregate alone."
            )
        if _is_a(inner, _ON_THE_CLIENTS):
            said.append(
                f"{name} has the clients clip their updates and adds noise on the server, to the aggregate. So clipped"
                " updates without noise were attacked. Clipping multiplies an update by a factor, and leaves the rest."
            )
        inner = getattr(inner, "strategy", None)
    return said


def _named(strategy: Any) -> str:
    """A strategy's class, with that of the strategy inside of it."""
    inner = getattr(strategy, "strategy", None)
    return type(strategy).__name__ + (f" around {_named(inner)}" if inner is not None else "")


def _is_a(strategy: Any, prefix: str) -> bool:
    """Whether a strategy's class, or one that it inherits from, has a name that begins so."""
    return any(each.__name__.startswith(prefix) for each in type(strategy).__mro__)


def write_report(
    folder: Path, updates: Sequence[SeenUpdate], described: Sequence[str], options: Mapping[str, Any]
) -> None:
    """Write report.html, and audit.json with the same rows.

    Parameters
    ----------
    folder : Path
    updates : sequence of SeenUpdate
        In the order in which they came.
    described : sequence of str
        What `describe` gave.
    options : mapping of str to object
        The clients' rule and the attack's options.

    Raises
    ------
    OSError
        Where one of them cannot be written.
    """
    rows = [dataclasses.asdict(update) | {"folder": update.folder.relative_to(folder).as_posix()} for update in updates]
    text = json.dumps({"options": options, "updates": rows}, indent=2, default=str)
    write_whole(folder / ROWS, f"{text}\n".encode())
    write_whole(folder / REPORT, render(updates, described, options).encode())


def render(updates: Sequence[SeenUpdate], described: Sequence[str], options: Mapping[str, Any]) -> str:
    """Make the page; see `write_report`."""
    environment = template_environment(Path(__file__).parent)
    environment.filters["data_uri"] = _data_uri
    environment.filters["labels"] = _labels
    clients = {client: [row for row in updates if row.client == client] for client in {row.client for row in updates}}
    return environment.get_template("report.html.jinja").render(
        updates=updates,
        # In the order in which they first replied.
        clients={client: clients[client] for client in dict.fromkeys(row.client for row in updates)},
        verdicts=Counter(row.verdict for row in updates if row.state == ATTACKED),
        states=Counter(row.state for row in updates),
        attacked=ATTACKED,
        not_attacked=NOT_ATTACKED,
        waiting=WAITING,
        described=described,
        options=options,
        versions=versions(),
    )


def _data_uri(picture: Path) -> str:
    return png_uri(picture.read_bytes())


def _labels(labels: Sequence[Any]) -> str:
    shown = ", ".join(label_text(label) for label in labels[:_MOST_LABELS])
    return f"{shown}, …" if len(labels) > _MOST_LABELS else shown
