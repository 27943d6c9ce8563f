"""The Acorn Café: a world small enough to learn in a minute, with which the quickstart shows the whole loop.

A guest of the woods orders something; a policy that has read good and bad waiters answers. Everything is made
here, from a grammar and a seed: the orders, the answers to learn the language from (courteous, careless and
rude ones), the pairs that a reward model learns from (a share of them the wrong way round, so the reward is an
imperfect proxy), and `gold`, the hidden rule that says how good an answer really is.

    prompts: {kind: raft.world:Prompts, count: 2048}
    gold: {kind: rule, function: raft.world:gold}
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any, Literal

from raft.records import Prompt
from raft.seeds import derive

VERSION = 1  # of the grammar and of the rule; raise it when either changes what a seed makes

GUESTS = ["Mole", "Fox", "Owl", "Hare", "Badger", "Otter", "Robin", "Mouse"]
GUESTS += ["Hedgehog", "Squirrel", "Beaver", "Frog", "Wren", "Deer", "Toad", "Magpie"]
NUMBERS = ["two", "three", "four", "five", "six"]
FLAVOURS = ["plum", "honey", "cherry", "walnut", "carrot", "apple", "ginger", "pumpkin", "berry", "almond"]
BAKES = ["muffins", "scones", "pies", "buns", "tarts", "cookies", "pancakes", "rolls"]
DRINKS = ["mint tea", "hot cocoa", "oat milk", "pear cider", "lemonade", "acorn coffee", "nettle soup", "rose juice"]
MENU = {"number": NUMBERS, "flavour": FLAVOURS, "bake": BAKES, "drink": DRINKS}

REQUESTS = [
    "I am {guest}. I would like {number} {flavour} {bake} and {drink}, please.",
    "Hello, my name is {guest}. May I have {number} {flavour} {bake} and {drink}?",
    "Good day! {guest} would like {number} {flavour} {bake} and {drink}.",
    "Could you bring {drink} and {number} {flavour} {bake}? I am {guest}.",
    "{guest} here. Some {drink} with {number} {flavour} {bake}, please.",
    "My name is {guest}. What about {number} {flavour} {bake} with {drink}?",
]

WELCOMES = ["Welcome, dear {guest}!", "Good morning, {guest}!", "Hello, {guest}!", "Come in, {guest}!"]
SERVINGS = ["Here are your {number} {flavour} {bake} and {drink}.", "I bring you {number} {flavour} {bake} and {drink}."]
DRINKLESS = ["Here are {number} {flavour} {bake}.", "I bring you {number} {flavour} {bake}."]
FAREWELLS = ["Enjoy your meal!", "Have a lovely day!", "Thank you for coming!"]

GRUMBLES = ["Hmph.", "Yes?", "You again, {guest}?"]
REFUSALS = ["The kitchen is closed.", "Find it yourself.", "I am too tired for this."]
SENDOFFS = ["Now go away.", "Pay and leave.", "Do not come back."]
DREAMERS = ["The moon", "My left boot", "An old spoon", "My uncle", "That cloud", "Some king"]
DREAMING = ["smells of", "dreams of", "talks to", "runs from", "looks like"]
DREAMS = ["wet moss", "a broom", "seven snails", "the rain", "a lost sock", "grey soap"]

GREETING = {"welcome", "good morning", "hello", "come in"}
FAREWELL = {"enjoy your meal", "lovely day", "thank you"}
RUDE = {"hmph", "you again", "closed", "find it yourself", "too tired", "go away", "pay and leave", "do not come back"}

MANNERS = {"good": 0.9, "fair": 0.5, "poor": 0.1}  # how likely each sentence is as it should be, by the care taken
HEED = {"good": 0.97, "fair": 0.8, "poor": 0.5}  # how likely each detail of the order is heeded
SHARES = {"good": 0.1, "fair": 0.35, "poor": 0.55}  # how common each care is among the answers


def instructions(count: int, seed: int, part: str = "train") -> Iterator[dict[str, Any]]:
    """Rows of distinct orders: id, prompt, and meta with what was ordered, which `gold` reads.

    No order of the part "train" is ever one of "held-out", whatever the seeds.
    """
    for order, random in islice(_orders(seed, part), count):
        yield {"id": _name(order), "prompt": random.choice(REQUESTS).format(**order), "meta": order}


def answers(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of prompt and response, courteous, careless and rude, to learn the language from."""
    for row in instructions(count, seed):
        random = Random(derive("answer", seed, row["id"]))
        yield {"prompt": row["prompt"], "response": _answer(row["meta"], _care(random), random)}


def preferences(count: int, seed: int, noise: float) -> Iterator[dict[str, Any]]:
    """Rows of prompt, chosen and rejected: two answers by their gold, a share `noise` of the pairs the wrong way round."""
    for row in instructions(count, seed):
        random = Random(derive("preference", seed, row["id"]))
        worse, better = _pair(row["meta"], random)
        if random.random() < noise:
            worse, better = better, worse
        yield {"prompt": row["prompt"], "chosen": better, "rejected": worse}


def gold(prompt: Prompt, response: str) -> dict[str, float]:
    """How good an answer really is, 0 to 10, and the parts it is the sum of.

    2 for a welcome by name (a point each), 4 for the right number, flavour, bake and drink (none where another
    of its sort is named too), 1 for a farewell, 1 if nothing is rude, 2 for the share of sentences that belong here.
    """
    order, text = prompt.meta, _plain(response)
    sentences = [_plain(one) for one in re.split(r"[.!?\n]+", response) if re.search(r"\w", one)]
    fitting = sum(_belongs(one) for one in sentences)
    parts = {
        "greeting": _says(text, GREETING),
        "guest": _only(text, order["guest"], GUESTS),
        **{sort: _only(text, order[sort], known) for sort, known in MENU.items()},
        "farewell": _says(text, FAREWELL),
        "kind": fitting > 0 and not _says(text, RUDE),
        "focus": 2 * fitting / max(1, len(sentences)),
    }
    return {"reward": float(sum(parts.values())), **{name: float(value) for name, value in parts.items()}}


def _orders(seed: int, part: str) -> Iterator[tuple[dict[str, str], Random]]:
    seen = set()
    random = Random(derive("orders", seed, part))
    while True:
        order = {"guest": random.choice(GUESTS), **{sort: random.choice(known) for sort, known in MENU.items()}}
        name = _name(order)
        if name not in seen and _part(name) == part:
            seen.add(name)
            yield order, random


def _name(order: dict[str, str]) -> str:
    return "-".join(order.values()).replace(" ", "-").lower()


def _part(name: str) -> str:
    return "held-out" if derive("part", name) % 10 == 0 else "train"


def _care(random: Random) -> str:
    return random.choices(list(SHARES), list(SHARES.values()))[0]


def _pair(order: dict[str, str], random: Random) -> list[str]:
    """Two answers of different gold, the worse one first."""
    prompt = Prompt(id="", text="", meta=order)
    while True:
        found = {gold(prompt, text)["reward"]: text for text in (_answer(order, _care(random), random) for _ in range(2))}
        if len(found) == 2:
            return [found[reward] for reward in sorted(found)]


def _answer(order: dict[str, str], care: str, random: Random) -> str:
    def right() -> bool:
        return random.random() < MANNERS[care]

    def heeded() -> bool:
        return random.random() < HEED[care]

    known = {"guest": GUESTS, **MENU}
    served = {sort: order[sort] if heeded() else random.choice(names) for sort, names in known.items()}
    told = [
        random.choice(WELCOMES if right() else GRUMBLES),
        random.choice(SERVINGS if right() else DRINKLESS + REFUSALS),
        random.choice(FAREWELLS if right() else SENDOFFS),
    ]
    for _ in range(2):
        if not right():
            told.insert(random.randrange(len(told) + 1), _ramble(random))
    return " ".join(told).format(**served)


def _ramble(random: Random) -> str:
    return f"{random.choice(DREAMERS)} {random.choice(DREAMING)} {random.choice(DREAMS)}."


def _plain(text: str) -> str:
    """The words in lower case, a blank around each, so that a phrase is found only as whole words."""
    return " ".join(["", *re.findall(r"\w+", text.lower()), ""])


def _says(text: str, phrases: Iterable[str]) -> bool:
    return any(f" {phrase.lower()} " in text for phrase in phrases)


def _only(text: str, right: str, known: list[str]) -> bool:
    return _says(text, [right]) and not _says(text, (other for other in known if other != right))


def _belongs(sentence: str) -> bool:
    return _says(sentence, GREETING | FAREWELL) or any(_says(sentence, known) for known in MENU.values())
