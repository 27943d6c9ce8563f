"""What can be known before a run starts, beyond the recipe's own words: files, folders, templates, lengths.

No weights are loaded. All faults are reported at once, as those of the recipe are.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raft.config.recipe import Loaded, RecipeError
from raft.core.errors import UserError
from raft.core.options import Fault, fault_of_file, is_there
from raft.data.sources import FileRows, InlineRows
from raft.models import hub, model_folder, reward_templates

SAMPLE = "That depends on what you mean, but I will gladly try to help you with it, step by step. "


def check(loaded: Loaded, fetch: bool = False) -> None:
    """Raises RecipeError with every fault; with `fetch` hub models are brought here first."""
    made = {str(needed.folder) for needed in loaded.needs}
    faults = [*_named(loaded.recipe, "", made, fetch)]
    if not faults:
        faults += _trained(loaded.recipe, made)
    if not faults and loaded.recipe.job == "align":
        faults += _fits(loaded.recipe, made)
    if faults:
        raise RecipeError(loaded.path, faults, loaded.lines)
    if (trainer := getattr(loaded.recipe, "trainer", None)) is not None and hasattr(trainer, "check"):
        trainer.check()


def foreseen(loaded: Loaded) -> Iterator[str]:
    """Warnings of what will go wrong later: answers that a reward model cannot read to their end.

    Measured with the tokenizers of policy and reward model, where both are here, on a sentence of English; the doctor
    measures with the run's own prompts.
    """
    recipe = loaded.recipe
    limit = getattr(getattr(recipe, "generator", None), "max_tokens", None)
    own = _tokenizer(getattr(recipe, "policy", None))
    if not isinstance(limit, int) or own is None:
        return
    words = SAMPLE * (1 + limit // max(1, len(own.encode(SAMPLE, add_special_tokens=False).ids)))
    answer = own.decode(own.encode(words, add_special_tokens=False).ids[:limit])
    gold = getattr(getattr(recipe, "evaluation", None), "gold", None)
    for key, reward in _models({"reward": recipe.reward, "evaluation.gold": gold}):
        if (other := _tokenizer(reward)) is None:
            continue
        longest = min(reward.max_length, model_folder.positions(_folder(reward)) or reward.max_length)
        tokens = len(other.encode(answer, add_special_tokens=False).ids)
        if tokens >= longest:
            yield (
                f"{key}: answers of generator.max_tokens: {limit} have about {tokens} tokens of {reward.model}, and it "
                f"reads {longest} (the smaller of {key}.max_length: {reward.max_length} and the model's own), the "
                "prompt among them. Such answers have no reward, and more of them than "
                f"selection.max_failed_fraction stop the run: lower generator.max_tokens, or raise {key}.max_length if "
                "the model reads more"
            )


def _models(rewards: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The reward models among rewards and the members of ensembles, by their keys."""
    for key, reward in rewards.items():
        yield from _models({f"{key}.members.{name}": member for name, member in getattr(reward, "members", {}).items()})
        if hasattr(reward, "model") and hasattr(reward, "truncation"):
            yield key, reward


def _folder(part: Any) -> Path:
    """Where the model of a section is, if it is here."""
    return _here(part) or Path(part.model)


def _tokenizer(part: Any) -> Any:
    """The fast tokenizer of a section's model, without transformers; None if it is not here."""
    if getattr(part, "model", None) is None or not (file := _folder(part) / "tokenizer.json").is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception:  # the tokenizers library raises a bare Exception; loading the model says what is wrong
        return None


def _named(part: Any, key: str, made: set[str], fetch: bool) -> Iterator[Fault]:
    """Faults of the files and models that a recipe names; what its own needs will make is not asked for yet."""
    first_fault = getattr(part, "first_fault", None)
    if first_fault is not None and isinstance(part, FileRows | InlineRows):
        path = getattr(part, "path", None)
        here = path is None or (str(Path(path).parent) not in made and fault_of_file(path) is None)
        if here and (fault := first_fault()) is not None:
            yield Fault(key, fault)
    for item in dataclasses.fields(part):
        value, below = getattr(part, item.name), f"{key}.{item.name}" if key else item.name
        kind = item.metadata.get("source")
        if value is None:
            continue
        if kind == "file" and str(Path(value).parent) not in made:
            if (fault := fault_of_file(value)) is not None:
                yield Fault(below, fault)
        elif kind == "model" and str(Path(value).parent) not in made:
            yield from _model(value, getattr(part, "revision", None), below, fetch)
            yield from _layout(part, key)
        elif kind == "served" and part.url is None and str(Path(value).parent) not in made:
            yield from _model(value, part.revision, below, fetch)
        elif dataclasses.is_dataclass(value):
            yield from _named(value, below, made, fetch)
        elif isinstance(value, list | dict):
            places = (
                value.items() if isinstance(value, dict) else ((f"[{at}]", entry) for at, entry in enumerate(value))
            )
            for place, entry in places:
                if dataclasses.is_dataclass(entry):
                    yield from _named(entry, f"{below}{place if place[:1] == '[' else f'.{place}'}", made, fetch)


def _model(name: str, revision: str | None, key: str, fetch: bool) -> Iterator[Fault]:
    looks_local = is_there(name) or name.count("/") != 1 or name.startswith((".", "/"))
    if looks_local or fetch:
        try:
            model_folder.check(hub.locate_model(name, revision))
        except UserError as fault:
            yield Fault(key, str(fault))


def _layout(part: Any, key: str) -> Iterator[Fault]:
    """A reward model that is to read its own chat template has to have one."""
    folder = _here(part)
    if getattr(part, "template", None) == "chat" and folder is not None and (folder / "config.json").is_file():
        try:
            lacks = not _has_template(folder)
        except UserError as fault:
            yield Fault(f"{key}.model", str(fault))
            return
        if lacks:
            yield Fault(f"{key}.template", reward_templates.no_template(part.model))


def _trained(recipe: Any, made: set[str]) -> Iterator[Fault]:
    """Models that cannot be trained, or not in packed rows, are refused before anything is generated."""
    start, trainer = getattr(recipe, "policy", None), getattr(recipe, "trainer", None)
    folder = None if start is None or start.model is None or trainer is None else _here(start)
    if folder is None or str(folder.parent) in made:
        return
    if (why := model_folder.untrainable(folder)) is not None:
        yield Fault("policy.model", why)
    elif getattr(trainer, "packing", False) and model_folder.carries_state(folder):
        yield Fault(
            "trainer.packing",
            f"{folder} carries a state from token to token (Mamba, linear attention), so texts packed into one row "
            "would see each other; set trainer.packing: false",
        )


def _here(part: Any) -> Path | None:
    """The folder of the model that a section names, None where it is not on this machine."""
    if is_there(part.model) and Path(part.model).is_dir():
        return Path(part.model)
    return hub.fetched(part.model, getattr(part, "revision", None))


def _fits(recipe: Any, made: set[str]) -> Iterator[Fault]:
    """Chat prompts need a template; a prompt and its response must fit the policy's context."""
    folder = _here(recipe.policy)
    if folder is None or str(folder.parent) in made:
        return
    try:
        context, has_template = model_folder.positions(folder), _has_template(folder)
    except UserError as fault:
        yield Fault("policy.model", str(fault))
        return
    if _is_chat(recipe.prompts) and not has_template:
        yield Fault(
            "prompts.format",
            f"the prompts are chat messages, but {folder} has no chat template; use format: text, or a model with one",
        )
    longest = getattr(recipe.generator, "max_tokens", 0)  # a generator of one's own may have no such option
    needed = recipe.prompts.max_prompt_length + longest
    if context and needed > context:
        yield Fault(
            "prompts.max_prompt_length",
            f"prompts of up to {recipe.prompts.max_prompt_length} tokens and responses of up to {longest} "
            f"(generator.max_tokens) make {needed}, but {folder} reads {context}; lower one of the two",
        )


def _is_chat(prompts: Any) -> bool:
    return getattr(prompts, "messages", None) is not None or getattr(prompts, "format", "text") == "chat"


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists():
        return True
    config = folder / "tokenizer_config.json"
    return config.exists() and bool(model_folder.read(config).get("chat_template"))
