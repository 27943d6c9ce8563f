"""What an option is: the marks on its field, the checks that several options share, and the words of their messages.

A component is a frozen dataclass: its fields are its options. Fields carry marks that the run's keys understand (see
`keys.describe`):

- `speed()`: the option changes how fast, never what; it is in no key.
- `only(stage)`: the option matters to one stage alone; it is in the keys of no other.
- `added(default)`: the option is newer than runs that lack it; it is in a key only where it is not its default.
- `choice(NAMES)`: the option is one of the names of a registry.
- `source("file" | "model" | "code" | "template" | "served")`: the option names something outside; its content is in the
  key, its name is not. A template is one of raft's own by its short name, or a file; what is served is a model, or the
  name of one on a server of which no more is known.
"""

import difflib
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from raft.core.errors import UserError

WHOLE = 10**9  # where an option has no upper bound of its own


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a recipe: the dotted key, and what to do about it."""

    key: str
    message: str


def speed(default: Any = MISSING, **options: Any) -> Any:
    """A field that changes only how fast the same result is made."""
    return field(default=default, metadata={"speed": True}, **options)


def only(stage: str, default: Any = MISSING, **options: Any) -> Any:
    """A field that only one stage reads: what other stages make does not depend on it."""
    return field(default=default, metadata={"only": stage}, **options)


def added(default: Any, **options: Any) -> Any:
    """A field that came later: with its default the result, and its key, are as they were without it."""
    return field(default=default, metadata={"added": True}, **options)


def source(kind: str, default: Any = MISSING, **options: Any) -> Any:
    """A field that names a file, a model or code; what it names is identified by content."""
    return field(default=default, metadata={"source": kind}, **options)


def choice(names: Iterable[str], default: Any = MISSING, **options: Any) -> Any:
    """A field that holds one of these names, or a list of them: those of a registry, which a type cannot list."""
    return field(default=default, metadata={"choices": tuple(names)}, **options)


def is_there(name: str) -> bool:
    """Whether a file or folder of that name can be seen; names that no file can have are not there."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False


def is_file(name: str) -> bool:
    """Whether it is a regular file, or a link to one."""
    return is_there(name) and Path(name).is_file()


def text_of(file: str) -> str:
    """The text of a file that an option names. UserError: it cannot be read, or is not UTF-8."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        raise UserError(f"{file}: not UTF-8 (byte {fault.start}: {fault.reason}); save the file as UTF-8") from None
    except OSError as fault:
        raise UserError(fault_of_file(file) or f"{file} cannot be read ({fault.strerror}); try again") from None


def fault_of_file(name: str) -> str | None:
    """Why a file that an option names cannot be read, None if it can. A pipe or a device is no file: it has no hash."""
    path = Path(name)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return f"{bounded(name)} is {'a folder' if path.is_dir() else 'no regular file'}; give a file"
        with open(path, "rb"):
            return None
    except (FileNotFoundError, NotADirectoryError):
        return f"no file at {bounded(str(path.absolute()))}"
    except OSError as fault:
        return f"{bounded(name)} cannot be read ({fault.strerror}); name a file that can be"
    except ValueError as fault:  # half a character, or a NUL
        return f"{short(name)} names no file ({fault})"


def section(
    name: str, default: Any = MISSING, refuses: Callable[[Any], str | None] | None = None, **options: Any
) -> Any:
    """A field that holds a component: `kind:` chooses it from the table of that name.

    `refuses` says of a class, or of what was built of it, why this field cannot hold it, None if it can.
    """
    return field(default=default, metadata={"section": name, "refuses": refuses}, **options)


def sections(name: str, default: Any = MISSING, **options: Any) -> Any:
    """A field that holds several components of one table, each under a name that the user gives it."""
    return field(default=default, metadata={"section": name, "named": True}, **options)


RENAMED = {  # options by other libraries' names, and those that they had before 0.1; the first of a section is meant
    "advice": ("alerts",), "attention": ("attn_implementation",), "batch_tokens": ("max_tokens_per_batch",),
    "block": ("batch_size",), "blocks": ("block_size",), "concurrency": ("max_concurrency",),
    "context": ("max_model_len",), "cut_at": ("truncate_at",), "drop": ("filters",), "engine": ("engine_args",),
    "epochs": ("num_train_epochs",), "field": ("prompt_column",), "keep": ("keep_policies",), "kl": ("kl_coef",),
    "lr": ("learning_rate",), "max_failed": ("max_failed_fraction", "max_bad_rows_fraction"),
    "max_tokens": ("max_prompt_length", "max_length"), "n": ("k",), "num_generations": ("k",),
    "num_return_sequences": ("k",), "precision": ("mixed_precision",), "ranges": ("normalize",),
    "retries": ("max_retries",),
    "schedule": ("lr_scheduler_type",), "start_from": ("train_from",), "take": ("extract",),
    "tokens_per_forward": ("max_tokens_per_microbatch",), "too_long": ("truncation",), "track": ("report_to",),
    "unload": ("offload",), "warmup": ("warmup_ratio",),
}  # fmt: skip


def suggest(name: str, known: list[str]) -> str:
    """The end of a message about an unknown name: the likeliest meant, and all that is allowed."""
    near = [new for new in RENAMED.get(name, ()) if new in known]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"did you mean {near[0]}? " if near else "") + "allowed: " + ", ".join(sorted(known))


def suggest_own(name: str, known: list[str], what: str) -> str:
    """As `suggest`, where a module of the user's own may be named too: `package.module:what`."""
    *module, last = name.split(".")
    own = module and all(map(str.isidentifier, (*module, last)))
    meant = (
        f"did you mean {'.'.join(module)}:{last}? allowed: {', '.join(sorted(known))}" if own else suggest(name, known)
    )
    return f"{meant}, or package.module:{what} of your own"


def short(value: Any, most: int = 80) -> str:
    """A value as a message shows it."""
    try:
        shown = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def bounded(text: str, most: int = 400) -> str:
    """A path or another text as a message shows it: its beginning and its end, where it is long."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def faults_of_text(name: str, file: str) -> Iterator[tuple[str, str]]:
    """The pair of option and message for an option that names a file which is not there or no text."""
    try:
        text_of(file)
    except UserError as fault:
        yield name, str(fault)


def faults_of_range(options: Any, **bounds: tuple[float, float]) -> Iterator[tuple[str, str]]:
    """Pairs of option and message for each numeric option outside its closed bounds; None is let through."""
    for name, (low, high) in bounds.items():
        value = getattr(options, name)
        if isinstance(value, int) and high == float("inf") and value > WHOLE:
            yield name, f"{value!r} is out of range; it must be at most {WHOLE:,}"
        elif value is not None and not low <= value <= high:
            limit = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
            yield name, f"{value!r} is out of range; it must be {limit}"
