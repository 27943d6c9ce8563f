"""raft status, from the files of a run alone, also while it works."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path

import folders
import pytest
import worlds
from terminals import on_terminal

from raft.cli import catalog, status
from raft.cli import main as cli
from raft.core import progress, records
from raft.report.page import facts
from raft.store import runs
from raft.store.words import HELD_OUT, STAGES


def write_run(folder: Path, iterations: int = 2, wanted: int | None = None) -> Path:
    """A run that has made `iterations` of the `wanted`."""
    run = folders.write_run(folder, 2, 2, iterations, lambda *_: "text", lambda *_: 1.0)
    for number in range(1, iterations + 1):
        (run / "iterations" / f"{number:03d}" / "policy").mkdir()
    recipe = (run / "resolved.yaml").read_text()
    (run / "resolved.yaml").write_text(
        recipe.replace(f"iterations: {iterations}", f"iterations: {wanted or iterations}")
    )
    return run


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Inside the block the run is at work, for all that look at it."""
    run.mkdir(parents=True, exist_ok=True)
    with runs.locked(run / ".lock", f"{run}", ""):
        yield


def told(*arguments: object) -> tuple[int, str]:
    """The exit status of raft status, and what it says."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        return cli.execute(cli.parse(["status", *map(str, arguments)])), said.getvalue()


def write_progress(run: Path, done: int, left: float | None = None, run_left: float | None = None) -> None:
    stage, artifact = "generating responses", "iterations/002/responses.jsonl"
    times = (30.0, 1.5, left, run_left, time.time())
    state = progress.State(artifact, stage, "prompts", 2, 5, 0, done, 100, *times)
    (run / "progress.json").write_text(json.dumps(asdict(state)))


def test_a_finished_run_says_so_first_in_about_ten_lines(tmp_path: Path):
    status, said = told(write_run(tmp_path / "run"))
    lines = said.splitlines()
    assert status == 0 and len(lines) <= 12 and "not running" not in said
    assert lines[0].startswith(f"{tmp_path / 'run'}  job: align")
    assert re.fullmatch(r"finished on \d{4}-\d\d-\d\d \d\d:\d\d, 2 iterations", lines[1])
    assert "held-out reward  ▁▅█  0.000 -> 2.000 (3 policies)" in lines
    assert any(re.match(r"warnings: \d", line) for line in lines)


def test_what_is_to_be_watched_is_told_beside_the_warnings(tmp_path: Path):
    run = write_run(tmp_path / "run")
    file = run / "iterations" / "002" / "metrics.json"
    content = json.loads(file.read_text())
    content["policy"] |= {"eval/truncated": 0.25, "eval/empty": 0.9}
    file.write_text(json.dumps(content))
    _, said = told(run)
    assert "warnings: 1 (empty)" in said.splitlines() and "watch: 1 (truncated)" in said.splitlines()
    found = json.loads(told(run, "--json")[1])
    assert found["watch"][0].startswith("truncated: 25% of the held-out answers") and len(found["warnings"]) == 1


def test_the_accuracy_of_a_reward_model_and_its_warning_are_in_status_ls_and_report(tmp_path: Path):
    run = tmp_path / "outputs" / "judge"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"job": "reward-model", "seed": 0}))
    (run / "resolved.yaml").write_text("name: judge\njob: reward-model\n")
    measured = {"eval/accuracy": 0.6, "eval/accuracy_low": 0.387, "eval/accuracy_high": 0.781}
    (run / "metrics.json").write_text(json.dumps(measured))
    folders.stamp(run / "metrics.json", "evaluate_reward_model", measured=measured)
    _, said = told(run)
    assert "held-out accuracy  0.600 (0.387 to 0.781)" in said.splitlines()
    assert "warnings: 1 (accuracy)" in said.splitlines()
    found = json.loads(told(run, "--json")[1])
    assert found["accuracy"] == [0.6, 0.387, 0.781]
    assert "0.387 to 0.781, contains 0.5" in found["warnings"][0]
    assert facts.findings(run, [])[-1]["level"] == "warning"
    (line,) = catalog.made(tmp_path / "outputs")
    assert line.endswith("reward-model     held-out accuracy  0.600 (0.387 to 0.781)")
    assert "held-out accuracy" not in told(write_run(tmp_path / "run"))[1]


def test_files_are_listed_only_when_asked_for(tmp_path: Path):
    run = write_run(tmp_path / "run")
    assert "iterations/002/policy " not in told(run)[1] and "iterations/002/policy " in told(run, "--files")[1]


def test_a_run_that_stopped_says_where_and_how_it_goes_on(tmp_path: Path):
    run = write_run(tmp_path / "run", 1, wanted=5)
    assert told(run)[1].splitlines()[1] == f"stopped in iteration 2 of 5; resume with: raft resume {run}"


def test_a_run_that_has_functions_of_python_names_the_call_that_resumes_it(tmp_path: Path):
    run = write_run(tmp_path / "run", 1, wanted=5)
    with open(run / "resolved.yaml", "a") as recipe:
        recipe.write("reward: {kind: rule, function: '<python>:share', args: {most: 3}}\n")
        recipe.write("evaluation: {gold: {kind: ensemble, members: {a: {kind: rule, function: '<python>:one'}}}}\n")
    reward = "{'kind': 'rule', 'function': function, 'args': {'most': 3}}"  # else they would be left out
    calls = f"reward={reward}, **{{'evaluation.gold.members.a': function}}"
    assert told(run)[1].splitlines()[1] == (
        f"stopped in iteration 2 of 5; resume with: raft.open_run('{run}').resume({calls})"
    )


def test_a_run_that_ended_with_an_error_says_so_until_it_is_resumed(tmp_path: Path):
    run = write_run(tmp_path / "run", 1, wanted=5)
    log = run / "logs" / "latest.log"
    log.parent.mkdir()
    began = "2026-11-30 04:40:51,472 INFO raft.store.runs: a: generating responses\n"
    log.write_text(began + "2026-11-30 04:40:52,472 ERROR raft: selection kept \x1b[2Jnothing\nand more\n")
    state, error, *_ = told(run)[1].splitlines()[1:]
    again = f"raft resume {run}"
    assert state == f"stopped in iteration 2 of 5; after an error; once that is put right, resume with: {again}"
    assert error.startswith("error: selection kept ") and error.endswith("nothing") and "\x1b" not in error
    assert json.loads(told(run, "--json")[1])["error"] == "selection kept \x1b[2Jnothing"
    log.write_text(began)  # of another launch
    assert "error" not in told(run)[1] and status.summary(run)["error"] is None


def test_a_run_that_lost_something_is_not_called_finished(tmp_path: Path):
    run = write_run(tmp_path / "run")
    (run / "iterations" / "001" / "scores.jsonl").unlink()
    assert told(run)[1].splitlines()[1].startswith("stopped: a finished artifact is gone")


def test_a_run_stopped_by_an_alert_says_which(tmp_path: Path):
    run = write_run(tmp_path / "run", 1, wanted=5)
    with open(run / "resolved.yaml", "a") as recipe:
        recipe.write("alerts: {on_warning: stop}\n")
    found = status.summary(run)
    found["stopped_by"] = ["truncated"]
    assert status.lines(found)[1] == (
        "stopped after iteration 1 of 5 (alerts.on_warning: stop) because of truncated; "
        f"resume with: raft resume {run} alerts.on_warning=warn"
    )


def test_a_run_at_work_says_iteration_stage_share_and_time_left(tmp_path: Path):
    run = write_run(tmp_path / "run", 1, wanted=5)
    with held(run):
        assert told(run)[1].splitlines()[1] == "at work: starting"
        write_progress(run, 43, left=240.0, run_left=6000.0)
        lines = told(run)[1].splitlines()
    assert lines[1] == "at work: iteration 2 of 5, generating responses, 43 %, about 4 min left"
    assert lines[2] == "the whole run: about 1 h 40 min left"


def test_a_run_on_a_cluster_says_how_its_workers_fare(tmp_path: Path):
    run = write_run(tmp_path / "run")
    with held(run):
        write_progress(run, 40)
        lanes = [
            {"worker": f"node/{place}", "began": 100.0, "ended": 110.0, "done": done, "died": place == 3}
            for place, done in enumerate((20, 25, 0, 5))
        ]
        (run / "workers.json").write_text(json.dumps(lanes))
        _, said = told(run)
        assert "workers: 3 at work; 2 to 2.5 a second each; 1 died in this stage" in said.splitlines()
        workers = json.loads(told(run, "--json")[1])["workers"]
        assert workers[1] == {"worker": "node/1", "done": 25, "died": False, "rate": 2.5}
        (run / "workers.json").write_text("[{")
        assert "workers" not in told(run)[1]
    assert json.loads(told(run, "--json")[1])["workers"] == []


def test_workers_that_are_as_fast_have_one_pace():
    lanes = [{"worker": f"node/{place}", "done": 5, "died": False, "rate": rate} for place, rate in enumerate((2, 2))]
    assert list(status._at_work(lanes)) == ["workers: 2 at work; 2 a second each"]


def test_a_damaged_progress_file_stands_in_nobodys_way(tmp_path: Path):
    run = write_run(tmp_path / "run", 1, wanted=5)
    (run / "progress.json").write_bytes(b"\0" * 600)
    with held(run):
        assert told(run)[0] == 0


def test_json_is_one_object_that_agrees_with_the_files(tmp_path: Path):
    run = write_run(tmp_path / "run", 3)
    records.write(run / "metrics.jsonl", runs.metrics_rows(run))
    status, said = told(run, "--json")
    found = json.loads(said)
    rows = list(records.read(run / "metrics.jsonl"))
    assert status == 0 and said.count("\n") == 1
    assert found["curves"]["reward/eval"] == [row["reward/eval"] for row in rows]
    assert found["curves"]["reward/mean"] == [row["reward/mean"] for row in rows if "reward/mean" in row]
    assert (found["state"], found["job"], found["iteration"], found["iterations"]) == ("finished", "align", 3, 3)


def test_the_keys_of_json_are_those_that_are_documented(tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    table = page[page.index("`raft status RUN --json`") :]
    for key in [*status.summary(write_run(tmp_path / "run")), *progress.KINDS]:
        assert f"`{key}`" in table, key


def test_a_curve_is_drawn_between_its_least_and_its_greatest_value():
    assert status.shape([0.0, 1.0, 0.5]) == "▁█▅"
    assert status.shape([2.0, 2.0]) == "▁▁"
    assert status.curves({"reward/eval": [0.0, 1.0, 7.0], "gold/eval": [3.0]}) == [
        "held-out reward  ▁▂█  0.000 -> 7.000 (3 policies)",
        "gold reward      ▁  3.000 (1 policy)",
    ]


@pytest.mark.nightly
def test_a_run_is_watched_while_it_works_and_until_its_end(tmp_path: Path):
    worlds.make_recipe(tmp_path, iterations=2, prompts={"per_iteration": 40})
    run = worlds.Command(tmp_path, "run", "recipe.yaml")
    folder = tmp_path / "outputs" / "tiny"
    while not (folder / "run.json").exists():
        time.sleep(0.01)
        assert run.poll() is None
    watched = worlds.raft(tmp_path, "status", "outputs/tiny", "--watch")
    assert run.wait() == 0
    assert watched.returncode == 0, watched.stderr
    first, *rest = watched.stdout.splitlines()
    assert any(words in first for words in ("starting", *STAGES.values(), *HELD_OUT.values()))
    assert any(line.startswith("finished on") for line in rest)
    assert any(line.startswith("held-out reward") for line in rest)


def watched_on_terminal(run: Path, rows: int, columns: int, then: Callable[[], None]) -> tuple[int, bytes]:
    """What raft status --watch writes to a pseudo-terminal, and its exit status; `then` ends what it watches."""
    began, ended = time.monotonic(), False

    def look(written: bytes) -> None:
        nonlocal ended
        if not ended and written.count(b"at work") + written.count(b"is running") >= 3:
            then()
            ended = True
        assert time.monotonic() - began < 240, "it does not end"

    return on_terminal(["-m", "raft", "status", str(run), "--watch"], rows, columns, look)


def test_the_live_view_never_has_more_lines_than_the_terminal_and_leaves_the_last_status(tmp_path: Path):
    run = write_run(tmp_path / "run", 1, wanted=5)
    with ExitStack() as working:
        working.enter_context(held(run))
        write_progress(run, 43, left=240.0)
        status, written = watched_on_terminal(run, 5, 60, working.close)
    frames = re.split(rb"\x1b\[2K", written)
    live, last = frames[:-1], frames[-1].decode()
    assert status == 0 and len([frame for frame in live if b"at work" in frame]) >= 3
    assert max(frame.count(b"\n") for frame in live) <= 5
    assert "stopped in iteration 2 of 5" in last and "held-out reward" in last


def test_watching_waits_for_a_run_while_another_beside_it_is_at_work(tmp_path: Path):
    before = write_run(tmp_path / "needed", 1, wanted=5)
    with ExitStack() as working:
        working.enter_context(held(before))
        write_progress(before, 43)

        def go_on() -> None:
            write_run(tmp_path / "run")
            working.close()

        status, written = watched_on_terminal(tmp_path / "run", 24, 600, go_on)
    text = written.decode()
    assert status == 0 and f"{before} is running: iteration 2 of 5" in text
    assert "finished on" in text and text.index("does not exist yet") < text.index("finished on")
    status, said = told(tmp_path / "other", "--watch")
    assert status == 2 and "is not a run" in said


def test_a_command_that_loaded_libraries_ends_in_order_though_nobody_reads_what_it_says(tmp_path: Path):
    """Then the process is ended without Python's own way out, which would have looked after the stream."""
    run = folders.write_run(tmp_path / "run", 2, 2, 1, lambda *_: "text", lambda *_: 1.0)
    code = (
        "import sys, types\nsys.modules['torch'] = types.ModuleType('torch')\n"
        f"from raft.cli.main import main\nmain(['status', {str(run)!r}])\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=environment
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
