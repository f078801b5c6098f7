"""The progress display where there is no terminal; on one it is tested with the commands."""

from __future__ import annotations

from dlg.progress import Progress


def test_each_report_is_a_line_where_there_is_no_terminal(capsys):
    with Progress(3, "cell", "audit", done=1) as progress:
        progress.report(2, "the second is done", "second")
        progress.restart("again")
        progress.report(1, "the first is done again", "first")
    assert capsys.readouterr().out == "the second is done\nthe first is done again\n"


class ClosedPipe:
    """A standard output whose reader went away."""

    def isatty(self):
        return False

    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        raise BrokenPipeError


def test_a_run_goes_on_where_nobody_reads_its_progress(monkeypatch):
    monkeypatch.setattr("sys.stdout", ClosedPipe())
    with Progress(1, "it", "attack") as progress:
        progress.report(1, "nobody reads this", "")
