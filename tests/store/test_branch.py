"""A branch shares the first iterations of another run, and leaves that run as it is; a run goes on where it stands."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import worlds
import yaml
from folders import stamp, write_run

from raft.cli import main as cli
from raft.config import preflight, recipe
from raft.core import user_code
from raft.core.errors import UserError
from raft.core.records import read
from raft.pipeline.evaluation import best_policy
from raft.report.figures import picture
from raft.report.page import groups
from raft.store import branch, measuring
from raft.store.replay import continued
from raft.store.runs import Run

SMALL = {"prompts": {"per_iteration": 4}, "generator": {"k": 2, "max_tokens": 6}}
CHANGES = ("open", "os.mkdir", "os.symlink", "os.rename", "shutil.copyfile")  # audit events of what a set-up does


def everything(run: Path) -> dict[str, Any]:
    """What a run holds, by name, with the content of its files."""
    return {str(one.relative_to(run)): one.read_bytes() if one.is_file() else None for one in run.rglob("*")}


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> Path:
    """The folder of a run of three iterations, of which the first and the last policy alone were evaluated."""
    folder = tmp_path_factory.mktemp("parent")
    plain = {"count": 4, "k": 2, "every": 3, "kl": False, "gold": None}
    worlds.make_recipe(folder, iterations=3, keep_policies="all", evaluation=plain, **SMALL)
    done = worlds.raft(folder, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def world(parent, tmp_path, monkeypatch) -> Path:
    """A copy of it, which is the current folder."""
    shutil.copytree(parent, tmp_path / "world", symlinks=True)
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


@pytest.mark.nightly
def test_nothing_is_ever_made_in_what_a_branch_shares(world):
    before = everything(world / "outputs" / "tiny")
    (world / "references.jsonl").write_text('{"prompt": "the red fox ", "response": "runs"}\n')
    done = worlds.raft(
        world, "resume", "outputs/tiny", "--from-iteration", "3", "name=branch", "evaluation.every=1",
        "evaluation.kl=true", "evaluation.gold={kind: rule, function: length}", "selection.kl_coef=0.01",
        "evaluation.references={kind: file, path: references.jsonl}", "iterations=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert everything(world / "outputs" / "tiny") == before
    rows = list(read(world / "outputs" / "branch" / "metrics.jsonl"))
    assert ["reward/eval" in row for row in rows] == [True, False, False, True, True]
    for name in ("gold/eval", "kl/first", "perplexity/references"):
        assert [name in row for row in rows] == [False, False, False, True, True]
    extended = worlds.raft(world, "resume", "outputs/tiny", "iterations=4")
    assert extended.returncode == 0, extended.stderr
    for command in ("show", "status", "report", "plot"):
        assert worlds.raft(world, command, "outputs/branch").returncode == 0


def test_rewards_of_a_branch_are_never_compared_with_those_of_another_reward(world):
    other = "reward={kind: rule, function: repetition}"
    done = worlds.raft(world, "resume", "outputs/tiny", "--from-iteration", "3", "name=branch", other)
    assert done.returncode == 0, done.stderr
    rows = list(read(world / "outputs" / "branch" / "metrics.jsonl"))
    assert ["reward/eval" in row for row in rows] == [False, False, False, True]
    assert ["reward/mean" in row for row in rows] == [False, False, True, False]
    assert all("entropy/token" in rows[number] for number in (0, 3)), "what no reward decides stays"
    assert "another reward scored policy 0, before this run branched off" in done.stdout
    assert "iteration 0: shared" in done.stdout and "from policy 0" not in done.stdout
    assert set(measuring.held_out_means(world / "outputs" / "branch")["reward/eval"]) == {3}
    assert "no held-out prompt" not in done.stdout and "\n\n\n" not in done.stdout
    for command in ("status", "report", "plot"):
        assert worlds.raft(world, command, "outputs/branch").returncode == 0
    assert "there are no two evaluated policies to compare" in worlds.raft(world, "show", "outputs/branch").stdout
    with open(world / "outputs" / "branch" / "reward_curve.csv") as file:
        drawn = [(row["quantity"], int(row["policy"])) for row in csv.DictReader(file)]
    assert drawn == [("reward/best_of_k", 2), ("reward/mean", 2), ("reward/eval", 3)]
    runs = [world / "outputs" / name for name in ("tiny", "branch")]
    assert "different rewards" in picture.different_rewards(runs)
    listed = {batch.key: batch for batch in groups.batches(runs[1])}
    scored = {"t1": False, "t2": False, "t3": True, "e0": False, "e3": True}
    assert {key: batch.scored for key, batch in listed.items()} == scored
    same = worlds.raft(world, "resume", "outputs/tiny", "--from-iteration", "3", "name=same", "trainer.batch_size=2")
    assert same.returncode == 0 and "from policy 0 to 3" in same.stdout


def test_a_branch_with_another_generator_compares_nothing_with_answers_of_the_one_before(world):
    """A longer limit alone makes answers longer; another number of responses and another engine change nothing."""
    overrides = ["generator.max_tokens=5", "name=branch"]
    done = worlds.raft(world, "resume", "outputs/tiny", "--from-iteration", "3", *overrides)
    assert done.returncode == 0, done.stderr
    assert "another generator answered for policy 0, before this run branched off" in done.stdout
    rows = list(read(world / "outputs" / "branch" / "metrics.jsonl"))
    for name in ("reward/eval", "eval/tokens", "entropy/token"):
        assert [name in row for row in rows] == [False, False, False, True], name
    assert ["response/tokens" in row for row in rows] == [False, False, True, False]
    overrides = ["generator.k=3", "generator.batch_size=3", "name=same"]
    same = worlds.raft(world, "resume", "outputs/tiny", "--from-iteration", "3", *overrides)
    assert same.returncode == 0 and "from policy 0 to 3" in same.stdout


def test_a_branch_takes_over_what_it_would_make_out_of_the_same(world):
    run, made = world / "outputs" / "tiny" / "iterations" / "002", world / "outputs" / "branch" / "iterations" / "002"
    before = everything(world / "outputs" / "tiny")
    overrides = ["--from-iteration", "2", "name=branch", "selection.kind=random"]
    done = worlds.raft(world, "resume", "outputs/tiny", *overrides)
    assert done.returncode == 0, done.stderr
    for name in ("prompts.jsonl", "responses.jsonl", "scores.jsonl"):
        assert (made / name).samefile(run / name) and not (made / name).is_symlink()
        ours, theirs = (json.loads((at / f"{name}.stamp.json").read_text()) for at in (made, run))
        assert (ours["key"], ours["content"], ours["seconds"]) == (theirs["key"], theirs["content"], 0.0)
    assert not (made / "selected.jsonl").samefile(run / "selected.jsonl")
    later = made.with_name("003")
    assert (later / "prompts.jsonl").samefile(run.with_name("003") / "prompts.jsonl")
    assert (later / "responses.jsonl").read_bytes() != (run.with_name("003") / "responses.jsonl").read_bytes()
    assert everything(world / "outputs" / "tiny") == before
    assert "responses.jsonl: taken over from" in (world / "outputs/branch/logs/latest.log").read_text()
    (run / "scores.jsonl").unlink()
    assert worlds.raft(world, "resume", "outputs/branch", "iterations=3").returncode == 0


def test_a_branch_of_a_run_that_was_made_again_out_of_something_else_is_refused_everywhere(world):
    made = branch.off(Path("outputs/tiny"), 2, ["name=branch"]).folder
    assert worlds.raft(world, "status", made).returncode == 0
    file = world / "outputs" / "tiny" / "iterations" / "001" / "policy.stamp.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hash": "of another seed"}))
    for command in ("status", "show", "report", "resume", "compare"):
        done = worlds.raft(world, command, made, *([made] if command == "compare" else []))
        assert done.returncode == 2 and "made again since" in done.stderr, (command, done.stderr)
        assert "iterations/001/policy is another one" in done.stderr


def test_branches_follow_the_run_that_a_restart_moves_aside(world):
    done = worlds.raft(world, "resume", "outputs/tiny", "--from-iteration", "2", "name=branch")
    assert done.returncode == 0, done.stderr
    before = everything(world / "outputs" / "branch")
    (world / "outputs" / "odd").mkdir()
    (world / "outputs" / "odd" / "run.json").write_text("{")
    restarted = worlds.raft(world, "run", "recipe.yaml", "seed=5", "iterations=1", "--restart")
    assert restarted.returncode == 0, restarted.stderr
    assert everything(world / "outputs" / "branch") == before
    moved = next(one for one in (world / "outputs").iterdir() if ".before-" in one.name)
    link = world / "outputs" / "branch" / "iterations" / "001"
    assert link.is_symlink() and link.resolve() == (moved / "iterations" / "001").resolve()
    again = worlds.raft(world, "resume", "outputs/branch", "iterations=4")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("seed=1", "seed: was not given, is 1"),
        ("policy.model=other", "policy.model: was 'base', is 'other'"),
        ("prompts.max_prompt_length=32", "prompts.max_prompt_length: was 64, is 32"),
        ("evaluation.count=8", "evaluation.count: was 4, is 8"),
        ("evaluation.prompts={kind: file, path: prompts.jsonl}", "evaluation.prompts: was not given, is {'kind'"),
        ("variables.data=elsewhere", "variables: was not given, is {'data'"),
    ],
)
def test_what_made_the_shared_part_cannot_be_changed(world, override, named):
    with pytest.raises(UserError, match=named) as refused:
        branch.off(Path("outputs/tiny"), 2, [override, "generator.k=3", "prompts.per_iteration=2"])
    assert "shares" in str(refused.value) and "raft run RECIPE name=" in str(refused.value)
    assert "generator" not in str(refused.value) and "per_iteration" not in str(refused.value)
    assert [one.name for one in (world / "outputs").iterdir()] == ["tiny"]


def test_references_are_shared_where_there_are_some(world):
    (world / "outputs" / "tiny" / "references.jsonl").touch()
    stamp(world / "outputs" / "tiny" / "references.jsonl")
    override = "evaluation.references={kind: file, path: other.jsonl}"
    with pytest.raises(UserError, match=r"evaluation\.references: was not given, is {'kind'"):
        branch.off(Path("outputs/tiny"), 2, [override])
    made = branch.off(Path("outputs/tiny"), 2, [])
    assert (made.folder / "references.jsonl").is_symlink() and (made.folder / "references.jsonl.stamp.json").exists()


def killed_at(number: int, overrides: list[str]) -> bool:
    """Whether a process that makes a branch was killed just before so many changes of the disk."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            changes = event in CHANGES and (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR))
            if changes and seen == number:
                os._exit(1)
            seen += bool(changes)

        sys.addaudithook(hook)
        branch.off(Path("outputs/tiny"), 2, overrides)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


@pytest.mark.nightly
def test_a_branch_that_was_killed_while_it_was_set_up_is_set_up_by_the_same_command(world):
    overrides = ["name=branch", "generator.k=3"]
    branch.off(Path("outputs/tiny"), 2, ["name=whole", "generator.k=3"])
    kills = 0
    while killed_at(kills, overrides):
        kills += 1
        made = branch.off(Path("outputs/tiny"), 2, overrides).folder
        whole = world / "outputs" / "whole"
        assert {one.relative_to(made) for one in made.rglob("*")} == {
            one.relative_to(whole) for one in whole.rglob("*")
        }
        assert yaml.safe_load((made / "resolved.yaml").read_text())["name"] == "branch"
        shutil.rmtree(made)
    assert kills > 8
    assert sorted(one.name for one in (world / "outputs").iterdir()) == ["branch", "tiny", "whole"]


def test_a_branch_that_is_there_goes_on_and_no_other_folder_is_taken_for_it(world):
    made = branch.off(Path("outputs/tiny"), 2, ["name=branch"]).folder
    assert branch.off(Path("outputs/tiny"), 2, ["name=branch"]).folder == made
    with pytest.raises(UserError, match="not a branch of outputs/tiny from iteration 1"):
        branch.off(Path("outputs/tiny"), 1, ["name=branch"])
    (world / "outputs" / "mine").mkdir()
    (world / "outputs" / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not a branch of outputs/tiny from iteration 2"):
        branch.off(Path("outputs/tiny"), 2, ["name=mine"])
    with pytest.raises(UserError, match="nowhere"):
        branch.off(Path("outputs/tiny"), 2, ["name=bad", "evaluation.gold={kind: model, model: nowhere}"])
    assert not (world / "outputs" / "bad").exists()  # the same command with a better model can make it


@pytest.mark.parametrize(
    "command",
    [("resume",), ("resume", "--from-iteration", "2"), *((name,) for name in ("status", "show", "report", "plot"))],
)
def test_a_branch_that_was_copied_without_the_run_that_it_branched_off_says_that_first(
    world, tmp_path, command, monkeypatch, capsys
):
    branch.off(Path("outputs/tiny"), 2, ["name=branch"])
    branch.off(Path("outputs/branch"), 2, ["name=twice"])
    (tmp_path / "there").mkdir()
    for name in ("branch", "twice"):
        shutil.copytree(world / "outputs" / name, tmp_path / "there" / name, symlinks=True)
    world.rename(tmp_path / "away")  # with the model, the prompts and the rule
    monkeypatch.chdir(tmp_path)
    for name in ("branch", "twice"):
        assert cli.execute(cli.parse([command[0], f"there/{name}", *command[1:]])) == 2
        said = capsys.readouterr().err
        assert f"the run that it branched off is gone: its links lead to {tmp_path / 'there' / 'tiny'}. Put" in said
        assert len(said.splitlines()) == 1 and "letters" not in said


def test_a_branch_that_was_copied_with_what_its_links_lead_to_goes_on(world, tmp_path):
    branch.off(Path("outputs/tiny"), 3, ["name=branch"])
    copy = shutil.copytree("outputs/branch", world / "copies" / "branch")
    shutil.rmtree(world / "outputs")
    done = worlds.raft(copy.parent, "resume", "branch")
    assert done.returncode == 0, done.stderr
    assert (copy / "iterations" / "003" / "metrics.json").exists()


def test_a_branch_whose_original_run_is_gone_says_so_too_when_its_recipe_is_run(world):
    branch.off(Path("outputs/tiny"), 2, ["name=branch"])
    (world / "outputs" / "tiny").rename(world / "outputs" / "renamed")
    done = worlds.raft(world, "run", "recipe.yaml", "name=branch")
    assert done.returncode == 2 and "the run that it branched off is gone" in done.stderr


@pytest.mark.nightly
def test_a_run_that_was_renamed_moved_or_called_from_elsewhere_goes_on_in_its_own_folder(tmp_path):
    files = {"policy": {"model": str(tmp_path / "base")}, "generator": SMALL["generator"]}
    files["prompts"] = {**SMALL["prompts"], "path": str(tmp_path / "prompts.jsonl")}
    worlds.make_recipe(tmp_path, iterations=1, evaluation={"count": 4, "gold": None, "kl": False}, **files)
    run, moved = tmp_path / "outputs" / "tiny", tmp_path / "kept" / "07"  # a name that YAML takes for a number
    assert worlds.raft(tmp_path, "run", "recipe.yaml").returncode == 0
    moved.parent.mkdir()
    run.rename(moved)
    for count, called_from, named in ((2, tmp_path / "base", "../kept/07"), (3, moved, ".")):
        done = worlds.raft(called_from, "resume", named, f"iterations={count}")
        assert done.returncode == 0, done.stderr
        assert (moved / "iterations" / f"{count:03d}" / "metrics.json").exists()
        assert [one.parent for one in tmp_path.rglob("run.json")] == [moved]
    done = worlds.raft(tmp_path, "resume", "kept/07", "name=new")
    assert done.returncode == 2 and "name: new: raft resume continues in kept/07 itself" in done.stderr


def test_a_copy_of_a_run_with_all_around_it_reads_what_is_around_the_copy(world, tmp_path, monkeypatch):
    began = Path(json.loads((world / "outputs" / "tiny" / "run.json").read_text())["folder"])
    assert began != world and branch.returned(Path("outputs/tiny")) == Path("outputs/tiny") and Path.cwd() == world
    monkeypatch.chdir(world / "base")
    assert branch.returned(Path("../outputs/tiny")).samefile(world / "outputs" / "tiny") and Path.cwd() == world
    shutil.move(world / "outputs" / "tiny", tmp_path / "alone")
    assert branch.returned(tmp_path / "alone") == tmp_path / "alone" and Path.cwd() == began


def test_a_copied_run_goes_on_with_the_module_in_it_though_its_recipe_is_still_there(world, tmp_path):
    there = tmp_path / "there"
    shutil.copytree(world / "outputs" / "tiny", there / "runs" / "copy", symlinks=True)
    about = there / "runs" / "copy" / "run.json"
    began = {"recipe": str(world / "recipe.yaml"), "folder": str(world)}
    about.write_text(json.dumps({**json.loads(about.read_text()), **began}))
    shutil.move(world / "letters.py", there / "runs" / "copy")
    done = worlds.raft(there, "resume", "runs/copy", "iterations=4")
    assert done.returncode == 0, done.stderr
    assert (there / "runs/copy/iterations/004/metrics.json").exists()
    done = worlds.raft(there, "resume", "runs/copy", "--from-iteration", "4", "name=branch", "trainer.batch_size=2")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("place", ["there", "there/runs/copy", "home"])
def test_a_copied_run_finds_modules_in_the_current_folder_in_itself_and_where_it_began(tmp_path, monkeypatch, place):
    home, there = tmp_path / "home", tmp_path / "there"
    (home / "recipes").mkdir(parents=True)
    monkeypatch.chdir(home)
    rule = home / "recipes" / "wrong_rules.py"
    rule.write_text("def wrong(prompt, response):\n    return prompt.meta['none']\n")
    (home / "recipes" / "r.yaml").write_text(
        "name: r\npolicy: {model: some/model}\nprompts: {kind: list, items: [one, two]}\n"
        "reward: {kind: rule, function: 'wrong_rules:wrong'}\n"
    )
    with continued(recipe.load(Path("recipes/r.yaml")), lambda run: None):
        pass
    shutil.copytree("outputs/r", there / "runs" / "copy")
    rule.rename(tmp_path / place / rule.name)
    user_code.forget()
    monkeypatch.chdir(there)
    with branch.resumed(Path("runs/copy")) as folder:
        ((key, found, bug),) = preflight._trials(recipe.load_run(folder))
    assert key == "reward.function" and "KeyError" in found and bug, "it was called in a process of its own"


def test_a_training_that_starts_again_because_its_inputs_changed_says_so(world):
    checkpoints = world / "outputs" / "tiny" / "iterations" / "004" / "policy.checkpoints"
    (checkpoints / "of another key" / "checkpoint-7").mkdir(parents=True)
    done = worlds.raft(world, "resume", "outputs/tiny", "iterations=4")
    assert done.returncode == 0 and "half-made" not in done.stderr, "it holds no file yet"
    (checkpoints / "of another key" / "checkpoint-7").mkdir(parents=True)
    (checkpoints / "of another key" / "checkpoint-7" / "measured.json").touch()
    shutil.rmtree(world / "outputs" / "tiny" / "iterations" / "004" / "policy")
    done = worlds.raft(world, "resume", "outputs/tiny", "iterations=4")
    assert "policy: half-made from other inputs; training starts again from step 0" in done.stderr
    assert done.returncode == 0 and not checkpoints.exists()


def test_a_run_of_relative_paths_goes_on_from_any_folder(world):
    (world.parent / "elsewhere").mkdir()
    done = worlds.raft(world.parent / "elsewhere", "resume", world / "outputs" / "tiny", "iterations=4")
    assert done.returncode == 0, done.stderr
    assert (world / "outputs" / "tiny" / "iterations" / "004" / "metrics.json").exists()
    assert not list((world.parent / "elsewhere").iterdir())


@pytest.mark.nightly
def test_a_measured_policy_stays_evaluated_or_not_whatever_iterations_becomes(tmp_path):
    evaluation = {"count": 4, "every": 2, "gold": None, "kl": False}
    worlds.make_recipe(tmp_path, evaluation=evaluation, keep_policies="all", **SMALL)
    run = tmp_path / "outputs" / "tiny"
    for iterations in (3, 1, 4):
        done = worlds.raft(tmp_path, "run", "recipe.yaml", f"iterations={iterations}")
        assert done.returncode == 0, done.stderr
    rows = list(read(run / "metrics.jsonl"))
    assert ["reward/eval" in row for row in rows] == [True, False, True, True, True]  # the third was once the last
    shutil.copytree(run / "iterations/003/evaluation", run / "iterations/001/evaluation")  # of nobody's asking
    assert worlds.raft(tmp_path, "run", "recipe.yaml", "iterations=4").returncode == 0


def test_the_best_policy_is_that_of_gold_where_the_reward_says_nothing_between_prompts(tmp_path):
    run = write_run(tmp_path / "run", 2, 2, 4, text=lambda *place: "words", reward=lambda *place: 1.0)
    for number, gold in enumerate((0.0, 1.0, 3.0, 2.0, 2.5)):
        folder = run / "iterations" / f"{number:03d}"
        (folder / "policy").mkdir()
        stamp(folder / "policy")
        (folder / "metrics.json").write_text(json.dumps({"policy": {"gold/eval": gold}, "previous": {}}))
    assert best_policy(Run(run, 0), Run(run, 0).rebuild_metrics()) == 2


def test_the_best_policy_is_that_of_gold_where_the_recipe_says_so(tmp_path):
    run = write_run(tmp_path / "run", 2, 2, 2, text=lambda *place: "words", reward=lambda *place: 1.0)
    for number, (reward, gold) in enumerate(((0.0, 0.0), (1.0, 3.0), (2.0, 1.0))):
        told = {"policy": {"reward/eval": reward, "gold/eval": gold}, "previous": {}}
        (run / "iterations" / f"{number:03d}" / "metrics.json").write_text(json.dumps(told))
    best = []
    for by in ("reward", "gold"):
        with open(run / "resolved.yaml", "a") as recipe:
            recipe.write(f"best_by: {by}\n" if by == "gold" else "")
        best.append(best_policy(Run(run, 0), Run(run, 0).rebuild_metrics()))
    assert best == [2, 1]


def test_the_best_policy_of_a_branch_is_one_of_its_own(tmp_path):
    """Those that it shares had perhaps another reward."""
    (tmp_path / "old").mkdir()
    (tmp_path / "branch" / "iterations").mkdir(parents=True)
    (tmp_path / "branch" / "iterations" / "000").symlink_to(tmp_path / "old")
    (tmp_path / "branch" / "run.json").write_text('{"job": "align", "shared": ["iterations/000"]}')
    run = Run(tmp_path / "branch", 0)
    rows = [{"iteration": number, "reward/eval": reward} for number, reward in enumerate((9.0, 1.0, 3.0, 2.0))]
    assert best_policy(run, rows) == 2 and best_policy(run, rows[:1]) == 0


def test_the_link_to_the_best_policy_leads_to_one_that_is_there_and_replaces_nothing_else(tmp_path):
    run = Run(tmp_path / "run", 0)
    for number in (1, 2):
        (run.iteration(number).folder / "policy").mkdir(parents=True)
    for best, target in ((1, "iterations/001/policy"), (2, "iterations/002/policy"), (2, "iterations/002/policy")):
        run.link_best(best)
        assert str((run.folder / "best").readlink()) == target
    run.link_best(3)
    assert not (run.folder / "best").is_symlink(), "that policy was deleted"
    (run.folder / "best").write_text("mine")
    run.link_best(1)
    assert (run.folder / "best").read_text() == "mine"


def test_best_keeps_the_last_policy_too_so_that_a_finished_run_can_be_extended(tmp_path):
    kept = {}
    for keep in ("last", "best", "all"):
        run = Run(tmp_path / keep, 0)
        for number in range(5):
            policy = run.iteration(number).folder / "policy"
            policy.mkdir(parents=True)
            stamp(policy)
        run.prune(keep, best=2)
        kept[keep] = [number for number in range(5) if (run.iteration(number).folder / "policy").exists()]
    assert kept == {"last": [0, 4], "best": [0, 2, 4], "all": [0, 1, 2, 3, 4]}
