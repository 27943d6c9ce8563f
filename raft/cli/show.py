"""One prompt over the iterations, as text, only from the files of a run."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
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
    gold = _has_gold(folder)
    scores = {it.number: it.evaluation.gold if gold else it.evaluation.scores for it in made}
    evaluated = [it for it in made if scores[it.number].exists()]
    if len(evaluated) < 2:
        return []
    first, last = evaluated[0], evaluated[-1]
    before, after = (dict(_means(scores[it.number])) for it in (first, last))
    figure = "gold reward" if gold else "reward"
    found = [Change(first, last, name, before[name], after[name], figure) for name in before if name in after]
    return sorted(found, key=lambda one: one.gain)


def _has_gold(folder: Path) -> bool:
    """Whether the figures of a run have a gold reward; its scores stay when a recipe names none any more."""
    return any("gold/eval" in row for row in runs.metrics_rows(folder))


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
        head = f"{title} (mean {one.figure} of its answers {one.before:.3f} -> {one.after:.3f}"
        parts.append(f"{head}; {_side_by_side(folder, one)}")
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


FIGURES = {"": "reward", "gold": "gold reward"}  # by what they are called beside an answer


@dataclass(frozen=True)
class Answer:
    """A response with its scores, by names of FIGURES; `mark` says whether it was selected."""

    response: dict[str, Any]
    scores: dict[str, dict[str, Any]]
    mark: str

    @property
    def text(self) -> str:
        return safe(self.response["text"]).strip()

    @property
    def reward(self) -> float | None:
        """By the first reward that there is."""
        return next(iter(self.scores.values())).get("reward")

    def __str__(self) -> str:
        figures = "  ".join(_figure(name, score) for name, score in self.scores.items())
        source = f"[{safe(self.response['candidate'])}] " if self.response.get("candidate") else ""
        cut = " [cut]" if self.response["finish_reason"] == "length" else ""
        return f" {self.mark}{figures}  {source}{self.text}{cut}"


def _figure(name: str, score: dict[str, Any]) -> str:
    reward, label = score.get("reward"), f"{name} " if name else ""
    return label + (f"no reward ({safe(str(score.get('error')))})" if reward is None else f"{reward:8.3f}")


def _side_by_side(folder: Path, one: Change) -> str:
    """A held-out prompt with an answer of each policy: two that differ, as near to the middle as can be."""
    held_out, gold, sides = RunPaths(folder).evaluation, _has_gold(folder), []
    for it in (one.first, one.last):
        asked, answers = next(_answered(it.evaluation, held_out, one.prompt_id, gold))
        sides.append(_from_the_middle(answers))
    apart = [(near + far, near, far) for near, far in product(*(range(len(side)) for side in sides))]
    pairs = [(sides[0][near], sides[1][far]) for _, near, far in sorted(apart)]
    differing = next((pair for pair in pairs if pair[0].text != pair[1].text), None)
    which = "the middle answer of each policy is shown"
    if differing is None:
        which = "all answers of both policies are the same text, and one of each is shown"
    elif differing != pairs[0]:
        which = "the middle answers are the same text, and the nearest that differ are shown"
    figures = " and ".join(FIGURES[name] for name in pairs[0][0].scores)
    lines = [f"{which}, each with its {figures}):", asked]
    for it, answer in zip((one.first, one.last), differing or pairs[0], strict=True):
        lines += [f"\npolicy {it.number} (held-out prompt)", str(answer)]
    return "\n".join(lines)


def _from_the_middle(answers: list[Answer]) -> list[Answer]:
    """Answers, the one whose reward is in the middle first, those without a reward last."""
    rated = sorted((one for one in answers if one.reward is not None), key=lambda one: one.reward or 0.0)
    middle = (len(rated) - 1) // 2
    order = sorted(range(len(rated)), key=lambda place: abs(place - middle))
    return [*(rated[place] for place in order), *(one for one in answers if one.reward is None)]


def prompt(folder: Path, prompt_id: str) -> str:
    """A prompt and what each policy answered; of training responses the winner is marked."""
    lines: list[str] = []
    held_out, gold = RunPaths(folder).evaluation, _has_gold(folder)
    for it in iterations(folder):
        training = f"policy {it.number - 1} (training prompt of iteration {it.number})"
        for place, title, prompts in (
            (it.evaluation, f"policy {it.number} (held-out prompt)", held_out), (it, training, it.prompts),
        ):  # fmt: skip
            for asked, answers in _answered(place, prompts, prompt_id, gold):
                lines += [*([] if asked in lines else [asked]), f"\n{title}", *map(str, answers)]
    if not lines:
        raise UserError(
            f"no prompt {prompt_id!r} in {folder}; the ids are in its evaluation.jsonl and iterations/*/prompts.jsonl"
        )
    return "\n".join(lines)


def _answered(place: GroupPaths, prompts: Path, prompt_id: str, gold: bool) -> Iterator[tuple[str, list[Answer]]]:
    """A prompt in words and its answers in one place, if they are there with a reward; `gold`: with that, too."""
    # a reward that compares within a prompt does not score held-out prompts
    rewards = zip(FIGURES, (place.scores, place.gold), (True, gold), strict=True)
    files = {name: file for name, file, wanted in rewards if wanted and file.exists()}
    if not (compressed.exists(place.responses) and files):
        return
    for row, answered, *scored in records.in_step(prompts, place.responses, *files.values()):
        if row["id"] == prompt_id:
            marks = _marks(place.selected, prompt_id)
            scores = zip(*(one["scores"] for one in scored), strict=True)
            yield (
                f"prompt {prompt_id}: {safe(records.Prompt.of(row).content)}",
                [
                    Answer(response, dict(zip(files, each, strict=True)), marks.get(index, " "))
                    for index, (response, each) in enumerate(zip(answered["responses"], scores, strict=True))
                ],
            )


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
