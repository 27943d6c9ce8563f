"""The prompts of recipes/arithmetic.yaml, made from a seed: a source of one's own in a few lines."""

from dataclasses import dataclass
from random import Random

from raft.core.seeds import derive
from raft.data import prompts
from raft.data.sources import Rows


@dataclass(frozen=True, kw_only=True)
class Products(prompts.Prompts):
    """`count` products of two whole numbers of `digits` digits each; the column `answer` holds the result."""

    count: int = 4096
    digits: int = 2
    seed: int = 0

    def rows(self) -> Rows:
        random = Random(derive("products", self.seed))
        low, high = 10 ** (self.digits - 1), 10**self.digits - 1
        for number in range(self.count):
            one, other = random.randint(low, high), random.randint(low, high)
            yield f"product {number}", {"prompt": f"What is {one} * {other}?", "answer": one * other}
