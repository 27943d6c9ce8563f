"""The law of the rooms: imports go downwards only, so no room knows of those that use it."""

import ast
from functools import cache
from pathlib import Path

from raft.core.run_paths import GroupPaths, IterationPaths, RunPaths

RAFT = Path(__file__).parent.parent / "raft"
FLOORS = [  # from the ground up; a room imports from floors below its own, and from itself
    {"core"},
    {"models", "metrics"},
    {"launch"},
    {"data"},
    {"config"},
    {"store"},
    {"generators", "rewards", "trainers"},
    {"pipeline"},
    {"report"},
    {"cli"},
    {"api"},
]
BESIDE = {"__main__"}
# where names of artifacts are the keys or values of a table
TABLES = {"core.run_paths", "api", "config.jobs", "cli.forecast", "store.measuring"}


@cache
def modules() -> dict[str, Path]:
    return {".".join(file.relative_to(RAFT).with_suffix("").parts): file for file in RAFT.rglob("*.py")}


@cache
def imported(file: Path) -> set[str]:
    """The modules of raft that a file imports, wherever in it that stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "raft":
            below = node.module.removeprefix("raft").removeprefix(".")
            found |= {below} if below in modules() else {f"{below}.{name.name}".strip(".") for name in node.names}
    return {name for name in found if name in modules()}


def rooms() -> set[str]:
    return {module.split(".")[0] for module in modules()} - BESIDE - {"__init__"}


def floor(module: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if module.split(".")[0] in names)


def test_a_room_imports_only_from_the_floors_below_it():
    faults = []
    for module, file in modules().items():
        room = module.split(".")[0]
        if room in BESIDE or module == "__init__":
            continue
        for other in imported(file):
            if other.split(".")[0] != room and not floor(other) < floor(module):
                faults.append(f"{module} imports {other}")
    assert not faults


def test_no_module_imports_itself_by_way_of_others():
    below = {module: imported(file) for module, file in modules().items()}

    def reached(module: str) -> set[str]:
        seen, waiting = set(), [module]
        while waiting:
            new = below[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    assert [module for module in below if module in reached(module)] == []


def test_every_room_has_its_floor_and_says_what_belongs_in_it():
    assert rooms() == set().union(*FLOORS)
    files = [RAFT / room / "__init__.py" if (RAFT / room).is_dir() else RAFT / f"{room}.py" for room in rooms()]
    assert [file for file in files if not ast.get_docstring(ast.parse(file.read_text()))] == []
    assert len(list(RAFT.glob("[a-z]*"))) <= 15


def test_only_what_makes_an_artifact_names_its_file_and_all_others_ask_run_paths():
    """`RunPaths` has the names of a run's files; the pipeline names what it makes, and a run shows that they agree."""
    names = {path.name for path in vars_of(IterationPaths(Path("x"))) | vars_of(RunPaths(Path("x"))) if path.suffix}
    assert len(names) > 15
    faults = []
    for module, file in modules().items():
        if module.startswith("pipeline.") or module in TABLES:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
                faults.append(f"{module}:{node.lineno} {node.value}")
    assert not faults


def vars_of(paths: GroupPaths) -> set[Path]:
    """All paths of a class of paths."""
    names = [name for kind in type(paths).__mro__ for name, one in vars(kind).items() if isinstance(one, property)]
    return {path for name in names if name != "number" and isinstance(path := getattr(paths, name), Path)}


def test_the_law_sees_imports():
    assert "pipeline.stages" in imported(RAFT / "pipeline" / "loop.py")
    assert "generators.sampling" in imported(RAFT / "generators" / "vllm.py")
