"""The loop as a whole, small and real: transformers generates, a rule scores, and all the rest is as ever."""

import dataclasses
import json
import re
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import worlds

from raft.cli.forecast import Quiet
from raft.config import jobs, recipe
from raft.core import registry
from raft.core.records import dump, read
from raft.core.run_paths import RunPaths
from raft.pipeline import loop

PROMISED = """
recipe.yaml resolved.yaml run.json metrics.jsonl reward_curve.png evaluation.jsonl pool.jsonl logs/latest.log
iterations/000/evaluation/responses.jsonl iterations/000/evaluation/scores.jsonl iterations/000/evaluation/gold.jsonl
iterations/000/metrics.json iterations/001/prompts.jsonl iterations/001/responses.jsonl iterations/001/scores.jsonl
iterations/001/selected.jsonl iterations/002/policy/model.safetensors iterations/002/policy/README.md
iterations/002/policy/probe.json iterations/002/policy.stamp.json iterations/002/evaluation/gold.jsonl
iterations/002/evaluation/likelihoods.jsonl
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    worlds.make_recipe(folder)
    done = worlds.raft(folder, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_a_run_has_the_files_that_are_promised(finished):
    run = finished / "outputs" / "tiny"
    for name in PROMISED.split():
        assert (run / name).exists(), name
    paths = RunPaths(run)
    last = paths.iterations()[-1]
    assert last == paths.iteration(2) and last.number == 2
    there = [
        paths.about, paths.recipe, paths.resolved, paths.rows, paths.curve, paths.evaluation, paths.pool, paths.doctor,
        last.prompts, last.responses, last.scores, last.selected, last.policy, last.metrics,
        last.evaluation.responses, last.evaluation.scores, last.evaluation.gold,
    ]  # fmt: skip
    assert [path for path in there if not path.exists()] == []


def test_a_run_that_nobody_is_told_of_has_its_metrics_and_keeps_what_it_is_to_keep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    worlds.make_recipe(tmp_path, keep_policies="last")
    loop.run(recipe.load(tmp_path / "recipe.yaml"), Quiet())
    run = tmp_path / "outputs" / "tiny"
    assert [row["iteration"] for row in read(run / "metrics.jsonl")] == [0, 1, 2]
    kept = [number for number in range(3) if (run / "iterations" / f"00{number}" / "policy").exists()]
    assert kept == [0, 2] and not (run / "reward_curve.png").exists()


def test_a_warning_ends_a_run_in_order_where_its_recipe_says_so_and_again_at_the_same_place(tmp_path):
    worlds.make_recipe(tmp_path, alerts={"on_warning": "stop"})  # all its answers are cut off, which is worth a warning
    for _ in range(2):
        done = worlds.raft(tmp_path, "run", "recipe.yaml")
        assert done.returncode == 0, done.stderr
        assert "truncated" in done.stdout
    assert [row["iteration"] for row in read(tmp_path / "outputs/tiny/metrics.jsonl")] == [0]
    assert not (tmp_path / "outputs/tiny/iterations/001").exists()


def test_keys_name_kinds_and_no_module_of_raft_so_that_modules_can_move(finished):
    stamps = list((finished / "outputs" / "tiny").rglob("*.stamp.json"))
    keys = [json.loads(stamp.read_text())["key"] for stamp in stamps]
    assert not [key for key in keys if re.search(r"raft[.:]", json.dumps(key))]
    sections = {key["stage"]: key["section"].get("is") for key in keys if isinstance(key["section"], dict)}
    assert sections["generate"] == "generator/transformers" and sections["train"] == "trainer/sft"
    assert sections["select"] == "selection/best-of-k" and sections["score"] == "reward/rule"


def test_every_section_has_a_name_of_its_own_in_keys():
    for section, known in registry.TABLE.items():
        for kind in known:
            assert registry.stable_name(registry.find(section, kind)) == f"{section}/{kind}"
    sections = [one for one in vars(jobs).values() if dataclasses.is_dataclass(one) and isinstance(one, type)]
    names = [registry.stable_name(one) for one in sections]
    assert len(names) == len(set(names))


def test_the_rows_of_a_run_agree_with_each_other(finished):
    run = finished / "outputs" / "tiny"
    held_out = {row["id"] for row in read(run / "evaluation.jsonl")}
    drawn = []
    for iteration in ("001", "002"):
        place = run / "iterations" / iteration
        prompts, responses, scores, selected = (
            list(read(place / f"{name}.jsonl")) for name in ("prompts", "responses", "scores", "selected")
        )
        ids = [row["id"] for row in prompts]
        assert ids == [row["prompt_id"] for row in responses] == [row["prompt_id"] for row in scores]
        assert len(ids) == 16 and not held_out & set(ids)
        drawn += ids
        for row, answered, scored in zip(selected, responses, scores, strict=True):
            rewards = [one["reward"] for one in scored["scores"]]
            assert row["index"] == rewards.index(max(rewards)) and row["reward"] == max(rewards)
            assert row["response"] == answered["responses"][row["index"]]
    assert len(set(drawn)) == 32  # no prompt twice before each came once


def test_metrics_are_what_the_files_say(finished):
    run = finished / "outputs" / "tiny"
    rows = list(read(run / "metrics.jsonl"))
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    for number in (0, 1):
        scores = [
            [one["reward"] for one in row["scores"]]
            for row in read(run / "iterations" / f"{number + 1:03d}" / "scores.jsonl")
        ]
        assert rows[number]["reward/mean"] == pytest.approx(sum(map(sum, scores)) / 64)
        assert rows[number]["reward/best_of_k"] == pytest.approx(sum(map(max, scores)) / 16)
    assert "reward/mean" not in rows[2]
    for row in rows:
        place = run / "iterations" / f"{row['iteration']:03d}" / "evaluation"
        for key, name in (("reward/eval", "scores"), ("gold/eval", "gold")):
            rewards = [one["reward"] for line in read(place / f"{name}.jsonl") for one in line["scores"]]
            assert row[key] == pytest.approx(sum(rewards) / len(rewards))


def test_the_same_command_again_changes_nothing_and_takes_no_model(finished):
    run = finished / "outputs" / "tiny"
    before = {str(file): file.stat().st_mtime_ns for file in run.rglob("*.stamp.json")}
    done = worlds.raft(finished, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert "already finished, on 20" in done.stdout and "nothing to do" in done.stdout
    assert "iteration 1:" not in done.stdout and "raft resume outputs/tiny iterations=4" in done.stdout
    assert before == {str(file): file.stat().st_mtime_ns for file in run.rglob("*.stamp.json")}


def test_a_run_of_which_something_is_gone_is_not_called_finished(finished):
    prompts = finished / "outputs" / "tiny" / "iterations" / "001" / "prompts.jsonl"
    before = prompts.read_bytes()
    prompts.unlink()
    done = worlds.raft(finished, "run", "recipe.yaml")
    assert done.returncode == 0 and "already finished" not in done.stdout and prompts.read_bytes() == before


def test_only_the_policies_that_keep_asks_for_stay_and_the_others_leave_their_stamps(finished):
    run = finished / "outputs" / "tiny"
    rows = list(read(run / "metrics.jsonl"))
    best = max(rows, key=lambda row: row["reward/eval"])["iteration"]
    for number in (0, 1, 2):
        place = run / "iterations" / f"{number:03d}"
        stamp = json.loads((place / "policy.stamp.json").read_text())
        assert (place / "policy").exists() == (number in {0, 2, best}) == (not stamp.get("pruned"))


def test_the_end_says_whether_the_last_policy_is_better_than_the_first_and_where_the_best_lies(finished):
    run = finished / "outputs" / "tiny"
    told = (finished / "stdout").read_text()
    means = {}
    for number in (0, 2):
        rows = read(run / "iterations" / f"{number:03d}" / "evaluation" / "scores.jsonl")
        means[number] = np.array([np.mean([score["reward"] for score in row["scores"]]) for row in rows])
    changes = means[2] - means[0]
    half = 1.96 * changes.std(ddof=1) / np.sqrt(len(changes))
    assert len(changes) == 8
    assert (
        f"held-out reward {means[0].mean():.3f} -> {means[2].mean():.3f} from policy 0 to 2 "
        f"({changes.mean():+.3f} ± {half:.3f}): too few prompts (8) to tell\n"
    ) in told
    best = max(read(run / "metrics.jsonl"), key=lambda row: row["reward/eval"])["iteration"]
    assert (run / "best").resolve() == (run / "iterations" / f"{best:03d}" / "policy").resolve()
    assert f"best policy: outputs/tiny/best -> iterations/{best:03d}/policy" in told


def test_a_policy_loads_with_transformers(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished / "outputs" / "tiny" / "iterations" / "002" / "policy"
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|end|>"


@pytest.mark.nightly
def test_a_finished_run_can_be_extended_and_equals_a_longer_one(finished, tmp_path):
    worlds.make_recipe(tmp_path)
    assert worlds.raft(tmp_path, "run", "recipe.yaml", "iterations=1").returncode == 0
    assert worlds.raft(tmp_path, "resume", "outputs/tiny", "iterations=2").returncode == 0
    extended, whole = (worlds.fingerprint(folder / "outputs" / "tiny") for folder in (tmp_path, finished))
    assert extended.keys() == whole.keys() and extended == whole


@pytest.mark.nightly  # tests/store/test_branch.py has the law on smaller runs
def test_a_branch_shares_what_was_made_before_and_leaves_its_origin_alone(finished):
    before = worlds.fingerprint(finished / "outputs" / "tiny")
    done = worlds.raft(
        finished, "resume", "outputs/tiny", "--from-iteration", "1", "name=branch", "generator.temperature=0.5"
    )
    assert done.returncode == 0, done.stderr
    branch = finished / "outputs" / "branch"
    assert (branch / "iterations" / "000").is_symlink() and not (branch / "iterations" / "001").is_symlink()
    assert worlds.fingerprint(finished / "outputs" / "tiny") == before
    assert (branch / "iterations" / "001" / "prompts.jsonl").read_bytes() == before["iterations/001/prompts.jsonl"]
    assert (branch / "iterations" / "001" / "responses.jsonl").read_bytes() != before["iterations/001/responses.jsonl"]
    assert len(list(read(branch / "metrics.jsonl"))) == 3


def test_another_recipe_does_not_enter_a_run(finished):
    done = worlds.raft(finished, "run", "recipe.yaml", "generator.k=3")
    assert done.returncode == 2 and "generator.k: was 4, is 3" in done.stderr and "Traceback" not in done.stderr


def test_two_processes_do_not_work_on_one_run(finished, tmp_path):
    worlds.make_recipe(tmp_path, iterations=50)
    first = worlds.Command(tmp_path, "run", "recipe.yaml")
    try:
        while not (tmp_path / "outputs" / "tiny" / "pool.jsonl").exists():
            time.sleep(0.1)
            assert first.poll() is None
        second = worlds.raft(tmp_path, "run", "recipe.yaml")
        assert second.returncode == 2 and "in use already, by another process or by this one" in second.stderr
        began = time.monotonic()
        first.send_signal(signal.SIGTERM)
        _, output = first.communicate()
        assert time.monotonic() - began < 10 and first.returncode == 75 and "Resume with:" in output
        assert "Traceback" not in output
    finally:
        first.kill()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"selection": {"kind": "top-fraction", "fraction": 0.25}}, marks=pytest.mark.nightly),
        pytest.param({"selection": {"kind": "softmax", "temperature": 0.1}}, marks=pytest.mark.nightly),
        pytest.param({"selection": {"kind": "random", "filters": ["empty", "duplicate"]}}, marks=pytest.mark.nightly),
        pytest.param({"trainer": {"lora": {"r": 4}}}, marks=pytest.mark.nightly),
        {"train_from": "first", "selection": {"kind": "best-of-k", "kl_coef": 0.05}},
    ],
    ids=["top-fraction", "softmax", "random", "lora", "kl, from-first"],
)  # fmt: skip
def test_every_way_of_selecting_and_training_runs(tmp_path, changes):
    worlds.make_recipe(tmp_path, **{"iterations": 1, **changes})
    done = worlds.raft(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    rows = list(read(tmp_path / "outputs" / "tiny" / "metrics.jsonl"))
    assert len(rows) == 1 + changes.get("iterations", 1)


def test_show_status_and_plot_read_a_run(finished):
    selected = next(read(finished / "outputs" / "tiny" / "iterations" / "001" / "selected.jsonl"))
    show = worlds.raft(finished, "show", "outputs/tiny", selected["prompt_id"])
    assert show.returncode == 0 and selected["text"].strip() in show.stdout
    winners = [line for line in show.stdout.splitlines() if line.startswith(" *")]
    assert len(winners) == 1 and f"{selected['reward']:.3f}" in winners[0]
    assert worlds.raft(finished, "show", "outputs/tiny").returncode == 0  # before and after
    unknown = worlds.raft(finished, "show", "outputs/tiny", "nobody")
    assert unknown.returncode == 2 and "no prompt 'nobody'" in unknown.stderr
    status = worlds.raft(finished, "status", "outputs/tiny", "--files")
    assert "iterations/002/policy" in status.stdout and "finished on" in status.stdout
    for ending in ("png", "svg", "pdf"):
        assert worlds.raft(finished, "plot", "outputs/tiny", "outputs/tiny", "-o", f"curve.{ending}").returncode == 0
        assert (finished / f"curve.{ending}").stat().st_size > 1000


def test_raft_score_gives_the_scores_of_the_run_and_goes_on_where_it_was_cut(finished):
    place = finished / "outputs" / "tiny" / "iterations" / "001"
    arguments = (
        "score",
        "recipe.yaml",
        place / "responses.jsonl",
        "scores.jsonl",
        "--prompts",
        place / "prompts.jsonl",
    )
    assert worlds.raft(finished, *arguments).returncode == 0
    assert (finished / "scores.jsonl").read_bytes() == (place / "scores.jsonl").read_bytes()
    stamp = finished / "scores.jsonl.stamp.json"
    key = dump({"hash": json.loads(stamp.read_text())["hash"]})
    (finished / "scores.jsonl.partial").write_bytes(key + (place / "scores.jsonl").read_bytes()[:-20])
    for one in (stamp, finished / "scores.jsonl"):
        one.unlink()
    assert worlds.raft(finished, *arguments).returncode == 0
    assert (finished / "scores.jsonl").read_bytes() == (place / "scores.jsonl").read_bytes()


def rewards_of(place: Path, name: str) -> np.ndarray:
    return np.array([[one["reward"] for one in row["scores"]] for row in read(place / f"{name}.jsonl")])


def test_select_tabulates_what_the_files_say_and_agrees_with_what_the_run_itself_selected(finished):
    run = finished / "outputs" / "tiny"
    done = worlds.raft(finished, "select", "outputs/tiny", "--json", "best-of-k", "{kind: expected-best, n: 1}")
    assert done.returncode == 0, done.stderr
    best, alike = map(json.loads, done.stdout.splitlines())
    rewards, gold, proxy = (
        rewards_of(run / "iterations" / at, name)
        for at, name in (("002", "scores"), ("001/evaluation", "gold"), ("001/evaluation", "scores"))
    )
    assert (best["iteration"], best["picked"], best["agreement"]) == (2, 16, 1.0)
    assert best["reward"] == pytest.approx(rewards.max(axis=1).mean())
    gains = rewards.max(axis=1) - rewards.mean(axis=1)
    assert best["gain"] == pytest.approx(gains.mean())
    assert best["gain_se"] == pytest.approx(gains.std(ddof=1) / 4)
    chosen = gold[np.arange(len(gold)), proxy.argmax(axis=1)]
    assert best["gold_gain"] == pytest.approx((chosen - gold.mean(axis=1)).mean())
    assert alike["picked"] == 64 and alike["gain"] == pytest.approx(0, abs=1e-9)
    assert (alike["tokens"], alike["distinct_2"]) == (pytest.approx(1), pytest.approx(1))


@pytest.mark.nightly
def test_select_ends_with_a_command_that_trains_on_the_last_selection(finished):
    done = worlds.raft(finished, "select", "outputs/tiny", "best-of-k", "{kind: advantage, baseline: leave-one-out}")
    assert done.returncode == 0, done.stderr
    command = shlex.split(done.stdout.split("next: raft ")[1])
    whole = "selection={kind: advantage, baseline: leave-one-out}"
    assert {whole, "trainer.kind=policy-gradient", "name=tiny-advantage"} <= set(command)
    branched = worlds.raft(finished, *command)
    assert branched.returncode == 0, branched.stderr
    weights = [row["weight"] for row in read(finished / "outputs/tiny-advantage/iterations/001/selected.jsonl")]
    assert min(weights) < 0 < max(weights)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{kind: softmax, temprature: 1}"], "did you mean temperature?"),
        (["bestofk"], "did you mean best-of-k?"),
        (["{kind: threshold}"], "minimum: missing"),
        (["--iteration", "9"], "allowed: 1, 2"),
        (["{kind: best-of-k, kl_coef: 1}"], "kl_coef needs the log-probabilities"),
    ],
)
def test_select_refuses_what_it_cannot_do_with_what_is_allowed(finished, arguments, says):
    done = worlds.raft(finished, "select", "outputs/tiny", *arguments)
    assert done.returncode == 2 and says in done.stderr
