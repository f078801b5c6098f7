"""benchmarks.updates: what it attacks, and what it prints."""

from __future__ import annotations

from benchmarks import updates


def test_a_row_has_what_came_back_beside_the_attack_that_takes_the_steps_for_one(capsys):
    updates.main(["--network", "softmax", "--batch_size", "2", "--local_steps", "10", "--seeds", "2"])
    header, _, row = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = dict(zip(updates.COLUMNS, row.strip("| ").split(" | "), strict=True))
    assert header.strip("| ").split(" | ") == updates.COLUMNS
    assert (cells["network"], cells["batch"], cells["steps"], cells["rate"]) == ("softmax", "2", "10", "0.1")
    assert (cells["images ≥ 30 dB"], cells["labels right"]) == ("4 of 4", "4 of 4")
    assert float(cells["worst PSNR"].removesuffix(" dB")) > 100
    assert float(cells["as one step: median PSNR"].removesuffix(" dB")) < 20
