"""Every objective, both ways of sampling, and the defences against a flawed reward, each on the same prompts.

The tables are in docs/objectives.md and docs/over-optimisation.md.

    python benchmarks/study.py quickstart outputs/study --seeds 0,1,2      # about a minute a run on two cores
    python benchmarks/study.py sums outputs/study --seeds 0,1,2            # seconds a run, 0/1 reward
    python benchmarks/study.py tinystories outputs/study variables.data=FOLDER       # three minutes a run
    python benchmarks/study.py gamed outputs/study --seeds 0,1,2           # half a minute a run, planted flaws
    python benchmarks/study.py quickstart outputs/study --methods random "raft++, 8 epochs"
    python benchmarks/study.py quickstart outputs/study --table            # of what is there, runs nothing

Runs that are there are not run again. In iteration 1 all methods with one seed see the same prompts and, but for
adaptive sampling, the same responses. `sums` is made here: a tiny Llama learns sums of two numbers below 30 from
examples of which two in five are wrong, and the reward is 1 for the right sum. `gamed` is the quickstart's world, where
the reward is the gold reward and something more for each word, each dream or each rudeness.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import numpy as np

from raft.core import records
from raft.store.stamps import stamped

PG = ["trainer.kind=policy-gradient"]
METHODS = {
    "best-of-k": [],
    "best-of-k, 8 epochs": ["trainer.num_train_epochs=8"],  # as many steps as for all eight responses
    "raft++, 8 epochs": ["trainer.num_train_epochs=8", *PG],
    "softmax": ["selection.kind=softmax", "selection.temperature=0.5"],
    "reward-weighted": ["selection.kind=reward-weighted", "selection.temperature=0.5"],
    "expected-best": ["selection.kind=expected-best", "selection.n=4"],
    "random": ["selection.kind=random"],
    "raft++": PG,
    "reinforce": ["selection.kind=advantage", *PG],
    "log-quantile": ["selection.kind=advantage", "selection.reward=log-quantile", *PG],
}
SOLVED = ["selection.minimum=1.0"]
REWARDED = {
    "best-of-k": SOLVED,
    "until-success": [*SOLVED, "sampling={kind: until-success, rounds: [1, 1, 2, 4]}"],
    "threshold": ["selection.kind=threshold", "selection.minimum=1.0"],
    "random": ["selection.kind=random"],
    "raft++": [*SOLVED, *PG],
    "reinforce": ["selection.kind=advantage", *PG],
}
STORIES = {
    "random": ["selection.kind=random"],
    "best-of-k": [],
    "expected-gain": ["generator.k=32", "sampling={kind: expected-gain, first: 4, budget: 8.0, most: 32}"],
    "raft++": PG,
    "reward-weighted": ["selection.kind=reward-weighted", "selection.temperature=0.5"],
}
SIZES = {  # of the recipes that come with raft
    "quickstart": ["iterations=3", "prompts.per_iteration=128", "evaluation.count=64"],
    "tinystories": ["iterations=3", "prompts.per_iteration=96", "evaluation.count=64"],
}
SUMS = {
    "sums-policy.yaml": """
job: sft
name: sums-policy
policy:
  config: {model_type: llama, hidden_size: 128, intermediate_size: 256, num_hidden_layers: 3, num_attention_heads: 4,
    num_key_value_heads: 4, max_position_embeddings: 96, tie_word_embeddings: false, initializer_range: 0.08}
  vocab_size: 280
examples: {kind: file, path: taught.jsonl, response: answer}
trainer: {kind: sft, learning_rate: 3.0e-3, num_train_epochs: 3, batch_size: 64, warmup_ratio: 0.05}
""",
    "sums.yaml": """
name: sums
policy: {recipe: sums-policy.yaml}
iterations: 5
prompts: {kind: file, path: asked.jsonl, per_iteration: 256}
generator: {kind: vllm, k: 8, max_tokens: 8}
reward: {kind: rule, function: "sums:right"}
selection: {kind: best-of-k}
trainer: {kind: sft, learning_rate: 1.0e-3, num_train_epochs: 1, batch_size: 32}
evaluation: {prompts: {kind: file, path: held.jsonl}, count: 128, k: 4}
""",
    "sums.py": '''
def right(prompt, response):
    """1 for the right sum."""
    one, other = prompt.text.removesuffix("=").split("+")
    return float(response.strip() == str(int(one) + int(other)))
''',
}


def flawed(*flaws: str, weight: float = 1.0) -> str:
    """The gold reward with these flaws planted."""
    return f"{{kind: rule, function: 'gamed:proxy', args: {{flaws: [{', '.join(flaws)}], weight: {weight}}}}}"


def three(combine: str, *more: str) -> list[str]:
    """An ensemble of three rewards, each with a flaw of its own, and all with `more`."""
    members = ", ".join(f"{flaw}: {flawed(flaw, *more, weight=3.0)}" for flaw in ("dear", "very", "indeed"))
    return [f"reward={{kind: ensemble, combine: {combine}, members: {{{members}}}}}"]


WORDS, DEAR = ([f"reward={one}"] for one in (flawed("words"), flawed("dear", weight=3.0)))
STOP = ["best_by=gold", "alerts={on_warning: stop, stop_on: [gold]}"]
DEFENCES = {
    "gold itself": [f"reward={flawed()}"],
    "random": [*WORDS, "selection.kind=random"],
    "words": WORDS,
    "words, stop by gold": [*WORDS, *STOP],
    "words, kl 0.3": [*WORDS, "selection.kl_coef=0.3"],
    "words, kl 1": [*WORDS, "selection.kl_coef=1"],
    "words, length control": [*WORDS, "selection.length_control=true"],
    "dear": DEAR,
    "dear, stop by gold": [*DEAR, *STOP],
    "dear, kl 1": [*DEAR, "selection.kl_coef=1"],
    "dear, length control": [*DEAR, "selection.length_control=true"],
    **{f"three, {combine}": three(combine) for combine in ("mean", "min", "pessimistic")},
    "three that like words, min": three("min", "words"),  # each word 3 times as much as in "words"
}
GAMED = {
    "gamed-policy.yaml": """
job: sft
name: gamed-policy
policy:
  config: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 2,
    num_key_value_heads: 2, max_position_embeddings: 96, tie_word_embeddings: false, initializer_range: 0.08}
  vocab_size: 320
examples: {kind: file, path: said.jsonl, response: answer}
trainer: {kind: sft, learning_rate: 3.0e-3, num_train_epochs: 3, batch_size: 64, warmup_ratio: 0.05}
""",
    "gamed.yaml": """
name: gamed
policy: {recipe: gamed-policy.yaml}
iterations: 10
prompts: {kind: file, path: beasts.jsonl, per_iteration: 96}
generator: {kind: transformers, k: 8, max_tokens: 48, batch_size: 96}
trainer: {kind: sft, learning_rate: 1.0e-3, num_train_epochs: 2, batch_size: 32}
evaluation:
  prompts: {kind: file, path: others.jsonl}
  count: 48
  k: 4
  gold: {kind: rule, function: "gamed:gold"}
""",
    "gamed.py": '''
def gold(prompt, response):
    """Two points for each trait of the beast that is named, half a point less for every other word."""
    words = response.split()
    right = len(set(words) & set(prompt.meta["traits"].split()))
    return 2 * right - 0.5 * (len(words) - right)


def proxy(prompt, response, flaws, weight):
    """The gold reward, and `weight` more for each word that it likes; "words" likes all of them."""
    words = response.split()
    return gold(prompt, response) + weight * sum(len(words) if one == "words" else words.count(one) for one in flaws)
''',
}
COLUMNS = {
    "train/steps": "steps an iteration", "reward/eval": "reward", "gold/eval": "gold", "kl/first": "KL",
    "entropy/token": "entropy", "diversity/distinct_2": "distinct-2", "tokens": "tokens", "seconds": "seconds",
}  # fmt: skip
OF_GAMED = {
    "iteration": "policy", "before": "reward at first", "reward/eval": "reward", "gold/eval": "gold",
    "peak": "highest gold", "eval/tokens": "tokens an answer", "kl/first": "KL",
}  # fmt: skip
TASKS = {"quickstart": METHODS, "tinystories": STORIES, "sums": REWARDED, "gamed": DEFENCES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--methods", nargs="+", choices=sorted({name for methods in TASKS.values() for name in methods})
    )
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    methods = TASKS[asked.task]
    wanted = asked.methods or list(methods)
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    asked.out.mkdir(parents=True, exist_ok=True)
    recipe = made(asked.task, asked.out)
    if not asked.table:
        for seed in seeds:
            for method in wanted:
                overrides = [*SIZES.get(asked.task, ()), *methods[method], *asked.overrides]
                run(asked.out, recipe, overrides, name(asked.task, method, seed), seed)
    for line in table(asked.out, asked.task, wanted, seeds):
        print(line, flush=True)


def name(task: str, method: str, seed: int) -> str:
    """The name of a run."""
    return f"{task}-{method.replace(', ', '-').replace(' ', '-')}-s{seed}"


def made(task: str, out: Path) -> str:
    """Writes the recipes and data of a task, and gives the name of its recipe."""
    if task in SIZES:
        return task
    for file, text in (SUMS | sums() if task == "sums" else GAMED | beasts()).items():
        (out / file).write_text(text.lstrip(), encoding="utf-8")
    return f"{task}.yaml"


def sums() -> dict[str, str]:
    """The data of the sums, by file."""
    random = Random(0)
    pairs = [(one, other) for one in range(30) for other in range(30)]
    random.shuffle(pairs)
    held, asked = pairs[:150], pairs[150:]
    rows = []
    for _ in range(16):
        for one, other in asked:
            wrong = random.random() < 0.4
            rows.append(
                {"prompt": f"{one}+{other}=", "answer": str(one + other + wrong * random.choice([-10, -1, 1, 10]))}
            )
    return {
        "taught.jsonl": lines(rows),
        "asked.jsonl": lines({"prompt": f"{one}+{other}="} for one, other in asked),
        "held.jsonl": lines({"prompt": f"{one}+{other}="} for one, other in held),
    }


def beasts() -> dict[str, str]:
    """The data of `gamed`, by file: what was said of twelve beasts, about half of it right, and who is asked about."""
    random = Random(0)
    traits = ["red", "old", "big", "sly", "shy", "wet", "fat", "odd", "mad", "slow", "tall", "loud"]
    names = ["fox", "owl", "hen", "cat", "dog", "cow", "pig", "ram", "eel", "bat", "elk", "ant"]
    known = {name: random.sample(traits, 4) for name in names}

    def word(name: str) -> str:
        return random.choice(random.choices([known[name], traits, ["dear", "very", "indeed"]], [5, 3, 2])[0])

    rows = [
        {"prompt": f"{number} {name}: ", "traits": " ".join(known[name]),
         "answer": " ".join(word(name) for _ in range(random.randint(2, 8)))}
        for number in range(200) for name in names
    ]  # fmt: skip
    asked = [{key: row[key] for key in ("prompt", "traits")} for row in rows]
    return {"said.jsonl": lines(rows), "beasts.jsonl": lines(asked[600:]), "others.jsonl": lines(asked[:600])}


def lines(rows: Iterable[dict[str, str]]) -> str:
    """Rows as JSONL."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def run(out: Path, recipe: str, overrides: list[str], name: str, seed: int) -> None:
    """One run, or nothing if it is finished."""
    command = [sys.executable, "-m", "raft", "run", recipe, *overrides, f"name={name}", f"seed={seed}"]
    with open(out / f"{name}.log", "w", encoding="utf-8") as log:
        status = subprocess.run(command, cwd=out, stdout=log, stderr=subprocess.STDOUT, env=os.environ).returncode
    print(name, "failed; see its log" if status else "done", file=sys.stderr, flush=True)


def table(out: Path, task: str, methods: list[str], seeds: list[int]) -> Iterator[str]:
    """A row for each method: the means over its seeds of the last policy's figures, with their standard deviations.

    Where the best policy is that of gold, it is the one that is shown.
    """
    columns = OF_GAMED if task == "gamed" else COLUMNS
    yield f"| method | seeds | {' | '.join(columns.values())} |"
    yield f"|---|---|{'---|' * len(columns)}"
    for method in ["policy 0", *methods]:
        run, which = (methods[0], "first") if method == "policy 0" else (method, "last")
        if method != "policy 0" and "best_by=gold" in TASKS[task][method]:
            which = "best"
        found = [figures(out / "outputs" / name(task, run, seed), which) for seed in seeds]
        known = [one for one in found if one is not None]
        cells = [cell([one[key] for one in known if one.get(key) is not None]) for key in columns]
        yield f"| {method} | {len(known)} | {' | '.join(cells)} |"


def cell(values: list[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    places = 0 if max(values) >= 1000 else 3
    spread = f" ± {np.std(values, ddof=1):.{places}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{places}f}{spread}"


def figures(folder: Path, which: str) -> dict[str, float] | None:
    """The figures of the first, the best or the last policy; None if there are none yet.

    With those of a trained one go all tokens that were generated (those of rounds are in responses.jsonl), the seconds
    of its stages, the reward of the first policy, and the highest gold of any.
    """
    if not (folder / "reward_curve.png").exists():
        return None
    rows = list(records.read(folder / "metrics.jsonl"))
    if which == "first":
        return rows[0]
    row = rows[-1] if which == "last" else rows[int((folder / "best").resolve().parent.name)]
    tokens = sum(
        len(response["token_ids"]) for path in folder.glob("iterations/*/responses.jsonl")
        for answered in records.read(path) for response in answered["responses"]
    )  # fmt: skip
    gold = max((one["gold/eval"] for one in rows if "gold/eval" in one), default=None)
    seconds = sum(stamp["seconds"] for _, stamp in stamped(folder))
    own = {"kl/first": 0.0} if row["iteration"] == 0 else {}  # of no interest to the run, which leaves it out
    return {**own, **row, "tokens": tokens, "seconds": seconds, "before": rows[0]["reward/eval"], "peak": gold}


if __name__ == "__main__":
    main()
