"""An untrusted YAML text as plain data with the line of each key, or a sentence that says what is wrong with it.

PyYAML and OmegaConf raise exceptions of many classes, expand aliases without a bound, and read some numbers in ways
that nobody expects. So a text is checked as a graph of nodes, before it becomes data.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raft.core.errors import UserError

LARGEST = 4_000_000  # bytes of a file
DEEPEST = 40  # sections within sections
MOST = 10_000  # keys and values, each alias counted as its copy
TAGS = re.compile(r"tag:yaml\.org,2002:(str|int|float|bool|null|seq|map|merge|timestamp)")
OCTAL = re.compile(r"[-+]?0[0-7_]+")


def read(path: Path) -> str:
    """The text of a file. UserError: it is not a regular file, too large, not readable or not UTF-8."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path} is not a regular file; name a YAML file")
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"no recipe at {path.absolute()}") from None
    except UserError:
        raise
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a YAML file") from None
    except (OSError, ValueError) as fault:  # ValueError: a NUL in the path
        raise UserError(f"{path} cannot be read ({getattr(fault, 'strerror', None) or fault})") from None
    if len(content) > LARGEST:
        raise UserError(
            f"{path} has more than {LARGEST:,} bytes, so it is not a recipe; rows belong in a file of prompts"
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise UserError(f"{path}: not UTF-8 (byte {fault.start}: {fault.reason}); save the file as UTF-8") from None


def lines(text: str, where: str) -> dict[str, int]:
    """The dotted keys of a text, each with its line; the whole text is the key "".

    UserError, which begins with `where`: it is not YAML, or has what a recipe cannot have.
    """
    import yaml

    try:
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        keys: dict[str, int] = {}
        for count, (key, line) in enumerate(_walk(document, "", where, ())):
            if count > MOST:
                raise UserError(f"{where}: more than {MOST:,} keys and values; aliases (*name) are counted as copies")
            keys.setdefault(key, line)
    except yaml.YAMLError as fault:
        raise UserError(f"{where}: not a YAML file ({' '.join(str(fault).split())})") from None
    except RecursionError:
        raise UserError(f"{where}: sections are nested more than {DEEPEST} deep") from None
    except ValueError as fault:  # what PyYAML makes of characters that Unicode lacks
        raise fault if isinstance(fault, UserError) else UserError(f"{where}: not a YAML file ({fault})") from None
    return keys


def _walk(node: Any, key: str, where: str, above: tuple[Any, ...]) -> Iterator[tuple[str, int]]:
    """Each key below a node, with the line of its name, and the node's own last."""
    if node is None:
        return
    _check(node, key, where, above)
    if node.id == "mapping":
        for name, value in node.value:
            below = f"{key}.{name.value}" if key else str(name.value)
            yield from ((inner, at) for inner, at in _walk(value, below, where, (*above, node)) if inner != below)
            yield below, name.start_mark.line + 1
    elif node.id == "sequence":
        for index, value in enumerate(node.value):
            yield from _walk(value, f"{key}[{index}]", where, (*above, node))
    yield key, node.start_mark.line + 1


def _check(node: Any, key: str, where: str, above: tuple[Any, ...]) -> None:
    place = _place(node, key, where)
    if any(node is outer for outer in above):
        raise UserError(f"{place}: an alias (*name) is inside the value that it refers to")
    if len(above) > DEEPEST:
        raise UserError(f"{place}: sections are nested more than {DEEPEST} deep")
    if not TAGS.fullmatch(node.tag):
        raise UserError(f"{place}: the tag {node.tag} is not allowed; write text, numbers, lists and mappings")
    if node.tag.endswith(":int") and (OCTAL.fullmatch(node.value) or ":" in node.value):
        raise UserError(
            f"{place}: YAML reads {node.value} as another number (base {60 if ':' in node.value else 8}); "
            "write it as a plain number, or as text in quotes"
        )
    names: set[str] = set()
    for name, value in node.value if node.id == "mapping" else ():
        at = _place(name, key, where)
        if name.tag.endswith(":merge") and any(part.id != "mapping" for part in _merged(value)):
            raise UserError(f"{at}: << takes a mapping, or a list of mappings")
        if name.id != "scalar" or name.tag.endswith(":null"):
            shown = "null" if name.id == "scalar" else "a list or a mapping"
            raise UserError(f"{at}: {shown} is not a key; keys are text")
        if name.value in names and name.value != "<<":
            raise UserError(f"{at}: the key {name.value} appears twice here; remove one")
        names.add(name.value)


def _merged(value: Any) -> list[Any]:
    """What a key << puts into its mapping."""
    return value.value if value.id == "sequence" else [value]


def _place(node: Any, key: str, where: str) -> str:
    return f"{where}:{node.start_mark.line + 1}{f': {key}' if key else ''}"
