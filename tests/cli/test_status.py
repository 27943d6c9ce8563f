"""raft status, from the files of a run alone, also while it works."""

import os
import subprocess
import sys
import time
from pathlib import Path

import folders
import worlds

from raft.cli import status
from raft.core import progress
from raft.store.artifact_writer import ArtifactWriter


def test_the_state_of_a_stage_can_be_read_by_others(tmp_path: Path):
    file = tmp_path / "progress.json"
    told = progress.Progress("iterations/001/responses.jsonl", "prompts", file)
    assert progress.read(file)["done"] == 0
    told.written = 0.0
    told.advance(3, 12)
    state = progress.read(file)
    assert (state["artifact"], state["done"], state["total"]) == ("iterations/001/responses.jsonl", 3, 12)
    size = file.stat().st_size
    told.written = 0.0
    told.advance(12, 12)
    assert file.stat().st_size == size and progress.read(file)["done"] == 12
    assert progress.read(tmp_path / "none.json") is None


def test_time_left_is_that_of_the_rate_so_far(tmp_path: Path):
    (tmp_path / "progress.json").write_text(
        '{"artifact": "a", "unit": "prompts", "before": 40, "done": 70, "total": 130, "seconds": 10.0}'
    )
    assert progress.left(30, 90, 10.0) == ", about 20 s left"
    assert status.at_work(tmp_path) == "now: a: 70 of 130 prompts, 3 a second, about 20 s left"


def test_no_time_is_told_of_the_first_group_alone(tmp_path: Path):
    assert [progress.left(done, 256, 17.0) for done in (0, 1, 12)] == ["", "", ""] and progress.left(0, 0, 1.0) == ""
    assert progress.left(13, 256, 17.0) == ", about 318 s left"


def test_a_run_that_goes_on_counts_its_rate_from_where_it_goes_on(tmp_path: Path):
    file, partial = tmp_path / "progress.json", tmp_path / "partial"
    for done in (2, 3):
        told = progress.Progress("a", "prompts", file)
        output = ArtifactWriter(tmp_path / "a", partial, "h", 0, 0, told)
        output.resume()
        output.append({"prompt_id": f"{done}"})
        told.written = 0.0
        output.advance(len(output.offsets), 9)
        output.close()
    state = progress.read(file)
    assert (state["before"], state["done"]) == (1, 2)


def test_a_curve_is_drawn_between_its_least_and_its_greatest_value():
    assert status.shape([0.0, 1.0, 0.5]) == "▁█▅"
    assert status.shape([2.0, 2.0]) == "▁▁"
    rows = [{"reward/eval": 0.0}, {"reward/eval": 1.0, "gold/eval": 3.0}, {"reward/eval": 7.0}]
    assert status.curves(rows) == [
        "held-out reward  ▁▂█  0.000 to 7.000 (3 policies)",
        "gold reward      ▁  3.000 to 3.000 (1 policies)",
    ]


def test_a_run_is_watched_while_it_works_and_until_its_end(tmp_path: Path):
    worlds.make_recipe(tmp_path, iterations=2, prompts={"per_iteration": 40})
    command = [sys.executable, "-m", "raft", "run", "recipe.yaml"]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "outputs" / "tiny"
    while not (folder / "run.json").exists():
        time.sleep(0.01)
        assert run.poll() is None
    watched = worlds.raft(tmp_path, "status", "outputs/tiny", "--watch")
    assert run.wait() == 0
    assert watched.returncode == 0, watched.stderr
    assert "now: " in watched.stdout and "at work" not in watched.stdout
    assert watched.stdout.rstrip().splitlines()[-1].startswith("training reward")
    assert "not running" in watched.stdout and "held-out reward" in watched.stdout


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
