"""The stage `measure`: the figures of an iteration, out of its artifacts; and artifacts as arrays.

As everywhere, `measure(section, output, **inputs)` writes one artifact out of others; see `stages`. The formulas
are in `raft.metrics.diagnostics`.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import eq
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from raft.core import records
from raft.core.errors import UserError
from raft.core.records import Response
from raft.core.run_paths import GroupPaths, IterationPaths, RunPaths
from raft.core.seeds import derive
from raft.metrics import reward_metrics, text_metrics
from raft.metrics.diagnostics import HeldOut, Responses, Training, figures
from raft.metrics.ranking import VERDICTS
from raft.store import stamps
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact

HELD_OUT = {"eval": "reward/eval", "gold": "gold/eval"}  # the figure of each input of `measure` that is a reward
SCORES = {"eval": "evaluation/scores.jsonl", "gold": "evaluation/gold.jsonl"}  # where the scores behind it are
RATED = {"eval": ("reward/", "agreement/"), "gold": ("gold/", "agreement/")}  # what of a policy its scores give
RATED_BEFORE = ("reward/", "judge/", "length/")  # and what of the policy before the scores of its training responses
SAMPLED = ("reward/", "gold/", "agreement/", "eval/", "entropy/", "diversity/", "ngrams/", "kl/")  # what answers give
NUMERICS = {"is", "k", "batch_size", "dtype"}  # options of a generator that leave the distribution as it is


def measure(section: None, output: ArtifactWriter, **made: Artifact | None) -> None:
    """metrics.json: what this folder says of its own policy, and of the policy whose responses it holds."""
    known = {name: artifact for name, artifact in made.items() if artifact is not None}
    found = {
        "policy": figures(_held_out(known)),
        "previous": figures(_training(known, output)) if "scores" in known else {},
    }
    output.path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _held_out(made: dict[str, Artifact]) -> HeldOut:
    """What training, and the held-out prompts, say of this folder's policy."""
    first = made.get("first_answers")
    return HeldOut(
        training=made["policy"].stamp["measured"] if "policy" in made else {},
        rewards=rewards_of(made["eval"])[0] if "eval" in made else None,
        gold=rewards_of(made["gold"])[0] if "gold" in made else None,
        answers=responses_of(made["answers"]) if "answers" in made else None,
        first_texts=None if first is None else [[one["text"] for one in row["responses"]] for row in first.read()],
        logprobs=_columns(made.get("likelihoods"), "policy", "first"),
        references=_columns(made.get("references"), "logprob", "tokens"),
    )


def _training(made: dict[str, Artifact], output: ArtifactWriter) -> Training:
    """What the training responses say of the policy that wrote them, and what selection took of them.

    Of several rounds, or with candidates, `responses` and `scores` are the first; winners stand in `all_responses`.
    """
    responses = responses_of(made["responses"])
    _refuse_others(responses.ids, made["responses"].place, made["scores"])
    picks = _places(made["selected"], responses.ids)
    rng = np.random.default_rng(derive(output.seed, "control", output.iteration))
    return Training(
        rewards=rewards_of(made["scores"])[0],
        responses=responses,
        picks=picks,
        control=rng.integers(responses.tokens.shape[1], size=len(picks[0])),
        ranked=ranks_of(made["scores"]) is not None,
        dropped=made["selected"].stamp["dropped"],
        before=rewards_of(made["before"])[0] if "before" in made else None,
        learned=rewards_of(made["all_before"])[0] if "all_before" in made else None,
        verdicts=_verdicts(made["scores"]),
        whole=responses_of(made["all_responses"]) if "all_responses" in made else None,
        sampling=made["all_scores"].stamp["measured"] if "all_scores" in made else {},
    )


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
    return _table(scores, "reward"), _errors(scores.read())


def held_out_means(folder: Path, up_to: int | None = None) -> dict[str, dict[int, np.ndarray]]:
    """The mean reward of every held-out prompt [N], NaN where it has none, by figure (`reward/eval`) and policy.

    Of a run as far as it is scored, or of its policies up to `up_to`.
    """
    found: dict[str, dict[int, np.ndarray]] = {figure: {} for figure in HELD_OUT.values()}
    others = incomparable(folder)
    for it in RunPaths(folder).iterations():
        for name, file in SCORES.items():
            if (up_to is not None and it.number > up_to) or it.number in others[name]:
                continue
            if (state := stamps.state(it.folder / file)) is not None:
                found[HELD_OUT[name]][it.number] = _prompt_means(it.folder / file, state)
    return found


def incomparable(folder: Path) -> dict[str, set[int]]:
    """The iterations of a branch whose files were made otherwise, before it branched off, than its last ones.

    By file: training responses (`responses`) and held-out answers (`answers`) that another generator sampled; their
    scores (`scores`; `eval`, `gold`) where the reward or the generator is another one.
    """
    iterations = RunPaths(folder).iterations()
    found: dict[str, set[int]] = {name: set() for name in ("responses", "answers", "scores", *SCORES)}
    if not any(it.folder.is_symlink() for it in iterations):
        return found
    rounds = {it.number: first_round(it) for it in iterations}
    found["responses"] = _others(_sections({it: of.responses for it, of in rounds.items()}), _samples_alike)
    found["answers"] = _others(_sections({it.number: it.evaluation.responses for it in iterations}), _samples_alike)
    found["scores"] = found["responses"] | _others(_sections({it: of.scores for it, of in rounds.items()}), eq)
    for name, file in SCORES.items():
        found[name] = found["answers"] | _others(_sections({it.number: it.folder / file for it in iterations}), eq)
    return found


def last_reward(folder: Path) -> Any:
    """The section of the reward that scored last in a run, as in the key of its scores; None before any did."""
    iterations = RunPaths(folder).iterations() or [IterationPaths(folder)]  # a run of job: label has none
    for files in ([it.evaluation.scores for it in iterations], [first_round(it).scores for it in iterations]):
        if sections := _sections(dict(enumerate(files))):
            return sections[max(sections)]
    return None


def _sections(files: dict[int, Path]) -> dict[int, Any]:
    """The section of the recipe that each file was made by, of those that are there."""
    known = {number: stamps.read_stamp(file) for number, file in files.items()}
    return {number: stamp["key"].get("section") for number, stamp in known.items() if stamp is not None}


def _others(sections: dict[int, Any], alike: Callable[[Any, Any], bool]) -> set[int]:
    """The iterations whose section is not like that of the last one."""
    last = sections[max(sections)] if sections else None
    return {number for number, section in sections.items() if not alike(section, last)}


def _samples_alike(one: Any, other: Any) -> bool:
    """Whether two generators draw from the same distribution: one may be vLLM and the other transformers."""
    shared = one.keys() & other.keys() - NUMERICS if isinstance(one, dict) and isinstance(other, dict) else set()
    return all(one[name] == other[name] for name in shared)


def comparable(folder: Path, contents: dict[int, dict[str, dict[str, Any]]]) -> dict[int, dict[str, dict[str, Any]]]:
    """The contents of metrics.json by iteration, without what another reward or generator gave before a branch."""
    others = incomparable(folder)
    left_out = {
        "responses": ("previous", ("",)),
        "answers": ("policy", SAMPLED),
        "scores": ("previous", RATED_BEFORE),
        **{name: ("policy", rated) for name, rated in RATED.items()},
    }
    for name, number in ((name, number) for name, numbers in others.items() for number in numbers & contents.keys()):
        part, prefixes = left_out[name]
        kept = {key: value for key, value in contents[number][part].items() if not key.startswith(prefixes)}
        contents[number] = {**contents[number], part: kept}
    return contents


@lru_cache(maxsize=4096)  # asked for after each iteration; what was scored once stays as it is
def _prompt_means(scores: Path, state: tuple[int, ...]) -> np.ndarray:
    return reward_metrics.prompt_means(rewards_of(Artifact.finished(scores))[0])


@dataclass(frozen=True, kw_only=True)
class MaxFailed:
    """The share of responses without a reward that a run tolerates. It changes no result, so it is in no key."""

    fraction: float
    of: str = "responses"
    reward: str = "reward"
    in_no_key: ClassVar[bool] = True

    def require(self, scores: Path) -> None:
        """UserError, with the first reason, if more of the responses in a file of scores have no reward."""
        rows = list(records.read(scores))
        failures = _errors(rows)
        total = sum(len(row["scores"]) for row in rows)
        if len(failures) > self.fraction * total:
            way = "" if len(failures) == total else ", or raise selection.max_failed_fraction,"
            raise UserError(
                f"{len(failures)} of {total} {self.of} have no {self.reward}, more than selection.max_failed_fraction: "
                f"{self.fraction:g} allows; the first: {failures[0]}. Change the reward or the lengths so that they "
                f"can be scored{way} and run the same command again"
            )


def _errors(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Why responses have no reward, each behind its prompt."""
    return [
        f"prompt {row['prompt_id']}: {one.get('error')}"
        for row in rows
        for one in row["scores"]
        if one.get("reward") is None
    ]


def _verdicts(scores: Artifact) -> dict[str, float]:
    """How the comparisons of a judge came out, each counted once for either side; {} where none was made."""
    parts = [one["parts"] for row in scores.read() for one in row["scores"] if "biased" in one.get("parts", {})]
    return {kind: sum(part[kind] for part in parts) for kind in VERDICTS} if parts else {}


def ranks_of(scores: Artifact) -> np.ndarray | None:
    """The places of responses in their groups [prompts, K], NaN where there is none; None if no response has one."""
    ranks = _table(scores, "rank")
    return None if np.isnan(ranks).all() else ranks


def responses_of(artifact: Artifact) -> Responses:
    """What can be said of responses without judging them; behind the last response of a smaller group is NaN."""
    read = [_counted(row["prompt_id"], records.answers(row)) for row in artifact.read()]
    ids, texts, *counts = zip(*read, strict=True)
    even = len(set(map(len, texts))) == 1
    return Responses(list(ids), list(texts), *map(np.array if even else padded, counts))


def first_round(it: IterationPaths) -> GroupPaths:
    """Where the responses of an iteration stand that are a fair sample: of those merged the first round."""
    stamp = stamps.read_stamp(it.scores)
    return it.round(1) if stamp is not None and "rounds" in stamp["key"].get("inputs", {}) else it


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
        [one.candidate is not None for one in group],
        [math.nan if one.logprobs is None else -sum(one.logprobs) for one in group],
    )


def rows_of(folder: Path, measured: Sequence[Artifact]) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl out of metrics.json of iterations 0, 1, 2, ... of a run, and of no later one."""
    contents = {number: json.loads(one.path.read_text(encoding="utf-8")) for number, one in enumerate(measured)}
    return reward_metrics.merged(comparable(folder, contents))


def _columns(artifact: Artifact | None, one: str, other: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Two columns of an artifact's rows: a number each [N], or a number for each response [N, K]."""
    if artifact is None:
        return None
    rows = [(row[one], row[other]) for row in artifact.read()]
    first, second = (np.array(values, dtype=float) for values in zip(*rows, strict=True))
    return first, second


def _table(scores: Artifact, name: str) -> np.ndarray:
    """One number of every score [prompts, K], NaN where there is none."""
    return padded([[one.get(name) for one in row["scores"]] for row in scores.read()])


def padded(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """Rows of numbers as an array, NaN for None and behind the end of a shorter row."""
    width = max(map(len, rows), default=0)
    return np.array([[*row, *[None] * (width - len(row))] for row in rows], dtype=float)


def _places(selected: Artifact, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Where the winners stand in the responses to these prompts: rows [M] and indices in their groups [M]."""
    rows = {prompt_id: number for number, prompt_id in enumerate(ids)}
    places = [(rows[row["prompt_id"]], row["index"]) for row in selected.read()]
    return np.array([row for row, _ in places], dtype=int), np.array([index for _, index in places], dtype=int)
