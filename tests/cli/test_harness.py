"""raft eval: tasks of lm-evaluation-harness on local files, against a plain computation with transformers."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft.cli import harness
from raft.core.errors import UserError
from raft.core.run_paths import RunPaths
from raft.store import mirror
from raft.store.keys import Artifact

WITH_HARNESS = (
    pytest.mark.nightly
)  # make nightly installs it: it brings scikit-learn, which slows every import of transformers
COUNT, LIMIT = 24, 20
ROWS = [
    {
        "text": f"the {worlds.WORDS[n % 7]} {worlds.WORDS[7 + n % 5]}",
        "choices": [f" {worlds.WORDS[(n + at) % 19]}" * (1 + at) for at in range(3)],
        "right": n % 3,
        "letter": "the"[n % 3],
    }
    for n in range(COUNT)
]
CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: choices
doc_to_target: right
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
SAID = """
task: said
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: letter
generation_kwargs: {max_gen_toks: 8, until: ["<none>"]}
filter_list:
  - {name: first, filter: [{function: regex, regex_pattern: "([a-z])"}, {function: take_first}]}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one iteration that changes its policy much, and two tasks on local files."""
    folder = tmp_path_factory.mktemp("harness")
    worlds.make_recipe(folder, iterations=1, trainer={"learning_rate": 3e-2, "num_train_epochs": 4})
    assert worlds.raft(folder, "run", "recipe.yaml").returncode == 0
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in (("choice", CHOICE), ("said", SAID)):
        (tasks / f"{name}.yaml").write_text(text.replace("FOLDER", str(tasks)))
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    return world / "outputs" / "tiny"


@pytest.fixture(scope="module")
def asked(world: Path) -> harness.Asked:
    return harness.Asked(include_path=world / "tasks", limit=LIMIT)


@pytest.fixture(scope="module")
def found(run: Path, asked: harness.Asked) -> tuple[list[str], list[harness.Change]]:
    return harness.compare(run, ["choice", "said"], "last", asked)


def plain(policy: Path) -> dict[str, list[float]]:
    """The value of each metric for each row, by transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy).eval(), AutoTokenizer.from_pretrained(policy)
    values: dict[str, list[float]] = {"acc": [], "acc_norm": [], "exact_match": []}
    for row in ROWS[:LIMIT]:
        sums = []
        for choice in row["choices"]:
            ids = tokenizer(row["text"] + choice, return_tensors="pt").input_ids
            begins = len(tokenizer(row["text"]).input_ids)
            with torch.no_grad():
                logprobs = model(ids).logits[0].log_softmax(-1)
            sums.append(sum(float(logprobs[at - 1, ids[0, at]]) for at in range(begins, ids.shape[1])))
        lengths = [len(choice) for choice in row["choices"]]
        values["acc"].append(float(np.argmax(sums) == row["right"]))
        values["acc_norm"].append(float(np.argmax(np.array(sums) / lengths) == row["right"]))
        ids = tokenizer(row["text"], return_tensors="pt").input_ids
        written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        first = next((one for one in text if "a" <= one <= "z"), None)
        values["exact_match"].append(float(first == row["letter"]))
    return values


@WITH_HARNESS
def test_figures_are_those_of_a_plain_computation_with_transformers(run, found):
    titles, changes = found
    assert titles == ["policy 0", "policy 1"]
    before, after = (plain(RunPaths(run).iteration(number).policy) for number in (0, 1))
    assert before != after
    assert [(one.task, one.metric, one.documents) for one in changes] == [
        ("choice", "acc", LIMIT),
        ("choice", "acc_norm", LIMIT),
        ("said", "exact_match", LIMIT),
    ]
    for one in changes:
        first, last = np.array(before[one.metric]), np.array(after[one.metric])
        assert (one.before, one.after) == pytest.approx((first.mean(), last.mean()))
        assert one.before_stderr == pytest.approx(first.std(ddof=1) / math.sqrt(LIMIT))
        assert one.paired and one.stderr == pytest.approx((last - first).std(ddof=1) / math.sqrt(LIMIT))
        assert one.interval == pytest.approx(
            (one.difference - 1.96 * one.stderr, one.difference + 1.96 * one.stderr), abs=1e-12
        )


@WITH_HARNESS
def test_the_same_question_is_not_computed_again_and_another_is(world, run, asked, found, capsys):
    def computed(**changed: Any) -> list[str]:
        again = harness.Asked(**{**vars_of(asked), **changed})
        harness.compare(run, ["choice"], "last", again)
        return capsys.readouterr().err.splitlines()

    capsys.readouterr()
    assert harness.compare(run, ["choice", "said"], "last", asked) == found
    assert computed(batch_size=3) == [] and capsys.readouterr().err == ""
    assert [line for line in computed(limit=2) if "choice" in line] == ["policy 0: choice", "policy 1: choice"]
    assert computed(limit=2) == []
    harness.compare(run, ["choice"], 0, harness.Asked(**{**vars_of(asked), "limit": 2}))
    assert capsys.readouterr().err == ""  # policy 0 is known from the comparison with another
    (world / "tasks" / "more.txt").write_text("anything in the folder may be part of a task")
    try:
        assert "policy 1: choice" in computed(limit=2)
    finally:
        (world / "tasks" / "more.txt").unlink()


def vars_of(asked: harness.Asked) -> dict[str, Any]:
    return {name: getattr(asked, name) for name in asked.__dataclass_fields__}


@WITH_HARNESS
def test_the_command_prints_a_table_or_json_and_leaves_the_run_as_it_is(world, run, found):
    before = worlds.fingerprint(run)
    arguments = ["eval", "outputs/tiny", "--tasks", "choice,said", "--include-path", "tasks", "--limit", LIMIT]
    done = worlds.raft(world, *arguments, "--policy", "last")
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["task", "metric", "shots", "documents", "policy", "0", "policy", "1", "difference"]
    for line, one in zip(rows, found[1], strict=False):
        assert f"{one.before:.4f}" in line and f"{one.difference:+.4f} ± {1.96 * one.stderr:.4f}" in line
    made = json.loads(worlds.raft(world, *arguments, "--policy", "1", "--json").stdout)
    assert (made["before"], made["after"]) == ("policy 0", "policy 1")
    assert [row["difference"] for row in made["results"]] == [one.difference for one in found[1]]
    again = worlds.raft(world, "run", "recipe.yaml")
    assert again.returncode == 0 and worlds.fingerprint(run) == before
    kept = set(RunPaths(run).lm_eval.iterdir())
    assert kept and kept <= set(mirror._rest(run))


@WITH_HARNESS
def test_what_cannot_be_evaluated_is_refused_with_what_to_do(world, run, asked):
    def refused(words: str, tasks: list[str] | None = None, **changed: Any) -> None:
        with pytest.raises(UserError, match=words):
            harness.compare(run, tasks or ["choice"], "last", harness.Asked(**{**vars_of(asked), **changed}))

    shutil.copytree(RunPaths(run).iteration(1).policy, world / "bare")
    (world / "bare" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template; leave --apply-chat-template out"):
        harness._model(Artifact(world / "bare", {}), "policy 1", harness.Asked(apply_chat_template=True))
    refused("is not a folder", include_path=world / "nowhere")
    (world / "tasks" / "broken.yaml").write_text(CHOICE.replace("task: choice", "task: broken").replace("rows", "none"))
    try:
        refused("cannot evaluate broken", ["broken"])
    finally:
        (world / "tasks" / "broken.yaml").unlink()
    for words, arguments in (
        ("is not a whole number from 1 on", ["--tasks", "choice", "--limit", "0"]),
        ("names no task", ["--tasks", ","]),
        ("has no iteration 9", ["--tasks", "choice", "--policy", "9"]),
    ):
        done = worlds.raft(world, "eval", "outputs/tiny", *arguments)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_without_the_harness_the_command_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="install raft's extra eval"):
        harness.compare(tmp_path, ["choice"], "last", harness.Asked())


def test_without_values_of_documents_the_results_count_as_independent():
    same = {"task": "t", "metric": "perplexity", "filter": "none", "documents": 9, "num_fewshot": 0}
    one, other = ({**same, "higher_is_better": False, "stderr": error, "values": None} for error in (3.0, 4.0))
    answers = [[{"documents": "d", "results": [{**row, "value": at}]}] for row, at in ((one, 7.0), (other, 6.0))]
    (change,) = harness._changes(*answers)
    assert (change.stderr, change.paired, change.difference) == (5.0, False, -1.0)
    printed = harness.table(["policy 0", "policy 1"], [change])
    assert "-1.0000 ~ 9.8000" in printed and "lower is better: perplexity" in printed
    answers[0][0] |= {"documents": "others", "question": {"task": "t"}, "file": "a"}
    answers[1][0]["file"] = "b"
    with pytest.raises(UserError, match="documents of t have changed"):
        list(harness._changes(*answers))
