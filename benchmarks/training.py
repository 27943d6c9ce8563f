"""Which way of laying texts out is fastest in training? A step of 32 texts of random Llamas, forward and backward.

    python benchmarks/training.py

Thousand tokens a second: the best of seven steps of each way, all ways in turn in one process.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import reward_models

from raft.core.records import Example, Response
from raft.trainers import hf_trainer
from raft.trainers.policy import Corpus
from raft.trainers.sft import SFT, Likelihood

SIZES = {"0.75M": (128, 3, 4), "7M": (256, 8, 8)}  # name -> width, layers, heads
TEXTS = ((86, 0.1), (86, 0.5), (210, 0.5))  # mean tokens of a text, and how far lengths are from it
WAYS: dict[str, dict[str, Any]] = {
    "padded": {"packing": False},
    "packed by transformers": {"attn_implementation": "sdpa"},
    "packed by raft": {},
}
BATCH, PROMPT, ROUNDS = 32, 20, 7


def examples(mean: int, spread: float, vocabulary: int) -> list[Example]:
    """Texts of random tokens: a prompt of 20, and a response."""
    random = np.random.default_rng(0)
    found = []
    for number in range(BATCH):
        length = int(random.uniform(1 - spread, 1 + spread) * mean) - PROMPT
        response = Response("", random.integers(3, vocabulary, size=length).tolist(), None, "length")
        found.append(Example(str(number), response, 0, 0.0, 1.0, None, "x" * (PROMPT - 1)))
    return found


def step(options: SFT, folder: Path, texts: list[Example], out: Path) -> tuple[Callable[[], None], int, float]:
    """A training step as something to call, its tokens, and the share of its positions that are padding."""
    from raft.models import chat_templates

    model = hf_trainer.load(options, folder, 0).train()
    model.set_attn_implementation("sdpa") if options.attn_implementation == "sdpa" else None
    corpus = Corpus(out)
    corpus.read(chat_templates.load_tokenizer(str(folder)), texts, (4096, ""), lambda *_: None)
    used = sum(corpus.texts.lengths(range(len(corpus))))
    loss = Likelihood(model)
    batches = [hf_trainer.tensors(batch) for batch in options._batches(model, corpus, np.arange(len(corpus)))]
    area = sum(batch["inputs"]["input_ids"].numel() for batch in batches)

    def go() -> None:
        for batch in batches:
            loss(model, batch)["loss"].backward()
        model.zero_grad()

    return go, used, 1 - used / area


def main() -> None:
    """A line for each model, kind of texts, and size of a pass."""
    for name, (width, layers, heads) in SIZES.items():
        with tempfile.TemporaryDirectory() as out:
            folder = Path(out)
            reward_models.save(
                folder, "LlamaForCausalLM", hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=heads, intermediate_size=width * 8 // 3 // 16 * 16, max_position_embeddings=1024,
            )  # fmt: skip
            for mean, spread in TEXTS:
                texts = examples(mean, spread, 90)
                for capacity in (2048, 8192):
                    steps = {
                        way: step(SFT(max_tokens_per_microbatch=capacity, **options), folder, texts, folder)
                        for way, options in WAYS.items()
                    }
                    best = dict.fromkeys(WAYS, float("inf"))
                    for _ in range(ROUNDS):
                        for way, (go, _, _) in steps.items():
                            began = time.perf_counter()
                            go()
                            best[way] = min(best[way], time.perf_counter() - began)
                    print(f"{name}  {mean} tokens within {spread:.0%}, {capacity} a pass", flush=True)
                    for way, (_, used, padding) in steps.items():
                        print(f"    {way:24s} {used / best[way] / 1000:6.2f}   padding {padding:.1%}", flush=True)


if __name__ == "__main__":
    main()
