"""What the rules of advice say of rows of metrics.jsonl."""

from typing import Any

from raft.metrics import alerts
from raft.metrics.alerts import Advice


def named(rows: list[dict[str, Any]], **options: Any) -> dict[str, str]:
    return {one.name: one.level for one in alerts.advise(rows, Advice(**options)) if one.level != "ok"}
