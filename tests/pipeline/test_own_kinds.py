"""The smallest own kind of every sort, all in one recipe: a whole run needs no more of them than contracts.py says."""

import json

import pytest
import worlds

MINE = """
import shutil
from dataclasses import dataclass
import numpy as np
from raft.data import prompts
from raft.core.records import Group, Response, Score
from raft.pipeline.selection import Selection

@dataclass(frozen=True)
class Source(prompts.Prompts):
    def rows(self):
        yield from ((f"row {n}", {"prompt": f"the red fox {n}"}) for n in range(12))

@dataclass(frozen=True)
class Generator:
    k: int = 2
    def generate(self, policy, prompts, seed):
        for prompt in prompts:
            yield Group(prompt, [Response("fox" * n, [5] * n, None, "stop") for n in (1, 2)])

@dataclass(frozen=True)
class Reward:
    def score(self, groups):
        yield from ([Score(float(len(one.text))) for one in group.responses] for group in groups)

@dataclass(frozen=True)
class Longest(Selection):
    def chosen(self, rewards, rng):
        return np.arange(len(rewards)), np.nanargmax(rewards, axis=1)

@dataclass(frozen=True)
class Trainer:
    def train(self, start, examples, out, seed, advance, dropped):
        count = len(list(examples))
        shutil.copytree(start, out, dirs_exist_ok=True)
        return {"examples": count}
"""
THREAD = """
import threading
def f(prompt, response):
    threading.Thread(target=threading.Event().wait).start()
    return float(len(response))
"""


def test_the_smallest_own_kind_of_every_sort_makes_a_whole_run(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    worlds.make_recipe(
        tmp_path,
        iterations=1,
        prompts={"kind": "mine:Source", "per_iteration": 4, "max_prompt_length": 64},
        generator={"kind": "mine:Generator"},
        reward={"kind": "mine:Reward"},
        selection={"kind": "mine:Longest"},
        trainer={"kind": "mine:Trainer"},
        evaluation={"count": 4, "k": 2},
    )
    assert worlds.raft(tmp_path, "check", "recipe.yaml").returncode == 0
    done = worlds.raft(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in open(tmp_path / "outputs/tiny/iterations/001/selected.jsonl")]
    assert [row["response"]["text"] for row in rows] == ["foxfox"] * 4


def test_a_thread_that_a_rule_leaves_does_not_keep_the_process(tmp_path):
    worlds.make_recipe(tmp_path, iterations=1, reward={"kind": "rule", "function": "threads:f"})
    (tmp_path / "threads.py").write_text(THREAD)
    assert worlds.raft(tmp_path, "run", "recipe.yaml").returncode == 0


PAIRS = """
@dataclass(frozen=True)
class Preferences(Trainer):
    takes_pairs = True
    def train(self, start, examples, out, seed, advance, dropped):
        lengths = [len(pair.chosen.text) - len(pair.rejected.text) for pair in examples]
        assert all(length > 0 for length in lengths)
        return super().train(start, lengths, out, seed, advance, dropped)
"""


@pytest.mark.nightly
def test_a_trainer_that_learns_from_pairs_is_one_file_and_its_run_knows_which_responses_were_compared(tmp_path):
    (tmp_path / "mine.py").write_text(MINE + PAIRS)
    own = {"generator": {"kind": "mine:Generator"}, "reward": {"kind": "mine:Reward"}}
    prompts = {"kind": "mine:Source", "per_iteration": 4, "max_prompt_length": 64}
    rest = {"iterations": 1, "prompts": prompts, "evaluation": {"count": 4, "k": 2}, **own}
    worlds.make_recipe(
        tmp_path, selection={"kind": "best-vs-worst"}, trainer={"kind": "mine:Preferences"}, **rest
    )  # fmt: skip
    done = worlds.raft(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    it = tmp_path / "outputs/tiny/iterations/001"
    rows = [json.loads(line) for line in open(it / "selected.jsonl")]
    assert [(row["index"], row["rejected_index"]) for row in rows] == [(1, 0)] * 4
    figures = json.loads((it / "metrics.json").read_text())["previous"]
    assert figures["selection/tokens"] == 2 and figures["selection/tokens_random"] == 1.5  # of 1 and 2 tokens
    assert (it / "policy" / "probe.json").exists()
    assert worlds.raft(tmp_path, "report", "outputs/tiny").returncode == 0
    for selection, trainer, why in (
        ("best-of-k", "mine:Preferences", "picks single responses, but this trainer learns from pairs"),
        (
            "best-vs-worst",
            "sft",
            "but this trainer learns from single responses; trainer.kind: dpo and kto learn from them",
        ),
        ("best-vs-worst", "reward-model", "this trainer makes a reward model, not a policy"),
    ):
        worlds.make_recipe(tmp_path, selection={"kind": selection}, trainer={"kind": trainer}, **rest)
        refused = worlds.raft(tmp_path, "check", "recipe.yaml")
        assert refused.returncode == 2 and why in refused.stderr
