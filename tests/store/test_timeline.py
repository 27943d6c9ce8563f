"""The timeline of a run: every second of a process is told once."""

import json
import re
from pathlib import Path

import pytest
import worlds

from raft.cli.forecast import Quiet
from raft.config import recipe
from raft.core.atomic import write_json
from raft.pipeline import loop
from raft.store import timeline


def made(artifact: str, began: float, seconds: float, iteration: int | None = None, **parts: float) -> dict:
    told = {"artifact": artifact, "iteration": iteration, "stage": artifact}
    return {**told, "began": began, "seconds": seconds, "parts": parts}


def test_stages_parts_and_what_is_between_add_up_to_the_time_of_the_process():
    artifacts = [made("pool", 12, 3), made("generate", 15.5, 10, 1, start=4, reload=1), made("train", 26, 5, 1, save=2)]
    rows = list(timeline.shares(artifacts, [{"began": 10, "ended": 40}]))
    found = {(row["iteration"], row["stage"]): 0.0 for row in rows}
    for row in rows:
        found[row["iteration"], row["stage"]] += row["seconds"]
    assert found == {
        (None, "pool"): 3, (None, "start-up"): 2, (1, "generate"): 5, (1, "start-up"): 4, (1, "load"): 1,
        (1, "train"): 3, (1, "save"): 2, (1, "between"): 1.0,
    }  # fmt: skip
    assert sum(found.values()) == 31 - 10


def test_nothing_is_told_of_the_time_between_two_processes():
    artifacts = [made("pool", 12, 3), made("train", 1000, 5)]
    processes = [{"began": 10, "ended": 20}, {"began": 990, "ended": 1010}]
    rows = list(timeline.shares(artifacts, processes))
    assert {(row["stage"], row["seconds"]) for row in rows} == {
        ("pool", 3),
        ("start-up", 2),
        ("train", 5),
        ("start-up", 10),
    }


def test_a_run_records_every_artifact_and_its_process_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    worlds.make_recipe(tmp_path, iterations=1)
    loaded = recipe.load(tmp_path / "recipe.yaml")
    for _ in range(2):
        loop.run(loaded, Quiet())
    about = json.loads((loaded.folder / "run.json").read_text())
    stamps = list(loaded.folder.rglob("*.stamp.json"))
    assert len(about["timeline"]) == len(stamps) > 10
    assert len(about["processes"]) == 1
    train = next(one for one in about["timeline"] if one["artifact"] == "iterations/001/policy")
    assert {"load", "save", "sync"} <= set(train["parts"]) and sum(train["parts"].values()) <= train["seconds"]


@pytest.mark.nightly
def test_the_time_of_a_recipe_that_is_needed_is_not_that_of_the_run_that_needs_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = worlds.make_recipe(tmp_path, iterations=1)
    file.write_text(file.read_text().replace("model: base", "recipe: warm.yaml"))
    rows = [json.dumps({"prompt": f"{n}", "answer": "aaa"}) for n in range(8)]
    (tmp_path / "answers.jsonl").write_text("\n".join(rows))
    examples = "{kind: file, path: answers.jsonl, prompt_column: prompt, response: answer}"
    more = f"examples: {examples}\ntrainer: {{kind: sft, batch_size: 4}}\n"
    (tmp_path / "warm.yaml").write_text("job: sft\nname: warm\npolicy: {model: base}\n" + more)
    loop.run(recipe.load(file), Quiet())
    warm, tiny = (json.loads((tmp_path / f"outputs/{name}/run.json").read_text()) for name in ("warm", "tiny"))
    ((first,), (then,)) = warm["processes"], tiny["processes"]
    assert first["began"] < first["ended"] <= then["began"] < min(one["began"] for one in tiny["timeline"])


def test_every_part_that_a_stage_counts_has_a_name_in_the_timeline(tmp_path):
    files = Path(timeline.__file__).parents[1].rglob("*.py")
    used = {name for file in files for name in re.findall(r'\bpart\("(\w+)"\)', file.read_text())}
    assert used == set(timeline.PARTS)
    write_json(tmp_path / "run.json", {"job": "sft"})
    timeline.record(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["timeline"] == []


def test_lanes_hold_what_each_worker_did_of_each_stage():
    spans = [
        {"began": 1.0, "ended": 4.0, "done": 7, "died": False},
        {"began": 4.0, "ended": 5.0, "done": 1, "died": True},
    ]
    made = [
        {"artifact": "a", "iteration": 1, "stage": "generate", "workers": [{"worker": "n/1", **spans[0]}]},
        {"artifact": "b", "iteration": 1, "stage": "draw"},
        {
            "artifact": "c",
            "iteration": 2,
            "stage": "score",
            "workers": [{"worker": name, **spans[1]} for name in ("n/0", "n/1")],
        },
    ]
    found = timeline.lanes(made)
    assert [one["worker"] for one in found] == ["n/0", "n/1"]
    assert [(one["artifact"], one["stage"], one["done"], one["died"]) for one in found[1]["spans"]] == [
        ("a", "generate", 7, False), ("c", "score", 1, True),
    ]  # fmt: skip
    assert sum(one["ended"] - one["began"] for one in found[1]["spans"]) == 4.0
