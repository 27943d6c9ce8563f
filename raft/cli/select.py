"""`raft select RUN KIND ...`: what other selections would choose of the responses that a run has; nothing is made."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raft.cli.show import iterations
from raft.config.recipe import read_resolved
from raft.core import records
from raft.core.errors import UserError
from raft.core.options import Fault
from raft.core.protocols import makes_pairs, takes_pairs, takes_signed
from raft.core.registry import build, find
from raft.core.resume_command import to_resume
from raft.core.run_paths import GroupPaths, IterationPaths, RunPaths
from raft.metrics import text_metrics
from raft.metrics.reward_metrics import standard_error
from raft.pipeline.selection import Picks
from raft.pipeline.stages import choose
from raft.store import branch
from raft.store.keys import Artifact
from raft.store.measuring import rewards_of

HEAD = ("selection", "picked", "prompts", "reward", "gain", "gold gain", "tokens", "distinct-2", "agreement")


@dataclass(frozen=True)
class Choice:
    """What a selection would choose of an iteration; NaN where it cannot be said.

    `reward` is the mean over picks, by their weights; `gain` the mean over prompts of how much that is above all
    responses of the prompt, and `gold_gain` the same of held-out answers and their gold reward, each with its
    standard error. `tokens` is the mean length, relative to that of all responses; `distinct_2` the different bigrams
    among equally many, relative to all responses; `agreement` the share of what the run itself selected that is picked.
    """

    name: str
    picked: int
    prompts: int
    reward: float
    gain: float
    gain_se: float
    gold_gain: float
    gold_gain_se: float
    tokens: float
    distinct_2: float
    agreement: float

    def cells(self) -> list[str]:
        """The row of a table."""
        return [
            self.name, str(self.picked), str(self.prompts), _number(self.reward), _with_error(self.gain, self.gain_se),
            _with_error(self.gold_gain, self.gold_gain_se), _number(self.tokens), _number(self.distinct_2),
            "" if math.isnan(self.agreement) else f"{self.agreement:.0%}",
        ]  # fmt: skip


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _with_error(value: float, error: float) -> str:
    return "" if math.isnan(value) else f"{value:+.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def named(folder: Path, kinds: Sequence[str]) -> dict[str, tuple[dict[str, Any], Any]]:
    """Sections and selections by what they are called; without kinds the run's own, best-of-k and random.

    A kind is its name, or a mapping in YAML: {kind: softmax, temperature: 0.5}. UserError lists what is wrong.
    """
    resolved = read_resolved(folder)
    own = resolved.get("selection") or {"kind": "best-of-k"}
    asked = kinds or [yaml.safe_dump(own, default_flow_style=True, sort_keys=False).strip(), "best-of-k", "random"]
    found, faults = {}, []
    for text in asked:
        try:
            section = yaml.safe_load(text)
        except yaml.YAMLError as fault:
            raise UserError(f"{text!r} is no kind and no mapping: {' '.join(str(fault).split())[:120]}") from None
        section = {"kind": section} if isinstance(section, str) else section
        if not isinstance(section, dict) or "kind" not in section:
            raise UserError(f"{text!r} is no kind; write best-of-k, or {{kind: softmax, temperature: 0.5}}")
        try:
            kind = find("selection", section["kind"])
        except ValueError as fault:
            raise UserError(str(fault)) from None
        wrong: list[Fault] = []
        built = build(kind, section, "", wrong, chosen=True)
        faults += [f"{text}: {fault.key}: {fault.message}" for fault in wrong]
        if resolved.get("candidates") and getattr(kind, "needs_draws", False):
            faults.append(f"{text}: reads a group as draws from the policy, and this run has candidates; leave it out")
        options = ", ".join(f"{name} {value}" for name, value in section.items() if name != "kind" and kinds)
        found[f"{section['kind']}{', ' if options else ''}{options}"] = section, built
    if faults:
        raise UserError("\n  ".join([f"{len(faults)} faults" if len(faults) > 1 else "1 fault", *faults]))
    return found


def iteration(folder: Path, number: int | None) -> IterationPaths:
    """An iteration whose responses are scored, the last one if none is named. UserError if it is not."""
    scored = [it for it in iterations(folder) if it.scores.exists() and it.number]
    if not scored:
        raise UserError(f"{folder} has no iteration with scores yet; nothing can be selected")
    if number is None:
        return scored[-1]
    if (known := {it.number: it for it in scored}.get(number)) is None:
        allowed = ", ".join(str(it.number) for it in scored)
        raise UserError(f"--iteration {number}: its responses are not scored, or are gone; allowed: {allowed}")
    return known


def choices(folder: Path, it: IterationPaths, selections: dict[str, tuple[dict[str, Any], Any]]) -> list[Choice]:
    """What each selection would choose of an iteration, and of the held-out answers of the policy that wrote it."""
    before = RunPaths(folder).iteration(it.number - 1).evaluation
    held_out = before if before.scores.exists() and before.gold.exists() else None
    return [_choice(folder, it, held_out, name, selection) for name, (_, selection) in selections.items()]


def _choice(folder: Path, it: IterationPaths, held_out: GroupPaths | None, name: str, selection: Any) -> Choice:
    seed = int(read_resolved(folder).get("seed") or 0)
    rewards, picks = _picks(it, it.prompts, selection, seed, it.number)
    groups = list(records.groups(it.prompts, it.responses))
    own = _own(it.selected)
    places = list(zip(picks.prompts.tolist(), picks.responses.tolist(), strict=True))
    all_lengths = [len(one.token_ids) for group in groups for one in group.responses]
    texts = [groups[row].responses[at].text for row, at in places]
    weights = np.maximum(picks.weights, 0)
    lengths = np.array([len(groups[row].responses[at].token_ids) for row, at in places], float)
    mine = {(groups[row].prompt.id, at) for row, at in places}
    gain = _gains(picks, rewards, rewards)
    gold = np.array([])
    if held_out is not None:
        _, answered = _picks(held_out, RunPaths(folder).evaluation, selection, seed, it.number)
        gold_rewards = rewards_of(Artifact.finished(held_out.gold))[0]
        gold = _gains(answered, gold_rewards, gold_rewards)
    return Choice(
        name, len(places), len(set(picks.prompts.tolist())),
        _weighted(rewards[picks.prompts, picks.responses], weights), _mean(gain), standard_error(gain),
        _mean(gold), standard_error(gold), _weighted(lengths, weights) / float(np.mean(all_lengths)),
        text_metrics.distinct_kept(texts, [one.text for group in groups for one in group.responses]),
        len(own & mine) / len(own) if own else math.nan,
    )  # fmt: skip


def _picks(at: GroupPaths, prompts: Path, selection: Any, seed: int, number: int) -> tuple[np.ndarray, Picks]:
    asked, answered, scored = (Artifact.finished(path) for path in (prompts, at.responses, at.scores))
    reference = Artifact.finished(at.reference) if at.reference.exists() else None
    if selection.kl_coef and reference is None:
        raise UserError(
            "kl_coef needs the log-probabilities of the responses under the first policy, which this run has not "
            "computed; leave it out"
        )
    given = reference if selection.kl_coef else None
    return choose(selection, asked, answered, scored, given, seed, number, lambda *drop: None)


def _gains(picks: Picks, rewards: np.ndarray, everything: np.ndarray) -> np.ndarray:
    """For each prompt with a pick: the mean reward of its picks, by their weights, less that of all its responses."""
    weights = np.zeros(rewards.shape)
    weights[picks.prompts, picks.responses] = np.maximum(picks.weights, 0)
    weights[np.isnan(rewards)] = 0
    rows = np.flatnonzero(weights.sum(axis=1) > 0)
    chosen = (weights * np.nan_to_num(rewards)).sum(axis=1)[rows] / weights.sum(axis=1)[rows]
    return chosen - np.nanmean(everything[rows], axis=1)


def _own(selected: Path) -> set[tuple[str, int]]:
    return {(row["prompt_id"], row["index"]) for row in records.read(selected)} if selected.exists() else set()


def _weighted(values: np.ndarray, weights: np.ndarray) -> float:
    return float((values * weights).sum() / weights.sum()) if weights.sum() > 0 else math.nan


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def table(found: Sequence[Choice]) -> list[str]:
    """The lines of a table."""
    rows = [HEAD, *(one.cells() for one in found)]
    shown = [at for at in range(len(HEAD)) if any(row[at] for row in rows[1:])]
    widths = [max(len(row[at]) for row in rows) for at in shown]
    return [
        "  ".join(
            row[at].ljust(wide) if at == 0 else (row[at] or "-").rjust(wide)
            for at, wide in zip(shown, widths, strict=True)
        )
        for row in rows
    ]


def branch_point(folder: Path, it: IterationPaths) -> int:
    """The iteration that a branch begins with: this one, or an earlier one where its first policy is gone."""
    return max((number for number in branch.beginnings(folder) if number <= it.number), default=1)


def trains_on(folder: Path, it: IterationPaths, section: dict[str, Any]) -> str:
    """The command that trains on a selection, in a branch from the iteration, or one before it if that cannot be."""
    selection = find("selection", section["kind"])
    own = read_resolved(folder).get("trainer") or {}
    trainer, pairs = find("trainer", own.get("kind", "sft")), makes_pairs(selection)
    name = f"{folder.name}-{str(section['kind']).rpartition(':')[2]}"
    changes = {"name": name, "selection": section}
    kind = None
    if getattr(selection, "signed", False) and not takes_signed(trainer):
        kind = "policy-gradient"
    elif pairs != takes_pairs(trainer):
        kind = "dpo" if pairs else "sft"
    if kind is not None:
        takes = {item.name for item in dataclasses.fields(find("trainer", kind))} - {"learning_rate"}
        changes["trainer"] = {"kind": kind, **{option: value for option, value in own.items() if option in takes}}
    return to_resume(folder, changes, branch_point(folder, it))
