"""What the rules of advice say of rows of metrics.jsonl."""

from typing import Any

from raft.metrics import advice
from raft.metrics.advice import Advice


def named(rows: list[dict[str, Any]], **options: Any) -> dict[str, str]:
    return {one.name: one.level for one in advice.advise(rows, Advice(**options)) if one.level != "ok"}
