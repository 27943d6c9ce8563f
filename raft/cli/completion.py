"""Completion in a shell: `raft completion bash` prints the script, and the shell then asks raft itself at each TAB.

argcomplete knows commands, options and choices from the parser; what else can stand in a place is looked up here.
"""

import argparse
from collections.abc import Callable, Iterable
from glob import escape
from pathlib import Path
from typing import Any

from argcomplete import autocomplete, shellcode
from argcomplete.completers import BaseCompleter, FilesCompleter

from raft.core.run_paths import OUTPUTS, RUN


def script(shell: str) -> str:
    """What a shell has to run once."""
    return shellcode(["raft"], shell=shell).strip()


def answer(parser: argparse.ArgumentParser) -> None:
    """Answers a shell that asks for completions, and ends the process; nothing happens if none asks."""
    autocomplete(parser, always_complete_options=False, default_completer=Candidates())


class Candidates(BaseCompleter):
    """What can stand in the place of an argument, by the argument's name; files where nothing else is known."""

    def __call__(self, *, prefix: str, action: argparse.Action, **_: Any) -> Iterable[str]:
        return PLACES.get(action.dest, FilesCompleter())(prefix)


def _recipes(prefix: str) -> list[str]:
    from raft.config import recipe

    return [*recipe.shipped(), *FilesCompleter(["yaml", "yml"])(prefix)]


def _runs(prefix: str) -> list[str]:
    """The runs below the current folder that begin so, and those in `outputs`."""
    patterns = (f"{escape(prefix)}*/{RUN}", f"{OUTPUTS}/*/{RUN}")
    return sorted({str(file.parent) for pattern in patterns for file in Path().glob(pattern)})


def _options(prefix: str) -> list[str]:
    from raft.cli import options

    return options.names()


def _figures(prefix: str) -> list[str]:
    from raft.report.figures import picture

    return list(picture.FIGURES)


NOTHING = (
    "overrides", "seeds", "from_iteration", "prompt", "push", "seed", "url", "tasks", "limit", "num_fewshot",
    "batch_size",
)  # fmt: skip
PLACES: dict[str, Callable[[str], Iterable[str]]] = {
    "recipe": _recipes,
    "reward": _recipes,
    "run": _runs,
    "runs": _runs,
    "name": _options,
    "figure": _figures,
    "policy": lambda _: ("best", "last"),
    **dict.fromkeys(NOTHING, lambda _: ()),
}
