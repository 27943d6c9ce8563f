"""Winners of earlier iterations: the training set against one made by hand, and a run whose prompts come again."""

from pathlib import Path

import pytest
import worlds

from raft.core.records import read
from raft.pipeline.replay_buffer import replay

ROWS = [  # of the last iteration, the one before, and two before: prompt, index, reward
    [("a", 0, 1.0), ("b", 1, 5.0), ("b", 2, 6.0), ("c", 0, 2.0)],
    [("a", 3, 4.0), ("d", 1, 1.0), ("c", 2, 2.0)],
    [("a", 2, 4.0), ("d", 0, 3.0), ("b", 3, 6.5), ("e", 0, -1.0)],
]


class Selected:
    """The rows of a selection, as an artifact has them."""

    def __init__(self, rows: list[tuple[str, int, float]]):
        self.rows = len(rows)
        self._rows = [{"prompt_id": prompt, "index": index, "reward": reward} for prompt, index, reward in rows]

    def read(self):
        return iter(self._rows)


class Output:
    """What a stage writes."""

    def __init__(self) -> None:
        self.dropped: list[tuple[str, int]] = []
        self.written: list[tuple] = []

    def drop(self, prompt: str, index: int, reason: str) -> None:
        self.dropped.append((prompt, index))

    def write(self, rows) -> None:
        self.written = [(row["prompt_id"], row["index"], row.get("age")) for row in rows]


def test_each_prompt_has_its_best_winner_so_far_the_younger_of_equals_and_every_row_is_accounted_for():
    output = Output()
    newest, *earlier = map(Selected, ROWS)
    replay(None, output, newest, earlier)
    assert output.written == [("c", 0, None), ("a", 3, 1), ("d", 0, 2), ("b", 3, 2), ("e", 0, 2)]
    assert sorted(output.dropped) == [("a", 0), ("a", 2), ("b", 1), ("b", 2), ("c", 2), ("d", 1)]
    assert len(output.written) + len(output.dropped) == sum(map(len, ROWS)) == 11


def test_a_selection_without_earlier_ones_that_are_better_stays_as_it_is():
    output = Output()
    replay(None, output, Selected(ROWS[2]), [])
    assert output.written == [(prompt, index, None) for prompt, index, _ in ROWS[2]] and not output.dropped


@pytest.fixture(scope="module")
def twice(tmp_path_factory) -> Path:
    """A run of three iterations whose pool is drawn whole in each."""
    folder = tmp_path_factory.mktemp("twice")
    worlds.make_recipe(
        folder, iterations=3, replay={"max_age": 1}, prompts={"per_iteration": 12}, evaluation={"count": 48, "every": 9}
    )
    done = worlds.raft(folder, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "tiny"


def test_a_run_learns_from_the_better_of_this_iteration_and_the_one_before(twice):
    won = [
        {row["prompt_id"]: row for row in read(twice / f"iterations/00{number}/selected.jsonl")} for number in (1, 2, 3)
    ]
    assert not (twice / "iterations/001/replayed.jsonl").exists()
    for number, before, now in ((2, won[0], won[1]), (3, won[1], won[2])):
        learned = {row["prompt_id"]: row for row in read(twice / f"iterations/00{number}/replayed.jsonl")}
        assert learned.keys() == before.keys() | now.keys()
        for prompt, row in learned.items():
            old = before[prompt]["reward"] if prompt in before else float("-inf")
            expected = before[prompt] if old > now[prompt]["reward"] else now[prompt]
            assert row["response"] == expected["response"]
            assert row.get("age") == (1 if old > now[prompt]["reward"] else None)
        assert 0 < sum("age" in row for row in learned.values()) < len(learned)


def test_a_run_with_replay_is_finished_when_it_is_asked_for_again(twice):
    done = worlds.raft(twice.parent.parent, "run", "recipe.yaml")
    assert done.returncode == 0 and "already finished" in done.stdout


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"selection": {"kind": "advantage"}, "trainer": {"kind": "policy-gradient"}},
            "selection.kind gives negative weights to others",
        ),
        ({"replay": {"max_age": -1}}, "out of range"),
    ],
)
def test_what_cannot_be_learned_again_is_refused(tmp_path, changes, why):
    worlds.make_recipe(tmp_path, **{"replay": {"max_age": 2}, **changes})
    done = worlds.raft(tmp_path, "check", "recipe.yaml")
    assert done.returncode == 2 and why in done.stderr
