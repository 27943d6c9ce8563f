"""Laws of kind: decision-tree: a tree of scikit-learn read without it, and K responses ranked by it."""

import itertools
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from heads import labels, make, rand
from reward_models import TEXTS, chat_ids, groups, llama_hidden, make_tokenizer, rewards
from reward_server import RewardServer

from raft.core.errors import UserError
from raft.core.protocols import comparable
from raft.core.records import Group, Prompt, Response, read
from raft.rewards import decision_tree
from raft.rewards.decision_tree import DecisionTree, Tree, load, preferences
from raft.rewards.model import RewardModel

NODES = [  # left, right, feature, threshold, and how many of 20 rows of a leaf are of class 1
    (1, 2, 0, 0.25, 0), (-1, -1, -2, -2.0, 4), (3, 4, 3, -0.5, 0), (-1, -1, -2, -2.0, 19), (-1, -1, -2, -2.0, 13),
]  # fmt: skip
FIELDS = [
    ("left_child", "<i8"), ("right_child", "<i8"), ("feature", "<i8"), ("threshold", "<f8"), ("impurity", "<f8"),
    ("missing_go_to_left", "u1"),
]  # fmt: skip


def by_hand(x: np.ndarray) -> float:
    """The chance of class 1, as NODES say it."""
    if x[0] <= 0.25:
        return 4 / 20
    return 19 / 20 if x[3] <= -0.5 else 13 / 20


@pytest.fixture
def pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a pickle as scikit-learn does, with classes of its names; returns a function of what may be changed."""
    classes, trees = ModuleType("sklearn.tree._classes"), ModuleType("sklearn.tree._tree")

    class DecisionTreeClassifier:
        pass

    class Tree:
        def __init__(self, *arguments: Any):
            self.arguments = arguments

        def __reduce__(self) -> Any:
            return (type(self), self.arguments, self.state)

    for module, cls in ((classes, DecisionTreeClassifier), (trees, Tree)):
        cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
        setattr(module, cls.__name__, cls)
    parents = [ModuleType("sklearn"), ModuleType("sklearn.tree")]

    def write(nodes: Any = NODES, flip: bool = False, counts: bool = False, features: int = 5, **state: Any) -> Path:
        table = np.zeros(len(nodes), dtype=FIELDS)
        for at, (left, right, feature, threshold, _) in enumerate(nodes):
            table[at] = (left, right, feature, threshold, 0.1, 0)
        ones = np.array([one for *_, one in nodes], dtype=float)
        values = np.stack([20 - ones, ones], axis=1)[:, None, :] / (1 if counts else 20)
        tree = Tree(features, np.array([2]), 1)
        tree.state = {"max_depth": 2, "nodes": table, "values": values[:, :, ::-1] if flip else values, **state}
        whole = DecisionTreeClassifier()
        whole.__dict__ = {"max_depth": 2, "criterion": "log_loss", "classes_": np.array([0, 1]), "tree_": tree}
        path = tmp_path / "decision_tree.pkl"
        with monkeypatch.context() as importable:
            for module in (*parents, classes, trees):
                importable.setitem(sys.modules, module.__name__, module)
            path.write_bytes(pickle.dumps(whole))
        return path

    return write


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_a_pickled_tree_gives_the_chance_that_the_first_is_better(pickled: Any, flip: bool, counts: bool):
    tree = load(pickled(flip=flip, counts=counts))
    rng = np.random.default_rng(0)
    for x in rng.normal(size=(200, 5)):
        assert tree.chance(x) == pytest.approx(by_hand(x))


def test_thresholds_are_met_in_float32(pickled: Any):
    tree = load(pickled())
    just_above = np.zeros(5)
    just_above[0] = 0.25 + 1e-12  # in float32 this is 0.25
    assert tree.chance(just_above) == pytest.approx(0.2)


def test_a_tree_goes_through_json_unchanged(pickled: Any, tmp_path: Path):
    path = pickled()
    decision_tree.main(str(path), str(tmp_path / "tree.json"))
    assert load(tmp_path / "tree.json") == load(path)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("this must never run",))


def test_a_pickle_that_asks_for_anything_else_is_refused_and_nothing_is_run(pickled: Any, tmp_path: Path, capsys: Any):
    path = tmp_path / "evil.pkl"
    for evil in (Evil(), {"tree_": Evil()}, [np.zeros(3), Evil()]):
        path.write_bytes(pickle.dumps(evil))
        with pytest.raises(UserError, match=r"asks for builtins\.print, which a decision tree does not need"):
            load(path)
    path.write_bytes(pickle.dumps(np.random.RandomState(0)))
    with pytest.raises(UserError, match="asks for numpy"):
        load(path)
    assert "never" not in capsys.readouterr().out


def test_what_is_no_tree_is_refused(pickled: Any, tmp_path: Path):
    loop = [(0, 2, 0, 0.25, 0), *NODES[1:]]
    with pytest.raises(UserError, match="does not lead to later nodes"):
        load(pickled(nodes=loop))
    beyond = [(1, 2, 7, 0.25, 0), *NODES[1:]]
    with pytest.raises(UserError, match="asks for no attribute"):
        load(pickled(nodes=beyond))
    undecided = [(-1, -1, -2, -2.0, 10)]
    with pytest.raises(UserError, match="prefers neither"):
        load(pickled(nodes=undecided))
    with pytest.raises(UserError, match="another layout"):
        load(pickled(nodes=NODES, values=np.array([None] * 5, dtype=object)))
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(np.zeros(3)))
    with pytest.raises(UserError, match="holds no decision tree"):
        load(tmp_path / "x.pkl")
    (tmp_path / "x.pkl").write_bytes(b"no pickle")
    with pytest.raises(UserError, match="not a pickle of a decision tree"):
        load(tmp_path / "x.pkl")
    for text in ("{}", "[" * 20_000, "{"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match="not a decision tree as raft writes it"):
            load(tmp_path / "x.json")
    with pytest.raises(UserError, match="no decision tree at"):
        load(tmp_path / "none.json")


@pytest.fixture
def folder(pickled: Any, tmp_path: Path) -> Path:
    """A tiny model of five attributes with its tree."""
    head = {"score.weight": rand(5, 32, scale=0.8), "score.bias": rand(5, scale=2)}
    path = pickled()
    folder = make(tmp_path / "model", head, "LlamaForDecisionTreeRewardModel", **labels(5))
    path.rename(folder / path.name)
    return folder


def attributes(folder: Path, texts: list[str]) -> np.ndarray:
    from safetensors.torch import load_file

    w = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    rows = [llama_hidden(folder, chat_ids(make_tokenizer(), text))[-1] for text in texts]
    return torch.stack([w["score.weight"] @ h + w["score.bias"] for h in rows]).numpy()


def test_k_responses_are_ranked_by_comparisons_in_both_orders(folder: Path):
    found = attributes(folder, TEXTS)
    count = len(TEXTS)
    wins = np.full((count, count), np.nan)
    for i, j in itertools.permutations(range(count), 2):
        wins[i, j] = (by_hand(found[i] - found[j]) + 1 - by_hand(found[j] - found[i])) / 2
    copeland = [sum((p > 0.5) + 0.5 * (p == 0.5) for p in row if not np.isnan(p)) for row in wins]
    keys = [(-copeland[i], -round(np.nansum(wins[i]), 9), -found[i][0], i) for i in range(count)]
    order = sorted(range(count), key=lambda i: keys[i])
    (scores, again) = DecisionTree(model=str(folder)).score(groups())
    assert [one.rank for one in scores] == [order.index(i) for i in range(count)]
    assert [one.rank for one in again] == [one.rank for one in scores]
    assert len({one.rank for one in scores}) == count
    assert sum(one.reward for one in scores) == pytest.approx(0, abs=1e-9)
    assert [one.parts["helpfulness"] for one in scores] == pytest.approx(found[:, 0].tolist(), abs=1e-4)
    assert np.argmax([one.reward for one in scores]) == max(range(count), key=lambda i: np.nansum(wins[i]))


def test_preferences_of_both_orders_add_up_to_one(pickled: Any):
    wins = preferences(load(pickled()), np.random.default_rng(1).normal(size=(6, 5)))
    off = ~np.eye(6, dtype=bool)
    assert (wins + wins.T)[off] == pytest.approx(np.ones(30))
    assert np.isnan(np.diag(wins)).all()


@pytest.mark.parametrize("chance", [0.4, 2 / 3, 0.1, 0.95])
def test_responses_with_equal_attributes_tie_whatever_the_leaf(chance: float):
    wins = preferences(Tree(2, [-2], [0.0], [-1], [-1], [chance]), np.ones((3, 2)))
    assert (wins[~np.eye(3, dtype=bool)] == 0.5).all()


def test_what_cannot_be_scored_stays_beside_the_ranked(folder: Path):
    long = "x" * 300
    (scores,) = DecisionTree(model=str(folder)).score(groups(["Hi.", long, "No"])[:1])
    assert scores[1].reward is None and scores[1].rank is None and "tokens" in scores[1].error
    assert {scores[0].rank, scores[2].rank} == {0, 1}
    given = [Group(Prompt("p", messages=[{"role": "user", "content": "x"}]), [Response(long, [], None, "stop")])]
    ((only,),) = DecisionTree(model=str(folder)).score(given)
    assert only.reward is None


def test_attributes_that_a_server_computes_are_ranked_as_those_in_memory(folder: Path):
    server = RewardServer(folder)
    try:
        far = DecisionTree(model=str(folder), url=server.url, served_model_name="tiny")
        near = DecisionTree(model=str(folder))
        ranks = [[[one.rank for one in scores] for scores in reward.score(groups())] for reward in (far, near)]
        assert ranks[0] == ranks[1] and len(server.scored) == 2 * len(TEXTS)
    finally:
        server.stop()


def test_the_tree_of_another_model_is_refused(folder: Path, pickled: Any):
    other = pickled(features=4)
    with pytest.raises(UserError, match=r"compares 4 attributes, but .* has 5"):
        list(DecisionTree(model=str(folder), tree=str(other)).score(groups()))
    (folder / "decision_tree.pkl").unlink()
    with pytest.raises(UserError, match=r"has none of decision_tree\.json, decision_tree\.pkl"):
        list(DecisionTree(model=str(folder)).score(groups()))


def test_the_attributes_alone_are_a_reward_between_prompts(folder: Path):
    found = rewards(RewardModel(model=str(folder), label="helpfulness"), groups())
    assert found[:5] == pytest.approx(attributes(folder, TEXTS)[:, 0].tolist(), abs=1e-4)
    assert not comparable(DecisionTree) and comparable(RewardModel)


def test_a_tree_as_json_is_checked_too():
    with pytest.raises(UserError, match="no probability"):
        Tree(5, [-2], [0.0], [-1], [-1], [1.5])
    for feature, left in (([0, -2, -2], [1.0, -1, -1]), ([0.0, -2, -2], [1, -1, -1])):
        with pytest.raises(UserError, match="not a whole number"):
            Tree(5, feature, [0.0] * 3, left, [2, -1, -1], [0.5, 0.0, 1.0])


@pytest.mark.nightly
def test_an_alignment_selects_by_rank_and_shows_no_reward_between_prompts(folder: Path, tmp_path: Path):
    reward = {"kind": "decision-tree", "model": str(folder), "template": "plain"}
    worlds.make_recipe(tmp_path, reward=reward, iterations=1)
    done = worlds.raft(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "tiny"
    scores = {row["prompt_id"]: row["scores"] for row in read(run / "iterations/001/scores.jsonl")}
    for row in read(run / "iterations/001/selected.jsonl"):
        assert scores[row["prompt_id"]][row["index"]]["rank"] == 0
    before, after = read(run / "metrics.jsonl")
    assert "gold/eval" in before and "gold/eval" in after and "selection/examples" in before
    assert not any(name.startswith(("reward/mean", "reward/best", "reward/eval")) for name in {**before, **after})
    assert not (run / "iterations/001/evaluation/scores.jsonl").exists()
    shown = worlds.raft(tmp_path, "show", "outputs/tiny")
    assert shown.returncode == 0 and "policy 0 (held-out prompt)" in shown.stdout, shown.stderr
    again = worlds.raft(tmp_path, "run", "recipe.yaml")
    assert again.returncode == 0 and (run / "metrics.jsonl").read_bytes()


def test_a_recipe_that_compares_ranks_between_prompts_is_refused(folder: Path, tmp_path: Path):
    reward = {"kind": "decision-tree", "model": str(folder), "template": "plain"}
    selection = {"kind": "top-fraction", "fraction": 0.5, "kl_coef": 0.1, "length_control": True}
    worlds.make_recipe(tmp_path, reward=reward, selection=selection, evaluation={"gold": None})
    done = worlds.raft(tmp_path, "check", "recipe.yaml")
    assert done.returncode == 2
    for key in ("selection.kind", "selection.kl_coef", "selection.length_control", "evaluation.gold"):
        assert f"{key}: the reward compares the responses of one prompt" in done.stderr
