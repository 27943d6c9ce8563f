"""Every name of vLLM, transformers, peft and TRL that may go without notice is in docs/upgrading.md, and is there.

It is looked up in the source of the installed libraries, for importing them takes half a minute.
"""

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")
NAME = re.compile(r"`((?:vllm|transformers|peft|trl)[\w.]*):([\w.]+)(?:\(([\w, ]+)\))?`")
NAMES = NAME.findall(PAGE)
OTHERS = {"os", "sys", "asyncio"}  # whose own private names are no affair of these libraries


def package(module: str) -> Path:
    spec = find_spec(module.partition(".")[0])
    if spec is None:
        pytest.skip(f"{module} is not installed")
    return Path(spec.submodule_search_locations[0])


@cache
def source(module: str) -> ast.Module:
    """The module's source. AssertionError if it is not there."""
    stem = package(module).parent.joinpath(*module.split("."))
    file = next((one for one in (stem.with_suffix(".py"), stem / "__init__.py") if one.is_file()), None)
    assert file is not None, f"the module {module} is gone"
    return ast.parse(file.read_text(encoding="utf-8"))


def named(statements: list[ast.stmt]) -> dict[str, ast.AST]:
    """What statements bind, by name; in a class also what its methods set on `self`."""
    found: dict[str, ast.AST] = {}
    for node in (inner for one in statements for inner in [one, *ast.walk(one)]):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, node)
                elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                    found.setdefault(target.attr, node)  # self.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(one.asname or one.name): node for one in node.names}
    return found | {one.name: one for one in statements if isinstance(one, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize(("module", "name", "parameters"), NAMES, ids=[f"{one[0]}:{one[1]}" for one in NAMES])
def test_a_private_name_is_where_raft_looks_for_it_and_takes_what_raft_gives(module, name, parameters):
    found, statements = None, source(module).body
    for star in (one.module for one in statements if isinstance(one, ast.ImportFrom) and one.names[0].name == "*"):
        statements = [*statements, *source(f"{module}.{star}").body]
    for part in name.split("."):
        found = named(statements).get(part)
        assert found is not None, f"{module} has no {name} any more; docs/upgrading.md says where raft uses it"
        statements = getattr(found, "body", [])
    if parameters:
        arguments = {one.arg for one in [*found.args.posonlyargs, *found.args.args, *found.args.kwonlyargs]}
        assert set(parameters.split(", ")) <= arguments, f"{name} of {module} takes {sorted(arguments)} now"


def test_vllm_reads_the_variables_that_raft_sets():
    variables = set(re.findall(r"`(VLLM_[A-Z0-9_]+)`", PAGE))
    text = (package("vllm") / "envs.py").read_text(encoding="utf-8")
    assert [one for one in sorted(variables) if f'"{one}"' not in text] == []
    used = {
        one for file in (ROOT / "raft").rglob("*.py") for one in re.findall(r'"(VLLM_[A-Z0-9_]+)"', file.read_text())
    }
    assert used == variables


def test_no_file_of_raft_uses_a_private_name_that_the_page_lacks():
    listed = {(module, name.partition(".")[0]) for module, name, _ in NAMES}
    last = {name.rpartition(".")[2] for _, name, _ in NAMES}
    lacking, own = [], set()
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "raft").rglob("*.py")}
    for tree in trees.values():
        own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm."):
                modules = {f"{node.module}.{one.name}" for one in node.names}
                known = [(node.module, one.name) in listed for one in node.names]
                if not all(known) and not modules & {module for module, _ in listed}:
                    lacking.append(f"{file.name}: {node.module} {[one.name for one in node.names]}")
            elif isinstance(node, ast.Attribute) and re.fullmatch(r"_[a-z]\w*", node.attr):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                if owner not in {"self", "cls", *OTHERS} and node.attr not in own | last:
                    lacking.append(f"{file.name}: {node.attr}")
    assert lacking == []
