"""Calls a rule on a few prompts in a process of its own: `python -m raft.rewards.rule_trial`, asked by `Rule.trial`.

Standard input is {"function", "args", "folders", "prompts"}; standard output is what `rule.errors` finds. What the rule
prints goes to standard error.
"""

import json
import os
import sys
from contextlib import redirect_stdout

from raft.core import registry
from raft.core.records import Prompt
from raft.core.user_code import importable_in
from raft.rewards.rule import errors


def main() -> None:
    """Reads what is asked, calls the rule, and writes what went wrong."""
    asked = json.load(sys.stdin)
    with redirect_stdout(sys.stderr), importable_in(asked["folders"]):
        found = errors(registry.load(asked["function"]), asked["args"], list(map(Prompt.of, asked["prompts"])))
    json.dump(found, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # a thread that the rule began may never end


if __name__ == "__main__":
    main()
