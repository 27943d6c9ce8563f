"""The Acorn Café: a world small enough to learn in a minute, with which the quickstart shows the whole loop.

A guest of the woods orders, and a waiter answers. Everything is made here, from a grammar and a seed: the orders;
the answers of courteous, careless and rude waiters, from which a policy learns the language; the pairs from which a
reward model learns taste, a share of them the wrong way round, so that the reward is an imperfect proxy; and `gold`,
the hidden rule that says how good an answer really is.

    prompts: {kind: acorn_cafe:Prompts, count: 2048, per_iteration: 256}
    evaluation:
      prompts: {kind: acorn_cafe:Prompts, count: 256, part: held-out}
      gold: {kind: rule, function: acorn_cafe:gold}
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Literal

from raft.core.options import faults_of_range
from raft.core.records import Prompt
from raft.core.seeds import derive
from raft.data import examples, prompts
from raft.data.sources import Row, Rows, Source

VERSION = 1  # of the grammar and the rule; raise it when the same seed begins to make something else

GUESTS = ["Mole", "Fox", "Owl", "Hare", "Badger", "Otter", "Robin", "Mouse", "Hedgehog", "Squirrel", "Frog", "Toad"]
NUMBERS = ["two", "three", "four", "five", "six"]
FLAVOURS = ["plum", "honey", "cherry", "walnut", "carrot", "apple", "ginger", "pumpkin"]
BAKES = ["muffins", "scones", "pies", "buns", "tarts", "cookies", "pancakes", "rolls"]
DRINKS = ["mint tea", "hot cocoa", "oat milk", "pear cider", "lemonade", "acorn coffee", "nettle soup", "rose juice"]
MENU = {"number": NUMBERS, "flavour": FLAVOURS, "bake": BAKES, "drink": DRINKS}
SORTS = {"guest": GUESTS, **MENU}

REQUESTS = [
    "I am {guest}. I would like {number} {flavour} {bake} and {drink}, please.",
    "Hello, my name is {guest}. May I have {number} {flavour} {bake} and {drink}?",
    "Good day! {guest} would like {number} {flavour} {bake} and {drink}.",
    "Could you bring {drink} and {number} {flavour} {bake}? I am {guest}.",
    "This is {guest}. Some {drink} with {number} {flavour} {bake}, please.",
    "My name is {guest}. What about {number} {flavour} {bake} with {drink}?",
]

WELCOMES = ["Welcome, dear {guest}!", "Good morning, {guest}!", "Hello, {guest}!", "Come in, {guest}!"]
SERVINGS = ["Here are your {number} {flavour} {bake} and {drink}."]
SERVINGS += ["I bring you {number} {flavour} {bake} and {drink}."]
FAREWELLS = ["Enjoy your meal!", "Have a lovely day!", "Thank you for coming!"]

GRUMBLES = ["Hmph.", "Yes?", "You again, {guest}?"]
DRINKLESS = ["Here are {number} {flavour} {bake}.", "I bring you {number} {flavour} {bake}."]
REFUSALS = ["The kitchen is closed.", "Find it yourself.", "I am too tired for this."]
SENDOFFS = ["Now go away.", "Pay and leave.", "Do not come back."]
DREAMERS = ["The moon", "My left boot", "An old spoon", "My uncle", "That cloud", "Some king"]
DREAMING = ["smells of", "dreams of", "talks to", "runs from", "looks like"]
DREAMS = ["wet moss", "a broom", "seven snails", "the rain", "a lost sock", "grey soap"]

GREETING = ["welcome", "good morning", "hello", "come in"]
FAREWELL = ["enjoy your meal", "lovely day", "thank you"]
RUDE = ["hmph", "you again", "closed", "find it yourself", "too tired", "go away", "pay and leave", "do not come back"]

CARES = {"good": 0.1, "fair": 0.35, "poor": 0.55}  # how common each care is among the answers
MANNERS = {"good": 0.9, "fair": 0.5, "poor": 0.1}  # how likely each sentence is as it should be
HEED = {"good": 0.97, "fair": 0.8, "poor": 0.5}  # how likely each word of the order is heeded
HEARING = 0.6  # share of the pairs that differ in nothing but that

Order = dict[str, str]  # of each sort, what the guest wants
Part = Literal["train", "held-out"]
MOST = {"train": 24000, "held-out": 2500}  # nearly all the orders there are; each row is another one


def instructions(count: int, seed: int, part: Part = "train") -> Iterator[Row]:
    """Rows of `count` different orders: `id`, `prompt`, and what was ordered, a column for each sort.

    No order of the part "train" is one of "held-out", whatever the seeds; there are 27,625 and 3,095 of them.
    """
    for prompt, order in _requests(count, seed, part):
        yield {"id": _name(order), "prompt": prompt, **order}


def answers(count: int, seed: int) -> Iterator[Row]:
    """Rows of `prompt` and `response`, courteous, careless and rude ones."""
    random = Random(derive("answers", seed))
    for prompt, order in _requests(count, seed):
        yield {"prompt": prompt, "response": _answer(order, random)}


def preferences(count: int, seed: int, noise: float) -> Iterator[Row]:
    """Rows of `prompt`, `chosen` and `rejected`: the answer of more gold is chosen, with chance `noise` the other."""
    random = Random(derive("preferences", seed))
    for prompt, order in _requests(count, seed):
        rejected, chosen = _pair(order, random)
        if random.random() < noise:
            rejected, chosen = chosen, rejected
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def gold(prompt: Prompt, response: str) -> dict[str, float]:
    """How good an answer really is, 0 to 10, and the parts of which that is the sum.

    1 for a greeting, 1 for the guest's name, 1 each for the number, flavour, bake and drink that were ordered (0 where
    another of its sort is named as well), 1 for a farewell, 1 if nothing is rude, 2 for the share of sentences that
    belong in a café. A text without one such sentence gets nothing.
    """
    order, text = prompt.meta, _plain(response)
    sentences = [one for one in map(_plain, re.split(r"[.!?\n]", response)) if one.strip()]
    fitting = sum(map(_belongs, sentences))
    parts = {
        "greeting": _says(text, GREETING),
        **{sort: _says(text, [order[sort]]) and not _says(text, _others(sort, order)) for sort in SORTS},
        "farewell": _says(text, FAREWELL),
        "kind": not _says(text, RUDE),
        "focus": 2 * fitting / max(1, len(sentences)),
    }
    points = {part: float(value if fitting else 0) for part, value in parts.items()}
    return {"reward": sum(points.values()), **points}


@dataclass(frozen=True, kw_only=True)
class World(Source):
    """`count` rows of the world, made from a seed whenever they are read."""

    count: int = 4096
    seed: int = 0

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from faults_of_range(self, count=(1, MOST[getattr(self, "part", "train")]))

    def rows(self) -> Rows:
        for index, row in enumerate(self._make()):
            yield f"{type(self).__name__}[{index}]", row

    def identify(self) -> str:
        return f"acorn café, version {VERSION}"

    def _make(self) -> Iterator[Row]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class InstructionRows(World):
    """The rows of `instructions`."""

    part: Part = "train"

    def _make(self) -> Iterator[Row]:
        return instructions(self.count, self.seed, self.part)


@dataclass(frozen=True, kw_only=True)
class AnswerRows(World):
    """The rows of `answers`."""

    def _make(self) -> Iterator[Row]:
        return answers(self.count, self.seed)


@dataclass(frozen=True, kw_only=True)
class PreferenceRows(World):
    """The rows of `preferences`."""

    noise: float = 0.1

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        yield from faults_of_range(self, noise=(0, 1))

    def _make(self) -> Iterator[Row]:
        return preferences(self.count, self.seed, self.noise)


@dataclass(frozen=True, kw_only=True)
class Prompts(prompts.Prompts, InstructionRows):
    """kind: acorn_cafe:Prompts."""


@dataclass(frozen=True, kw_only=True)
class Answers(examples.Examples, AnswerRows):
    """kind: acorn_cafe:Answers."""


@dataclass(frozen=True, kw_only=True)
class Preferences(examples.Examples, PreferenceRows):
    """kind: acorn_cafe:Preferences."""

    pairs: Literal["columns"] = "columns"


def _requests(count: int, seed: int, part: Part = "train") -> Iterator[tuple[str, Order]]:
    random = Random(derive("requests", seed, part))
    for order in islice(_orders(random, part), count):
        yield random.choice(REQUESTS).format(**order), order


def _orders(random: Random, part: Part) -> Iterator[Order]:
    seen = set()
    while True:
        order = {sort: random.choice(names) for sort, names in SORTS.items()}
        name = _name(order)
        if name not in seen and _part(name) == part:
            seen.add(name)
            yield order


def _name(order: Order) -> str:
    return "-".join(order.values()).replace(" ", "-").lower()


def _part(name: str) -> Part:
    return "held-out" if derive("part", name) % 10 == 0 else "train"


def _pair(order: Order, random: Random) -> list[str]:
    """Two answers of different gold, the worse one first."""
    prompt = Prompt(id=_name(order), text="", meta=order)
    while True:
        found = {gold(prompt, text)["reward"]: text for text in _two(order, random)}
        if len(found) == 2:
            return [found[reward] for reward in sorted(found)]


def _two(order: Order, random: Random) -> list[str]:
    """Any two answers; or the same sentences, once well heard and once not, for that is the harder thing to judge."""
    if random.random() >= HEARING:
        return [_answer(order, random), _answer(order, random)]
    sentences = _said("good", random)
    return [_served(order, sentences, heed, random) for heed in (1.0, random.uniform(0, 0.6))]


def _answer(order: Order, random: Random) -> str:
    care = random.choices(list(CARES), list(CARES.values()))[0]
    return _served(order, _said(care, random), HEED[care], random)


def _said(care: str, random: Random) -> str:
    """The sentences of an answer, with the order left open."""

    def polite() -> bool:
        return random.random() < MANNERS[care]

    sentences = [
        random.choice(WELCOMES if polite() else GRUMBLES),
        random.choice(SERVINGS if polite() else DRINKLESS + REFUSALS),
        random.choice(FAREWELLS if polite() else SENDOFFS),
    ]
    for _ in range(2):
        if not polite():
            sentences.insert(random.randrange(len(sentences) + 1), _dream(random))
    return " ".join(sentences)


def _served(order: Order, sentences: str, heed: float, random: Random) -> str:
    """The sentences with the order as it was heard."""

    def heard(sort: str) -> str:
        return order[sort] if random.random() < heed else random.choice(SORTS[sort])

    return sentences.format(**{sort: heard(sort) for sort in SORTS})


def _dream(random: Random) -> str:
    return f"{random.choice(DREAMERS)} {random.choice(DREAMING)} {random.choice(DREAMS)}."


def _plain(text: str) -> str:
    """The words in lower case with a blank around each, so that a phrase is found as whole words only."""
    return " ".join(["", *re.findall(r"\w+", text.lower()), ""])


def _says(text: str, phrases: Iterable[str]) -> bool:
    return any(f" {phrase.lower()} " in text for phrase in phrases)


def _others(sort: str, order: Order) -> list[str]:
    return [name for name in SORTS[sort] if name != order[sort]]


def _belongs(sentence: str) -> bool:
    return any(_says(sentence, phrases) for phrases in (GREETING, FAREWELL, *MENU.values()))
