"""Scores that follow responses: a reward that computes elsewhere scores while responses are still generated.

Elsewhere is behind a url, or on workers of a cluster that do nothing but score. A follower reads the partial file of
the responses as it grows, and writes that of the scores, from which the score stage then goes on. So a kill loses
nothing, and what a follower leaves undone is done as if there had been none.
"""

import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from raft.core import protocols, records, signals
from raft.core.atomic import fsync
from raft.core.errors import Stopped
from raft.core.progress import Progress
from raft.core.records import Group, Prompt
from raft.launch import openai_client
from raft.pipeline import stages
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact, digest
from raft.store.runs import Folder
from raft.store.stamps import partial_path

TOGETHER = 16  # groups asked for at once: at the end of the responses those under way are waited for
PAUSE = 0.05  # seconds between two looks for more


@contextmanager
def streamed(place: Folder, responses: str, scores: Mapping[str, Any], prompts: Artifact) -> Iterator[None]:
    """While `responses` are made in the block, remote rewards score them already; `scores` are rewards by artifact."""
    new = place.run.makes and not place.shared and not place.is_done(responses)
    remote = [name for name, reward in scores.items() if protocols.remote(reward)]
    apart = [name for name, reward in scores.items() if place.run.launch.scores_apart(reward)]
    followers = [
        StreamingScorer(place, responses, name, scores[name], prompts)
        for name in (*remote, *apart[:1])  # two models on the same devices would be loaded in turns, block by block
        if new
    ]
    for one in followers:
        one.start()
    try:
        yield
        for one in followers:
            one.finish()
    except BaseException:
        for one in followers:
            one.finish(signals.left())
            one.cancel()
        raise


class StreamingScorer(threading.Thread):
    """Scores the responses of a place by one reward, in a thread, as far as they are there."""

    def __init__(self, place: Folder, responses: str, scores: str, reward: Any, prompts: Artifact):
        super().__init__(name=f"scores of {place.folder.name}/{responses}", daemon=True)
        self.place, self.reward, self.prompts = place, reward, prompts
        self.responses, self.scores = place.folder / responses, place.folder / scores
        self.left, self.cancelled = threading.Event(), False
        self.read_to = 0

    def finish(self, seconds: float | None = None) -> None:
        """Waits until what is under way is scored, if need be no longer than `seconds`."""
        self.left.set()
        self.join(seconds)

    def cancel(self) -> None:
        """Breaks off what is under way."""
        self.cancelled = True
        self.left.set()
        while self.is_alive():
            openai_client.cancel(self.ident or 0)
            self.join(PAUSE)

    def run(self) -> None:
        # Whatever is wrong, the score stage will meet it too, and say so in its turn.
        with contextlib.suppress(Exception, Stopped):
            self._follow()

    def _follow(self) -> None:
        if (head := next(self._come(1), None)) is None:
            return
        prompts = {row["id"]: Prompt.of(row) for row in self.prompts.read()}
        output = self._output(Artifact(self.responses, *head))
        output.resume()
        try:
            for rows in self._blocks(list(prompts)):
                groups = (Group(prompts[row["prompt_id"]], records.answers(row)) for row in rows)
                for _ in stages.score_missing(self.reward, output, groups):
                    if self.cancelled:
                        return
        finally:
            output.close()

    def _blocks(self, ids: list[str]) -> Iterator[list[dict[str, Any]]]:
        """The rows as they come; of a reward whose scores depend on the batch, in the blocks of the score stage."""
        size = protocols.batch_size(self.reward)
        if size == 1:
            yield from self._come(TOGETHER)
            return
        places = {name: divmod(place, size) for place, name in enumerate(ids)}
        blocks: dict[int, dict[int, dict[str, Any]]] = {}
        for rows in self._come(len(ids)):  # all that there are, so that every worker has a block
            for row in rows:
                number, place = places[row["prompt_id"]]
                blocks.setdefault(number, {})[place] = row
            whole = [number for number, block in blocks.items() if len(block) == min(size, len(ids) - number * size)]
            if whole:
                yield [row for number in sorted(whole) for _, row in sorted(blocks.pop(number).items())]

    def _output(self, responses: Artifact) -> ArtifactWriter:
        """That of the score stage, so far as it is known while the responses are not."""
        path, place = self.scores, self.place
        key = place.key(stages.score, self.reward, {"prompts": self.prompts, "responses": responses})
        path.parent.mkdir(parents=True, exist_ok=True)
        progress = Progress(self.name, "prompts")
        launch = place.run.launch
        return ArtifactWriter(
            path, partial_path(path), digest(key), place.run.seed, place.number, progress, launch=launch
        )

    def _come(self, most: int) -> Iterator[list[dict[str, Any]]]:
        """The rows of the responses as they come, up to `most` at once, until it is time to leave."""
        while not self.left.is_set():
            if rows := list(itertools.islice(self._rows(), most)):
                with contextlib.suppress(FileNotFoundError):  # whole by now
                    fsync(partial_path(self.responses))  # no score may outlive its response
                yield rows
            else:
                self.left.wait(PAUSE)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The whole rows that were not read yet."""
        with contextlib.suppress(FileNotFoundError), open(partial_path(self.responses), "rb") as lines:
            lines.seek(self.read_to)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                self.read_to += len(line)
                yield records.parse(line)
