"""kind: decision-tree. A model of several attributes, and a small tree that says which of two responses is better.

    reward: {kind: decision-tree, model: RLHFlow/Decision-Tree-Reward-Llama-3.1-8B}

The tree compares the attributes of two responses to one prompt, each pair in both orders. The K responses are ranked by
the comparisons that each wins; the reward is the Bradley-Terry strength, which says nothing between prompts. A tree is
read from JSON, or once from the pickle that comes with the published models, by a reader that runs nothing:

    python -m raft.rewards.decision_tree decision_tree.pkl decision_tree.json
"""

import io
import json
import pickle
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from raft.core.errors import UserError
from raft.core.options import source
from raft.core.records import Group, Score
from raft.metrics import ranking
from raft.rewards.model import RewardModel

LEAF = -1
ARRAYS = (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
NUMPY = {(f"{core}.{module}", name) for core in ("numpy.core", "numpy._core") for module, name in ARRAYS}
NUMPY |= {("numpy", "ndarray"), ("numpy", "dtype")}
CLASSES = {("sklearn.tree._classes", "DecisionTreeClassifier"), ("sklearn.tree._tree", "Tree")}


@dataclass(frozen=True, kw_only=True)
class DecisionTree(RewardModel):
    """The attributes of a model with several outputs, compared by a tree; equals go by the attribute `label`.

    `tree` is a file, *.json or *.pkl; without it the model's own decision_tree.json or decision_tree.pkl.
    """

    comparable: ClassVar[bool] = False

    tree: str | None = source("file", None)
    label: int | str | None = "helpfulness"

    def score(self, groups: Iterable[Group]) -> Iterator[list[Score]]:
        block = list(groups)
        for scores in super().score(block):
            yield self._ranked(scores)

    @cached_property
    def _tree(self) -> "Tree":
        from raft.models import hub

        names = ("decision_tree.json", "decision_tree.pkl")
        path = Path(self.tree) if self.tree else hub.locate_file(self.model, names, self.revision)
        found = load(path)
        if found.features != len(self.runner.names):
            raise UserError(
                f"{path} compares {found.features} attributes, but {self.model} has {len(self.runner.names)}: "
                f"{', '.join(self.runner.names)}; name the tree that belongs to the model in reward.tree"
            )
        return found

    def _ranked(self, scores: list[Score]) -> list[Score]:
        """The scores of a group ranked; what has no attributes stays as it is, beside the others."""
        tree = self._tree  # first: it names a model that has no attributes
        known = [index for index, score in enumerate(scores) if score.reward is not None]
        attributes = np.array([[scores[index].parts[name] for name in self.runner.names] for index in known])
        wins = preferences(tree, attributes)
        liked = [scores[index].reward or 0.0 for index in known]
        order = ranking.ranked(wins, liked)
        found = dict(zip(known, ranking.scores(wins, order, [scores[index].parts for index in known]), strict=True))
        return [found.get(index, score) for index, score in enumerate(scores)]


@dataclass(frozen=True)
class Tree:
    """A binary tree over differences of attributes: at node i go left if difference[feature[i]] <= threshold[i].

    `first` is the chance, at each leaf, that the first of two responses is the better one. A leaf has left = -1.
    """

    features: int
    feature: list[int]
    threshold: list[float]
    left: list[int]
    right: list[int]
    first: list[float]

    def __post_init__(self) -> None:
        if len({len(self.feature), len(self.threshold), len(self.left), len(self.right), len(self.first)}) != 1:
            raise UserError("the lists of the decision tree are not of one length; the file is damaged")
        if not all(type(one) is int for one in (*self.feature, *self.left, *self.right)):
            raise UserError("a node of the decision tree is not a whole number; the file is damaged")
        for at, left in enumerate(self.left):
            if left == LEAF:
                continue
            if not (at < left < len(self.left) and at < self.right[at] < len(self.left)):
                raise UserError(f"node {at} of the decision tree does not lead to later nodes; the file is damaged")
            if not (0 <= self.feature[at] < self.features and np.isfinite(self.threshold[at])):
                raise UserError(f"node {at} of the decision tree asks for no attribute; the file is damaged")
        if not all(0 <= chance <= 1 for chance in self.first):
            raise UserError("a leaf of the decision tree holds no probability; the file is damaged")

    def chance(self, difference: np.ndarray) -> float:
        """How surely the first is better, given its attributes minus the second's, [features].

        Differences are cut to float32 as scikit-learn cuts them: a threshold may lie between the two.
        """
        at, x = 0, difference.astype(np.float32)
        while self.left[at] != LEAF:
            at = self.left[at] if x[self.feature[at]] <= self.threshold[at] else self.right[at]
        return self.first[at]


def preferences(tree: Tree, attributes: np.ndarray) -> np.ndarray:
    """The preference matrix [K, K] of responses with these attributes [K, features], each pair in both orders.

    A tree is not antisymmetric, so the two orders are averaged: P[i, j] = (p(i before j) + 1 - p(j before i)) / 2.
    """
    count = len(attributes)
    first = np.full((count, count), np.nan)
    for i in range(count):
        for j in range(count):
            if i != j:
                first[i, j] = tree.chance(attributes[i] - attributes[j])
    return 0.5 + (first - first.T) / 2  # exactly one half where both orders agree, which is a tie


def load(path: Path) -> Tree:
    """The tree of a file: JSON as `main` writes it, or scikit-learn's pickle. UserError if it is neither."""
    if not path.is_file():
        raise UserError(f"no decision tree at {path.absolute()}")
    if path.suffix == ".pkl":
        return _of_sklearn(path, _Reader(path).load())
    try:
        return Tree(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError, OSError) as fault:
        raise UserError(f"{path}: not a decision tree as raft writes it ({fault}); convert the pickle again") from None


class _Stub:
    """Stands for a class of scikit-learn: it keeps what the pickle holds, and does nothing."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """Reads arrays and the two classes of a tree; whatever else a pickle asks for is refused, and nothing is run."""

    def __init__(self, path: Path):
        super().__init__(io.BytesIO(path.read_bytes()))
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in CLASSES:
            return _Stub
        if (module, name) in NUMPY:
            return super().find_class(module, name)
        raise UserError(
            f"{self.path} asks for {module}.{name}, which a decision tree does not need; it is not read any further. "
            "A pickle can run any program: use only the one that the model's authors publish"
        )

    def load(self) -> Any:
        try:
            return super().load()
        except UserError:
            raise
        except Exception as fault:
            raise UserError(f"{self.path}: not a pickle of a decision tree ({type(fault).__name__}: {fault})") from None


def _of_sklearn(path: Path, found: Any) -> Tree:
    """The tree in a DecisionTreeClassifier of scikit-learn, of any version."""
    tree = found.state.get("tree_") if isinstance(found, _Stub) else None
    if not isinstance(tree, _Stub):
        raise UserError(f"{path}: holds no decision tree of scikit-learn")
    try:
        nodes, values, features = tree.state["nodes"], tree.state["values"], int(tree.arguments[0])
        assert not nodes.dtype.hasobject and not values.dtype.hasobject
        counts = np.asarray(values, dtype=np.float64)[:, 0, :]
        shares = counts / counts.sum(axis=1, keepdims=True)  # older versions store counts, newer ones shares
        columns = {name: nodes[name].tolist() for name in ("feature", "threshold", "left_child", "right_child")}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError) as fault:
        raise UserError(f"{path}: a decision tree of another layout than scikit-learn's ({fault})") from None
    if shares.shape[1:] != (2,):
        raise UserError(f"{path}: a tree of {shares.shape[1]} classes; it has to choose between two responses")
    left = [LEAF if one == LEAF else one for one in columns["left_child"]]

    def tree_with(column: int) -> Tree:
        chances = shares[:, column].tolist()
        return Tree(features, columns["feature"], columns["threshold"], left, columns["right_child"], chances)

    return tree_with(_first_class(path, tree_with(0), features))


def _first_class(path: Path, zero: Tree, features: int) -> int:
    """Which class means that the first response is better: the one that a response better in all attributes gets."""
    better, worse = (zero.chance(np.full(features, sign * 4.0)) for sign in (1, -1))
    if better == worse:
        raise UserError(f"{path}: the tree prefers neither a response that is better in all attributes nor a worse one")
    return 0 if better > worse else 1


def main(pickled: str, out: str) -> None:
    """Writes the tree of a pickle as JSON."""
    Path(out).write_text(json.dumps(asdict(load(Path(pickled)))) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (UserError, TypeError) as fault:
        sys.exit(f"raft: {fault}; usage: python -m raft.rewards.decision_tree decision_tree.pkl decision_tree.json")
