"""job: evaluate-reward as a whole, through the command line: a rule and a reward model that another recipe makes."""

import json
from pathlib import Path
from typing import Any

import pytest
import worlds
import yaml

from raft.core.records import read
from raft.store.runs import stamp_path

GOOD, BAD = ["gladly, here it is", "of course", "yes, please take it"], ["no", "go away", "never, and do not ask again"]


def dialogue(number: int) -> dict[str, str]:
    head = f"\n\nHuman: the {worlds.WORDS[number % 7]} {number}\n\nAssistant:"
    return {"chosen": f"{head} {GOOD[number % 3]}", "rejected": f"{head} {BAD[number // 3 % 3]}"}


def bench(number: int) -> dict[str, Any]:
    return {
        "prompt": f"where is the {worlds.WORDS[7 + number % 5]}?", "chosen": GOOD[number % 3],
        "rejected": BAD[number // 2 % 3], "subset": ("donotanswer", "shp")[number % 2], "id": 0,
    }  # fmt: skip


REWARD_MODEL: dict[str, Any] = {
    "job": "reward-model",
    "name": "taste",
    "policy": {"config": worlds.TINY, "vocab_size": 300},
    "examples": {"kind": "file", "path": "hh.jsonl", "pairs": "hh-rlhf", "held_out": 10, "max_bad_rows_fraction": 0.1},
    "trainer": {
        "kind": "reward-model",
        "template": "chat",
        "learning_rate": 1e-3,
        "batch_size": 8,
        "num_train_epochs": 2,
    },
}
RECIPE: dict[str, Any] = {
    "job": "evaluate-reward",
    "name": "compare",
    "rewards": {
        "length": {"kind": "rule", "function": "length", "args": {"unit": "characters"}},
        "taste": {"kind": "model", "recipe": "taste.yaml", "template": "chat", "max_length": 200},
    },
    "sets": {
        "hh": {"kind": "file", "path": "hh.jsonl", "pairs": "hh-rlhf", "held_out": 10, "max_bad_rows_fraction": 0.1},
        "bench": {"kind": "file", "path": "bench.jsonl", "pairs": "reward-bench", "system": "Be kind."},
    },
}


def write(folder: Path, **changes: Any) -> None:
    rows = [dialogue(number) for number in range(50)]
    rows[7]["rejected"] = rows[7]["rejected"].partition("Assistant:")[0] + "Assistant:"
    for name, content in (("hh", rows), ("bench", [bench(number) for number in range(70)])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "taste.yaml").write_text(yaml.safe_dump(REWARD_MODEL))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **changes}, sort_keys=False))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    write(folder)
    done = worlds.raft(folder, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "outputs" / "compare" / "accuracy.json").read_text())


def test_the_accuracy_of_a_rule_is_what_counting_finds(finished: Path):
    found = figures(finished)
    rows = [bench(number) for number in range(70)]
    right = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    tied = sum(len(row["chosen"]) == len(row["rejected"]) for row in rows)
    one = found["bench"]["length"]
    assert (one["pairs"], one["right"], one["tied"], one["unscored"]) == (70, right, tied, 0)
    assert one["length"]["longer_preferred"] == 1.0
    assert {name: part["pairs"] for name, part in one["subsets"].items()} == {"donotanswer": 35, "shp": 35}
    assert one["reward_bench"]["sections"]["Safety"]["missing"][0] == "refusals-dangerous"


def test_a_set_is_the_rows_that_the_training_of_the_reward_model_set_aside(finished: Path):
    outputs = finished / "outputs"
    files = (outputs / "compare/sets/hh/pairs.jsonl", outputs / "taste/examples.jsonl")
    judged, learned = ({row["prompt_id"] for row in read(file)} for file in files)
    assert not judged & learned and len(judged) + len(learned) == 49 and 9 <= len(judged) <= 10
    assert sum(json.loads(stamp_path(file).read_text())["dropped"] for file in files) == 1


def test_the_figures_are_those_of_the_scores_and_the_chosen_response_comes_first(finished: Path):
    for name in RECIPE["sets"]:
        place = finished / "outputs" / "compare" / "sets" / name
        pairs, answered = list(read(place / "pairs.jsonl")), list(read(place / "responses.jsonl"))
        for pair, group in zip(pairs, answered, strict=True):
            assert [one["text"] for one in group["responses"]] == [pair["chosen"]["text"], pair["rejected"]["text"]]
        for reward in RECIPE["rewards"]:
            scores = [[one["reward"] for one in row["scores"]] for row in read(place / "scores" / f"{reward}.jsonl")]
            found = figures(finished)[name][reward]
            assert (
                found["accuracy"] == sum(one > other for one, other in scores) / len(pairs)
                and len(set(map(tuple, scores))) > 2
            )
    assert {row["messages"][0]["role"] for row in read(place / "prompts.jsonl")} == {"system"}


def test_a_reward_model_that_has_learned_its_pairs_tells_those_set_aside_apart(finished: Path):
    found = figures(finished)["hh"]
    assert found["taste"]["accuracy"] > found["length"]["accuracy"] and found["taste"]["accuracy"] >= 0.9


def test_the_run_prints_the_table_and_says_where_everything_is(finished: Path):
    printed, run = (finished / "stdout").read_text(), finished / "outputs" / "compare"
    assert (run / "accuracy.md").read_text() in printed and "| set | length | taste |" in printed
    for name in ("accuracy.md", "accuracy.png", "accuracy.json"):
        assert f"outputs/compare/{name}" in printed and (run / name).stat().st_size > 0
    assert (run / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_comparison_is_made_once(finished: Path):
    run = finished / "outputs" / "compare"
    before, stamps = worlds.fingerprint(run), {file: file.stat().st_mtime_ns for file in run.rglob("*.stamp.json")}
    (run / "accuracy.png").unlink()
    again = worlds.raft(finished, "run", "recipe.yaml")
    assert again.returncode == 0 and (run / "accuracy.png").exists(), again.stderr
    assert worlds.fingerprint(run) == before
    assert stamps == {file: file.stat().st_mtime_ns for file in run.rglob("*.stamp.json")}


def test_every_section_is_checked(tmp_path: Path):
    rewards = {"a": {"kind": "rule", "function": "lenght"}, "a/b": {"kind": "rule", "function": "length"}}
    sets = {
        "x": {"kind": "file", "path": "bench.jsonl"},
        "y": {"kind": "file", "path": "bench.jsonl", "pairs": "reward-bech"},
    }
    write(tmp_path, rewards=rewards, sets=sets)
    refused = worlds.raft(tmp_path, "check", "recipe.yaml")
    assert refused.returncode == 2
    for words in (
        "rewards.a.function",
        "did you mean length",
        "rewards.a/b",
        "sets.y.pairs",
        "did you mean reward-bench",
    ):
        assert words in refused.stderr
    write(tmp_path, rewards={"a": {"kind": "rule", "function": "length"}}, sets={"x": sets["x"]})
    assert "sets.x.pairs: say how to get pairs" in worlds.raft(tmp_path, "check", "recipe.yaml").stderr
    missing = {"kind": "model", "model": "./none", "template": "chat"}
    write(tmp_path, rewards={"a": missing}, sets={"x": {"kind": "file", "path": "no.jsonl", "pairs": "columns"}})
    refused = worlds.raft(tmp_path, "check", "recipe.yaml")
    assert "rewards.a.model" in refused.stderr and "sets.x.path: no file" in refused.stderr


def test_a_set_without_a_pair_is_refused(tmp_path: Path):
    rows = [{**bench(0), "chosen": "", "subset": "x"}]
    write(tmp_path, rewards={"length": RECIPE["rewards"]["length"]})
    (tmp_path / "bench.jsonl").write_text(json.dumps(rows[0]) + "\n")
    refused = worlds.raft(tmp_path, "run", "recipe.yaml", "sets.bench.max_bad_rows_fraction=1.0")
    assert refused.returncode == 2 and "sets/bench/pairs.jsonl holds no pair" in refused.stderr


def test_of_many_reward_models_one_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import gc
    import weakref

    from reward_models import SIZE, save

    from raft.cli.forecast import Quiet
    from raft.config import recipe
    from raft.pipeline import loop
    from raft.rewards.runner import RewardModelRunner

    names = ("first", "second", "third")
    for name in names:
        save(tmp_path / name, "LlamaForSequenceClassification", **SIZE)
    one = {name: {"kind": "model", "model": name, "template": "chat", "max_length": 128} for name in names}
    both = {"kind": "ensemble", "members": {name: one[name] for name in names[:1]}}
    write(tmp_path, rewards={**one, "both": both}, sets={"bench": RECIPE["sets"]["bench"]})
    living: weakref.WeakSet[RewardModelRunner] = weakref.WeakSet()
    counts, make = [], RewardModelRunner.__init__

    def counted(self: RewardModelRunner, *given: Any, **options: Any) -> None:
        gc.collect()
        living.add(self)
        counts.append(len(living))
        make(self, *given, **options)

    monkeypatch.setattr(RewardModelRunner, "__init__", counted)
    monkeypatch.chdir(tmp_path)
    loop.run(recipe.load(tmp_path / "recipe.yaml"), Quiet())
    assert counts == [1] * 8  # the doctor's, and those of scoring
