"""Laws of drops: where too few rows are left, the reasons are said, and only what can help is advised."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import worlds

from raft.core.errors import UserError
from raft.core.progress import Progress
from raft.core.records import Drop
from raft.data.prompts import Inline, Mixture, dropped, reasons
from raft.pipeline import stages
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact


@pytest.fixture
def output(tmp_path: Path) -> ArtifactWriter:
    return ArtifactWriter(tmp_path / "rows.jsonl", tmp_path / "rows.partial", "0", 0, 0, Progress("x", "prompts"))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Artifact(worlds.make_policy(tmp_path_factory.mktemp("policy") / "base"), {"hash": "0"})


def test_reasons_are_counted_whatever_their_numbers_and_the_commonest_comes_first():
    drops = [
        Drop("a", None, "collect", "empty"),
        Drop("b", None, "collect", "57 tokens, more than prompts.max_prompt_length: 50"),
        Drop("c", None, "collect", "60 tokens, more than prompts.max_prompt_length: 50"),
        Drop("000003", None, "load_examples", "data/rows.jsonl:4: empty"),
        Drop("000004", None, "load_examples", "d/train[4]: empty"),
    ]
    assert reasons(drops) == (
        "empty (3 rows, the first: a); 57 tokens, more than prompts.max_prompt_length: 50 (2 rows, the first: b, the "
        "numbers differ)"
    )
    assert reasons(drops[3:]) == "empty (the first: data/rows.jsonl:4)"
    assert reasons(drops[:1]) == "empty (a)"
    assert dropped(drops[:1]) == "1 row was dropped: empty (a)"
    assert dropped(drops[:1], 7) == "1 of 7 rows was dropped: empty (a)"
    assert reasons([]) == ""
    many = [Drop(str(at), None, "collect", f"reason {letter}") for at, letter in enumerate("abcdefg")]
    assert reasons(many).endswith("reason e (4); other reasons (2 rows)")


LONG = "x" * 400
REFUSED = {
    "all": (["", " "], 1, r"none of 2 rows can be used: empty \(the first: 000000\); correct the rows"),
    "same": (["a", "A", ""], 2, r"only 1 different prompts .* in 3 rows, of which 1 say the same .*; lower it"),
    "long": (["a", LONG], 2, r"only 1 .*1 row was dropped: \d+ tokens, more than prompts\.max_prompt_length"),
    "none": ([{"prompt": None}], 1, r"none of 1 rows can be used: prompt is not text but null"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_too_few_to_hold_out_are_said_with_the_reasons(policy: Artifact, output: ArtifactWriter, name: str):
    items, count, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as found:
        stages.sample_eval_prompts(Inline(items=items, max_prompt_length=50), output, policy, count)
    assert ("lower it" in str(found.value)) == ("only" in str(found.value))


def test_none_left_to_train_on_says_why(policy: Artifact, output: ArtifactWriter, tmp_path: Path):
    with pytest.raises(UserError, match=r"prompts: none of 2 rows can be used: .*empty .*; correct the rows"):
        stages.collect(Inline(items=["", LONG], max_prompt_length=50), output, policy)
    held_out = tmp_path / "held.jsonl"
    held_out.write_text(json.dumps({"id": "x", "text": "a"}) + "\n")
    again = ArtifactWriter(tmp_path / "r.jsonl", tmp_path / "r.partial", "0", 0, 0, Progress("x", "prompts"))
    with pytest.raises(UserError, match=r"held out for evaluation .*; lower evaluation\.count"):
        stages.collect(Inline(items=["a"]), again, policy, Artifact(held_out, {"hash": "0", "rows": 1}))


def test_too_few_for_an_iteration_say_what_was_dropped(output: ArtifactWriter, tmp_path: Path):
    pool = tmp_path / "pool.jsonl"
    pool.write_text(json.dumps({"id": "a", "text": "a", "source": 0}) + "\n")
    (tmp_path / "dropped.jsonl").write_text(json.dumps(Drop("b", None, "collect", "empty").row()) + "\n")
    made = Artifact(pool, {"hash": "0", "dropped": 1, "measured": {"0": 1}})
    source: Any = Mixture(sources=[Inline(items=["a"]), Inline(items=[""])], per_iteration=2)
    with pytest.raises(UserError, match=r"sources\[1\] .* only 0; give more prompts\. 1 row was dropped: empty \(b\)"):
        stages.draw(source, output, made)


def test_a_run_of_which_no_row_is_a_prompt_says_why_each_is_none(tmp_path: Path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": talk}) + "\n" + json.dumps({"messages": 5}) + "\n")
    worlds.make_recipe(tmp_path, prompts={"path": "p.jsonl", "messages": "messages"})
    for command in ("check", "run"):
        done = worlds.raft(tmp_path, command, "recipe.yaml")
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert re.search(r"none of the first 2 rows .*assistant's own words.*not a list of messages", done.stderr)
        assert "lower it" not in done.stderr and not (tmp_path / "outputs").exists()


FIRST_ROWS = {
    "a bad line": ('{"prompt": "a"}\n{"prompt": \n', {}, r"recipe\.yaml:5: prompts: p\.jsonl:2: not a line of JSON"),
    "a key twice": ('{"prompt": "a", "prompt": "b"}\n', {}, r"p\.jsonl:1: .*the key 'prompt' appears twice"),
    "another column": ('{"question": "a"}\n', {}, r"p\.jsonl:1: no column prompt; columns: question"),
    "roles": ('{"m": [{"role": "narrator", "content": "a"}]}\n' * 6, {"messages": "m"}, "can be used: .*'narrator'"),
    "input": ('{"instruction": "a", "input": "b"}\n', {"prompt_column": "instruction"}, "leaves out the column input"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST_ROWS)
def test_check_reads_the_first_rows(tmp_path: Path, name: str):
    content, options, message = FIRST_ROWS[name]
    (tmp_path / "p.jsonl").write_text(content)
    worlds.make_recipe(tmp_path, prompts={"path": "p.jsonl", **options})
    done = worlds.raft(tmp_path, "check", "recipe.yaml")
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr


def test_check_lets_rows_pass_of_which_some_can_be_used(tmp_path: Path):
    rows = [f'{{"prompt": "a {number}", "letter": "a"}}\n' for number in range(24)]
    (tmp_path / "p.jsonl").write_text('{"prompt": ""}\n' + "".join(rows))
    worlds.make_recipe(tmp_path, prompts={"path": "p.jsonl"})
    assert worlds.raft(tmp_path, "check", "recipe.yaml").returncode == 0


def test_a_run_says_how_many_rows_were_dropped_and_why(tmp_path: Path):
    rows = [{"prompt": f"the red fox {number} " * (1 if number < 6 else 60)} for number in range(20)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"kind": "list", "items": ["one", "two", ""]}
    worlds.make_recipe(
        tmp_path, iterations=1, prompts={"path": "p.jsonl", "per_iteration": 2},
        evaluation={"prompts": own, "count": 2, "k": 1}, reward={"kind": "rule", "function": "length"},
    )  # fmt: skip
    done = worlds.raft(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    reason = r"\d+ tokens, more than prompts\.max_prompt_length: 64 \(the first: 000006\)"
    assert re.search(rf"notice: pool\.jsonl: 14 of 20 rows were dropped: {reason}", done.stdout)
    assert "notice: evaluation.jsonl: 1 row was dropped: empty (000002)" in done.stdout
