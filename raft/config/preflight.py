"""What can be known before a run starts, beyond the recipe's own words: files, folders, templates, lengths.

No weights are loaded. All faults are reported at once, as those of the recipe are.
"""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft.config import held
from raft.config.jobs import HELD_OUT
from raft.config.recipe import GIVEN, Loaded, RecipeError
from raft.core import compressed, records
from raft.core.atomic import read_object
from raft.core.errors import UserError
from raft.core.options import Fault, fault_of_file, is_there, short, suggest
from raft.core.protocols import REQUESTS, comparable, judges, makes, parts_of
from raft.core.records import Prompt
from raft.core.remote_folder import fault_of_trial
from raft.core.run_paths import OUTPUTS, IterationPaths, RunPaths, stamp_path
from raft.core.user_code import importable_from, is_own
from raft.data import responses_file
from raft.data.examples import FileExamples, InlineExamples, answers_of_a_prompt
from raft.data.prompts import PER_ITERATION, count_different, count_rows, draw, drawn_at_once, first_prompts
from raft.data.sources import FileRows, HubRows, InlineRows
from raft.models import hub, jinja, model_folder, reward_templates
from raft.models.reward_templates import TEXT_TEMPLATES

TRIED = 8  # prompts of each part that a rule is called on: rows may differ in what they have
FAR = 100  # times the learning rate that a kind of trainer has by default
OF_CHATS = f"hh, ultrarm, or a file *{reward_templates.FILE}"  # templates that write chats for any model
CHARACTERS = 4  # of a token, where no tokenizer is here to count
PATIENCE = 3.0  # seconds that raft check waits for a server
SAMPLE = "That depends on what you mean, but I will gladly try to help you with it, step by step. "


class Unchecked(Fault):
    """What could not be looked up: a warning, and no fault."""


def check(loaded: Loaded, fetch: bool = False, restart: bool = False) -> list[str]:
    """Raises RecipeError with every fault, and returns warnings beside those of `at_start`.

    With `fetch` hub models are downloaded first. With `restart` nothing is excused because the run has it already.
    """
    made = {str(needed.folder) for needed in loaded.needs}
    run = None if restart else loaded.folder
    named = list(_named(loaded.recipe, "", made, fetch))
    faults, warnings = _certain(named), [f"{one.key}: {one.message}" for one in named if isinstance(one, Unchecked)]
    if run is not None:
        faults = held.without(faults, run, loaded.config)
    if not any(fault.key == "policy.model" for fault in faults):
        faults += _trained(loaded.recipe, made)
        faults += _fits(loaded.recipe, made) if loaded.recipe.job == "align" else []
    with _reading(faults):
        written = list(_written(loaded.recipe, made))
        closer = {fault.key for fault in written if fault.key.endswith(".template")}  # they know the prompts, too
        faults = [fault for fault in faults if fault.key not in closer]
        known = {fault.key for fault in faults}
        faults += [fault for fault in written if fault.key not in known]
    if not any(fault.key.startswith(("prompts", "evaluation.prompts")) for fault in faults):
        with _reading(faults):
            warnings += _of_rows(loaded, faults, run)
    if faults:
        raise loaded.refused(faults)
    if (trainer := getattr(loaded.recipe, "trainer", None)) is not None and hasattr(trainer, "check"):
        trainer.check()
    return warnings


def _certain(found: Iterable[Fault]) -> list[Fault]:
    return [fault for fault in found if not isinstance(fault, Unchecked)]


def try_mirror(loaded: Loaded) -> None:
    """Raises RecipeError if the mirror of the run cannot be written from here; a run itself would go on without it."""
    mirror = loaded.recipe.store.mirror
    if mirror is not None and (fault := fault_of_trial(mirror)) is not None:
        raise loaded.refused([Fault("store.mirror", fault)])


@contextmanager
def _reading(faults: list[Fault]) -> Iterator[None]:
    """Adds to the faults what is wrong with rows that are read in the block."""
    try:
        yield
    except RecipeError:
        raise
    except UserError as fault:
        if str(fault) not in {known.message for known in faults}:
            faults.append(Fault("prompts", str(fault)))


def _of_rows(loaded: Loaded, faults: list[Fault], run: Path | None) -> list[str]:
    """Adds to the faults those that the first rows show; returns warnings."""
    warnings = []
    called = run is not None and RunPaths(run).iteration(0).metrics.exists()  # each rule, when policy 0 was measured
    faults += _enough(loaded.recipe)
    faults += [Fault(f"{one.key}.max_requests", one.excess) for one in requests(loaded.recipe, run) if one.excess]
    for key, message, bug in () if called else _trials(loaded):
        faults += [Fault(key, message)] if bug else []
        warnings += [] if bug else [f"{key}: {message}"]
    return warnings


def at_start(loaded: Loaded) -> Iterator[str]:
    """Warnings that the recipe, its first rows and the environment give: a run prints them too."""
    yield from _keys_that_are_not_set(loaded.recipe)
    yield from _rate_of_another_kind(loaded)
    yield from _prompts_twice(loaded.recipe)


def _prompts_twice(recipe: Any) -> Iterator[str]:
    """Warnings where most answers of given rows begin with their prompt, which stands before them anyway."""
    given = {"examples": getattr(recipe, "examples", None)}
    given |= {f"candidates.{name}": one for name, one in getattr(recipe, "candidates", {}).items()}
    given |= {f"sets.{name}": one for name, one in getattr(recipe, "sets", {}).items()}
    evaluation = getattr(recipe, "evaluation", None)  # rows of job: reward-model
    given |= {"evaluation": evaluation, "evaluation.references": getattr(evaluation, "references", None)}
    for key, rows in given.items():
        if not isinstance(rows, FileExamples | InlineExamples):
            continue
        with suppress(UserError, OSError):  # said elsewhere
            repeats, read = rows.repeated()
            if 2 * repeats > read:
                learned = key == "examples" and rows.pairs is None
                whole = f", or set {key}.prompt_column: null, which learns from whole texts" if learned else ""
                yield (
                    f"{key}: in {repeats} of the first {read} rows the "
                    f"{'two answers begin' if rows.pairs else 'response begins'} with the prompt, so the prompt would "
                    f"appear twice; remove it from there{whole}"
                )


def _keys_that_are_not_set(recipe: Any) -> Iterator[str]:
    """Warnings about servers that will be asked without the key that the recipe names."""
    for key, part in parts_of(_answering(recipe), "api_key_env"):
        if part.api_key_env and not os.environ.get(part.api_key_env):
            yield f"{key}.api_key_env: the environment has no {part.api_key_env}, so no key will be sent"


def _rate_of_another_kind(loaded: Loaded) -> Iterator[str]:
    """A warning where an override changes the trainer's kind and leaves it a learning rate far above its own."""
    if loaded.lines.get("trainer.kind") not in GIVEN or loaded.lines.get("trainer.learning_rate") in GIVEN:
        return
    trainer = loaded.recipe.trainer
    rate, usual = (getattr(one, "learning_rate", None) for one in (trainer, type(trainer)))
    if isinstance(rate, float) and isinstance(usual, float) and rate >= FAR * usual:
        yield (
            f"trainer.learning_rate: {rate:g} is that of the recipe, whose trainer is of another kind; the default of "
            f"trainer.kind: {loaded.config['trainer']['kind']} is {usual:g}; give trainer.learning_rate={usual:g}, or "
            "the rate that you mean"
        )


def _answering(recipe: Any) -> dict[str, Any]:
    """The sections that may be behind a url, by their keys."""
    gold = getattr(getattr(recipe, "evaluation", None), "gold", None)
    return {**{name: getattr(recipe, name, None) for name in ("generator", "reward")}, "evaluation.gold": gold}


def unreached(recipe: Any) -> Iterator[str]:
    """Warnings of servers that do not answer now, or lack a model; a run does not wait for them."""
    import httpx

    from raft.launch.openai_client import urls

    for key, part in parts_of(_answering(recipe), "url"):
        for url in urls(part.url) if part.url else ():
            try:
                answer = httpx.get(f"{url}/models", timeout=PATIENCE)  # without the key, which only the run sends
                listed = [str(card["id"]) for card in answer.json()["data"]]
                if (name := getattr(part, "served_as", part.model)) not in listed:
                    yield f"{key}.model: {url} has no model {short(name)}; {suggest(str(name), listed)}"
            except (ValueError, TypeError, KeyError):  # it does not say without a key, or has no list
                continue
            except httpx.HTTPError as fault:
                yield f"{key}.url: no answer from {url} ({type(fault).__name__}); start that server before the run"


@contextmanager
def all_faults() -> Iterator[None]:
    """Adds to the faults of a recipe that is loaded in the block those of files and models in its sound sections."""
    try:
        yield
    except RecipeError as error:
        made = {str(needed.folder) for needed in error.needs}
        parts = {name: part for name, part in error.sound.items() if dataclasses.is_dataclass(part)}
        more = _certain(fault for name, part in parts.items() for fault in _named(part, name, made, fetch=False))
        folder = error.resumed or OUTPUTS / str(error.config.get("name"))
        raise error.beside(held.without(more, folder, error.config)) from None


def foreseen(loaded: Loaded) -> Iterator[str]:
    """Warnings of what will go wrong later: answers that a reward model cannot read to their end.

    Measured with the tokenizers of policy and reward model, where both are here, on a sentence of English; the doctor
    measures with the run's own prompts.
    """
    recipe = loaded.recipe
    if recipe.job == "align" and getattr(recipe.generator, "k", 2) == 1:
        yield "generator.k: 1: the best of one response is that response, so nothing is selected; raise it, as to 8"
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


@dataclass(frozen=True)
class Requests:
    """What a run sends to the judge at `key`, retries aside: `sent` requests for what is finished, and up to `left`.

    `left` says what for. `sent` is an upper bound too where it is not `certain`, since older stamps do not say it. Each
    request holds up to `read` tokens of the prompt and the responses, as the policy counts them (0 where that is not
    known), and about `template` more, by the `counter`.
    """

    key: str
    judge: Any
    left: dict[str, int]
    sent: int = 0
    certain: bool = True
    read: int = 0
    template: int = 0
    counter: str = ""
    lower: str = "prompts.per_iteration or generator.k"

    @property
    def total(self) -> int:
        return self.sent + sum(self.left.values())

    @property
    def excess(self) -> str:
        """What is wrong with a total above the recipe's own limit; empty where none is, or nothing is left to ask."""
        if self.judge.max_requests is None or self.total <= self.judge.max_requests or self.total <= self.sent:
            return ""
        more = f"{self.total - self.sent:,} more, after {self.sent:,} for what is finished"
        several = self.judge.mode != "grade" and self.judge.ranking != "challenger" and not self.sent
        return (
            f"{self.judge.max_requests:,} requests are allowed, and the run would send up to "
            f"{more if self.sent else f'{self.total:,}'}{self._listed}; raise it, or lower {self.lower}"
            f"{', or ranking: challenger' if several else ''}"
        )

    @property
    def _listed(self) -> str:
        """What the requests that are left are for."""
        parts = [f"{count:,} {what}" for what, count in self.left.items() if count]
        return f" ({', '.join(parts)})" if len(parts) > 1 else ""

    def __str__(self) -> str:
        left = self.total - self.sent
        most = "" if self.certain else "up to "
        done = f"{most}{self.sent:,} requests were sent to {self.judge.model}" if self.sent else ""
        if not left:
            return f"{self.key}: {done or 'no request is sent'}, and none is left"
        asked = f"{done}, and up to {left:,} are left" if done else f"up to {left:,} requests to {self.judge.model}"
        read = (
            f" Each has up to {self.read:,} tokens of prompt and responses and about {self.template:,} of its template "
            f"({self.counter}): about {left * (self.read + self.template):,} in all at most."
        )
        answers = f"{self.judge.max_tokens:,} tokens: {left * self.judge.max_tokens:,} in all at most"
        return f"{self.key}: {asked}{self._listed}.{read if self.read else ''} Each answer has up to {answers}"


def requests(recipe: Any, folder: Path | None) -> Iterator[Requests]:
    """What a job asks of its judges, for the whole run; nothing of responses that are not here yet.

    What the run in `folder` has finished is counted as such: by its stamps, or at its most where they do not say.
    """
    options = getattr(recipe, "evaluation", None)
    rewards = {"reward": getattr(recipe, "reward", None), "evaluation.gold": getattr(options, "gold", None)}
    found = [(name, *judge) for name, reward in rewards.items() for judge in judges({name: reward})]
    given = getattr(recipe, "responses", None)
    if not found or recipe.job not in ("align", "label"):
        return
    if given is None and not hasattr(recipe.prompts, "per_iteration"):
        return
    whole = recipe if given is not None else sized(recipe)
    for name, key, judge in found:
        place = key.removeprefix(name)
        if recipe.job == "align":
            yield _aligned(whole, key, place, judge, folder)
        elif (asked := _labelled(whole, judge)) is not None:
            read = (0, 0, "") if given is not None else _read_each(whole, judge)
            lower = "the number of responses" if given is not None else Requests.lower
            run = RunPaths(folder or Path(os.devnull))
            known = dict(sent(run.folder))
            done, counts = run.scores in known, known.get(run.scores) or {}
            left, count = {} if done else {"for responses": asked}, counts.get(place, asked) if done else 0
            yield Requests(key, judge, left, count, not done or place in counts, *read, lower=lower)


def sent(folder: Path) -> Iterator[tuple[Path, dict[str, int] | None]]:
    """The finished scores of a run, and its check of the rewards, each with the requests that judges were sent for it.

    They are by the judge's place in its section; None where a stamp does not say. What a branch shares is left out.
    """
    run, shared = RunPaths(folder), _shared(folder)
    made = {path.name for path in (run.scores, run.gold, run.doctor)}
    for stamp in run.files("*.stamp.json"):
        path = stamp.with_name(stamp.name.removesuffix(".stamp.json"))
        if shared.isdisjoint([path, *path.parents]):
            with suppress(UserError):  # of a damaged file: whoever opens the run says so
                told = read_object(stamp, "").get(REQUESTS)
                if isinstance(told, dict) or path.name in made:
                    yield path, told if isinstance(told, dict) else None


def _shared(folder: Path) -> set[Path]:
    """What a branch shares with the run that it branched off."""
    with suppress(UserError):
        if (about := RunPaths(folder).about).exists():
            return {folder / str(name) for name in read_object(about, "").get("shared", [])}
    return set()


def refuse_excess(recipe: Any, folder: Path, drawn: int, held_out: int | None = None) -> None:
    """UserError if a judge would get more requests than its `max_requests`, by the run's own numbers of prompts."""
    known = dataclasses.replace(recipe, prompts=dataclasses.replace(recipe.prompts, per_iteration=drawn))
    if held_out is not None:
        known = dataclasses.replace(known, evaluation=dataclasses.replace(recipe.evaluation, count=held_out))
    if faults := [f"{one.key}.max_requests: {one.excess}" for one in requests(known, folder) if one.excess]:
        raise UserError("\n".join(faults))


def _aligned(recipe: Any, key: str, place: str, judge: Any, folder: Path | None) -> Requests:
    """The requests of a job: align whose numbers of prompts are known, to a judge at a place in its section."""
    options, k = recipe.evaluation, recipe.generator.k
    run = RunPaths(folder or Path(os.devnull))  # which holds nothing
    drawn = recipe.prompts.per_iteration
    groups = recipe.sampling.total(drawn, k) / k  # of k responses
    section = key.removesuffix(place)
    own = section == "reward"
    trains = math.ceil(groups * judge.requests(k)) + drawn * _candidates(recipe, run) if own else 0
    looks = options.count * judge.requests(options.k) if not own or comparable(recipe.reward) else 0  # for each policy
    checks, examined = judge.requests(2) if judge.url else 0, section in _examined(run)
    file, finished = (run.scores if own else run.gold).name, dict(sent(run.folder))
    counts = {path: one for path, one in finished.items() if path.name == file and one is not None and place in one}
    examination = (finished.get(run.doctor) or {}).get(key, checks) if examined else 0
    done, training, held_out, certain = examination + sum(one[place] for one in counts.values()), 0, 0, True
    shared = _shared(run.folder)
    for number in range(recipe.iterations + 1):
        it = run.iteration(number)
        if it.folder in shared:  # its run has asked
            continue
        here = [path for path in counts if it.folder in path.parents]
        in_training = [path for path in here if path.parent != it.evaluation.folder]
        scored, looked = (stamp_path(file).exists() for file in (it.scores, _looked(it, own)))
        unsaid = trains * (own and scored and not in_training) + looks * (looked and len(here) == len(in_training))
        done, certain = done + unsaid, certain and not unsaid
        in_rounds = sum(counts[path][place] for path in in_training)  # of an iteration that is not finished
        training += max(0, trains - in_rounds) * (number > 0 and not scored)
        held_out += looks * (not looked and (number % options.every == 0 or number == recipe.iterations))
    left = {"for training": training, "for held-out prompts": held_out, "as a check": checks * (not examined)}
    begun = stamp_path(run.iteration(0).evaluation.responses).exists()  # what has responses may not change
    keys = [] if begun else ["prompts.per_iteration", "generator.k"] * bool(training)
    keys += [] if begun else ["evaluation.count", "evaluation.k"] * bool(held_out)
    lower = " or ".join(filter(None, (", ".join(keys), "iterations")))
    return Requests(key, judge, left, done, certain, *_read_each(recipe, judge), lower=lower)


def _examined(run: RunPaths) -> set[str]:
    """The rewards that were checked at the start of a run, by their keys."""
    with suppress(UserError):
        if (stamp := stamp_path(run.doctor)).exists():
            return set((read_object(stamp, "").get("key") or {}).get("section") or ())
    return set()


def _candidates(recipe: Any, run: RunPaths) -> int:
    """The most candidates of a prompt."""
    if not recipe.candidates:
        return 0
    if compressed.exists(run.candidates) and stamp_path(run.candidates).exists():
        counts = Counter(row["said"] for row in records.read(run.candidates))
        return max(counts.values(), default=0)
    return sum(map(answers_of_a_prompt, recipe.candidates.values()))


def _looked(it: IterationPaths, own: bool) -> Path:
    """The scores of the answers to held-out prompts by the reward, or by the gold reward."""
    return it.evaluation.scores if own else it.evaluation.gold


def _read_each(recipe: Any, judge: Any) -> tuple[int, int, str]:
    """The most tokens of prompt and responses in a request, about how many its template has, and what counts these."""
    each = getattr(recipe.generator, "max_tokens", None)
    if each is None:
        return 0, 0, ""
    read = recipe.prompts.max_prompt_length + (1 if judge.mode == "grade" else 2) * each
    words = judge.question + (judge.system or "")
    known = {"its own tokenizer": None if judge.url else judge, "the policy's tokenizer": recipe.policy}
    for name, part in known.items():
        if (tokenizer := _tokenizer(part)) is not None:
            return read, len(tokenizer.encode(words, add_special_tokens=False).ids), f"by {name}"
    return read, -(-len(words) // CHARACTERS), f"by {CHARACTERS} characters to a token"


def _labelled(recipe: Any, judge: Any) -> int | None:
    """The requests of a job: label whose number of prompts is known; None if its responses cannot be read."""
    if recipe.responses is None:
        return recipe.prompts.per_iteration * judge.requests(recipe.generator.k)
    given = recipe.responses
    try:
        groups = responses_file.groups(Path(given.path), given.prompts and Path(given.prompts))
        return sum(judge.requests(len(group.responses)) for group in groups)
    except (UserError, OSError):  # said elsewhere
        return None


def sized(recipe: Any) -> Any:
    """A recipe with the numbers of prompts that it leaves open, as far as its rows are here.

    They are the most that the run may find: it may drop rows, and hold out a prompt with all that say the same.
    """
    source, options = recipe.prompts, getattr(recipe, "evaluation", None)
    aside = 0
    if options is not None:
        count = options.count
        if count is None:
            different = count_different(options.prompts or source, 4 * HELD_OUT)
            count = HELD_OUT if different is None else options.fitting(different, options.prompts is not None)
        aside = 0 if options.prompts else count
        recipe = dataclasses.replace(recipe, evaluation=dataclasses.replace(options, count=count))
    drawn = source.per_iteration
    if drawn is None:
        rows = _rows(source, PER_ITERATION + aside)
        counts = [PER_ITERATION] * len(source.parts()) if rows is None else rows
        parts = [(weight, max(1, number)) for (weight, _), number in zip(source.parts(), counts, strict=True)]
        left = PER_ITERATION if rows is None else max(1, sum(rows) - aside)
        drawn = min(drawn_at_once(parts, None), left)
    return dataclasses.replace(recipe, prompts=dataclasses.replace(source, per_iteration=drawn))


def _rows(source: Any, most: int) -> list[int] | None:
    """The rows of each part of a source, counted up to `most`; None if some are not on this machine."""
    counts = [count_rows(part, most) for _, part in source.parts()]
    return None if None in counts else [count for count in counts if count is not None]


def _enough(recipe: Any) -> Iterator[Fault]:
    """Numbers of prompts that are larger than what there is: rows that cannot be used make it only worse."""
    source = getattr(recipe, "prompts", None)
    if source is None or not hasattr(source, "parts"):
        return
    options = getattr(recipe, "evaluation", None)
    held_out = 0 if options is None or options.count is None else options.count
    own = None if options is None else options.prompts
    different = count_different(own or source, held_out) if held_out else None
    if different is not None and different < held_out:
        yield Fault(
            "evaluation.count",
            f"{held_out} prompts are to be held out of {different} different ones; lower it, or leave it out: a "
            "quarter of the prompts is held out then",
        )
        return
    asked = getattr(source, "per_iteration", None)
    rows = _rows(source, asked + held_out) if isinstance(asked, int) else None
    if rows is None or asked is None:
        return
    aside = held_out if len(rows) == 1 and own is None else 0
    try:
        sizes = [(weight, rows[at] - aside) for at, (weight, _) in enumerate(source.parts())]
        draw(sizes, asked, 0, 1)
    except UserError as fault:
        yield Fault("prompts.per_iteration", str(fault).removeprefix("prompts.per_iteration: "))


def _trials(loaded: Loaded) -> Iterator[tuple[str, str, bool]]:
    """What calls of the recipe's rules raise, each with its key, and whether that is an error of programming."""
    recipe = loaded.recipe
    source = getattr(recipe, "prompts", None)
    rewards = {"reward": getattr(recipe, "reward", None)}
    rewards["evaluation.gold"] = getattr(getattr(recipe, "evaluation", None), "gold", None)
    if source is None or not hasattr(source, "parts"):
        return
    rules = list(parts_of(rewards, "trial"))
    prompts = first_prompts(source, TRIED) if rules else []
    with importable_from(loaded.path):
        tried = [(key, rule.trial(prompts)) for key, rule in rules if prompts]
    yield from ((f"{key}.function", *found) for key, found in tried if found is not None)


def _models(rewards: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The reward models among rewards and the members of ensembles, by their keys."""
    return ((key, reward) for key, reward in parts_of(rewards, "truncation") if hasattr(reward, "model"))


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
    if isinstance(part, HubRows):
        yield from _of_hub(part.dataset, part.revision, "dataset", f"{key}.dataset")
    for item in dataclasses.fields(part):
        value, below = getattr(part, item.name), f"{key}.{item.name}" if key else item.name
        kind = item.metadata.get("source")
        if value is None:
            continue
        if kind == "file" and str(Path(value).parent) not in made:
            if (fault := fault_of_file(value)) is not None:
                yield Fault(below, fault)
        elif kind == "model" and str(Path(value).parent) not in made:
            loaded = getattr(part, "url", None) is None
            wrong = list(_model(value, getattr(part, "revision", None), below, fetch, loaded))
            yield from wrong or _reward_model(part, key)
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


def _model(name: str, revision: str | None, key: str, fetch: bool, weights: bool = True) -> Iterator[Fault]:
    looks_local = is_there(name) or name.count("/") != 1 or name.startswith((".", "/"))
    if looks_local or fetch:
        try:
            model_folder.check(hub.locate_model(name, revision, weights))
        except UserError as fault:
            yield Fault(key, str(fault))
    else:
        yield from _of_hub(name, revision, "model", key)


def _of_hub(name: str, revision: str | None, kind: str, key: str) -> Iterator[Fault]:
    try:
        if (refused := hub.fault_of_name(name, revision, kind)) is not None:
            yield Fault(key, refused)
    except hub.Unanswered as unanswered:
        yield Unchecked(key, str(unanswered))


def _reward_model(part: Any, key: str) -> Iterator[Fault]:
    """A reward model needs a head that is read, and one that is to read its own chat template has to have one."""
    folder = _here(part) if hasattr(part, "check_head") else None
    if folder is None or not (folder / "config.json").is_file():
        return
    try:
        if getattr(part, "template", None) == "chat" and model_folder.chat_template(folder) is None:
            yield Fault(f"{key}.template", reward_templates.no_template(part.model))
        part.check_head(folder)
    except UserError as fault:
        yield Fault(f"{key}.model", str(fault))


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
        context, has_template = model_folder.positions(folder), model_folder.chat_template(folder) is not None
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


def _written(recipe: Any, made: set[str]) -> Iterator[Fault]:
    """Templates that cannot write what they are given: chats as texts, texts as chats, or a refused conversation."""
    start = getattr(recipe, "policy", None)
    there = start is not None and start.model is not None and str(Path(start.model).parent) not in made
    folder = _here(start) if there else None
    if hasattr(getattr(recipe, "prompts", None), "parts"):
        kinds = {part.is_chat for _, part in recipe.prompts.parts() if hasattr(part, "is_chat")}
        gold = getattr(getattr(recipe, "evaluation", None), "gold", None)
        for key, reward in _models({"reward": recipe.reward, "evaluation.gold": gold}):
            yield from _unwritten(key, reward.template, kinds, "prompts", _is_bare(reward))
        if folder is not None:
            refusals = (_refused(folder, prompt) for prompt in first_prompts(recipe.prompts, 1))
            yield from (Fault("prompts", refusal) for refusal in refusals if refusal is not None)
    elif chats := dict(_chats(recipe)):
        yield from _written_examples(recipe, folder, chats)


def _chats(recipe: Any) -> Iterator[tuple[str, bool]]:
    """Whether the rows of each section of examples are chats, by the first that can be used, where it is here."""
    given = {name: getattr(recipe, name, None) for name in ("examples", "evaluation")}
    given |= {f"sets.{name}": one for name, one in getattr(recipe, "sets", {}).items()}
    for key, rows in given.items():
        if isinstance(rows, FileExamples | InlineExamples):
            with suppress(UserError, OSError):  # said elsewhere
                if (prompt := rows.first_prompt()) is not None:
                    yield key, prompt.messages is not None


def _written_examples(recipe: Any, folder: Path | None, chats: dict[str, bool]) -> Iterator[Fault]:
    """The same of a job that learns from examples, or evaluates rewards on them; `folder` is that of its model."""
    kinds = set(chats.values())
    for key, reward in _models({f"rewards.{name}": one for name, one in getattr(recipe, "rewards", {}).items()}):
        yield from _unwritten(key, reward.template, kinds, "pairs", _is_bare(reward))
    start, trainer = getattr(recipe, "policy", None), getattr(recipe, "trainer", None)
    if start is None or trainer is None or is_own(trainer):
        return
    judged, lacks = makes(trainer) == "reward-model", f"but {folder} has no chat template"
    bare = folder is not None and _has_no_template(folder)  # a new model (policy.config) has one
    if judged:
        yield from _unwritten("trainer", trainer.template, kinds, "pairs", bare)
    if True in kinds and bare and judged and trainer.template == "chat":
        yield Fault("trainer.template", f"chat, {lacks}; use template: {OF_CHATS}")
    elif True in kinds and bare and not judged:
        key = next(key for key, is_chat in chats.items() if is_chat)
        yield Fault(key, f"its rows are chat messages, {lacks}; give texts, or a model that has one")


def _unwritten(key: str, template: str, kinds: set[bool], what: str, bare: bool) -> Iterator[Fault]:
    """The fault of a reward template that does not write chats (True) or texts (False).

    `bare`: the model has no chat template of its own.
    """
    if True in kinds and template == "plain":
        use = OF_CHATS if bare else "chat"
        yield Fault(f"{key}.template", f"the {what} are chats, which plain does not write; use template: {use}")
    if False in kinds and template not in TEXT_TEMPLATES:
        yield Fault(
            f"{key}.template",
            f"the {what} are plain text, and {template} writes chat messages; use template: plain",
        )


def _is_bare(reward: Any) -> bool:
    """Whether a reward model is known to have no chat template."""
    return (folder := _here(reward)) is not None and _has_no_template(folder)


def _has_no_template(folder: Path) -> bool:
    try:
        return model_folder.chat_template(folder) is None
    except UserError:  # a damaged folder, which other checks name
        return False


def _refused(folder: Path, prompt: Prompt) -> str | None:
    """Why the chat template of a model does not write a prompt."""
    values = {"messages": prompt.messages, "tools": prompt.tools, "documents": None, "add_generation_prompt": True}
    try:
        template, tokens = model_folder.chat_template(folder), model_folder.special_tokens(folder)
    except UserError:  # a damaged folder, which other checks name
        return None
    if prompt.messages is None or template is None:
        return None
    values |= tokens | (prompt.chat_template_kwargs or {})
    try:
        jinja.write(template, f"the chat template of {folder}", values)
    except UserError as fault:
        roles = ", ".join(str(message.get("role")) for message in prompt.messages or [])
        return f"prompt {prompt.id}, a conversation of {roles}, is refused by the chat template of {folder}: {fault}"
    return None


def _is_chat(prompts: Any) -> bool:
    return getattr(prompts, "messages", None) is not None or getattr(prompts, "format", "text") == "chat"
