"""What an installed library says of itself: the options of dataclasses and calls with their plain types, and tables.

Importing vLLM or transformers takes many seconds, and imports torch. So a process of its own does it, once for each
version of the library and of Python. Its answer is kept in the user's cache: `$XDG_CACHE_HOME/raft` or `~/.cache/raft`.
"""

import dataclasses
import importlib
import inspect
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from raft.core import progress
from raft.core.atomic import write_json
from raft.core.errors import UserError

ASKED = {  # by library: what raft calls an answer, and the dataclass, the call or the mapping that gives it
    "vllm": {
        "engine": "vllm.engine.arg_utils:EngineArgs",
        "architectures": "vllm.model_executor.models.registry:_VLLM_MODELS",
    },
    "transformers": {"training": "transformers:TrainingArguments"},
    "trl": {"dpo": "trl:DPOConfig", "kto": "trl:KTOConfig"},
    "peft": {
        "lora": "peft:LoraConfig",
        "targets": "peft.utils.constants:TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",
    },
    "tensorboard": {"tracker": "torch.utils.tensorboard:SummaryWriter"},
    "trackio": {"tracker": "trackio:init"},
    "wandb": {"tracker": "wandb:init"},
}
ANSWERS = {"tensorboard": "torch"}  # whose class it is, where that is another library's
PLAIN = {one.__name__: one for one in (int, float, bool, str, NoneType)}


@cache
def ask(library: str) -> dict[str, dict[str, Any]]:
    """The answers of a library by their names. UserError if it cannot be imported.

    Of a dataclass or a call that is, by option, the names of its types in `PLAIN`, or [] where another type is among
    them; nothing of a call that takes options of any name.
    """
    known = _cached(library)
    with suppress(OSError, ValueError, AttributeError):
        answered = json.loads(known.read_bytes())
        if answered.keys() == ASKED[library].keys() and all(isinstance(options, dict) for options in answered.values()):
            return answered
    with progress.waiting(f"{library} is asked for its options, once for this version"):
        answered = _asked(library)
    with suppress(OSError):
        known.parent.mkdir(parents=True, exist_ok=True)
        write_json(known, answered)
    return answered


def _cached(library: str) -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - there may be no home
    return Path(folder, "raft", f"{library}-{_version(library)}-python-{platform.python_version()}.json")


def _version(library: str) -> str:
    for distribution in (ANSWERS.get(library, library), f"{library}-cpu"):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return "unknown"


def _asked(library: str) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "raft.core.library_options", json.dumps(ASKED[library])]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"{library} {_version(library)} cannot be imported: {reason}; install it again")
    return json.loads(done.stdout.splitlines()[-1])  # what a library prints by itself comes before


def _answer(target: str) -> Mapping[str, Any]:
    module, _, name = target.partition(":")
    value = getattr(importlib.import_module(module), name)
    if isinstance(value, Mapping):
        return value
    if not dataclasses.is_dataclass(value):
        return _parameters(value)
    hints, own = {}, vars(value)["__annotations__"]
    with suppress(NameError):  # of a type that is imported for type checkers alone
        hints = get_type_hints(value)
    options = [item.name for item in dataclasses.fields(value) if item.init and item.name in own]
    return {name: _plain(hints.get(name)) for name in options}


def _parameters(call: Any) -> dict[str, list[str]]:
    parameters, hints = inspect.signature(call).parameters, {}
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return {}
    with suppress(NameError):
        hints = get_type_hints(vars(call)["__init__"] if isinstance(call, type) else call)
    return {name: _plain(hints.get(name)) for name in parameters}


def _plain(hint: Any) -> list[str]:
    types = get_args(hint) or (hint,)
    return [kind.__name__ for kind in types] if set(types) <= set(PLAIN.values()) else []


if __name__ == "__main__":
    print(json.dumps({name: _answer(target) for name, target in json.loads(sys.argv[1]).items()}))
