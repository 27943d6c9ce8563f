"""Where the time of an iteration goes, beside the floor under it, and beside loops written by hand.

    python benchmarks/iteration.py recipes/tinystories.yaml variables.data=FOLDER iterations=3
    python benchmarks/iteration.py --by-hand recipes/tinystories.yaml variables.data=FOLDER iterations=3

The recipe is run anew; it needs kind: vllm, kind: model and kind: sft. Then, in the same process, the floor of its last
iteration is measured, which is what the arithmetic alone costs:

    generate   the same requests with the same seeds, submitted at once to vLLM as it is, no log-probabilities
    score      as many tokens through the reward model, in rows of 128 without padding, nothing shared
    train      as many tokens forward, backward and through AdamW, in rows of 128

raft generates faster than that (docs/speed.md), so that a second floor has raft's own generation in it, by itself.

With --by-hand the loops of benchmarks/by_hand.py then do the same work, each in a process of its own.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from raft.cli.console import Console
from raft.config import recipe
from raft.core import records
from raft.core.records import Policy, Prompt
from raft.core.seeds import derive
from raft.generators import vllm
from raft.models import chat_templates, loading
from raft.pipeline import loop
from raft.trainers import hf_trainer
from raft.trainers.batches import Order

ROW, ROWS = 128, 16  # of the forward passes by which a model's rate is measured


def main() -> None:
    """Prints the tables."""
    arguments = [one for one in sys.argv[1:] if one != "--by-hand"]
    loaded = recipe.load(Path(arguments[0]), [*arguments[1:], "name=iteration-benchmark", "keep_policies=all"])
    shutil.rmtree(loaded.folder, ignore_errors=True)
    began = time.perf_counter()
    loop.run(loaded, Console())
    print(f"\nthe whole run: {time.perf_counter() - began:.1f} s")
    for number in range(1, loaded.recipe.iterations + 1):
        print(f"iteration {number}: {whole(loaded, number):.1f} s  {line(parts(loaded, number))}")
    floor = floors(loaded)
    for name, generate in (("vLLM as it is", floor["vllm"]), ("raft's generation", floor["raft"])):
        total = generate + floor["score"] + floor["train"]
        print(
            f"floor, {name}: generate {generate:.1f}  score {floor['score']:.1f}  train {floor['train']:.1f}  "
            f"sum {total:.1f} s, {total / whole(loaded, loaded.recipe.iterations):.0%} of the last iteration"
        )
    if "--by-hand" in sys.argv:
        with tempfile.TemporaryDirectory() as out:
            work = Path(out) / "work.json"
            for kind, iterations in (("engine", 2), ("generate", 1)):
                work.write_text(json.dumps({**by_hand(loaded), "iterations": iterations, "out": out}))
                print(f"\nby hand: {kind}", flush=True)
                subprocess.run(
                    [sys.executable, str(Path(__file__).with_name("by_hand.py")), kind, str(work)], check=True
                )


def stamps(loaded: recipe.Loaded, number: int) -> list[dict[str, Any]]:
    """The stamps of one iteration, in the order in which they were made."""
    files = (loaded.folder / "iterations" / f"{number:03d}").rglob("*.stamp.json")
    return sorted((json.loads(file.read_text()) for file in files), key=lambda stamp: stamp["began"])


def whole(loaded: recipe.Loaded, number: int) -> float:
    """Seconds from the end of the iteration before to the end of this one."""
    ends = [max(stamp["began"] + stamp["seconds"] for stamp in stamps(loaded, one)) for one in (number - 1, number)]
    return ends[1] - ends[0]


def parts(loaded: recipe.Loaded, number: int) -> dict[str, float]:
    """Seconds by stage, and by what else a stage did; `between` is what belongs to none. Iteration 0 has none such."""
    found: dict[str, float] = {}
    for stamp in stamps(loaded, number):
        found[stamp["key"]["stage"]] = (
            found.get(stamp["key"]["stage"], 0.0) + stamp["seconds"] - sum(stamp["parts"].values())
        )
        for name, seconds in stamp["parts"].items():
            found[name] = found.get(name, 0.0) + seconds
    if number:
        found["between"] = whole(loaded, number) - sum(found.values())
    return found


def line(found: dict[str, float]) -> str:
    """Seconds by name, the most first."""
    return "  ".join(
        f"{name} {seconds:.2f}" for name, seconds in sorted(found.items(), key=lambda one: -one[1]) if seconds > 0.005
    )


def floors(loaded: recipe.Loaded) -> dict[str, float]:
    """Seconds that the arithmetic of the last iteration takes by itself."""
    last = loaded.folder / "iterations" / f"{loaded.recipe.iterations:03d}"
    before = loaded.folder / "iterations" / f"{loaded.recipe.iterations - 1:03d}" / "policy"
    tokenizer = chat_templates.load_tokenizer(str(before))
    asked = [
        (last, loaded.folder / "evaluation.jsonl", "evaluation/responses.jsonl"),
        (last, last / "prompts.jsonl", "responses.jsonl"),
    ]
    read = 0
    for folder, prompts, responses in asked:
        for group in records.groups(prompts, folder / responses):
            length = len(chat_templates.encode_prompt(tokenizer, group.prompt))
            read += sum(length + len(one.token_ids) for one in group.responses)
    learned = 0
    for row in records.read(last / "selected.jsonl"):
        example = records.Example.of(row)
        learned += len(chat_templates.encode_prompt(tokenizer, example.prompt)) + len(
            chat_templates.trained_tokens(tokenizer, example.response)
        )
    trainer = loaded.recipe.trainer
    steps = len(
        Order(sum(1 for _ in records.read(last / "selected.jsonl")), trainer.batch_size, trainer.num_train_epochs, 0)
    )
    rate = forward_rate(loaded.recipe.reward.runner.model)
    return {
        **decode(loaded, before, last),
        "score": read / rate,
        "train": learned * trainer.num_train_epochs / training_rate(before, learned * trainer.num_train_epochs / steps),
    }


def decode(loaded: recipe.Loaded, before: Path, last: Path) -> dict[str, float]:
    """Seconds in which the warm engine generates the same responses, to training prompts and held-out ones."""
    (engine,) = vllm._engines.values()
    engine.hold(Policy(before, before / "probe.json"))
    asked = (
        (last / "prompts.jsonl", loaded.recipe.generator.k, f"iteration {loaded.recipe.iterations}"),
        (loaded.folder / "evaluation.jsonl", loaded.recipe.evaluation.k, "evaluation"),
    )

    def ours() -> None:
        for path, k, stream in asked:
            options, prompts = replace(loaded.recipe.generator, k=k), map(Prompt.of, records.read(path))
            for _ in engine.answer(options, prompts, derive(loaded.recipe.seed, stream)):
                pass

    return {"raft": timed(ours), "vllm": plain(loaded, engine, asked)}


def plain(loaded: recipe.Loaded, engine: vllm.Engine, asked: Iterable[tuple[Path, int, str]]) -> float:
    """The same by vLLM alone: requests in, outputs thrown away."""
    from vllm import SamplingParams

    options = loaded.recipe.generator

    def requests() -> Iterator[tuple[str, list[int], int]]:
        for path, k, stream in asked:
            for row in records.read(path):
                ids = chat_templates.encode_prompt(engine.tokenizer, prompt := Prompt.of(row))
                for place in range(k):
                    yield (
                        f"{stream}/{place}/{prompt.id}",
                        ids,
                        derive(derive(loaded.recipe.seed, stream), prompt.id, place),
                    )

    wanted = list(requests())
    began = time.perf_counter()
    for name, ids, seed in wanted:
        params = SamplingParams(temperature=options.temperature, max_tokens=options.max_tokens, seed=seed)
        engine.llm.add_request(name, {"prompt_token_ids": ids}, params)
    while engine.llm.has_unfinished_requests():
        engine.llm.step()
    return time.perf_counter() - began


def forward_rate(model: Any) -> float:
    """Tokens a second through a model without gradients, the median of twenty passes."""
    ids = torch.randint(model.config.vocab_size, (ROWS, ROW), device=model.device)
    with torch.inference_mode():
        return ids.numel() / median(timed(lambda: model(input_ids=ids, use_cache=False)) for _ in range(20))


def training_rate(folder: Path, tokens_a_step: float) -> float:
    """Tokens a second forward, backward and through AdamW in steps of so many tokens, the median of nine."""
    model = loading.load_model(folder).to(hf_trainer.device()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids = torch.randint(model.config.vocab_size, (ROWS, ROW), device=model.device)
    passes = max(1, round(tokens_a_step / ids.numel()))

    def step() -> None:
        for _ in range(passes):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return passes * ids.numel() / median(timed(step) for _ in range(9))


def timed(work: Any) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def by_hand(loaded: recipe.Loaded) -> dict[str, Any]:
    """The same work for benchmarks/by_hand.py."""
    made, options = loaded.recipe, loaded.recipe.generator

    def texts(path: Path) -> list[str]:
        return [Prompt.of(row).text for row in records.read(path)]

    return {
        "policy": str(loaded.folder / "iterations" / "000" / "policy"),
        "reward": made.reward.model,
        "prompts": texts(loaded.folder / "iterations" / "001" / "prompts.jsonl"),
        "held_out": texts(loaded.folder / "evaluation.jsonl"),
        "k": options.k, "held_out_k": made.evaluation.k, "max_tokens": options.max_tokens,
        **{name: getattr(made.trainer, name) for name in ("num_train_epochs", "learning_rate", "batch_size")},
        "context": 512,
    }  # fmt: skip


if __name__ == "__main__":
    main()
