"""The server: FedAvg, as without the audit, in a `dlg.flower.LeakageAudit`."""

from __future__ import annotations

from pathlib import Path

import paddle
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from paddle.static import InputSpec

from dlg.flower import LeakageAudit
from federation.model import ARRAYS, LEARNING_RATE, LOCAL_STEPS, LOSS, make_model, set_weights, weights_of

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and audit."""
    paddle.seed(0)
    model = make_model()
    strategy = FedAvg(arrayrecord_key=ARRAYS, fraction_evaluate=0.0)
    audit = LeakageAudit(
        strategy,
        model,
        LOSS,
        feature=InputSpec([None, 1, 28, 28], "float32"),
        label=InputSpec([None, 1], "int64"),
        local_steps=LOCAL_STEPS,
        local_learning_rate=LEARNING_RATE,
        result_dir=context.run_config["result-dir"],
        time_limit=30,
    )
    result = audit.start(grid=grid, initial_arrays=weights_of(model), num_rounds=context.run_config["rounds"])
    set_weights(model, result.arrays)
    paddle.save(model.state_dict(), str(Path(context.run_config["result-dir"], "trained.pdparams")))
