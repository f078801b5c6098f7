"""The audit of a federation that trains with Flower: what each client's update gives away to the server."""

from __future__ import annotations

from dlg.flower.leakage_audit import LeakageAudit

__all__ = ["LeakageAudit"]
