"""Laws of raft score: it goes on where it was stopped, and never mixes what two rewards or two files have made."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import worlds
from folders import stamp, write_run

from raft.cli import show
from raft.core.errors import UserError
from raft.core.protocols import BATCH_SIZE
from raft.core.records import read
from raft.pipeline.score_file import score_file
from raft.report.page import write as report
from raft.store import timeline
from raft.store.runs import locked

COUNT = 2 * BATCH_SIZE + 7
# counts each call in a file beside it, and kills its own process at a call that another file names
RULE = """
import os
from pathlib import Path

HERE = Path(__file__).parent

def length(prompt, response, times=1):
    with open(HERE / "calls", "a") as calls:
        calls.write("x")
    if (HERE / "kill").exists() and (HERE / "calls").stat().st_size == int((HERE / "kill").read_text()):
        os._exit(9)
    assert "!" not in response, "rude"
    return times * len(response)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delitem(sys.modules, "counted", raising=False)  # of another test
    rows = [
        {"prompt_id": f"p{n}", "text": "say: ", "responses": [{"text": "a" * n}, {"text": "!" if n == 3 else "b"}]}
        for n in range(COUNT)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "counted.py").write_text(RULE)
    reward(tmp_path)
    return tmp_path


def reward(folder: Path, times: int = 1) -> None:
    (folder / "rule.yaml").write_text(f"{{kind: rule, function: 'counted:length', args: {{times: {times}}}}}")


def score(folder: Path, out: str = "out.jsonl") -> str:
    return score_file(str(folder / "rule.yaml"), folder / "in.jsonl", folder / out, None)


def command(folder: Path) -> int:
    return worlds.raft(folder, "score", "rule.yaml", "in.jsonl", "out.jsonl").returncode


def calls(folder: Path) -> int:
    return (folder / "calls").stat().st_size


def test_every_response_is_scored_in_order_and_one_that_cannot_be_has_an_error(folder: Path):
    said = score(folder)
    assert said.endswith(f"out.jsonl: {COUNT} prompts scored, 1 response without a reward")
    rows = list(read(folder / "out.jsonl"))
    assert [row["prompt_id"] for row in rows] == [f"p{n}" for n in range(COUNT)]
    assert [row["scores"][0]["reward"] for row in rows] == list(range(COUNT))
    assert "reward" not in rows[3]["scores"][1] and "rude" in rows[3]["scores"][1]["error"]


def test_what_is_scored_already_is_not_scored_again(folder: Path):
    said, made = score(folder), (folder / "out.jsonl").read_bytes()
    assert calls(folder) == 2 * COUNT
    assert score(folder) == said and calls(folder) == 2 * COUNT
    assert (folder / "out.jsonl").read_bytes() == made
    assert not (folder / "out.jsonl.partial").exists()


@pytest.mark.parametrize("at", [1, 2 * BATCH_SIZE, 2 * BATCH_SIZE + 2, 2 * COUNT])
def test_a_kill_between_any_two_responses_loses_one_group_at_most_and_changes_nothing(folder: Path, at: int):
    (folder / "kill").write_text(str(at))
    assert command(folder) == 9 and not (folder / "out.jsonl").exists()
    assert command(folder) == 0 and calls(folder) <= 2 * COUNT + 2
    score(folder, "whole.jsonl")
    assert (folder / "out.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()


def test_a_kill_around_the_stamp_loses_nothing(folder: Path):
    (folder / "kill").write_text(str(2 * COUNT))
    assert command(folder) == 9
    partial, stamp = folder / "out.jsonl.partial", folder / "out.jsonl.stamp.json"
    half = partial.read_bytes()
    score(folder)
    made, before = (folder / "out.jsonl").read_bytes(), calls(folder)
    partial.write_bytes(half + half.splitlines(keepends=True)[-1][:9])  # after the stamp, and a record cut off
    score(folder)
    assert not partial.exists() and calls(folder) == before
    stamp.unlink()  # before the stamp
    partial.write_bytes(half)
    score(folder)
    assert (folder / "out.jsonl").read_bytes() == made and calls(folder) == before + 2 and stamp.exists()


def shorten(folder: Path) -> None:
    rows = (folder / "in.jsonl").read_text().splitlines(keepends=True)
    (folder / "in.jsonl").write_text("".join(rows[:-1]))


def rewrite(folder: Path) -> None:
    """Another rule, as the next process imports it: the key has what was imported, not what the file has become."""
    (folder / "counted.py").write_text(RULE + "\n")
    del sys.modules["counted"]


OTHER = {
    "reward.args.times: was 1, is 2": lambda folder: reward(folder, times=2),
    "reward.function: the source of counted.py (counted:length) changed": rewrite,
    "responses.path: has other content": shorten,
}


@pytest.mark.parametrize(("named", "change"), OTHER.items(), ids=["option", "code", "responses"])
def test_scores_of_another_reward_or_of_other_responses_are_refused_and_stay(
    folder: Path, named: str, change: Callable[[Path], None]
):
    score(folder)
    made = (folder / "out.jsonl").read_bytes()
    change(folder)
    with pytest.raises(UserError, match=r"out\.jsonl was made by another reward, or of other responses") as fault:
        score(folder)
    assert named in str(fault.value) and "Delete it, or choose another OUT.jsonl" in str(fault.value)
    assert (folder / "out.jsonl").read_bytes() == made
    (folder / "out.jsonl").unlink()
    assert "prompts scored" in score(folder)


def test_half_made_scores_of_another_reward_wait_beside_the_new_ones(folder: Path, capsys):
    (folder / "kill").write_text("9")
    assert command(folder) == 9
    reward(folder, times=2)
    (folder / "kill").unlink(missing_ok=True)
    assert "prompts scored" in score(folder)
    assert "out.jsonl.partial: half-made from other inputs" in capsys.readouterr().err
    assert len(list(folder.glob("out.jsonl.partial.*"))) == 1


def test_a_file_that_raft_score_did_not_make_is_never_touched(folder: Path):
    before = (folder / "in.jsonl").read_bytes()
    with pytest.raises(UserError, match="has no stamp, so raft score did not make it; delete it, or choose another"):
        score(folder, "in.jsonl")
    assert (folder / "in.jsonl").read_bytes() == before


def test_every_row_is_looked_at_before_the_first_is_scored(folder: Path):
    with open(folder / "in.jsonl", "a") as rows:
        rows.write('{"prompt_id": "last", "text": "x", "responses": []}\n')
    with pytest.raises(UserError, match=rf"in\.jsonl:{COUNT + 1}: responses is not a list of at least one"):
        score(folder)
    assert not (folder / "calls").exists()


@pytest.mark.parametrize("missing", ["none.jsonl", "prompts.jsonl"])
def test_a_missing_file_is_named(folder: Path, missing: str):
    responses = folder / ("none.jsonl" if missing == "none.jsonl" else "in.jsonl")
    with pytest.raises(UserError, match=f"no file at .*{missing}"):
        score_file(str(folder / "rule.yaml"), responses, folder / "out.jsonl", folder / "prompts.jsonl")


def test_the_reward_of_a_recipe_that_names_the_recipe_of_its_model_is_found_once_that_was_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "needed.yaml").write_text(
        "{job: reward-model, name: needed, policy: {model: base}, examples: {kind: file, path: pairs.jsonl, "
        "pairs: columns}, trainer: {kind: reward-model}}"
    )
    recipe = folder / "recipe.yaml"
    recipe.write_text("{name: whole, reward: {kind: model, recipe: needed.yaml}}")
    with pytest.raises(UserError, match=r"make it first: raft run .*needed.yaml"):
        score_file(str(recipe), folder / "in.jsonl", folder / "out.jsonl", None)
    made = folder / "outputs" / "needed" / "reward-model"
    made.mkdir(parents=True)
    with pytest.raises(UserError, match=r"make it first: raft run .*needed.yaml"):  # it may be half written
        score_file(str(recipe), folder / "in.jsonl", folder / "out.jsonl", None)
    stamp(made)
    with pytest.raises(UserError, match=r"outputs/needed/reward-model"):  # it is no model, but it is found
        score_file(str(recipe), folder / "in.jsonl", folder / "out.jsonl", None)


def test_two_processes_do_not_score_into_the_same_file(folder):
    with (
        locked(folder / ".out.jsonl.lock", "", ""),
        pytest.raises(UserError, match=r"out.jsonl is in use already"),
    ):
        score(folder)
    score(folder)
    assert not list(folder.glob(".out*"))


def test_scores_made_inside_a_run_stand_in_none_of_its_commands_way(folder):
    run = write_run(folder / "run", 2, 2, 1, text=lambda *place: "words", reward=lambda *place: 1.0)
    score(folder, "run/rescored.jsonl")
    assert "rescored.jsonl" in show.files(run)
    timeline.record(run)
    assert report.write(run).exists() and "score_file" in {one["stage"] for one in timeline.artifacts(run)}


def test_damaged_scores_are_not_taken_for_done(folder):
    score(folder)
    lines = (folder / "out.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "out.jsonl").write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(UserError, match=r"out\.jsonl is damaged: .*Delete it; then give the same command again"):
        score(folder)
    (folder / "out.jsonl").unlink()
    score(folder)
    assert (folder / "out.jsonl").read_bytes() == b"".join(lines)


def test_an_error_leaves_no_lock(folder):
    (folder / "out.jsonl").write_text("of somebody else")
    with pytest.raises(UserError, match="has no stamp"):
        score(folder)
    assert not list(folder.glob(".out*"))
