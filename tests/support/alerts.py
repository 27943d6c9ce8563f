"""What the rules of advice say of rows of metrics.jsonl."""

from typing import Any

from raft.metrics.diagnostics import Alerts


def named(rows: list[dict[str, Any]], **options: Any) -> dict[str, str]:
    return {one.name: one.level for one in Alerts(**options).judge(rows) if one.level != "ok"}
