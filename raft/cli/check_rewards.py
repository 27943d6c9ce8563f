"""`raft check --measure`: the real reward models of a recipe, examined with a few of its own prompts."""

import json
import shlex
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from raft.config.jobs import JOB_OUTPUTS
from raft.config.recipe import Loaded
from raft.core import protocols
from raft.core.errors import UserError
from raft.core.records import Pair, Prompt
from raft.core.user_code import importable_from
from raft.data import examples, prompts, responses_file
from raft.models import hub
from raft.models.chat_templates import load_tokenizer
from raft.rewards import doctor
from raft.store.stamps import stamp_path

FEW = 8  # prompts that the checks are made with


def rehearse(loaded: Loaded) -> Iterator[doctor.Finding]:
    """The doctor's findings on every reward of a recipe. UserError while a recipe that it needs has yet to be run."""
    recipe, rewards = loaded.recipe, dict(rewards_of(loaded.recipe))
    if rewards:
        _require(loaded.needs)
    with importable_from(loaded.path):
        for name, reward in rewards.items():
            yield from doctor.examine(reward, list(islice(_prompts(recipe), FEW)), name, _answers(recipe))
            protocols.release(reward)


def _answers(recipe: Any) -> doctor.Answers | None:
    """How long the policy's answers can become; None in a job in which none answers."""
    limit = getattr(getattr(recipe, "generator", None), "max_tokens", None)
    if limit is None:
        return None
    policy = hub.locate_model(recipe.policy.model, recipe.policy.revision)
    return doctor.Answers(load_tokenizer(str(policy)), limit)


def rewards_of(recipe: Any) -> Iterator[tuple[str, Any]]:
    """The rewards that a recipe names, by their keys."""
    if recipe.job == "evaluate-reward":
        yield from ((f"rewards.{name}", reward) for name, reward in recipe.rewards.items())
    for name, owner in (("reward", recipe), ("gold", getattr(recipe, "evaluation", None))):
        if getattr(owner, name, None) is not None:
            yield name if name == "reward" else "evaluation.gold", getattr(owner, name)


def _require(needs: Sequence[Loaded]) -> None:
    for needed in needs:
        output = needed.folder / JOB_OUTPUTS[needed.recipe.job][1]
        if not stamp_path(output).exists():
            variables = [f"variables.{name}={json.dumps(value)}" for name, value in needed.recipe.variables.items()]
            command = shlex.join(["raft", "run", str(needed.path), *variables])
            raise UserError(f"{output} is not made yet, so nothing can be measured with it; run this first: {command}")


def _prompts(recipe: Any) -> Iterator[Prompt]:
    if recipe.job == "evaluate-reward":
        for section in recipe.sets.values():
            pairs = examples.read(section, None, recipe.seed)
            yield from (pair.prompt for pair in pairs if isinstance(pair, Pair))
        return
    if recipe.policy is None:
        named = recipe.responses
        groups = responses_file.groups(Path(named.path), named.prompts and Path(named.prompts), named.read)
        yield from (group.prompt for group in groups)
        return
    policy = hub.locate_model(recipe.policy.model, recipe.policy.revision)
    yield from (pair for pair in prompts.read(recipe.prompts, load_tokenizer(str(policy))) if isinstance(pair, Prompt))
