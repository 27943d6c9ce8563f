"""job: label. Responses, generated or given, become preference pairs that a reward-model job learns from."""

import json
from pathlib import Path
from typing import Any

import pytest
import worlds
import yaml

from raft.core.records import read
from raft.data.examples import FileExamples, pairs

RULE = "def vowels(prompt, response):\n    return sum(one in 'aeiou' for one in response)\n"


def write(folder: Path, file: str, **recipe: Any) -> None:
    (folder / file).write_text(yaml.safe_dump(recipe, sort_keys=False))


def vowels(text: str) -> int:
    return sum(one in "aeiou" for one in text)


def given(folder: Path, rows: list[tuple[str, list[str]]]) -> None:
    lines = [
        {"prompt_id": f"p{number}", "text": prompt, "responses": [{"text": text} for text in texts]}
        for number, (prompt, texts) in enumerate(rows)
    ]
    (folder / "responses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "letters.py").write_text(RULE)


ROWS = [("one: ", ["a", "aei", "b"]), ("two: ", ["xyz", "y"]), ("three: ", ["eee", "e", "oo", "k"])]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("best-vs-worst", [("one: ", "aei", "b"), ("three: ", "eee", "k")]),
        (
            "all-pairs",
            [
                ("one: ", "a", "b"), ("one: ", "aei", "a"), ("one: ", "aei", "b"), ("three: ", "eee", "e"),
                ("three: ", "eee", "oo"), ("three: ", "eee", "k"), ("three: ", "e", "k"), ("three: ", "oo", "e"),
                ("three: ", "oo", "k"),
            ],
        ),
    ],
)  # fmt: skip
def test_given_responses_become_pairs_of_better_and_worse(tmp_path: Path, kind: str, expected: Any):
    given(tmp_path, ROWS)
    reward = {"kind": "rule", "function": "letters:vowels"}
    write(
        tmp_path, "label.yaml", job="label", name="pairs", responses={"path": "responses.jsonl"}, reward=reward,
        selection={"kind": kind},
    )  # fmt: skip
    done = worlds.raft(tmp_path, "run", "label.yaml")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "pairs"
    rows = list(read(run / "pairs.jsonl"))
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == expected
    assert len({row["id"] for row in rows}) == len(rows)
    (dropped,) = read(run / "dropped.jsonl")
    assert dropped["prompt_id"] == "p1" and dropped["stage"] == "select"
    assert "notice: 1 of 3 prompts have no pair: " in done.stdout
    assert f"\npairs: {len(expected)}\n" in worlds.raft(tmp_path, "status", "outputs/pairs").stdout
    before = {file: file.read_bytes() for file in run.glob("*.jsonl")}
    assert worlds.raft(tmp_path, "run", "label.yaml").returncode == 0
    assert before == {file: file.read_bytes() for file in run.glob("*.jsonl")}
    shown = worlds.raft(tmp_path, "show", "outputs/pairs")
    assert shown.returncode == 2 and "see outputs/pairs/pairs.jsonl, or raft report outputs/pairs" in shown.stderr


def test_a_response_that_cannot_be_judged_is_dropped_with_its_reason_and_the_others_stay(tmp_path: Path):
    given(tmp_path, [("one: ", ["aa", "!", "a"]), ("two: ", ["e", "ee"])])
    (tmp_path / "letters.py").write_text(RULE.replace("return", "assert response != '!', 'rude'\n    return"))
    reward = {"kind": "rule", "function": "letters:vowels"}
    recipe = {"job": "label", "name": "pairs", "responses": {"path": "responses.jsonl"}, "reward": reward}
    write(tmp_path, "label.yaml", **recipe, selection={"kind": "best-vs-worst", "max_failed_fraction": 0.5})
    done = worlds.raft(tmp_path, "run", "label.yaml")
    assert done.returncode == 0, done.stderr
    rows = list(read(tmp_path / "outputs/pairs/pairs.jsonl"))
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("aa", "a"), ("ee", "e")]
    (dropped,) = read(tmp_path / "outputs/pairs/dropped.jsonl")
    assert (dropped["prompt_id"], dropped["index"], dropped["reason"]) == ("p0", 1, "no reward")
    write(tmp_path, "strict.yaml", **{**recipe, "name": "strict"})
    done = worlds.raft(tmp_path, "run", "strict.yaml")
    assert done.returncode == 2 and "1 of 5 responses have no reward" in done.stderr and "rude" in done.stderr


def test_generated_responses_are_labelled_and_a_reward_model_learns_from_them(tmp_path: Path):
    worlds.make_recipe(tmp_path)
    made = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    label = {name: made[name] for name in ("policy", "prompts", "generator")}
    del label["prompts"]["per_iteration"]
    label["selection"] = {"kind": "best-vs-worst", "filters": ["empty"]}
    write(tmp_path, "label.yaml", job="label", name="judged", **label, reward={"kind": "rule", "function": "length"})
    examples = {"kind": "file", "recipe": "label.yaml", "pairs": "columns", "held_out": 4}
    trainer = {"kind": "reward-model", "learning_rate": 1e-3, "batch_size": 4}
    write(
        tmp_path, "reward.yaml", job="reward-model", name="learnt", policy={"model": "base"}, examples=examples,
        trainer=trainer,
    )  # fmt: skip
    done = worlds.raft(tmp_path, "run", "reward.yaml")
    assert "prompts.per_iteration is not set: the job draws 60 prompts" in done.stdout
    assert done.returncode == 0, done.stderr
    pairs = list(read(tmp_path / "outputs/judged/pairs.jsonl"))
    assert pairs and all(len(row["chosen"].split()) > len(row["rejected"].split()) for row in pairs)
    metrics = json.loads((tmp_path / "outputs/learnt/metrics.json").read_text())
    assert metrics["eval/pairs"] == 4 and metrics["train/examples"] == len(pairs) - 4
    drawn = worlds.raft(tmp_path, "plot", "outputs/judged", "--figure", "distribution")
    assert drawn.returncode == 0 and (tmp_path / "outputs/judged/distribution.png").exists(), drawn.stderr
    refused = worlds.raft(tmp_path, "plot", "outputs/learnt")
    assert refused.returncode == 2 and "figures are of responses and a job: reward-model has none" in refused.stderr


CHAT = [{"role": "user", "content": "why?"}]
TEXTS = ["aei", "", " \n", "aei", "b", 'a:\n- "b"', "\x85e\u2028", "\U0001f600i"]


@pytest.mark.parametrize("ask", [{"text": "one: "}, {"messages": CHAT}], ids=["text", "chat"])
@pytest.mark.parametrize("kind", ["best-vs-worst", "all-pairs"])
def test_whatever_is_published_the_reader_of_pairs_reads(tmp_path: Path, ask: dict[str, Any], kind: str):
    """The reward falls from call to call, so even two responses of one text differ in it."""
    groups = [TEXTS, ["", " ", "\t"], ["e", "e"], ["a", "b"], ["", "b", "a"]]
    rows = [
        {"prompt_id": f"p-{number}", **ask, "responses": [{"text": text} for text in texts]}
        for number, texts in enumerate(groups)
    ]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "falling.py").write_text(
        "from itertools import count\ncalls = count()\ndef f(prompt, response):\n    return -next(calls)\n"
    )
    reward = {"kind": "rule", "function": "falling:f"}
    write(
        tmp_path, "label.yaml", job="label", name="pairs", responses={"path": "responses.jsonl"}, reward=reward,
        selection={"kind": kind},
    )  # fmt: skip
    done = worlds.raft(tmp_path, "run", "label.yaml")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "pairs"
    published, selected = list(read(run / "pairs.jsonl")), list(read(run / "selected.jsonl"))
    dropped = [row for row in read(run / "dropped.jsonl") if row["stage"] == "publish"]
    assert len(selected) == len(published) + len(dropped) and published and dropped
    reasons = {row["reason"] for row in dropped}
    assert reasons <= {"chosen is empty", "rejected is empty", "chosen and rejected are equal"}
    ids = [row["id"] for row in published] + [row["prompt_id"] for row in dropped]
    assert len(set(ids)) == len(ids)
    section = FileExamples(path=str(run / "pairs.jsonl"), pairs="columns", max_bad_rows_fraction=0.0)
    found = list(pairs(section, seed=0))
    sides = [(one.chosen.text, one.rejected.text) for one in found]
    if "text" in ask:  # both forms are those that TRL's DPOTrainer takes
        assert published == [
            {"id": row["id"], "prompt": "one: ", "chosen": chosen, "rejected": rejected}
            for row, (chosen, rejected) in zip(published, sides, strict=True)
        ]
    else:
        assert {one.prompt.messages == CHAT for one in found} == {True}
        assert published == [
            {
                "id": row["id"], "prompt": CHAT, "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
            for row, (chosen, rejected) in zip(published, sides, strict=True)
        ]  # fmt: skip


def test_a_job_of_which_no_pair_can_be_learned_from_says_why(tmp_path: Path):
    given(tmp_path, [("", ["a", "b b"]), ("one: ", ["", "e"]), ("two: ", ["e", "o"])])
    write(
        tmp_path, "label.yaml", job="label", name="x", responses={"path": "responses.jsonl"},
        reward={"kind": "rule", "function": "length"},
    )  # fmt: skip
    done = worlds.raft(tmp_path, "run", "label.yaml")
    assert done.returncode == 2, done.stderr
    assert "none of the 2 pairs can be learned from (rejected is empty; the prompt is empty)" in done.stderr


def test_messages_and_texts_in_one_job_are_refused(tmp_path: Path):
    rows = [{"prompt_id": "p", "text": "one: "}, {"prompt_id": "q", "messages": CHAT}]
    (tmp_path / "responses.jsonl").write_text(
        "".join(json.dumps({**r, "responses": [{"text": "a"}]}) + "\n" for r in rows)
    )
    rule = {"kind": "rule", "function": "length"}
    write(tmp_path, "label.yaml", job="label", name="x", responses={"path": "responses.jsonl"}, reward=rule)
    done = worlds.raft(tmp_path, "run", "label.yaml")
    assert done.returncode == 2 and "prompt q is messages, and those before it are not" in done.stderr
    sources = [{"kind": "list", "items": ["a"], "format": one, "weight": 1.0} for one in ("text", "chat")]
    write(
        tmp_path, "label.yaml", job="label", name="y", policy={"model": "base"}, reward=rule,
        prompts={"kind": "mixture", "sources": sources}, generator={"kind": "transformers"},
    )  # fmt: skip
    done = worlds.raft(tmp_path, "check", "label.yaml")
    assert done.returncode == 2 and "prompts: some parts are chats and some texts" in done.stderr


def test_length_control_of_responses_without_tokens_is_refused(tmp_path: Path):
    given(tmp_path, ROWS)
    rule = {"kind": "rule", "function": "letters:vowels"}
    write(
        tmp_path, "label.yaml", job="label", name="x", responses={"path": "responses.jsonl"}, reward=rule,
        selection={"kind": "all-pairs", "length_control": True},
    )  # fmt: skip
    done = worlds.raft(tmp_path, "run", "label.yaml")
    assert done.returncode == 2, done.stderr
    assert "length_control counts tokens, and response 0 to prompt p0 has none" in done.stderr


def test_a_recipe_that_gives_responses_and_makes_them_is_refused(tmp_path: Path):
    given(tmp_path, ROWS)
    rule = {"kind": "rule", "function": "length"}
    write(
        tmp_path, "label.yaml", job="label", name="x", responses={"path": "none.jsonl"}, policy={"model": "base"},
        reward=rule, selection={"kind": "best-of-k"},
    )  # fmt: skip
    done = worlds.raft(tmp_path, "check", "label.yaml")
    assert done.returncode == 2
    assert "policy: the responses are given, so none are generated" in done.stderr
    assert "selection.kind: makes no pairs; allowed: all-pairs, best-vs-worst" in done.stderr
    write(tmp_path, "label.yaml", job="label", name="x", reward=rule)
    done = worlds.raft(tmp_path, "check", "label.yaml")
    assert done.returncode == 2 and done.stderr.count("give policy, prompts and generator, or responses") == 3
    write(tmp_path, "label.yaml", job="label", name="x", responses={"path": "none.jsonl"}, reward=rule)
    done = worlds.raft(tmp_path, "check", "label.yaml")
    assert done.returncode == 2 and "responses.path: no file at" in done.stderr


def test_two_rows_of_one_prompt_id_are_refused(tmp_path: Path):
    given(tmp_path, ROWS)
    file = tmp_path / "responses.jsonl"
    file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")
    rule = {"kind": "rule", "function": "length"}
    write(tmp_path, "label.yaml", job="label", name="x", responses={"path": "responses.jsonl"}, reward=rule)
    done = worlds.raft(tmp_path, "run", "label.yaml")
    assert done.returncode == 2 and "responses.jsonl:4: a second row has prompt_id p0" in done.stderr


def test_needed_recipes_of_one_name_are_refused(tmp_path: Path):
    worlds.make_recipe(tmp_path)
    trainer, policy = {"kind": "reward-model"}, {"model": "base"}
    for number in (1, 2):
        examples = {
            "kind": "list",
            "items": [{"prompt": "a", "chosen": "b", "rejected": str(number)}],
            "pairs": "columns",
        }
        write(
            tmp_path,
            f"rm{number}.yaml",
            job="reward-model",
            name="rm",
            policy=policy,
            examples=examples,
            trainer=trainer,
        )
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["reward"] = {"kind": "model", "recipe": "rm1.yaml", "template": "plain"}
    recipe["evaluation"]["gold"] = {"kind": "model", "recipe": "rm2.yaml", "template": "plain"}
    write(tmp_path, "both.yaml", **recipe)
    done = worlds.raft(tmp_path, "check", "both.yaml")
    assert done.returncode == 2 and "have the same name: rm; give each its own" in done.stderr
