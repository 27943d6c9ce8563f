"""Winners of earlier iterations, learned from again: the replay buffer of an iteration.

Without it an iteration learns from its own winners alone, and a prompt whose best response came earlier is learned from
a worse one, or not at all. Rows in = rows out + rows dropped, each because another response of its prompt is better.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact


def replay(section: Any, output: ArtifactWriter, selected: Artifact, earlier: Sequence[Artifact]) -> None:
    """replayed.jsonl: what is trained on, with the `age` in iterations of each row that is an earlier winner.

    `earlier` are the selections of the iterations before, the last one first. A prompt has the best of their winners,
    the younger of equals, if that has a higher reward than all that `selected` holds of the prompt, which then go; and
    what `selected` holds of it otherwise.
    """
    own: dict[str, float] = {}
    for row in selected.read():
        own[row["prompt_id"]] = max(row["reward"], own.get(row["prompt_id"], row["reward"]))
    best: dict[str, dict[str, Any]] = {}

    def left_out(row: dict[str, Any]) -> None:
        output.drop(
            row["prompt_id"], row["index"], f"of {row['age']} iterations before, and not the best of its prompt"
        )

    for age, artifact in enumerate(earlier, start=1):
        for row in artifact.read():
            older, prompt = {**row, "age": age}, row["prompt_id"]
            if row["reward"] <= max(own.get(prompt, -math.inf), best.get(prompt, {}).get("reward", -math.inf)):
                left_out(older)
                continue
            if prompt in best:
                left_out(best[prompt])
            best[prompt] = older

    def rows() -> Iterator[dict[str, Any]]:
        for row in selected.read():
            if row["prompt_id"] in best:
                output.drop(row["prompt_id"], row["index"], "an earlier response of the prompt is better")
            else:
                yield row
        yield from best.values()

    output.write(rows())
    output.measured = {"replayed": len(best)}
