"""The one verb: what is made once stays made, and nothing is ever overwritten by something else."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import worlds
from folders import stamp

from raft.config import recipe
from raft.core.errors import UserError
from raft.core.options import source, speed
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import describe
from raft.store.replay import continued
from raft.store.runs import Run, metrics_rows, stamp_path


@dataclass(frozen=True)
class Doubling:
    factor: int = 2
    threads: int = speed(1)


def multiply(section: Doubling, output: ArtifactWriter, count: int) -> None:
    output.write({"n": number * section.factor} for number in range(count))


def run(folder: Path) -> Run:
    return Run(folder, seed=0)


def test_an_artifact_is_made_once(tmp_path):
    calls = []

    def stage(section, output):
        calls.append(1)
        output.write([{"a": 1}])

    first = run(tmp_path).once("a.jsonl", stage)
    again = run(tmp_path).once("a.jsonl", stage)
    assert calls == [1] and first.key == again.key and list(again.read()) == [{"a": 1}]


def test_a_changed_option_or_input_is_refused_by_name_and_nothing_is_overwritten(tmp_path):
    run(tmp_path).once("a.jsonl", multiply, Doubling(2), count=3)
    before = (tmp_path / "a.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"section\.factor: was 2, is 3"):
        run(tmp_path).once("a.jsonl", multiply, Doubling(3), count=3)
    with pytest.raises(UserError, match=r"inputs\.count: was 3, is 4"):
        run(tmp_path).once("a.jsonl", multiply, Doubling(2), count=4)
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_an_option_that_changes_only_speed_changes_no_key(tmp_path):
    made = run(tmp_path).once("a.jsonl", multiply, Doubling(2, threads=1), count=3)
    assert run(tmp_path).once("a.jsonl", multiply, Doubling(2, threads=8), count=3).key == made.key
    assert made.stamp["speed"] == {"threads": 1}


def test_an_artifact_without_its_stamp_is_made_again(tmp_path):
    run(tmp_path).once("a.jsonl", multiply, Doubling(), count=3)
    stamp_path(tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.jsonl").write_text("half of it")
    run(tmp_path).once("a.jsonl", multiply, Doubling(), count=3)
    assert (tmp_path / "a.jsonl").read_text() == '{"n":0}\n{"n":2}\n{"n":4}\n'


@pytest.mark.parametrize("fail_at", range(6))
@pytest.mark.parametrize("torn", [0, 1, 7])
def test_a_half_made_artifact_goes_on_at_its_last_whole_record(tmp_path, fail_at, torn):
    made = []

    def stage(section, output):
        done = output.resume()
        for number in range(5):
            if len(made) == fail_at:
                made.append(None)
                raise RuntimeError("killed here")
            if str(number) not in done:
                made.append(number)
                output.append({"prompt_id": str(number), "value": number})
        output.gather(str(number) for number in range(5))

    partial = tmp_path / "g.jsonl.partial"
    if fail_at < 5:
        with pytest.raises(RuntimeError):
            run(tmp_path).once("g.jsonl", stage)
        os.truncate(partial, max(partial.stat().st_size - torn, 0))
    run(tmp_path).once("g.jsonl", stage)
    assert [json.loads(line)["value"] for line in open(tmp_path / "g.jsonl")] == [0, 1, 2, 3, 4]
    again = max(fail_at - (torn > 0), 0) if fail_at < 5 else 5  # only what was torn is made a second time
    assert made == [*range(fail_at), None, *range(again, 5)] if fail_at < 5 else made == [0, 1, 2, 3, 4]
    assert not partial.exists()


def test_what_is_half_made_from_other_inputs_waits_under_its_own_name_and_goes_on_when_they_come_back(tmp_path, capsys):
    made = []

    def stage(section, output, value):
        done = output.resume()
        for name in "012":
            if name not in done:
                made.append((value, name))
                output.append({"prompt_id": name, "value": value})
            if stop == (value, name):
                raise RuntimeError("killed here")
        output.gather("012")

    for stop in ((1, "1"), (2, "0")):
        with pytest.raises(RuntimeError):
            run(tmp_path).once("g.jsonl", stage, value=stop[0])
    said = capsys.readouterr().err
    assert "g.jsonl.partial: half-made from other inputs (inputs.value: was 1, is 2); kept as" in said
    assert len(list(tmp_path.glob("g.jsonl.partial.*"))) == 1
    stop = None
    assert run(tmp_path).once("g.jsonl", stage, value=1).rows == 3
    assert made == [(1, "0"), (1, "1"), (2, "0"), (1, "2")]
    assert [json.loads(line)["value"] for line in open(tmp_path / "g.jsonl")] == [1, 1, 1]
    (kept,) = tmp_path.glob("g.jsonl.partial.*")
    assert json.loads(kept.read_text().splitlines()[1]) == {"prompt_id": "0", "value": 2}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt_id": "1", \n', r":3: damaged: no line of JSON"),
        (b"\n", r":3: damaged: no line of JSON"),
        (b'{"prompt_id": "\xff"}\n', r":3: damaged: no line of JSON"),
        (bytes(9) + b"\n", r":3: damaged: no line of JSON"),
        (b"[1]\n", r":3: damaged: expected an object such as \{...\}, found list"),
        (b'{"value": 1}\n', r":3: damaged: a row without a prompt_id"),
        (b'{"prompt_id": 1}\n', r":3: damaged: a row without a prompt_id"),
        (b'{"prompt_id": "0"}\n', r":3: damaged: a second row of prompt '0'"),
    ],
)
def test_a_broken_line_in_the_middle_of_a_half_made_artifact_is_named(tmp_path, line, said):
    def stage(section, output):
        done = output.resume()
        for name in "012":
            if name not in done:
                output.append({"prompt_id": name})
        if fail:
            raise RuntimeError("killed here")
        output.gather("012")

    fail, partial = True, tmp_path / "g.jsonl.partial"
    with pytest.raises(RuntimeError):
        run(tmp_path).once("g.jsonl", stage)
    lines = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    fail = False
    with pytest.raises(UserError, match=rf"g\.jsonl\.partial{said}.*; delete that file"):
        run(tmp_path).once("g.jsonl", stage)
    partial.unlink()
    assert run(tmp_path).once("g.jsonl", stage).rows == 3


def test_a_killed_process_loses_no_appended_group(tmp_path):
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from raft.store.runs import Run
        def stage(section, output):
            done = output.resume()
            fresh = not done
            for number in range(100):
                if str(number) not in done:
                    output.append({"prompt_id": str(number), "pid": os.getpid()})
                if number == int(sys.argv[2]) and fresh:
                    os.kill(os.getpid(), signal.SIGKILL)
            output.gather(map(str, range(100)))
        Run(Path(sys.argv[1]), seed=0).once("g.jsonl", stage)
    """)
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path), "41"], check=False)
    assert killed.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-c", script, str(tmp_path), "41"], check=True)
    pids = [json.loads(line)["pid"] for line in open(tmp_path / "g.jsonl")]
    assert len(set(pids[:42])) == 1 and len(set(pids[42:])) == 1 and pids[0] != pids[99]


def test_keys_see_the_content_of_a_file_and_not_its_name(tmp_path):
    @dataclass(frozen=True)
    class Reader:
        path: str = source("file")

    one, other, changed = tmp_path / "one.txt", tmp_path / "other.txt", tmp_path / "changed.txt"
    for file, text in ((one, "x"), (other, "x"), (changed, "y")):
        file.write_text(text)
    assert describe(Reader(str(one))) == describe(Reader(str(other))) != describe(Reader(str(changed)))


def test_drops_are_listed_once_however_often_a_stage_is_repeated(tmp_path):
    def stage(section, output):
        output.write([{"a": 1}])
        output.drop("p7", None, "empty")
        output.rows_in = 2

    for _ in range(2):
        run(tmp_path).once("a.jsonl", stage)
        stamp_path(tmp_path / "a.jsonl").unlink()
    rows = [json.loads(line) for line in open(tmp_path / "dropped.jsonl")]
    assert rows == [{"prompt_id": "p7", "index": None, "stage": "stage", "reason": "empty"}]


def test_a_stage_that_loses_a_row_in_silence_fails(tmp_path):
    def stage(section, output):
        output.write([{"a": 1}])
        output.rows_in = 2

    with pytest.raises(AssertionError, match="lost rows"):
        run(tmp_path).once("a.jsonl", stage)


def test_the_training_reward_of_a_policy_comes_from_the_folder_behind_it(tmp_path):
    for number, policy, previous in ((0, {"reward/eval": 0.1}, {}), (1, {"reward/eval": 0.3}, {"reward/mean": 0.2})):
        folder = tmp_path / "iterations" / f"{number:03d}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"policy": policy, "previous": previous}))
    assert metrics_rows(tmp_path) == [
        {"iteration": 0, "reward/eval": 0.1, "reward/mean": 0.2},
        {"iteration": 1, "reward/eval": 0.3},
    ]


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", "recipe.yaml"], [".lock", "recipe.yaml", "resolved.yaml"]])
def test_a_run_killed_at_its_birth_is_still_a_run_and_a_foreign_folder_is_none(tmp_path, left):
    from raft.store.runs import refuse_foreign

    for name in left:
        (tmp_path / name).touch()
    refuse_foreign(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not a run"):
        refuse_foreign(tmp_path)


def test_a_kill_between_the_stamp_and_the_clearing_up_leaves_nothing_behind(tmp_path):
    def stage(section, output):
        output.resume()
        output.append({"prompt_id": "0"})
        output.gather(["0"])

    run(tmp_path).once("g.jsonl", stage)
    (tmp_path / "g.jsonl.partial").write_text("left by a kill")
    run(tmp_path).once("g.jsonl", stage)
    assert not (tmp_path / "g.jsonl.partial").exists()


def test_a_run_whose_folder_is_a_link_is_worked_on_where_it_points_to(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    run(tmp_path / "link").once("a.jsonl", multiply, Doubling(), count=3)
    assert (tmp_path / "disk" / "a.jsonl").exists()


def test_a_policy_without_its_stamp_is_not_the_current_one(tmp_path):
    """A kill between the two must not let the policy before it be deleted: the next is made out of that one."""
    run = Run(tmp_path, 0)
    for number in range(4):
        policy = run.iteration(number).folder / "policy"
        policy.mkdir(parents=True)
        if number < 3:
            stamp(policy)
    run.prune("last", best=0)
    assert [(run.iteration(number).folder / "policy").exists() for number in range(4)] == [True, False, True, True]


def test_what_looks_like_a_number_or_an_interpolation_comes_back_as_the_text_that_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open(worlds.make_recipe(tmp_path), "a") as file:
        file.write('variables: {number: "1e5", year: "007", text: "\\\\${HOME}: #1", none: null}\n')
    loaded = recipe.load(tmp_path / "recipe.yaml")
    assert loaded.config["variables"] == {"number": "1e5", "year": "007", "text": "${HOME}: #1", "none": None}
    for _ in range(2):
        with continued(loaded, lambda run: None):
            pass
        assert recipe.load_run(loaded.folder).config == loaded.config
        loaded = recipe.load_run(loaded.folder)


def test_a_run_that_is_resumed_finds_the_module_beside_its_recipe_wherever_it_is_resumed_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "own_rules.py").write_text("def own(prompt, response):\n    return 1.0\n")
    file = tmp_path / "recipes" / "r.yaml"
    file.write_text(
        "name: r\npolicy: {model: some/model}\nprompts: {kind: list, items: [one, two]}\n"
        "reward: {kind: rule, function: 'own_rules:own'}\n"
    )
    with continued(recipe.load(file), lambda run: None):
        pass
    assert recipe.load_run(Path("outputs/r")).path == file
    (tmp_path / "recipes").rename(tmp_path / "moved")
    (tmp_path / "moved" / "own_rules.py").rename(tmp_path / "outputs" / "r" / "own_rules.py")
    assert recipe.load_run(Path("outputs/r")).path == Path("outputs/r/recipe.yaml")
