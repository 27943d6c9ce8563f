"""The folder of a finished run, written in the formats of docs/design.md without running anything."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from raft.core import records
from raft.core.records import Drop, Example, Group, Prompt, Response, Score

Text = Callable[[int, int, int], str]  # of a policy, the number of a prompt and that of a response
Reward = Callable[[int, int, int], float | None]


def write_run(
    folder: Path,
    prompts: int,
    k: int,
    iterations: int,
    text: Text,
    reward: Reward,
    held_out: int = 4,
    question: Callable[[int], str] = "prompt {}".format,
    logprobs: bool = False,
) -> Path:
    """A run of `iterations` in `folder`; the gold reward is ten times the reward, what has no reward is dropped."""
    folder.mkdir(parents=True)
    _json(folder / "run.json", {"job": "align", "seed": 5, "versions": {"torch": "9"}, "machine": {"cores": 3}})
    recipe = {"name": folder.name, "iterations": iterations, "generator": {"k": k}}
    (folder / "resolved.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    aside = [Prompt(f"h{n}", text=question(n)) for n in range(held_out)]
    drawn = [Prompt(f"p{n}", messages=[{"role": "user", "content": question(n)}]) for n in range(prompts)]
    _rows(folder / "evaluation.jsonl", "sample_eval_prompts", (one.row() for one in aside))

    def groups(policy: int, of: list[Prompt], size: int) -> Iterator[Group]:
        for n, one in enumerate(of):
            yield Group(one, [response(text(policy, n, index), index, logprobs) for index in range(size)])

    def scores(policy: int, of: list[Prompt], size: int, factor: float = 1) -> Iterator[dict[str, Any]]:
        for n, one in enumerate(of):
            found = [reward(policy, n, index) for index in range(size)]
            told = [Score(r * factor, {"twice": 2 * r}) if r is not None else Score(None, {}, "boom") for r in found]
            yield {"prompt_id": one.id, "scores": [score.row() for score in told]}

    def selected(policy: int) -> Iterator[dict[str, Any]]:
        for n, group in enumerate(groups(policy, drawn, k)):
            known = {index: r for index in range(k) if (r := reward(policy, n, index)) is not None}
            if known:
                best = max(known, key=known.__getitem__)
                one = group.prompt
                yield Example(one.id, group.responses[best], best, known[best], messages=one.messages).row()

    for number in range(iterations + 1):
        place = folder / "iterations" / f"{number:03d}"
        if number:
            _rows(place / "prompts.jsonl", "draw", (one.row() for one in drawn))
            _rows(place / "responses.jsonl", "generate", (one.row() for one in groups(number - 1, drawn, k)))
            _rows(place / "scores.jsonl", "score", scores(number - 1, drawn, k))
            _rows(place / "selected.jsonl", "select", selected(number - 1))
            failed = [(n, i) for n in range(prompts) for i in range(k) if reward(number - 1, n, i) is None]
            drops = [Drop(f"p{n}", index, "select", "no reward").row() for n, index in failed]
            records.write(place / "dropped.jsonl", drops)
            stamp(place / "policy", "train")
        _rows(place / "evaluation" / "responses.jsonl", "generate", (one.row() for one in groups(number, aside, 2)))
        _rows(place / "evaluation" / "scores.jsonl", "score", scores(number, aside, 2))
        _rows(place / "evaluation" / "gold.jsonl", "score", scores(number, aside, 2, factor=10))
        previous = {"reward/mean": number - 1.0, "reward/best_of_k": number - 0.5, "response/tokens": 7.0}
        policy = {"reward/eval": float(number), "reward/eval_se": 0.25, "gold/eval": 10.0 * number, "eval/tokens": 9.0}
        _json(place / "metrics.json", {"policy": policy, "previous": previous if number else {}})
        stamp(place / "metrics.json", "measure")
    return folder


def response(text: str, seed: int = 0, logprobs: bool = False) -> Response:
    """A response whose tokens are made up; about four characters each, as a tokenizer would have them."""
    tokens = [(seed * 7919 + place * 104729) % 50000 for place in range(max(1, len(text) // 4))]
    return Response(text, tokens, [-0.5 - token / 49999 for token in tokens] if logprobs else None, "stop")


def _rows(path: Path, stage: str, rows: Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp(path, stage, records.write(path, rows))


def stamp(path: Path, stage: str = "train", rows: int = 0, **more: Any) -> None:
    """A stamp of something that no stage made: it says nothing of its content."""
    content = {"hash": "", "key": {"stage": stage}, "rows": rows, "dropped": 0, "began": 1.7e9, "seconds": 2.5}
    _json(path.with_name(f"{path.name}.stamp.json"), {**content, "measured": {}, "parts": {}, **more})


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
