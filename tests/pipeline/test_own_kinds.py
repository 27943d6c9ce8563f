"""The smallest own kind of every sort, all in one recipe: a whole run needs no more of them than contracts.py says."""

import json

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
