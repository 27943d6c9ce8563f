"""Trackers: what is sent is what metrics.jsonl says, once, and a tracker that fails stops nothing."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import worlds

import raft
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


def figures(run: Path) -> dict[tuple[str, int], float]:
    """Every number of metrics.jsonl, by name and policy."""
    rows = list(read(run / "metrics.jsonl"))
    return {
        (name, row["iteration"]): value
        for row in rows
        for name, value in row.items()
        if name != "iteration" and isinstance(value, int | float)
    }


def gone_on(folder: Path, tracker: Any, monkeypatch, capsys) -> Path:
    """A run with a tracker that was made in two launches, neither of which it made complain."""
    monkeypatch.chdir(folder)
    made = worlds.make_recipe(folder, report_to=[tracker])
    for iterations in (1, 2):
        raft.run(made, iterations=iterations)
        assert "is told nothing" not in capsys.readouterr().out
    return folder / "outputs" / "tiny"


@pytest.mark.nightly
def test_trackio_gets_every_figure_once_in_one_run_also_when_the_run_goes_on(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which is read at its import
    cli = pytest.importorskip("trackio.cli", reason="trackio is not installed here; make nightly installs it")
    run = gone_on(tmp_path, "trackio", monkeypatch, capsys)
    (name,) = (one.name for one in trackio_runs())
    assert name.startswith("tiny-")
    found: dict[tuple[str, int], float] = {}
    for figure in {figure for figure, _ in figures(run)}:
        asked = ["trackio", "get", "metric", "--project", "raft", "--run", name, "--metric", figure, "--json"]
        monkeypatch.setattr("sys.argv", asked)
        cli.main()
        for one in json.loads(capsys.readouterr().out)["values"]:
            assert (figure, one["step"]) not in found, "sent once"
            found[figure, one["step"]] = one["value"]
    assert found == figures(run)


def trackio_runs() -> list[Any]:
    import trackio

    return list(trackio.Api().runs("raft"))


@pytest.mark.nightly
def test_wandb_gets_every_figure_and_each_table_once_in_one_run_also_when_the_run_goes_on(
    tmp_path: Path, monkeypatch, capsys
):
    pytest.importorskip("wandb", reason="wandb is not installed here; make nightly installs it")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = gone_on(tmp_path, {"name": "wandb", "mode": "offline"}, monkeypatch, capsys)
    parts = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len({part.name.rpartition("-")[2] for part in parts}) == 1 < len(parts), "two launches of one run"
    sent = b"".join(file.read_bytes() for part in parts for file in part.glob("*.wandb"))
    for (name, _), value in figures(run).items():
        assert name.encode() in sent and json.dumps(value).removesuffix(".0").encode() in sent
    tables = [json.loads(file.read_bytes()) for part in parts for file in part.rglob("answers_*.table.json")]
    assert [table["columns"] for table in tables] == [["prompt", "answer", "reward"]] * 3


def test_a_tracker_that_fails_is_told_of_and_the_run_goes_on(tmp_path: Path):
    worlds.make_recipe(tmp_path, report_to=["tensorboard"], iterations=1)
    run = tmp_path / "outputs" / "tiny"
    run.mkdir(parents=True)
    (run / "forecast.json").write_text(json.dumps({"iteration": 1.0}))
    done = worlds.raft(tmp_path, "run", "recipe.yaml", "report_to=[{name: tensorboard, max_queue: many}]")
    assert done.returncode == 0, done.stderr
    assert "warning: tensorboard is told nothing from here on (TypeError" in done.stdout


def test_a_tracker_that_fails_at_its_end_is_told_of_and_the_others_end(capsys):
    class Ends:
        def __init__(self, fails: bool):
            self.fails, self.ended = fails, False

        def finish(self) -> None:
            if self.fails:
                raise OSError("no room")
            self.ended = True

    told = trackers.Tracked()
    told.trackers = {"wandb": Ends(True), "trackio": Ends(False)}
    last = told.trackers["trackio"]
    told.on_run_end(None, None)
    assert last.ended and "warning: wandb is told nothing from here on (OSError: no room)" in capsys.readouterr().out


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
    absent = next((one for one in ("trackio", "wandb") if find_spec(one) is None), None)
    worlds.make_recipe(tmp_path, report_to=["tensorbord", *([absent] if absent else [])])
    done = worlds.raft(tmp_path, "check", "recipe.yaml")
    assert (
        done.returncode == 2 and "report_to[0]: 'tensorbord' is not a tracker; did you mean tensorboard?" in done.stderr
    )
    assert absent is None or f"report_to[1]: {absent} is not installed here: pip install {absent}" in done.stderr
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
