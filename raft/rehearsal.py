"""`raft check --measure`: the real reward models of a recipe, examined with a few of its own prompts."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from raft import doctor, examples, given, hub, prompts
from raft.chat import load_tokenizer
from raft.imports import beside
from raft.recipe import Loaded
from raft.records import Pair, Prompt

FEW = 8  # prompts that the checks are made with


def rehearse(loaded: Loaded) -> Iterator[doctor.Finding]:
    """The doctor's findings on every reward of a recipe; one that another recipe has yet to make is only named."""
    made = {str(one.folder) for one in loaded.needs}
    recipe = loaded.recipe
    with beside(loaded.path):
        for name, reward in _rewards(recipe):
            models = [*_models(reward), *_models(getattr(recipe, "policy", None))]
            waits = [model for model in models if not Path(model).exists() and str(Path(model).parent) in made]
            if waits:
                yield doctor.Finding(
                    name, "head", "warning", f"{waits[0]} is not made yet; run the recipe that makes it"
                )
                continue
            yield from doctor.examine(reward, list(islice(_prompts(recipe), FEW)), name)
            reward.release()


def _rewards(recipe: Any) -> Iterator[tuple[str, Any]]:
    if recipe.job == "evaluate-reward":
        yield from ((f"rewards.{name}", reward) for name, reward in recipe.rewards.items())
    for name, owner in (("reward", recipe), ("gold", getattr(recipe, "evaluation", None))):
        if getattr(owner, name, None) is not None:
            yield name if name == "reward" else "evaluation.gold", getattr(owner, name)


def _models(reward: Any) -> Iterator[str]:
    """The models that a reward and its members read."""
    if isinstance(model := getattr(reward, "model", None), str):
        yield model
    for member in getattr(reward, "members", {}).values():
        yield from _models(member)


def _prompts(recipe: Any) -> Iterator[Prompt]:
    if recipe.job == "evaluate-reward":
        for section in recipe.sets.values():
            pairs = examples.read(section, None, recipe.seed)
            yield from (one.prompt for one in pairs if isinstance(one, Pair))
        return
    if recipe.policy is None:
        named = recipe.responses
        groups = given.groups(Path(named.path), named.prompts and Path(named.prompts))
        yield from (group.prompt for group in groups)
        return
    policy = hub.locate_model(recipe.policy.model, recipe.policy.revision)
    yield from (one for one in prompts.read(recipe.prompts, load_tokenizer(str(policy))) if isinstance(one, Prompt))
