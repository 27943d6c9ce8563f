"""`raft run --restart`: a run begins again, and what was there is kept beside it."""

import worlds

from raft.core.records import read


def test_a_run_that_begins_again_leaves_the_old_one_as_it_was_beside_it(tmp_path):
    worlds.make_recipe(tmp_path, iterations=1)
    outputs = tmp_path / "outputs"
    assert worlds.raft(tmp_path, "run", "recipe.yaml", "--restart").returncode == 0, "there need be no run yet"
    before = worlds.fingerprint(outputs / "tiny")
    refused = worlds.raft(tmp_path, "run", "recipe.yaml", "seed=5")
    assert refused.returncode == 2 and "raft run RECIPE --restart" in refused.stderr
    done = worlds.raft(tmp_path, "run", "recipe.yaml", "--restart", "seed=5")
    assert done.returncode == 0, done.stderr
    (aside,) = outputs.glob("tiny.before-*")
    assert f"outputs/tiny was moved to outputs/{aside.name}" in done.stdout
    assert worlds.fingerprint(aside) == before != worlds.fingerprint(outputs / "tiny")
    assert len(list(read(outputs / "tiny" / "metrics.jsonl"))) == 2


def test_a_folder_that_is_no_run_and_a_recipe_with_a_fault_move_nothing(tmp_path):
    worlds.make_recipe(tmp_path)
    (tmp_path / "outputs" / "tiny").mkdir(parents=True)
    (tmp_path / "outputs" / "tiny" / "thesis.tex").write_text("mine")
    for overrides in ([], ["generator.k=0"]):
        refused = worlds.raft(tmp_path, "run", "recipe.yaml", "--restart", *overrides)
        assert refused.returncode == 2 and (tmp_path / "outputs" / "tiny" / "thesis.tex").exists()
        assert len(list((tmp_path / "outputs").iterdir())) == 1
