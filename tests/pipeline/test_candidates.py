"""Laws of candidates: they join the groups, are named, and are in no figure of the policy."""

import json

import pytest
import worlds

from raft.config import recipe
from raft.core.records import read
from raft.core.run_paths import RunPaths

TEXTS = {f"p{n:03d}": row["prompt"] for n, row in enumerate(worlds.prompts(60))}
LETTERS = {row["id"]: row["letter"] for row in worlds.prompts(60)}


def sources(folder):
    """A good and a bad answer to even prompts (one prompt written with more white space), and a middling one to all."""
    even = [f"p{n:03d}" for n in range(0, 60, 2)]
    rows = [{"prompt": f"  {TEXTS[one]}\n", "answer": text} for one in even for text in (LETTERS[one] * 9, "?")]
    rows.append({"prompt": "nobody asked", "answer": "!"})
    files = {
        "good.jsonl": rows,
        "other.jsonl": [{"prompt": TEXTS[one], "answer": f"{LETTERS[one]}--"} for one in TEXTS],
    }
    for name, content in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    return {
        name: {"kind": "file", "path": f"{name}.jsonl", "response": "answer"} for name in ("good", "other")
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The same recipe with candidates, and without."""
    folder = tmp_path_factory.mktemp("candidates")
    worlds.make_recipe(folder, iterations=1, candidates=sources(folder))
    for words in (["name=alone", "~candidates"], []):
        done = worlds.raft(folder, "run", "recipe.yaml", *words)
        assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stdout)
    return folder


def said(folder):
    return (folder / "said").read_text()


def share(prompt_id, text):
    return text.count(LETTERS[prompt_id]) / len(text)


def test_candidates_stand_behind_the_responses_of_the_policy_and_are_scored_and_named(finished):
    here, alone = (RunPaths(finished / "outputs" / name).iteration(1) for name in ("tiny", "alone"))
    rows = zip(read(here.responses), read(here.scores), read(alone.responses), read(alone.scores), strict=True)
    for made, scored, own, own_scored in rows:
        assert made["responses"][:4] == own["responses"] and scored["scores"][:4] == own_scored["scores"]
        name = made["prompt_id"]
        wanted = [("good", LETTERS[name] * 9), ("good", "?")] * (int(name[1:]) % 2 == 0)
        wanted.append(("other", f"{LETTERS[name]}--"))
        assert [(one["candidate"], one["text"]) for one in made["responses"][4:]] == wanted
        assert [one["reward"] for one in scored["scores"][4:]] == [share(name, text) for _, text in wanted]
        assert all(one["token_ids"] and one["logprobs"] is None for one in made["responses"][4:])


def test_the_best_of_a_group_with_its_candidates_is_learned_from(finished):
    here, alone = (RunPaths(finished / "outputs" / name).iteration(1) for name in ("tiny", "alone"))
    own = {row["prompt_id"]: row["reward"] for row in read(alone.selected)}
    from_elsewhere = 0
    for row in read(here.selected):
        name = row["prompt_id"]
        others = [share(name, f"{LETTERS[name]}--"), *([1.0] if int(name[1:]) % 2 == 0 else [])]
        assert row["reward"] == max(own[name], *others)
        assert row["response"].get("candidate") == (
            None if own[name] >= max(others) else "good" if 1.0 in others else "other"
        )
        from_elsewhere += "candidate" in row["response"]
    measured = json.loads(here.metrics.read_text())["previous"]
    assert measured["selection/candidates"] == from_elsewhere / 16 > 0.5 and "sampling/responses" not in measured
    assert f"trained on 16 responses; {from_elsewhere / 16:.0%} of them candidates (policy 0: best of k" in said(
        finished
    )


def test_figures_of_the_policy_are_those_of_a_run_without_candidates(finished):
    here, alone = (
        json.loads(RunPaths(finished / "outputs" / name).iteration(1).metrics.read_text())["previous"]
        for name in ("tiny", "alone")
    )
    of_policy = [name for name in alone if name.startswith(("reward/", "response/", "entropy", "length/reward"))]
    of_policy.remove("reward/tied")  # says whether winners are arbitrary, which candidates change
    assert len(of_policy) > 8 and {name: here[name] for name in of_policy} == {name: alone[name] for name in of_policy}
    assert "selection/candidates" not in alone


def test_every_row_that_joins_no_group_is_dropped_with_its_reason(finished):
    run = RunPaths(finished / "outputs" / "tiny")
    held_out = {row["id"] for row in read(run.evaluation)}
    drops = [row for row in read(run.dropped) if row["stage"] == "load_candidates"]
    reasons = sorted(row["reason"] for row in drops)
    aside = 2 * sum(int(name[1:]) % 2 == 0 for name in held_out) + len(held_out)
    assert reasons == ["answers no training prompt", *["held out for evaluation"] * aside]
    assert sum(1 for _ in read(run.candidates)) + len(drops) == 61 + 60


def test_show_and_the_report_name_candidates(finished):
    some = next(row["prompt_id"] for row in read(RunPaths(finished / "outputs" / "tiny").iteration(1).selected))
    shown = worlds.raft(finished, "show", "outputs/tiny", some).stdout
    assert f"[other] {LETTERS[some]}--" in shown
    done = worlds.raft(finished, "export", "outputs/tiny", "--policy", "1")
    assert done.returncode == 0, done.stderr
    assert "- candidates, selected beside them: good, other" in (finished / "outputs/tiny-export/README.md").read_text()


def test_select_refuses_what_reads_groups_as_draws(finished):
    refused = worlds.raft(finished, "select", "outputs/tiny", "{kind: expected-best, n: 2}")
    assert refused.returncode == 2 and "as draws from the policy, and this run has candidates" in refused.stderr


def test_rounds_of_sampling_are_as_they_were_and_candidates_come_after_the_last(finished):
    done = worlds.raft(
        finished, "run", "recipe.yaml", "name=rounds", "sampling={kind: until-success, rounds: [2, 2], success: 0.01}"
    )
    assert done.returncode == 0, done.stderr
    here, alone = (RunPaths(finished / "outputs" / name).iteration(1) for name in ("rounds", "alone"))
    sizes = []
    for made, own, scored in zip(read(here.responses), read(alone.responses), read(alone.scores), strict=True):
        sizes.append(4 if max(one["reward"] for one in scored["scores"][:2]) < 0.01 else 2)
        assert made["responses"][: sizes[-1]] == own["responses"][: sizes[-1]]
        assert all("candidate" in one for one in made["responses"][sizes[-1] :])
        assert len(made["responses"]) > sizes[-1]
    assert set(sizes) == {2, 4}
    measured = json.loads(here.metrics.read_text())["previous"]
    assert measured["sampling/responses"] == sum(sizes) / len(sizes)


def test_a_source_that_answers_no_training_prompt_stops_the_run(tmp_path):
    worlds.make_recipe(tmp_path, candidates={"a": {"kind": "list", "items": [{"prompt": "no", "response": "x"}]}})
    done = worlds.raft(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 2 and "candidates.a: none of its rows answers a training prompt" in done.stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"selection": {"kind": "expected-best", "n": 2}}, "selection.kind: reads a group as draws from the policy"),
        (
            {"trainer": {"kind": "policy-gradient"}},
            "trainer.kind: learns from the log-probabilities of the policy that generated, and candidates have none",
        ),
        (
            {"reward": {"kind": "judge", "model": "x", "url": "http://127.0.0.1:1/v1", "mode": "pairwise"}},
            "candidates: the",
        ),
        (
            {"candidates": {"a": {"kind": "list", "items": [{}], "format": "chat"}}},
            "candidates.a.format: prompts are read with format: text; give the same here",
        ),
        ({"candidates": {"a": {"kind": "list", "items": [{}], "held_out": 1}}}, "candidates.a.held_out: all its rows"),
        (
            {"candidates": {"a": {"kind": "list", "items": [{}], "pairs": "columns"}}},
            "candidates.a.pairs: a candidate is",
        ),
    ],
)
def test_what_does_not_go_with_candidates_is_refused(tmp_path, changes, says):
    items = {"kind": "list", "items": [{"prompt": "a", "response": "b"}]}
    with pytest.raises(recipe.RecipeError) as refused:
        recipe.load(worlds.make_recipe(tmp_path, **{"candidates": {"a": items}, **changes}))
    assert says in str(refused.value)
