"""One prompt over the iterations, as text, only from the files of a run."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft.core import compressed, records
from raft.core.errors import UserError
from raft.core.run_paths import GroupPaths, IterationPaths, RunPaths
from raft.core.terminal import safe
from raft.store import runs, stamps, timeline
from raft.store.measuring import incomparable

LINE = 60  # characters of a prompt in a list


def iterations(folder: Path) -> list[IterationPaths]:
    """The iterations that exist. UserError: there are none."""
    if not (folders := RunPaths(folder).iterations()):
        if RunPaths(folder).about.exists() and runs.about(folder)["job"] == "label":
            raise UserError(
                f"{folder} holds no iterations, as its job is label; see {RunPaths(folder).pairs}, or raft report "
                f"{folder}"
            )
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
    made, gold = iterations(folder), _has_gold(folder)
    others = incomparable(folder)["gold" if gold else "eval"]
    scores = {it.number: it.evaluation.gold if gold else it.evaluation.scores for it in made}
    evaluated = [it for it in made if scores[it.number].exists() and it.number not in others]
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


def before_and_after(folder: Path, *which: str) -> str | None:
    """Held-out prompts with the answers of the first and the last evaluated policy; None if no prompt has both.

    `which` are names of WHICH.
    """
    found = changes(folder)
    if not found:
        return None
    parts = []
    for name in which:
        place, title = WHICH[name]
        one = found[place(len(found))]
        if name == "best" and one.gain <= 0:
            parts.append("no held-out prompt gained")
            continue
        head = f"{title} (mean {one.figure} of its answers {one.before:.3f} -> {one.after:.3f}"
        parts.append(f"{head}; {_side_by_side(folder, one, name)}")
    return "\n\n".join(parts)


def listed(folder: Path) -> list[str]:
    """A line for each held-out prompt: its id, its mean reward before and after, its gain, and how it begins."""
    said = {row["id"]: records.Prompt.of(row).content for row in records.read(RunPaths(folder).evaluation)}
    found = changes(folder)
    wide = max((len(one.prompt_id) for one in found), default=0)
    return [
        *(
            f"{'prompt':{wide}s}  mean {one.figure} of policy {one.first.number} -> {one.last.number}, and the gain"
            for one in found[:1]
        ),
        *(
            f"{safe(one.prompt_id):{wide}s}  {one.before:8.3f} -> {one.after:8.3f}  {one.gain:+8.3f}  "
            + _begin(said.get(one.prompt_id, ""))
            for one in reversed(found)
        ),
    ]


def trained(folder: Path) -> list[str]:
    """A line for each training prompt of each iteration: its id, the rewards of its responses, and how it begins."""
    rows = [
        (it.number, prompt, [one["reward"] for one in scored["scores"] if one.get("reward") is not None])
        for it in iterations(folder)
        if it.scores.exists()
        for prompt, scored in records.in_step(it.prompts, it.scores)
    ]
    wide = max((len(safe(prompt["id"])) for _, prompt, _ in rows), default=0)
    head = f"{'prompt':{wide}s}  iteration  mean and best reward of its responses"
    return [
        *([head] if rows else []),
        *(
            f"{safe(prompt['id']):{wide}s}  {number:9d}  "
            + (f"{sum(rewards) / len(rewards):8.3f} {max(rewards):8.3f}  " if rewards else f"{'no reward':17s}  ")
            + _begin(records.Prompt.of(prompt).content)
            for number, prompt, rewards in rows
        ),
    ]


def _begin(text: str) -> str:
    """How a text begins, on one line."""
    return safe(" ".join(text.split()))[:LINE]


FIGURES = {"": "reward", "gold": "gold reward"}  # by what they are called beside an answer
UNLIKE = {"": "eval", "gold": "gold"}  # and what `incomparable` calls them


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
    def reward(self) -> float:
        """The gold reward where there is one, as in `changes`, whose answers all have it."""
        return float([*self.scores.values()][-1]["reward"])

    def __str__(self) -> str:
        figures = "  ".join(_figure(name, score) for name, score in self.scores.items())
        source = f"[{safe(self.response['candidate'])}] " if self.response.get("candidate") else ""
        cut = " [cut]" if self.response["finish_reason"] == "length" else ""
        return f" {self.mark}{figures}  {source}{self.text}{cut}"


def _figure(name: str, score: dict[str, Any]) -> str:
    reward, label = score.get("reward"), f"{name} " if name else ""
    return label + (f"no reward ({safe(str(score.get('error')))})" if reward is None else f"{reward:8.3f}")


def _side_by_side(folder: Path, one: Change, which: str) -> str:
    """A held-out prompt with the k-th answer of each policy, drawn with the same seed: one that training has changed.

    Of the best prompt the one that gained most, of the worst the one that lost most, else the one that is nearest to
    the prompt's mean. Of evaluations of different sizes the smaller counts.
    """
    held_out, both = RunPaths(folder).evaluation, (one.first, one.last)
    others = incomparable(folder)
    shown = [name for name in _shown(folder) if not others[UNLIKE[name]] & {it.number for it in both}]
    (asked, before), (_, after) = (next(_answered(it.evaluation, held_out, one.prompt_id, shown)) for it in both)
    pairs = list(zip(before, after, strict=False))
    gains = {at: new.reward - old.reward for at, (old, new) in enumerate(pairs) if old.text != new.text}
    if gains:
        aim = {"best": max(gains.values()), "worst": min(gains.values())}.get(which, one.gain)
        at = min(gains, key=lambda pair: abs(gains[pair] - aim))
        said = f"answer {at + 1} of each policy is shown"
        titles = [f"policy {it.number}" for it in both]
    else:
        at = min(range(len(pairs)), key=lambda place: abs(before[place].reward - one.before))
        titles = [f"policies {one.first.number} and {one.last.number}"]
        several, more = len({answer.text for pair in pairs for answer in pair}) > 1, len(before) != len(after)
        if more:
            said = f"the first {len(pairs)} answers of both policies are the same"
        else:
            said = f"both policies gave the same {len(pairs)} answers" if several else "all answers are the same"
        said += ", and one is shown"
    lines = [f"{said}, with its {' and '.join(FIGURES[name] for name in before[at].scores)}):", asked]
    for title, answer in zip(titles, pairs[at], strict=False):
        lines += [f"\n{title} (held-out prompt)", str(answer)]
    return "\n".join(lines)


def prompt(folder: Path, prompt_id: str) -> str:
    """A prompt and what each policy answered; of training responses the winner is marked."""
    lines: list[str] = []
    held_out, shown, others = RunPaths(folder).evaluation, _shown(folder), incomparable(folder)
    for it in iterations(folder):
        training = f"policy {it.number - 1} (training prompt of iteration {it.number})"
        for place, title, prompts, unlike in (
            (it.evaluation, f"policy {it.number} (held-out prompt)", held_out, others["eval"] | others["gold"]),
            (it, training, it.prompts, others["scores"]),
        ):
            note = "; before the branch, by another reward or generator" if it.number in unlike else ""
            for asked, answers in _answered(place, prompts, prompt_id, shown):
                lines += [*([] if asked in lines else [asked]), f"\n{title}{note}", *map(str, answers)]
    if not lines:
        raise UserError(
            f"no prompt {prompt_id!r} in {folder}; the ids are in its evaluation.jsonl and iterations/*/prompts.jsonl"
        )
    return "\n".join(lines)


def _shown(folder: Path) -> list[str]:
    """The names of FIGURES that a run has."""
    return ["", "gold"] if _has_gold(folder) else [""]


def _answered(
    place: GroupPaths, prompts: Path, prompt_id: str, shown: Sequence[str]
) -> Iterator[tuple[str, list[Answer]]]:
    """A prompt in words and its answers in one place, if they are there with one of these rewards, names of FIGURES."""
    # a reward that compares within a prompt does not score held-out prompts
    rewards = {"": place.scores, "gold": place.gold}
    files = {name: rewards[name] for name in shown if rewards[name].exists()}
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
