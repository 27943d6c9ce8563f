"""Calls a rule on a few prompts in a process of its own: `python -m raft.rewards.rule_trial`, asked by `Rule.trial`.

Standard input is {"function", "args", "folders", "prompts"}; standard output is a list with an entry for each call: the
kind and the words of what went wrong, or nothing. What the rule prints goes to standard error.
"""

import json
import os
import sys
from contextlib import redirect_stdout
from copy import deepcopy

from raft.core import registry
from raft.core.records import Prompt
from raft.core.user_code import importable_in, tell
from raft.rewards.rule import numbers

RESPONSES = ("", "Yes.", "The answer is 42.")


def main() -> None:
    """Reads what is asked, calls the rule, and writes what went wrong."""
    asked = json.load(sys.stdin)
    wrong: list[list[str]] = []
    with redirect_stdout(sys.stderr), importable_in(asked["folders"]):
        function = registry.load(asked["function"])
        for row in asked["prompts"]:
            for response in (*RESPONSES, Prompt.of(row).content):
                try:
                    found = function(Prompt.of(row), response, **deepcopy(asked["args"]))
                except Exception as fault:
                    wrong.append([type(fault).__name__, f"raises {tell(fault)}"])
                    continue
                try:
                    numbers(found)
                    wrong.append([])
                except Exception as fault:
                    wrong.append([type(fault).__name__, f"returns no reward ({fault})"])
    json.dump(wrong, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # a thread that the rule began may never end


if __name__ == "__main__":
    main()
