"""Imports go downwards only, and the parts of a kind never import each other."""

import ast
from pathlib import Path

RAFT = Path(__file__).parent.parent / "raft"
# From the ground up; a module imports only from floors below its own (names of folders stand for all in them).
FLOORS = [
    {"errors"},
    {"checkpoint"},
    {"model_folder"},
    {"files", "imports", "seeds", "terminal", "guard", "stopping"},
    {"records", "plugins", "yaml_file", "progress", "logs", "curves", "layout", "timing"},
    {"template_worker", "templates", "marks"},
    {"contracts", "attention", "stamps", "completions", "messages", "reasoning"},
    {"output", "chat", "hub", "metrics", "accuracy", "ranking", "jobs", "server", "engines", "device"},
    {"diagnostics", "advice", "drawing"},
    {"keys", "recipe", "probe", "sources", "selection", "scratch", "plots", "conversation", "serving"},
    {"prompts", "likelihood", "runs", "preflight", "charts", "report_groups"},
    {"preferences", "given", "measuring", "timeline", "told"},
    {"examples", "generators", "rewards", "trainers", "doctor", "sizes"},
    {"report_facts", "labelling", "world", "stages", "comparison", "fallback", "memory"},
    {"following"},
    {"evaluation"},
    {"rehearsal", "loop", "scoring", "show", "branch", "report", "figures"},
    {"forecast", "watch"},
    {"narrator", "tracking"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
INSIDE = {
    ("generators", "bookkeeping"),
    ("generators", "sampling"),
    ("trainers", "fitting"),
    ("trainers", "packing"),
    ("trainers", "steps"),
    ("rewards", "answers"),
    ("rewards", "mathematics"),
    ("rewards", "rules"),
    ("rewards", "model"),
    ("rewards", "reader"),
    ("rewards", "heads"),
    ("rewards", "verdicts"),
    ("rewards", "wording"),
    ("figures", "reading"),
    ("figures", "over_n"),
    ("figures", "paths"),
}


def modules() -> dict[str, Path]:
    return {str(file.relative_to(RAFT).with_suffix("")).replace("/", "."): file for file in RAFT.rglob("*.py")}


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "raft":
            below = node.module.removeprefix("raft").removeprefix(".")
            found |= (
                {below} if below and f"{below}" in modules() else {f"{below}.{n.name}".strip(".") for n in node.names}
            )
    return {name for name in found if name in modules() and not name.endswith("__init__")}


def floor(module: str) -> int:
    top = module.split(".")[0]
    return next(number for number, names in enumerate(FLOORS) if top in names)


def test_every_module_has_its_floor_and_imports_only_from_below():
    faults = []
    for module, file in modules().items():
        if module.endswith("__init__"):
            continue
        for other in imported(file):
            same_room = module.split(".")[0] == other.split(".")[0]
            allowed = tuple(other.split(".")) in INSIDE if same_room else floor(other) < floor(module)
            faults += [] if allowed else [f"{module} imports {other}"]
    assert not faults, faults


def test_the_law_sees_imports():
    assert "stages" in imported(RAFT / "loop.py") and "generators.sampling" in imported(RAFT / "generators" / "vllm.py")
