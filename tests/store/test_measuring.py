"""Laws of the stage `measure`: what it says of responses, and how often it reads them."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raft.core import records
from raft.core.progress import Progress
from raft.rewards.judge import verdicts
from raft.rewards.judge.verdicts import Outcome
from raft.store import measuring
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact

TEXTS = [["a b", "a b", ""], ["c", "a b c d", "c d"]]
REASONS = ["stop", "length", "stop"]
reads: Counter[str] = Counter()


class Read(Artifact):
    """An artifact whose reads are counted."""

    def read(self) -> Iterator[dict[str, Any]]:
        reads[self.path.name] += 1
        return super().read()


def artifact(folder: Path, name: str, rows: list[dict[str, Any]]) -> Artifact:
    records.write(folder / name, rows)
    return Read(folder / name, {"hash": name, "rows": len(rows), "dropped": 0})


def responses(folder: Path, name: str) -> Artifact:
    rows = []
    for number, texts in enumerate(TEXTS):
        given = [
            {"text": text, "token_ids": [1] * len(text.split()), "logprobs": [-0.5] * len(text.split())}
            for text in texts
        ]
        group = [{**one, "finish_reason": reason} for one, reason in zip(given, REASONS, strict=True)]
        rows.append({"prompt_id": f"p{number}", "responses": group})
    return artifact(folder, name, rows)


def test_responses_are_counted_group_by_group(tmp_path: Path):
    found = measuring.responses_of(responses(tmp_path, "responses"))
    assert found.ids == ["p0", "p1"] and found.texts == TEXTS
    assert found.tokens.tolist() == [[2, 2, 0], [1, 4, 2]]
    assert found.truncated.tolist() == [[False, True, False]] * 2
    assert found.empty.tolist() == [[False, False, True], [False] * 3]
    assert found.duplicate.tolist() == [[False, True, False], [False] * 3]
    assert found.twin.tolist() == [[True, True, False], [False] * 3]
    assert np.allclose(found.surprise, found.tokens / 2)


def test_each_file_of_responses_is_read_once(tmp_path: Path):
    made = {name: responses(tmp_path, name) for name in ("answers", "first_answers", "responses")}
    scored = [{"prompt_id": f"p{number}", "scores": [{"reward": float(k)} for k in range(3)]} for number in range(2)]
    selected = [{"prompt_id": "p1", "index": 1}]
    made |= {"scores": artifact(tmp_path, "scores", scored), "selected": artifact(tmp_path, "selected", selected)}
    output = ArtifactWriter(tmp_path / "metrics.json", tmp_path / "partial", "", 0, 1, Progress("metrics", "prompts"))
    reads.clear()
    measuring.measure(None, output, **made)
    assert (reads["answers"], reads["first_answers"], reads["responses"]) == (1, 1, 1)
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures["previous"]["selection/tokens"] == 4 and figures["previous"]["length/winner_longest"] == 1
    assert figures["policy"]["eval/tokens"] == pytest.approx(11 / 6)


def test_comparisons_of_a_judge_are_counted_and_other_rewards_have_none(tmp_path: Path):
    met = {(0, 1): Outcome("wins"), (0, 2): Outcome("biased"), (1, 2): Outcome("no_verdict", "mumble")}
    judged = [{"prompt_id": "p", "scores": [score.row() for score in verdicts.scores(range(3), met)]}]
    counts = measuring._verdicts(artifact(tmp_path, "judged", judged))
    assert counts == {"wins": 1, "losses": 1, "no_preference": 0, "no_verdict": 2, "biased": 2}
    plain = [{"prompt_id": "p", "scores": [{"reward": 1.0, "parts": {"helpful": 1.0}}, {"reward": 2.0}]}]
    assert measuring._verdicts(artifact(tmp_path, "plain", plain)) == {}
