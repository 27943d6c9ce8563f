"""The model card of an exported policy: what it was made of and how, what was measured, and what was not.

Names, recipes and what models say are hostile text: every one of them stands in a code span, where Markdown acts on
nothing, or in YAML that a library writes. No path of the machine is passed on.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from raft import __version__
from raft.config import recipe as recipes
from raft.core.errors import UserError
from raft.core.run_paths import RunPaths, run_of
from raft.core.terminal import rounded, safe
from raft.models import hub
from raft.pipeline import evaluation
from raft.pipeline.policies import Found
from raft.store import runs
from raft.store.keys import Artifact
from raft.store.measuring import first_round, held_out_means
from raft.store.stamps import read_stamp

FIGURES = {"reward/eval": "held-out reward", "gold/eval": "gold reward"}
ADDRESSES = ("url", "base_url")  # of servers, perhaps with a password
LONGEST = 200  # characters of a text that is quoted
FRAME = ("format", "system", "prefix", "suffix")  # keys of what is put around a prompt
NOTE = "# What made this policy. Absolute paths are cut to their last names, and addresses of servers are left out.\n"


class Method(NamedTuple):
    """How the policies of a run are trained: its name, its tags on the hub, and its paper."""

    name: str
    tags: list[str]
    paper: str
    arxiv: str

    @property
    def cited(self) -> str:
        """The paper with a link."""
        return f"{self.paper}, [arXiv:{self.arxiv}](https://arxiv.org/abs/{self.arxiv})"


RANKED = Method(
    "reward-ranked fine-tuning", ["best-of-n", "reward-ranked-fine-tuning"], "RAFT, Dong et al. 2023", "2304.06767"
)
PREFERENCES = {  # by the kind of the trainer
    "dpo": Method("iterative direct preference optimisation", ["dpo"], "DPO, Rafailov et al. 2023", "2305.18290"),
    "kto": Method("iterative Kahneman-Tversky optimisation", ["kto"], "KTO, Ethayarajh et al. 2024", "2402.01306"),
}


class Base(NamedTuple):
    """The model that a job started from: its name (None for a new one), and the commit if it is one of the hub.

    `before` is what that was trained from, where a run of raft made it.
    """

    name: str | None
    commit: str | None = None
    before: "Base | None" = None

    @property
    def root(self) -> "Base":
        """The first of them all."""
        return self if self.before is None else self.before.root


def card(folder: Path, found: Found, recipe: dict[str, Any], curve: str | None) -> str:
    """The card of a policy of a run; `recipe` is its portable recipe, `curve` the file of the picture, if any."""
    from huggingface_hub import ModelCard, ModelCardData

    job, base = recipe.get("job", "align"), _base(folder, found.number is not None)
    method = PREFERENCES.get(str((recipe.get("trainer") or {}).get("kind")), RANKED)
    results = _results(folder, found, recipe)
    data = ModelCardData(
        base_model=base.root.name if base.root.commit else None,
        datasets=sorted(set(_hub_datasets(folder, recipe))) or None,
        library_name="transformers",
        pipeline_tag="text-classification" if job == "reward-model" else "text-generation",
        tags=["raft", *(method.tags if job == "align" else [job])],
        model_name=folder.resolve().name if results else None,
        eval_results=results or None,
    )
    parts = [
        f"# {code(folder.resolve().name)}",
        *_what(found, base, job, method),
        "## How it was made",
        "\n".join(_made(folder, found, recipe)),
        "## Measured",
        *_measured(folder, found),
        *([f"![Rewards of each policy of the run]({curve})"] if curve else []),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(found, recipe)),
        "## Made with",
        _versions(found.artifact, runs.about(folder).get("seed")),
    ]
    body = "\n\n".join(parts)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def code(value: Any) -> str:
    """A text of others as a code span, on one line, in which nothing acts."""
    text = " ".join(safe(str(value)).split()) or "-"
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def portable(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A resolved recipe without folders of this machine and addresses of servers: of a local model only its name."""
    began = Path(runs.about(folder).get("folder", "."))
    beginnings = [f"{place}/" for place in (began, folder.absolute(), Path.home()) if place != Path("/")]

    def cut(value: Any, key: str = "") -> Any:
        if isinstance(value, Mapping):
            return {cut(name): cut(one, str(name)) for name, one in value.items()}
        if isinstance(value, list):
            return [cut(one, key) for one in value]
        if not isinstance(value, str):
            return value
        if key in ADDRESSES:
            return "..."
        if key == "model" and _is_folder(value, began):
            return local_name(value)
        if value.startswith(("/", "~/", "../")) and "\n" not in value:
            return PurePosixPath(value).name
        for beginning in beginnings:
            value = value.replace(beginning, "")
        return value

    return cut(recipe)


def as_yaml(recipe: dict[str, Any]) -> str:
    """A portable recipe as the file that goes along."""
    import yaml

    return NOTE + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


def local_name(path: str) -> str:
    """What a model folder of this machine is called: the run that made it, its name on the hub, or its own name."""
    match PurePosixPath(path).parts:
        case [*_, repository, "snapshots", _] if repository.startswith("models--"):  # in the local cache of the hub
            return repository.removeprefix("models--").replace("--", "/")
        case [*_, run, "iterations", number, "policy"] if number.isdecimal():
            return f"{run}, policy {int(number)}"
        case [*_, run, "policy" | "reward-model" | "best"]:
            return run
    return PurePosixPath(path).name


def _is_folder(name: str, began: Path) -> bool:
    return not hub.is_name(name) or (began / name).is_dir() or Path(name).is_dir()


def _base(folder: Path, align: bool, depth: int = 8) -> Base:
    """What the policies of a run, or the model of another job, began as."""
    run = RunPaths(folder)
    stamp = read_stamp(run.iteration(0).policy if align else run.start)
    section = stamp["key"]["section"] if stamp else {}
    if section.get("config"):
        return Base(None)
    model = str((recipes.read_resolved(folder).get("policy") or {}).get("model"))
    began = Path(runs.about(folder).get("folder", "."))
    commit = re.match(r"commit:([0-9a-f]{40})", str(section.get("model")))
    if commit and hub.is_name(model):
        return Base(model, commit[1])
    maker, before = run_of(began / model) if depth and (began / model).is_dir() else None, None
    if maker is not None:
        with suppress(UserError):  # it is damaged, which takes nothing from this one
            before = _base(maker, runs.about(maker).get("job") == "align", depth - 1)
    return Base(local_name(model) if _is_folder(model, began) else model, before=before)


def _hub_datasets(folder: Path, recipe: dict[str, Any]) -> Iterator[str]:
    """The data sets of the hub that a run learned from, by the stamp of its rows."""
    run = RunPaths(folder)
    stamp = read_stamp(run.pool) or read_stamp(run.examples)
    section = stamp["key"]["section"] if stamp else {}
    for part in section.get("sources") or [section]:
        name = part.get("dataset")
        if isinstance(name, str) and str(part.get("content")).startswith("commit:"):
            yield name


def _what(found: Found, base: Base, job: str, method: Method) -> Iterator[str]:
    made = _named(base)
    if job == "reward-model":
        yield f"A reward model trained with raft on pairs of responses. It began as {made}."
    elif job == "sft":
        yield f"A policy fine-tuned with raft on given responses. It began as {made}."
    elif found.number == 0:
        yield f"Policy 0 of a run of {method.name}: the base model itself, unchanged: {made}."
    else:
        yield (
            f"Policy {found.number} of a run of {method.name} ({method.cited}) with raft. The base model, policy 0, is "
            f"{made}."
        )
    task = "SequenceClassification" if job == "reward-model" else "CausalLM"
    yield (
        f"```python\nfrom transformers import AutoModelFor{task}, AutoTokenizer\n\n"
        'folder = "."  # this folder\n'
        f"model = AutoModelFor{task}.from_pretrained(folder)\ntokenizer = AutoTokenizer.from_pretrained(folder)\n```"
    )


def _named(base: Base) -> str:
    """A model in words, with what raft trained it from."""
    at = f" at commit {code(base.commit[:12])}" if base.commit else ""
    name = f"{code(base.name)}{at}" if base.name else "a new model with random weights"
    return name if base.before is None else f"{name}, which raft trained from {_named(base.before)}"


def _made(folder: Path, found: Found, recipe: dict[str, Any]) -> Iterator[str]:
    run = RunPaths(folder)
    source = recipe.get("prompts") if found.number is not None else recipe.get("examples")
    rows = run.pool if found.number is not None else run.examples
    known = read_stamp(rows)
    count = f", {known['rows']} of them to learn from" if known and found.number != 0 else ""
    yield f"- {'prompts' if found.number is not None else 'examples'}: {_source(source)}{count}{_frame(source)}"
    if found.number is not None:
        yield f"- reward: {_component(recipe.get('reward'))}"
        if gold := (recipe.get("evaluation") or {}).get("gold"):
            yield f"- gold reward, which selection never saw: {_component(gold)}"
    if found.number:
        yield from _iterations(folder, found.number, recipe)
    if found.number != 0:
        yield f"- trainer: {_options(portable(found.artifact.stamp['key']['section'] or {}, folder))}"
    yield f"- the whole recipe: [{run.recipe.name}]({run.recipe.name})"


def _iterations(folder: Path, number: int, recipe: dict[str, Any]) -> Iterator[str]:
    """What the last iteration did, by its stamps: they have every value that held, defaults among them."""
    it = RunPaths(folder).iteration(number)
    origin = "policy 0" if recipe.get("train_from") == "first" else "the policy before"
    yield f"- iterations: {number}, each policy trained from {origin}"
    if (made := read_stamp(it.responses)) and (first := read_stamp(first_round(it).responses)):
        section, scores = portable(first["key"]["section"], folder), read_stamp(it.scores)
        told: dict[str, Any] = {
            name: section[name] for name in ("is", "temperature", "top_p", "max_tokens") if name in section
        }
        told |= {name: section[name] for name in ("stop", "truncate_at") if section.get(name)}
        count = f"K = {section.get('k')}"
        if scores is not None and "sampling/responses" in scores["measured"]:
            sampling = _options(portable(scores["key"]["section"], folder))
            count = f"{scores['measured']['sampling/responses']:.4g} on average (sampling: {sampling})"
        yield f"- responses: {count} to each of {made['rows']} prompts; {_options(told)}"
    if recipe.get("candidates"):
        yield f"- candidates, selected beside them: {', '.join(recipe['candidates'])}"
    if picked := read_stamp(it.selected):
        section = portable(picked["key"]["section"], folder)
        yield f"- selection: {_options(section)}; {picked['rows']} rows were trained on in the last iteration"


def _measured(folder: Path, found: Found) -> Iterator[str]:
    if found.number is None:
        stamp = read_stamp(RunPaths(folder).metrics) or found.artifact.stamp
        measured = ((code(name).replace("|", "\\|"), value) for name, value in _told(stamp))
        rows = [f"| {name} | {rounded(value)} |" for name, value in measured]
        yield "\n".join(["| figure | value |", "|---|---|", *rows]) if rows else "Nothing was measured."
        return
    if found.number == 0:
        yield "This is policy 0, so there is nothing to compare it with."
        return
    compared = dict(_gains(folder, found.number))
    if not compared:
        yield f"Policy {found.number} and policy 0 were not both evaluated with the same reward."
        return
    prompts = read_stamp(RunPaths(folder).evaluation)
    answers = read_stamp(RunPaths(folder).iteration(found.number).evaluation.responses)
    k = answers["key"]["section"].get("k") if answers else None
    yield (
        f"Both policies answered the same {prompts['rows'] if prompts else ''} held-out prompts, {k} times each. The "
        "interval of the difference (95 %) compares each prompt with itself."
    )
    lines = [
        f"| mean over prompts | policy 0 | policy {found.number} | difference | prompts |",
        "|---|---|---|---|---|",
    ]
    for key, (gain, count) in compared.items():
        half = "no interval" if math.isnan(gain.half_width) else f"± {gain.half_width:.4g}"
        figures = f"{gain.before:.4g} | {gain.after:.4g} | {gain.difference:+.4g} ({half})"
        lines.append(f"| {FIGURES[key]} | {figures} | {count} |")
    yield "\n".join(lines)


def _told(stamp: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What a stage measured; that nothing was padded is no news."""
    return ((name, value) for name, value in stamp["measured"].items() if value or name != "train/padding")


def _gains(folder: Path, number: int) -> Iterator[tuple[str, tuple[Any, int]]]:
    """How a policy compares with the first, and on how many prompts."""
    for key, (_, gain) in evaluation.gains(runs.Run(folder, 0), number).items():
        means = held_out_means(folder)[key]
        yield key, (gain, int(np.sum(~np.isnan(means[0]) & ~np.isnan(means[number]))))


def _results(folder: Path, found: Found, recipe: dict[str, Any]) -> list[Any]:
    from huggingface_hub import EvalResult

    def result(task: str, metric: str, name: str, value: float) -> Any:
        return EvalResult(
            task_type=task, dataset_type="held-out", dataset_name="rows held out of the run", metric_type=metric,
            metric_name=name, metric_value=value,
        )  # fmt: skip

    if found.number:
        figures = ((FIGURES[key], gain.after) for key, (gain, _) in _gains(folder, found.number))
        return [result("text-generation", name.replace(" ", "-"), name, value) for name, value in figures]
    stamp = read_stamp(RunPaths(folder).metrics) if recipe.get("job") == "reward-model" else None
    accuracy = stamp["measured"].get("eval/accuracy") if stamp else None
    return [] if accuracy is None else [result("text-classification", "accuracy", "accuracy on pairs", accuracy)]


def _limits(found: Found, recipe: dict[str, Any]) -> Iterator[str]:
    if found.number:
        by_gold = recipe.get("best_by") == "gold"
        yield (
            "It was trained to please one reward. A higher reward is not always a better answer: what the reward "
            "overlooks or likes by mistake was trained too."
        )
        yield (
            "The held-out prompts were never trained on, but their reward is the very one that chose what was. "
            f"The best policy of a run is also picked by {'the gold reward' if by_gold else 'it'}, so that figure of "
            "the best one is a little too good."
        )
        yield (
            "The gold reward was never used to choose responses; it is another number, and no reading of the answers."
            if (recipe.get("evaluation") or {}).get("gold")
            else "No second reward was measured, so over-optimisation of the first would not show in these figures."
        )
    yield "Nothing else was evaluated: no other tasks or languages, no facts, no bias, no safety."
    yield "The licence of the base model applies, and so may those of the data and of the reward."


def _versions(artifact: Artifact, seed: Any) -> str:
    versions = {"raft": __version__, **artifact.stamp.get("versions", {})}
    return ", ".join(f"{name} {code(version)}" for name, version in versions.items()) + f"; seed {code(seed)}"


def _source(section: Any) -> str:
    """Where rows come from, by name."""
    if not isinstance(section, Mapping):
        return "-"
    if parts := section.get("sources"):
        return "a mixture of " + ", ".join(map(_source, parts))
    name = section.get("dataset") or section.get("path")
    return code(section.get("kind")) + (f" {code(name)}" if name else "")


def _frame(section: Any) -> str:
    """What is put around each row: whoever asks the model has to put it there too."""
    told = {name: section[name] for name in FRAME if section.get(name)} if isinstance(section, Mapping) else {}
    framed = (
        f"{name} {code(str(value) if name == 'format' else repr(value)[:LONGEST])}" for name, value in told.items()
    )
    return f"; each with {', '.join(framed)}" if told else ""


def _component(section: Any) -> str:
    """A reward by its kind, and by the model or rule that it is."""
    if not isinstance(section, Mapping):
        return "-"
    name = section.get("model") or section.get("function")
    members = section.get("members")
    inside = f" of {', '.join(map(_component, members.values()))}" if isinstance(members, Mapping) else ""
    return f"{code(section.get('kind'))}{f' {code(name)}' if name else ''}{inside}"


def _options(section: Mapping[str, Any]) -> str:
    """What a stamp says of a section: its kind, and the options that are set."""
    hidden = ("is", "code", "content")
    told = {name: value for name, value in section.items() if name not in hidden and value not in (None, [], {}, "")}
    kind = str(section.get("is", "")).rpartition("/")[2]
    return ", ".join([code(kind), *(f"{name} {code(value)}" for name, value in told.items())])
