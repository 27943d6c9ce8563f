"""Reward-ranked fine-tuning of language models: generate K responses, keep the best, fine-tune, repeat.

What a script or notebook needs stands here: `raft.run`, `raft.open_run`, `raft.check`; see docs/python.md. It is
imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raft.api import Callback, Run, ScoredGroup, UserError, check, named, open_run, run

__version__ = "0.1.0"
__all__ = ["Callback", "Run", "ScoredGroup", "UserError", "check", "named", "open_run", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'raft' has no attribute {name!r}")
    import importlib

    found = getattr(importlib.import_module("raft.api"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
