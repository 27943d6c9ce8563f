"""Trackers: what is sent is what metrics.jsonl says, once, and a tracker that fails stops nothing."""

import json
import shutil
from pathlib import Path

import pytest
import worlds

from raft.core.records import read
from raft.report import trackers


def scalars(folder: Path) -> dict[tuple[str, int], list[float]]:
    """Everything in the event files of a run, by name and step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[tuple[str, int], list[float]] = {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            found.setdefault((name, event.step), []).append(event.value)
    return found


@pytest.mark.nightly
def test_tensorboard_gets_every_figure_once_also_when_the_run_goes_on(tmp_path: Path):
    worlds.make_recipe(tmp_path, report_to=["tensorboard"], iterations=1)
    assert worlds.raft(tmp_path, "run", "recipe.yaml").returncode == 0
    done = worlds.raft(tmp_path, "run", "recipe.yaml", "iterations=2")
    assert done.returncode == 0, done.stderr
    assert "TensorBoard: tensorboard --logdir outputs\n" in done.stdout
    run = tmp_path / "outputs" / "tiny"
    rows = {row["iteration"]: row for row in read(run / "metrics.jsonl")}
    assert len(rows) == 3
    found = scalars(run / "tensorboard")
    for number, row in rows.items():
        for name, value in row.items():
            if name != "iteration" and isinstance(value, int | float):
                assert len(found[name, number]) == 1 and abs(found[name, number][0] - value) < 1e-4 * max(1, abs(value))
    assert {step for _, step in found} == set(rows)
    texts = b"".join(file.read_bytes() for file in (run / "tensorboard").rglob("events*"))
    first = next(read(run / "iterations/000/evaluation/responses.jsonl"))["responses"][0]["text"].split()[0]
    assert trackers._cell(first).encode() in texts
    shutil.rmtree(run / "tensorboard")  # as where the run was pulled
    assert worlds.raft(tmp_path, "run", "recipe.yaml", "iterations=3").returncode == 0
    assert {step for _, step in scalars(run / "tensorboard")} == {0, 1, 2, 3}


def test_a_tracker_that_fails_is_told_of_and_the_run_goes_on(tmp_path: Path):
    worlds.make_recipe(tmp_path, report_to=["tensorboard"], iterations=1)
    run = tmp_path / "outputs" / "tiny"
    run.mkdir(parents=True)
    (run / "forecast.json").write_text(json.dumps({"iteration": 1.0}))
    done = worlds.raft(tmp_path, "run", "recipe.yaml", "report_to=[{name: tensorboard, max_queue: many}]")
    assert done.returncode == 0, done.stderr
    assert "warning: tensorboard is told nothing from here on (TypeError" in done.stdout


def test_nothing_is_sent_where_the_recipe_names_no_tracker(tmp_path: Path):
    class Loaded:
        recipe = object()

    class Run:
        folder = tmp_path

    told = trackers.Tracked()
    told.on_run_begin(Run(), Loaded())
    told.on_run_end(Run(), Loaded())
    assert told.trackers == {} and list(tmp_path.iterdir()) == []


def test_wrong_trackers_are_refused_with_what_there_is(tmp_path: Path):
    worlds.make_recipe(tmp_path, report_to=["tensorbord", "trackio"])
    done = worlds.raft(tmp_path, "check", "recipe.yaml")
    assert (
        done.returncode == 2 and "report_to[0]: 'tensorbord' is not a tracker; did you mean tensorboard?" in done.stderr
    )
    assert "report_to[1]: trackio is not installed here: pip install trackio" in done.stderr
    refused = {"dir": "unknown option of tensorboard; allowed: comment", "log_dir": "raft sets this itself"}
    for option, said in refused.items():
        done = worlds.raft(tmp_path, "check", "recipe.yaml", f"report_to=[{{name: tensorboard, {option}: x}}]")
        assert done.returncode == 2 and f"report_to[0].{option}: {said}" in done.stderr
    done = worlds.raft(tmp_path, "check", "recipe.yaml", "report_to=[{name: tensorboard, flush_secs: 5}]")
    assert done.returncode == 0, done.stderr


def test_what_a_model_wrote_cannot_leave_its_cell():
    rows = trackers._markdown([["prompt", "answer", "reward"], ["a|b", "<script>x</script>\n| c", "1.0"]])
    head, rule, row = rows.splitlines()
    assert row == "| a&#124;b | &lt;script&gt;x&lt;/script&gt; &#124; c | 1.0 |"
    assert head.count("|") == rule.count("|") == row.count("|")
