"""The stage `measure`: the figures of an iteration, out of its artifacts; and artifacts as arrays.

As everywhere, `measure(section, output, **inputs)` writes one artifact out of others; see `stages`. The formulas
are in `raft.metrics.reward_metrics` and `raft.metrics.text_metrics`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from raft.core import records
from raft.core.errors import UserError
from raft.core.records import Response
from raft.core.seeds import derive
from raft.metrics import reward_metrics, text_metrics
from raft.store import stamps
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact
from raft.store.stamps import iterations

Figures = dict[str, Any]  # numbers by name; what was not measured is left out
HELD_OUT = {"eval": "reward/eval", "gold": "gold/eval"}  # the figure of each input of `measure` that is a reward
SCORES = {"eval": "evaluation/scores.jsonl", "gold": "evaluation/gold.jsonl"}  # where the scores behind it are


@dataclass(frozen=True)
class Responses:
    """A file of responses, read once: ids of the prompts, texts of each group, and arrays [prompts, K]: tokens
    generated, those cut, empty, those that repeat an earlier one of their group, those with the text of any other, and
    minus their log-probability in nats (NaN if unknown). Tokens themselves are not kept."""

    ids: list[str]
    texts: list[list[str]]
    tokens: np.ndarray
    truncated: np.ndarray
    empty: np.ndarray
    duplicate: np.ndarray
    twin: np.ndarray
    surprise: np.ndarray


def measure(section: None, output: ArtifactWriter, **made: Artifact | None) -> None:
    """metrics.json: what this folder says of its own policy, and of the one whose responses it holds."""
    there = {name: artifact for name, artifact in made.items() if artifact is not None}
    found = {"policy": _of_policy(there), "previous": _of_responses(there, output) if "scores" in there else {}}
    known = {part: {name: one for name, one in figures.items() if _known(one)} for part, figures in found.items()}
    output.path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _of_policy(made: dict[str, Artifact]) -> Figures:
    """What training, and the held-out prompts, say of this folder's policy."""
    figures: Figures = dict(made["policy"].stamp["measured"]) if "policy" in made else {}
    rewards = {name: rewards_of(made[name])[0] for name in ("eval", "gold") if name in made}
    for name, one in rewards.items():
        figures |= reward_metrics.held_out(one, HELD_OUT[name])
    if len(rewards) == 2:
        figures |= _agreement(rewards["eval"], rewards["gold"])
    if "answers" in made:
        figures |= _of_answers(made["answers"], made.get("first_answers"))
    if "likelihoods" in made:
        policy, first = (numbers(made["likelihoods"], name) for name in ("policy", "first"))
        figures |= reward_metrics.evaluated(text_metrics.log_ratios(policy, first), "kl/first")
    if "references" in made:
        logprobs, tokens = (numbers(made["references"], name) for name in ("logprob", "tokens"))
        figures["perplexity/references"] = text_metrics.perplexity(logprobs, tokens)
    return figures


def _agreement(rewards: np.ndarray, gold: np.ndarray) -> Figures:
    return {
        **reward_metrics.evaluated(text_metrics.within_prompts(rewards, gold)[:, None], "agreement/within"),
        "agreement/prompts": text_metrics.kendall(
            reward_metrics.prompt_means(rewards), reward_metrics.prompt_means(gold)
        ),
    }


def _of_answers(answers: Artifact, first: Artifact | None) -> Figures:
    """The held-out answers by themselves, and against those of the first policy."""
    shape = responses_of(answers)
    texts = _in_turn(shape.texts)
    entropy, error = text_metrics.ratio(shape.surprise, shape.tokens)
    figures: Figures = {
        "eval/tokens": shape.tokens.mean(),
        "eval/words": np.mean([len(text_metrics.words(text)) for text in texts]),
        "eval/truncated": shape.truncated.mean(),
        "eval/empty": shape.empty.mean(),
        "eval/duplicate": shape.duplicate.mean(),
        "entropy/token": entropy,
        "entropy/token_se": error,
        "diversity/same_text": text_metrics.same_text(shape.texts),
        **{f"diversity/{name}": value for name, value in text_metrics.diversity(texts).items()},
    }
    if first is not None:
        before = _in_turn([[one["text"] for one in row["responses"]] for row in first.read()])
        figures["diversity/distinct_2_kept"] = text_metrics.distinct_kept(texts, before)
        figures["ngrams/rising"] = [asdict(rise) for rise in text_metrics.rising(texts, before, len(shape.ids))]
    return {name: value if isinstance(value, list) else float(value) for name, value in figures.items()}


def _of_responses(made: dict[str, Artifact], output: ArtifactWriter) -> Figures:
    """What the training responses say of the policy that wrote them, and what selection took of them."""
    rewards, shape = rewards_of(made["scores"])[0], responses_of(made["responses"])
    _refuse_others(shape.ids, made["responses"].place, made["scores"])
    figures: Figures = reward_metrics.collected(rewards, shape.tokens, shape.truncated, shape.empty, shape.duplicate)
    if "before" in made:
        figures["reward/absorbed"] = text_metrics.absorbed(rewards_of(made["before"])[0], rewards)
    if ranks_of(made["scores"]) is not None:  # strengths within a prompt have mean 0 whatever the policy
        figures = {name: value for name, value in figures.items() if name not in reward_metrics.BETWEEN_PROMPTS}
    lengths = shape.tokens.astype(float)
    figures |= reward_metrics.evaluated(
        text_metrics.within_prompts(rewards, lengths)[:, None], "length/reward_correlation"
    )
    figures |= _of_selection(made, shape, np.random.default_rng(derive(output.seed, "control", output.iteration)))
    return {
        **figures,
        "selection/examples": made["selected"].rows,
        "selection/dropped": made["selected"].stamp["dropped"],
    }


def _of_selection(made: dict[str, Artifact], shape: Responses, rng: np.random.Generator) -> Figures:
    """The winners beside a random response of the same group."""
    rows, picks = _places(made["selected"], shape.ids)
    longest = text_metrics.longest(shape.tokens, rows, picks)
    control = rng.integers(shape.tokens.shape[1], size=len(rows))
    winners, others = ([shape.texts[row][k] for row, k in zip(rows, ks, strict=True)] for ks in (picks, control))
    figures: Figures = {
        "length/winner_longest": longest.share,
        "length/winner_longest_chance": longest.chance,
        "length/winner_longest_z": longest.z,
        "selection/distinct_2_kept": text_metrics.distinct_kept(winners, others),
        "ngrams/selected": [asdict(rise) for rise in text_metrics.rising(winners, others, len(set(rows.tolist())))],
    }
    for name, values in (("tokens", shape.tokens), ("duplicate", shape.twin)):
        chosen, by_chance = text_metrics.against_random(values, rows, picks)
        figures |= {f"selection/{name}": chosen, f"selection/{name}_random": by_chance}
    return figures


def refuse_other_prompts(prompts: Artifact, *others: Artifact) -> None:
    """UserError if the rows of an artifact are not those of the same prompts, in the same order."""
    _refuse_others([row.get("id", row.get("prompt_id")) for row in prompts.read()], prompts.place, *others)


def _refuse_others(ids: list[Any], place: Path, *others: Artifact) -> None:
    for other in others:
        if ids != [row["prompt_id"] for row in other.read()]:
            raise UserError(f"{other.place} is not of the prompts of {place}, or has them in another order")


def rewards_of(scores: Artifact) -> tuple[np.ndarray, list[str]]:
    """Rewards as an array [prompts, K], NaN where there is none, and the errors of those.

    Given groups may differ in size; the places behind the last response of a smaller one are NaN too.
    """
    errors = [
        f"prompt {row['prompt_id']}: {one.get('error')}"
        for row in scores.read()
        for one in row["scores"]
        if one.get("reward") is None
    ]
    return _table(scores, "reward"), errors


def held_out_means(folder: Path, up_to: int | None = None) -> dict[str, dict[int, np.ndarray]]:
    """The mean reward of every held-out prompt [N], NaN where it has none, by figure (`reward/eval`) and policy.

    Of a run as far as it is scored, or of its policies up to `up_to`.
    """
    found: dict[str, dict[int, np.ndarray]] = {figure: {} for figure in HELD_OUT.values()}
    for place in iterations(folder):
        for name, file in SCORES.items():
            if (up_to is None or int(place.name) <= up_to) and (state := stamps.state(place / file)) is not None:
                found[HELD_OUT[name]][int(place.name)] = _prompt_means(place / file, state)
    return found


@lru_cache(maxsize=4096)  # asked for after each iteration; what was scored once stays as it is
def _prompt_means(scores: Path, state: tuple[int, ...]) -> np.ndarray:
    return reward_metrics.prompt_means(rewards_of(Artifact.finished(scores))[0])


def refuse_failed(scores: Artifact, max_failed: float, of: str = "responses", reward: str = "reward") -> None:
    """UserError, with the first reason, if more than the share `max_failed_fraction` of the responses has no reward."""
    failures = rewards_of(scores)[1]
    total = sum(len(row["scores"]) for row in scores.read())
    if len(failures) > max_failed * total:
        raise UserError(
            f"{len(failures)} of {total} {of} have no {reward}, more than selection.max_failed_fraction: {max_failed:g}"
            f" allows; the first: {failures[0]}. Change the reward or the lengths so that they can be scored, or raise "
            "selection.max_failed_fraction, and run the same command again"
        )


def ranks_of(scores: Artifact) -> np.ndarray | None:
    """The places of responses in their groups [prompts, K], NaN where there is none; None if no response has one."""
    ranks = _table(scores, "rank")
    return None if np.isnan(ranks).all() else ranks


def responses_of(artifact: Artifact) -> Responses:
    """What can be said of responses without judging them; all groups have the same size."""
    read = [_counted(row["prompt_id"], records.answers(row)) for row in artifact.read()]
    ids, texts, *counts = zip(*read, strict=True)
    return Responses(list(ids), list(texts), *map(np.array, counts))


def _counted(prompt_id: str, group: list[Response]) -> tuple[Any, ...]:
    """What `Responses` holds of one group."""
    texts = [one.text for one in group]
    return (
        prompt_id,
        texts,
        [len(one.token_ids) for one in group],
        [one.finish_reason == "length" for one in group],
        [not text.strip() for text in texts],
        text_metrics.repeats(texts),
        text_metrics.twins(texts),
        [math.nan if one.logprobs is None else -sum(one.logprobs) for one in group],
    )


def rows_of(measured: Sequence[Artifact]) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl out of metrics.json of iterations 0, 1, 2, ... and of no later one."""
    return reward_metrics.merged(
        {number: json.loads(one.path.read_text(encoding="utf-8")) for number, one in enumerate(measured)}
    )


def numbers(artifact: Artifact, name: str) -> np.ndarray:
    """One column of an artifact's rows: a number each [N], or a number for each response [N, K]."""
    return np.array([row[name] for row in artifact.read()], dtype=float)


def _table(scores: Artifact, name: str) -> np.ndarray:
    """One number of every score [prompts, K], NaN where there is none."""
    rows = [[one.get(name) for one in row["scores"]] for row in scores.read()]
    width = max(map(len, rows), default=0)
    return np.array([[*row, *[None] * (width - len(row))] for row in rows], dtype=float)


def _in_turn(groups: list[list[str]]) -> list[str]:
    """Everybody's first answer, then everybody's second: what stands side by side answers different prompts."""
    return [text for column in zip(*groups, strict=True) for text in column]


def _places(selected: Artifact, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Where the winners stand in the responses to these prompts: rows [M] and indices in their groups [M]."""
    rows = {prompt_id: number for number, prompt_id in enumerate(ids)}
    places = [(rows[row["prompt_id"]], row["index"]) for row in selected.read()]
    return np.array([row for row, _ in places], dtype=int), np.array([index for _, index in places], dtype=int)


def _known(figure: Any) -> bool:
    return not (isinstance(figure, float) and math.isnan(figure))
