"""What changed in what an artifact was made from, told by the keys of a recipe where they are known."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft.core import given
from raft.core.run_paths import GroupPaths, IterationPaths, RunPaths
from raft.store.stamps import differences, unlike

SECTIONS = {  # of recipes, by the stages that they are for
    "link_model": "policy", "init_model": "policy", "sample_eval_prompts": "prompts", "collect": "prompts",
    "draw": "prompts", "load_examples": "examples", "load_candidates": "candidates", "given_prompts": "responses",
    "given_responses": "responses", "generate": "generator", "ask_again": "sampling", "merge_scores": "sampling",
    "score": "reward", "select": "selection", "replay": "replay", "train": "trainer",
    "evaluate_reward_model": "trainer",
}  # fmt: skip


@dataclass(frozen=True)
class _Source:
    """A function or class of the user's own, and the hash of its source."""

    name: str
    code: str

    @property
    def place(self) -> str:
        """The file and the name in it; a function that Python gave has a name alone."""
        module, _, name = self.name.partition(":")
        return name if module == given.MODULE else f"{module.replace('.', '/')}.py ({self.name})"


def told(
    path: Path,
    old: Any,
    new: Any,
    say: str = "was {}, is {}",
    shown: Callable[[Any], str] = repr,
    verb: str = "changed",
) -> Iterator[str]:
    """In which keys what an artifact was made from differs from what it would be made from, with both values.

    Of sources and contents, whose values are hashes, it is only told that they differ; `verb` is for sources.
    """
    changes = [
        _told(name, one, other, say, shown, verb)
        for name, one, other in unlike(_in_recipe(path, old), _in_recipe(path, new))
    ]
    yield from changes or differences(old, new, say=say, shown=shown)  # which differ in what is not told


def _told(name: str, one: Any, other: Any, say: str, shown: Callable[[Any], str], verb: str) -> str:
    values = [value.name if isinstance(value, _Source) else value for value in (one, other)]
    if isinstance(one, _Source) and isinstance(other, _Source) and one.name == other.name:
        return f"{name}: the source of {one.place} {verb}"
    if all(isinstance(value, str) and value.startswith("sha256:") for value in values):
        return f"{name}: has other content"
    return f"{name}: {say.format(*('not given' if value is None else shown(value) for value in values))}"


def _in_recipe(path: Path, key: Any) -> Any:
    """The key of an artifact as a recipe would say it: sections by their names, their classes by their kinds."""
    if not isinstance(key, dict):
        return key
    inputs = key.get("inputs") or {}
    stage = str(key.get("stage"))
    section = _section(path, stage, inputs)
    said = {section if name == "section" else name: _options(value) for name, value in key.items()}
    if stage == "sample_eval_prompts" and "count" in inputs:
        said |= {
            "inputs": {name: value for name, value in inputs.items() if name != "count"},
            "evaluation.count": inputs["count"],
        }
    if path == IterationPaths(path.parent.parent).evaluation.responses and isinstance(said.get(section), dict):
        said["evaluation.k"] = said[section].pop("k", None)
    return said


def _options(section: Any) -> Any:
    """A section with its kind, and what is the user's own in it, in the place of a class and of hashes."""
    if not isinstance(section, dict):
        return section
    if section.keys() == {"name", "code"}:
        return _Source(str(section["name"]), str(section["code"]))
    kind = section.get("is")
    if not isinstance(kind, str):
        return {name: _options(value) for name, value in section.items()}
    known = _Source(kind, str(section["code"])) if "code" in section else kind.rpartition("/")[2]
    options = {name: _options(value) for name, value in section.items() if name not in ("is", "code")}
    return {"kind": known, **options}


def _section(path: Path, stage: str, inputs: Mapping[str, Any]) -> str:
    """The section of the recipe that an artifact is made by; "section" where it is not known."""
    run, groups = RunPaths(path.parent), GroupPaths(path.parent)
    if path == groups.gold:
        return "evaluation.gold"
    if path == run.references:
        return "evaluation.references"
    if stage == "sample_eval_prompts" and inputs.get("own"):
        return "evaluation.prompts"
    if stage == "load_eval_pairs":
        return "examples" if inputs.get("held_out") else "evaluation"
    if path == run.pairs and stage == "load_examples":  # of job: evaluate-reward
        return f"sets.{path.parent.name}"
    if stage == "score" and path.parent.name == "scores":
        return f"rewards.{path.stem}"
    return SECTIONS.get(stage, "section")
