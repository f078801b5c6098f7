"""A batch that was read off is shown as it is, after noise."""

from __future__ import annotations

import numpy as np
from benchmarks.participant import participant

from dlg.attack.objective import build_precise_objective
from dlg.attack.optimizers.known_batch import KnownBatch
from dlg.participant import networks


def test_it_goes_from_noise_to_the_batch_in_one_iteration(batch):
    images, labels = batch
    trained = participant(networks.softmax, images, labels)
    objective = build_precise_objective(trained.shared_step(), fixed_label=labels[:, 0])
    optimizer = KnownBatch(objective, images.astype(float))
    seen = []
    start = optimizer.start(0, 0)
    optimizer.run(start, 10, 1, lambda *each: bool(seen.append(each)))
    ((iteration, last, decisive),) = seen
    assert (iteration, decisive) == (1, True)
    np.testing.assert_array_equal(last.values[0], images)
    assert last.loss < 1e-10 < start.loss
    np.testing.assert_array_equal(optimizer.start(0, 0).values[0], start.values[0])
    assert optimizer.evaluations == 3
