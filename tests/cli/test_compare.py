"""`raft compare`, `raft run --seeds`, and keys that are left out, on small real runs."""

import json
from pathlib import Path

import folders
import numpy as np
import pytest
import worlds
import yaml

from raft.cli import commands, compare
from raft.cli import main as cli
from raft.config.recipe import read_one
from raft.core.errors import UserError
from raft.trainers.sft import SFT


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Runs of seeds 0, which is the recipe's own, and 1, and one with a hundred times the learning rate of seed 0."""
    folder = tmp_path_factory.mktemp("world")
    worlds.make_recipe(
        folder, iterations=1, prompts={"per_iteration": 8}, evaluation={"count": 6, "gold": None, "kl": False}
    )
    assert worlds.raft(folder, "run", "recipe.yaml").returncode == 0
    done = worlds.raft(folder, "run", "recipe.yaml", "--seeds", "0,1")
    assert done.returncode == 0, done.stderr
    (folder / "seeds.txt").write_text(done.stdout)
    done = worlds.raft(folder, "run", "recipe.yaml", "name=fast", "trainer.learning_rate=0.1")
    assert done.returncode == 0, done.stderr
    return folder


def means(run: Path, policy: int) -> dict[str, float]:
    """The mean reward of each held-out prompt, from the file of scores."""
    rows = map(json.loads, open(run / f"iterations/{policy:03d}/evaluation/scores.jsonl"))
    return {row["prompt_id"]: float(np.mean([one["reward"] for one in row["scores"]])) for row in rows}


def test_two_runs_are_compared_on_the_same_prompts_with_an_interval_and_part_where_their_keys_do(world):
    done = worlds.raft(world, "compare", "outputs/tiny", "outputs/fast")
    assert done.returncode == 0, done.stderr
    one, other = (means(world / "outputs" / name, 1) for name in ("tiny", "fast"))
    differences = np.array([other[name] - one[name] for name in one])
    half = 1.96 * differences.std(ddof=1) / np.sqrt(len(differences))
    assert f"{differences.mean():+.3f} ± {half:.3f} on 6 prompts that both have" in done.stdout
    assert "trainer.learning_rate: 0.001 in A, 0.1 in B" in done.stdout
    first = done.stdout.index("first artifact that differs: iterations/001/policy")
    assert "trainer.learning_rate: 0.001 in A, 0.1 in B" in done.stdout[first:]


def written(folder: Path, recipe: dict, section: dict) -> Path:
    """A run that is nothing but its resolved recipe and the stamp of one artifact."""
    folder.mkdir(parents=True)
    (folder / "resolved.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "made").touch()
    folders.stamp(folder / "made", key={"stage": "train", "section": section}, hash=f"{section}")
    return folder


def of(one: Path, other: Path) -> tuple[compare.Labelled, compare.Labelled]:
    return compare.Labelled("A", one), compare.Labelled("B", other)


def test_what_only_one_of_two_recipes_says_is_compared_with_its_default(tmp_path):
    one = written(tmp_path / "a", {"name": "a", "iterations": 5, "trainer": {"kind": "sft", "lora": {"a.b": 1}}}, {})
    more = {"seed": 0, "launch": {"kind": "ray", "workers": 2}, "store": {"compress": True}, "policy": {"model": "m"}}
    other = written(tmp_path / "b", {"name": "b", "trainer": {"kind": "sft", "batch_size": 3}, **more}, {})
    assert sorted(compare._recipes(*of(one, other))) == [
        "launch.kind: 'local' in A, 'ray' in B",
        "launch.workers: not given in A, 2 in B",
        "policy: not given in A, 5 keys in B",
        "store.compress: False in A, True in B",
        f"trainer.batch_size: {SFT.batch_size} in A, 3 in B",
        "trainer.lora: 1 key in A, not given in B",
    ]


def test_of_an_artifact_that_differs_few_keys_are_told_and_the_kind_is_the_first(tmp_path):
    options = {f"option{n}": list(range(99)) for n in range(17)}
    one = written(tmp_path / "a", {}, {**options, "is": "trainer/sft"})
    other = written(tmp_path / "b", {}, {"is": "trainer/dpo", "more": options})
    head, *lines, more = compare._parting(*of(one, other)).splitlines()
    assert head == "first artifact that differs: made, made from other inputs:"
    assert lines[0] == "  trainer.kind: 'sft' in A, 'dpo' in B" and len(lines) == compare.FEW
    assert more == f"  and {19 - compare.FEW} more" and max(map(len, lines)) < 130


def test_each_run_is_compared_with_the_first_one_and_named_by_its_letter(world):
    done = worlds.raft(world, "compare", "outputs/fast", "outputs/tiny", "outputs/tiny-seed1")
    assert done.returncode == 0, done.stderr
    heading, title, *values = done.stdout.splitlines()
    assert heading == "A outputs/fast, B outputs/tiny, C outputs/tiny-seed1"
    assert title == "held-out reward of the last policy, compared with A:"
    for label, name, line in zip("ABC", ("fast", "tiny", "tiny-seed1"), values, strict=False):
        of_prompts = means(world / "outputs" / name, 1)
        assert line.startswith(f"  {label}, policy 1: {np.mean(list(of_prompts.values())):.3f}")
    assert "recipes of A and B: they differ in 1\n  trainer.learning_rate: 0.1 in A, 0.001 in B" in done.stdout
    assert "recipes of A and C: they differ in 2" in done.stdout and "seed: 0 in A, 1 in C" in done.stdout
    pair = compare.compared([world / "outputs" / name for name in ("fast", "tiny-seed1")])
    assert pair[3].split(": ")[1] == values[2].split(": ")[1], "what a run is compared with besides changes nothing"
    alone = worlds.raft(world, "compare", "outputs/fast")
    assert alone.returncode == 2 and "two runs or more: raft compare outputs/fast OTHER" in alone.stderr


def test_a_figure_is_compared_only_where_the_last_policy_of_a_run_has_it(tmp_path):
    """A gold reward that a recipe dropped belongs to earlier policies: the last one of the other run is no match."""
    runs = [folders.write_run(tmp_path / name, 2, 2, 2, lambda *_: "text", lambda *_: 1.0) for name in "abc"]
    gone = runs[1] / "iterations/002/evaluation"
    for file in ("gold.jsonl", "gold.jsonl.stamp.json"):
        (gone / file).unlink()
    lines = [line for line in compare.compared(runs) if line.startswith(("gold", "held-out", "  "))]
    assert [line.split(";")[0] for line in lines[:8]] == [
        "held-out reward of the last policy, compared with A:",
        "  A, policy 2: 1.000", "  B, policy 2: 1.000", "  C, policy 2: 1.000",
        "gold reward of the last policy, compared with A:",
        "  A, policy 2: 10.000", "  B, policy 2: none", "  C, policy 2: 10.000",
    ]  # fmt: skip


def test_the_last_policy_of_a_run_that_is_not_finished_is_told_as_one_of_those_that_it_is_to_have(tmp_path):
    runs = [folders.write_run(tmp_path / name, 2, 2, 2, lambda *_: "text", lambda *_: 1.0) for name in "ab"]
    (runs[1] / "resolved.yaml").write_text((runs[1] / "resolved.yaml").read_text() + "iterations: 5\n")
    lines = compare.compared(runs)
    assert "  A, policy 2: 1.000" in lines and any(line.startswith("  B, policy 2 of 5: 1.000") for line in lines)


def test_the_better_run_is_named_where_the_difference_is_clear_also_on_different_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rise in (
        ("same", lambda n: 0.0),
        ("better", lambda n: 2.0 + 0.1 * n),
        ("worse", lambda n: -3.0 - 0.1 * n),
    ):
        folders.write_run(
            Path(name), 2, 2, 1, lambda *at: f"{at}", lambda policy, n, _, rise=rise: n + policy * rise(n), held_out=12
        )
    said = "\n".join(compare.compared([Path("same"), Path("better"), Path("worse")]))
    for policy, rise, label in (("B", 2.55, "B is better"), ("C", -3.55, "A is better")):
        assert (
            f"  {policy}, policy 1: {5.5 + rise:.3f}; {rise:+.3f} ± 0.204 on 12 prompts that both have: {label}" in said
        )
    assert "on 12 prompts that both have: no clear difference" in "\n".join(
        compare.compared([Path("same"), Path("same")])
    )
    rows = (Path("worse") / "evaluation.jsonl").read_text()
    (Path("worse") / "evaluation.jsonl").write_text(rows.replace('"h', '"other-h'))
    apart = "\n".join(compare.compared([Path("same"), Path("worse")]))
    first, second = (np.arange(12.0) * factor for factor in (1.0, 0.9))
    half = 1.96 * np.hypot(*(one.std(ddof=1) / np.sqrt(12) for one in (first, second)))
    assert f"-3.550 ± {half:.3f} on different prompts: A is better" in apart


def test_a_run_and_itself_are_the_same(world):
    done = worlds.raft(world, "compare", "outputs/fast", "outputs/fast")
    assert "recipes of A and B: the same" in done.stdout and "every artifact that both have is the same" in done.stdout
    assert "+0.000 ± 0.000 on 6 prompts that both have: too few prompts to tell" in done.stdout


def test_seeds_are_runs_of_their_own_whose_gains_are_told_with_their_spread(world):
    gained = []
    said = (world / "seeds.txt").read_text()
    for run in ("tiny", "tiny-seed1"):
        before, after = (means(world / "outputs" / run, policy) for policy in (0, 1))
        gained.append(np.mean([after[name] - before[name] for name in before]))
        assert f"  outputs/{run}  {gained[-1]:+.3f}" in said
    assert f"mean of 2 seeds {np.mean(gained):+.3f}, standard deviation {np.std(gained, ddof=1):.3f}" in said
    alone = worlds.raft(world, "run", "recipe.yaml", "name=alone", "seed=1")
    assert alone.returncode == 0, alone.stderr
    assert worlds.fingerprint(world / "outputs/alone") == worlds.fingerprint(world / "outputs/tiny-seed1")


def test_the_run_of_the_recipes_own_seed_is_the_recipes_own_run_and_is_not_made_again(world, monkeypatch):
    assert (world / "seeds.txt").read_text().count("already finished") == 1
    assert not (world / "outputs" / "tiny-seed0").exists()
    monkeypatch.chdir(world)
    started: list[tuple[str, int]] = []
    monkeypatch.setattr(commands, "_start", lambda loaded: started.append((loaded.recipe.name, loaded.recipe.seed)))
    commands.run(cli.parse(["run", "recipe.yaml", "--seeds", "2,5,0", "seed=5", "name=other"]))
    assert started == [("other-seed2", 2), ("other", 5), ("other-seed0", 0)]


@pytest.mark.parametrize("seeds", ["a", "0,0", "1,01", "", "1.5", "-1"])
def test_seeds_that_are_no_different_whole_numbers_are_refused(world, seeds):
    done = worlds.raft(world, "run", "recipe.yaml", f"--seeds={seeds}")
    assert done.returncode == 2 and "give different whole numbers" in done.stderr


def test_a_key_that_is_left_out_has_its_default_again(world, monkeypatch):
    monkeypatch.chdir(world)
    config, _ = read_one(world / "recipe.yaml", ["~generator.max_tokens", "~evaluation", "generator.k=2"])
    assert config["generator"] == {"kind": "transformers", "k": 2, "batch_size": 8} and "evaluation" not in config
    with pytest.raises(UserError, match=r"~generator\.max_token: the recipe has no such key.*did you mean max_tokens"):
        read_one(world / "recipe.yaml", ["~generator.max_token"])
    done = worlds.raft(world, "check", "recipe.yaml", "~generator.max_tokens", "report_to=wand")
    assert done.returncode == 2 and "'wand' is not a tracker; did you mean wandb?" in done.stderr


def test_a_reward_that_is_another_one_by_its_source_alone_is_told_as_such(tmp_path):
    worlds.make_recipe(tmp_path, iterations=1)
    assert worlds.raft(tmp_path, "run", "recipe.yaml", "name=one").returncode == 0
    rule = tmp_path / "letters.py"
    rule.write_text(rule.read_text().replace("max(1, len(response))", "max(2, len(response))"))
    assert worlds.raft(tmp_path, "run", "recipe.yaml", "name=other").returncode == 0
    done = worlds.raft(tmp_path, "compare", "outputs/one", "outputs/other")
    assert "recipes of A and B: the same\n" in done.stdout
    assert "another reward (reward.function: the source of letters.py (letters:share) differs)\n" in done.stdout
