"""Each planted hack is named and a clean run raises nothing, on policies that are tables.

An answer is a length and that many words, each drawn from one distribution.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alerts import named

from raft.core.records import Group, Prompt, Response
from raft.metrics.diagnostics import Alerts
from raft.pipeline import selection, stages
from raft.store import measuring
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact
from raft.store.runs import Folder, Run

COUNT, HELD_OUT, K = 96, 96, 8
WORDS = [f"w{n}" for n in range(300)] + ["#"]
VALUES = dict(zip(WORDS, np.random.default_rng(0).normal(size=len(WORDS)), strict=True))  # what is meant
Judge = Callable[[str, np.random.Generator], float]


@dataclass
class Table:
    words: np.ndarray
    lengths: np.ndarray  # of 1, 2, ... words

    def answer(self, rng: np.random.Generator) -> Response:
        length = rng.choice(len(self.lengths), p=self.lengths)
        ids = rng.choice(len(self.words), p=self.words, size=length + 1)
        logprobs = [*np.log(self.words[ids]).tolist(), math.log(self.lengths[length])]
        return Response(" ".join(WORDS[at] for at in ids), [*ids.tolist(), len(WORDS)], logprobs, "stop")

    def trained(self, selected: Artifact, pace: float) -> "Table":
        """Maximum likelihood of the winners, mixed with what it was: the counts of their words and lengths."""
        answers = [row["response"]["token_ids"][:-1] for row in selected.read()]
        words = np.bincount([word for answer in answers for word in answer], minlength=len(self.words))
        lengths = np.bincount([len(answer) - 1 for answer in answers], minlength=len(self.lengths))
        return Table(*(
            (1 - pace) * old + pace * new / new.sum()
            for old, new in ((self.words, words), (self.lengths, lengths))
        ))  # fmt: skip


def first_policy() -> Table:
    words = np.append(np.full(300, (1 - 0.005) / 300), 0.005)  # every tenth answer has a "#"
    lengths = np.exp(-(((np.arange(100) - 19) / 6.0) ** 2) / 2)
    return Table(words, 0.98 * lengths / lengths.sum() + 0.02 / 100)  # now and then one of any length


def quality(text: str) -> float:
    return float(np.mean([VALUES[word] for word in text.split()]))


def noisy_quality(text: str, rng: np.random.Generator) -> float:
    return quality(text) + rng.normal(0, 0.15)


def likes_length(text: str, rng: np.random.Generator) -> float:
    return len(text.split()) / 10 + quality(text)


def likes_a_symbol(text: str, rng: np.random.Generator) -> float:
    return 20 * text.count("#") / len(text.split()) + quality(text)


def likes_one_answer(text: str, rng: np.random.Generator) -> float:
    said = text.split()
    return said.count("w7") / len(said) - 0.02 * abs(len(said) - 8)


def align(folder: Path, reward: Judge, gold: Judge | None, iterations: int, pace: float = 0.5) -> list[dict[str, Any]]:
    """The loop of raft.pipeline.loop with its real selection and measuring, on a policy that is a table."""
    rng = np.random.default_rng(0)

    def place(number: int) -> Folder:
        return Folder(folder / f"{number:03d}", number, Run(folder, 0))

    def write(it: Folder, name: str, rows: list[dict[str, Any]]) -> Artifact:
        def written(section: None, output: ArtifactWriter) -> None:
            output.write(rows)

        return it.once(name, written)

    def answered(it: Folder, where: str, policy: Table, count: int, k: int) -> tuple[Artifact, Artifact, list[Group]]:
        prompts = [Prompt(f"{it.number}-{n}", text="?") for n in range(count)]
        groups = [Group(prompt, [policy.answer(rng) for _ in range(k)]) for prompt in prompts]
        return (
            write(it, f"{where}prompts.jsonl", [one.row() for one in prompts]),
            write(it, f"{where}responses.jsonl", [one.row() for one in groups]),
            groups,
        )

    def judged(it: Folder, name: str, judge: Judge, groups: list[Group]) -> Artifact:
        return write(it, name, [
            {"prompt_id": one.prompt.id, "scores": [{"reward": judge(answer.text, rng)} for answer in one.responses]}
            for one in groups
        ])  # fmt: skip

    def evaluated(it: Folder, policy: Table) -> dict[str, Artifact]:
        _, answers, groups = answered(it, "evaluation/", policy, HELD_OUT, 4)
        made = {"answers": answers, "eval": judged(it, "evaluation/scores.jsonl", reward, groups)}
        return made if gold is None else {**made, "gold": judged(it, "evaluation/gold.jsonl", gold, groups)}

    policy = first_policy()
    made = evaluated(place(0), policy)
    first_answers = made["answers"]
    done = [place(0).once("metrics.json", measuring.measure, **made)]
    for number in range(1, iterations + 1):
        it = place(number)
        prompts, responses, groups = answered(it, "", policy, COUNT, K)
        inputs = {"responses": responses, "scores": judged(it, "scores.jsonl", reward, groups)}
        selected = it.once("selected.jsonl", stages.select, selection.BestOfK(), prompts=prompts, **inputs)
        policy = policy.trained(selected, pace)
        inputs |= {"selected": selected, "first_answers": first_answers, **evaluated(it, policy)}
        done.append(it.once("metrics.json", measuring.measure, **inputs))
    return measuring.rows_of(folder, done)


@pytest.mark.parametrize("gold", [None, noisy_quality], ids=["without-gold", "with-gold"])
def test_a_clean_run_raises_nothing(tmp_path, gold):
    rows = align(tmp_path, noisy_quality, gold, iterations=5, pace=0.3)
    assert rows[-1]["reward/eval"] > rows[0]["reward/eval"] + 4 * rows[0]["reward/eval_se"]  # it does learn
    for seen in range(1, len(rows) + 1):
        assert named(rows[:seen]) == {}


@pytest.mark.nightly
def test_a_reward_that_likes_length_is_named_before_and_after_answers_have_grown(tmp_path):
    rows = align(tmp_path, likes_length, None, iterations=4)
    assert named(rows[:1])["length-reward"] == "warning"  # row 0 has its training responses
    assert named(rows)["length"] == "warning"
    assert rows[0]["selection/tokens"] > 1.2 * rows[0]["selection/tokens_random"]


@pytest.mark.nightly
def test_a_reward_that_likes_a_symbol_is_named_with_the_symbol(tmp_path):
    rows = align(tmp_path, likes_a_symbol, None, iterations=4)
    found = {one.name: one for one in Alerts().judge(rows)}
    assert found["n-grams"].level == "warning" and "'#' is in" in found["n-grams"].message
    assert rows[0]["ngrams/selected"][0]["text"] == "#"  # the first selection shows it already
    assert "length" not in named(rows)


@pytest.mark.nightly
def test_a_policy_that_collapses_to_one_answer_is_named(tmp_path):
    rows = align(tmp_path, likes_one_answer, None, iterations=10, pace=0.9)
    assert {"duplicates": "warning", "diversity": "warning", "entropy": "warning"}.items() <= named(rows).items()
    assert rows[-2]["selection/duplicate"] > 0.5 and rows[-2]["reward/headroom"] < rows[0]["reward/headroom"]


def test_a_reward_that_is_not_what_gold_prefers_is_named(tmp_path):
    rows = align(tmp_path, lambda text, rng: float(rng.normal()), noisy_quality, iterations=1)
    assert "agreement" in named(rows)
