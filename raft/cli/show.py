"""One prompt over the iterations, as text, only from the files of a run."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft.core import compressed, records
from raft.core.errors import UserError
from raft.core.run_paths import GroupPaths, IterationPaths, RunPaths
from raft.core.terminal import safe
from raft.store import runs, stamps, timeline

LINE = 60  # characters of a prompt in a list


def iterations(folder: Path) -> list[IterationPaths]:
    """The iterations that exist. UserError: there are none."""
    if not (folders := RunPaths(folder).iterations()):
        raise UserError(
            f"{folder} holds no iterations; name the folder of a run of job: align, such as outputs/quickstart"
        )
    return folders


WHICH = {  # the place of a prompt among those of a run, ordered by how much they gained
    "typical": (lambda count: count // 2, "a typical prompt"),
    "best": (lambda count: count - 1, "the prompt that gained most"),
    "worst": (lambda count: 0, "the prompt that lost most, or gained least"),
    "random": (random.randrange, "a prompt at random"),
}


@dataclass(frozen=True)
class Change:
    """The first and the last policy that are evaluated, and the mean reward of a held-out prompt's answers by each."""

    first: IterationPaths
    last: IterationPaths
    prompt_id: str
    before: float
    after: float
    figure: str

    @property
    def gain(self) -> float:
        return self.after - self.before


def changes(folder: Path) -> list[Change]:
    """How the held-out prompts of a run changed, the one that gained least first; none before two are evaluated.

    By the gold reward where there is one: it is what the run is really for.
    """
    made = iterations(folder)
    gold = any("gold/eval" in row for row in runs.metrics_rows(folder))
    scores = {it.number: it.evaluation.gold if gold else it.evaluation.scores for it in made}
    evaluated = [it for it in made if scores[it.number].exists()]
    if len(evaluated) < 2:
        return []
    first, last = evaluated[0], evaluated[-1]
    before, after = (dict(_means(scores[it.number])) for it in (first, last))
    figure = "gold reward" if gold else "reward"
    found = [Change(first, last, name, before[name], after[name], figure) for name in before if name in after]
    return sorted(found, key=lambda one: one.gain)


def before_and_after(folder: Path, *which: str) -> str:
    """Held-out prompts with the answers of the first and the last evaluated policy; `which` are names of WHICH."""
    found = changes(folder)
    if not found:
        return "no held-out prompt has a reward before and after yet"
    parts = []
    for name in which:
        place, title = WHICH[name]
        one = found[place(len(found))]
        if name == "best" and one.gain <= 0:
            parts.append("no held-out prompt gained")
            continue
        shown = prompt(folder, one.prompt_id, [one.first, one.last], middle=True)
        parts.append(
            f"{title} (mean {one.figure} of its answers {one.before:.3f} -> {one.after:.3f}; the middle answer of each "
            f"policy is shown, with its {'reward' if one.first.evaluation.scores.exists() else one.figure}):\n{shown}"
        )
    return "\n\n".join(parts)


def listed(folder: Path) -> list[str]:
    """A line for each held-out prompt: its id, its mean reward before and after, its gain, and how it begins."""
    said = {row["id"]: records.Prompt.of(row).content for row in records.read(RunPaths(folder).evaluation)}
    found = changes(folder)
    wide = max((len(one.prompt_id) for one in found), default=0)
    head = f"{'prompt':{wide}s}  mean {found[0].figure} of policy 0 -> the last, and the gain" if found else ""
    return [
        *([head] if found else []),
        *(
            f"{safe(one.prompt_id):{wide}s}  {one.before:8.3f} -> {one.after:8.3f}  {one.gain:+8.3f}  "
            + safe(" ".join(said.get(one.prompt_id, "").split()))[:LINE]
            for one in reversed(found)
        ),
    ]


def prompt(folder: Path, prompt_id: str, among: list[IterationPaths] | None = None, middle: bool = False) -> str:
    """A prompt and what each policy answered, or its `middle` answer; of training responses the winner is marked."""
    lines: list[str] = []
    held_out = RunPaths(folder).evaluation
    for it in among or iterations(folder):
        training = f"policy {it.number - 1} (training prompt of iteration {it.number})"
        for place, title, prompts in (
            (it.evaluation, f"policy {it.number} (held-out prompt)", held_out), (it, training, it.prompts),
        ):  # fmt: skip
            lines += _section(place, title, prompts, prompt_id, lines, middle)
    if not lines:
        raise UserError(
            f"no prompt {prompt_id!r} in {folder}; the ids are in its evaluation.jsonl and iterations/*/prompts.jsonl"
        )
    return "\n".join(lines)


def _section(
    place: GroupPaths, title: str, prompts: Path, prompt_id: str, so_far: list[str], middle: bool
) -> list[str]:
    # a reward that compares within a prompt does not score held-out prompts
    scores = place.scores if place.scores.exists() else place.gold
    if not (compressed.exists(place.responses) and scores.exists()):
        return []
    for row, answered, scored in records.in_step(prompts, place.responses, scores):
        if row["id"] == prompt_id:
            head = f"prompt {prompt_id}: {safe(records.Prompt.of(row).content)}"
            marks = _marks(place.selected, prompt_id)
            listed = list(enumerate(zip(answered["responses"], scored["scores"], strict=True)))
            if middle:
                listed = [_middle(listed)]
            return [
                *([] if head in so_far else [head]),
                f"\n{title}",
                *(_line(marks.get(index, " "), *both) for index, both in listed),
            ]
    return []


def _middle(listed: list[Any]) -> Any:
    """Of answers with their scores the one whose reward is in the middle; the first if none has a reward."""
    rated = sorted((one for one in listed if one[1][1].get("reward") is not None), key=lambda one: one[1][1]["reward"])
    return rated[(len(rated) - 1) // 2] if rated else listed[0]


def _line(mark: str, response: dict[str, Any], score: dict[str, Any]) -> str:
    reward = (
        f"{score['reward']:8.3f}" if score.get("reward") is not None else f"no reward ({safe(str(score.get('error')))})"
    )
    cut = " [cut]" if response["finish_reason"] == "length" else ""
    source = f"[{safe(response['candidate'])}] " if response.get("candidate") else ""
    return f" {mark}{reward}  {source}{safe(response['text']).strip()}{cut}"


def _marks(selected: Path, prompt_id: str) -> dict[int, str]:
    """By the index of a response: `*` if it was selected, `-` if it is nothing but the rejected one of pairs."""
    rows = records.read(selected) if selected.exists() else iter(())
    picks = [row for row in rows if row["prompt_id"] == prompt_id]
    lost = {row["rejected_index"]: "-" for row in picks if "rejected_index" in row}
    return lost | {row["index"]: "*" for row in picks if "index" in row}


def _means(scores: Path) -> Iterator[tuple[str, float]]:
    """The mean reward of each prompt's responses, where all of them have one."""
    for row in records.read(scores):
        rewards = [score.get("reward") for score in row["scores"]]
        if None not in rewards:
            yield row["prompt_id"], sum(rewards) / len(rewards)


def files(folder: Path) -> str:
    """Which artifacts exist, what each took, and what is half-made."""
    lines = []
    for artifact in timeline.artifacts(folder):
        dropped = f", {artifact['dropped']} dropped" if artifact["dropped"] else ""
        rows = f"{artifact['rows']} rows{dropped}" if artifact["rows"] else ""
        fault = stamps.damage(folder / artifact["artifact"], artifact, whole=False)
        note = (
            "deleted to save room"
            if artifact.get("pruned")
            else "gone; raft resume makes it again"
            if fault == stamps.GONE
            else f"damaged: {fault}"
            if fault
            else ""
        )
        lines.append(
            f"  {artifact['artifact']:44s} {artifact['seconds']:9.1f} s  {rows}{f'  ({note})' if note else ''}"
        )
    for name in runs.shared_names(folder):
        if not (folder / name).exists():
            lines.append(f"  {name:44s} gone with the run that this one branched off")
    for file in filter(Path.is_file, sorted(folder.rglob("*.partial"))):
        with open(file, "rb") as partial:
            lines.append(f"  {file.relative_to(folder)!s:44s} half-made: {sum(1 for _ in partial) - 1} groups")
    return "\n".join(lines)
