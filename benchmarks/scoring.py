"""Which way of reading conversations is fastest for a reward model? Random Llamas, K = 8 responses to each prompt.

    python benchmarks/scoring.py            padded batches, packed rows with shared prompts
    python benchmarks/scoring.py --pooling  and vLLM's pooling engine, with its prefix cache (its start is not counted)

Thousand tokens of conversations a second: the best of five for each way, all ways in turn in one process; and how far
rewards are at most from those of the first way.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import reward_models

from raft.launch import vllm_options
from raft.models import packing
from raft.rewards.runner import Options, RewardModelRunner

SIZES = {  # name -> width, layers, heads
    "0.75M": (128, 3, 4),
    "7M": (256, 8, 8),
}
LENGTHS = ((64, 64), (150, 150), (20, 64))  # tokens of a prompt, mean tokens of a response
TOKENS, K, ROUNDS = 40_000, 8, 5

TextGroup = list[tuple[int, ...]]
Way = Callable[[Sequence[TextGroup]], dict[tuple[int, ...], list[float]]]


def text_groups(prompt: int, response: int, vocabulary: int) -> list[TextGroup]:
    """Groups of K conversations; responses vary by 50 % around their mean."""
    random = np.random.default_rng(0)
    groups = []
    for _ in range(TOKENS // (K * (prompt + response))):
        beginning = random.integers(3, vocabulary, size=prompt)
        lengths = random.integers(response // 2, response * 3 // 2 + 1, size=K)
        groups.append([(*beginning, *random.integers(3, vocabulary, size=length)) for length in lengths])
    return [[tuple(map(int, text)) for text in group] for group in groups]


def by(runner: RewardModelRunner, packs: bool, max_tokens_per_batch: int) -> Way:
    """raft's runner, packed or padded."""

    def read(groups: Sequence[TextGroup]) -> dict[tuple[int, ...], list[float]]:
        runner.packs, runner.max_tokens_per_batch = packs, max_tokens_per_batch
        return runner.outputs(groups)

    return read


def pooling(folder: Path) -> Way:
    """vLLM's engine for such models, with all conversations submitted at once."""
    import os

    os.environ.update(vllm_options.environment() | vllm_options.IN_PROCESS)
    from vllm import LLM
    from vllm.config import PoolerConfig

    engine = LLM(
        str(folder), runner="pooling", dtype="float32", enforce_eager=True, max_model_len=512,
        pooler_config=PoolerConfig(use_activation=False), max_num_seqs=1024, max_num_batched_tokens=4096,
    )  # fmt: skip

    def read(groups: Sequence[TextGroup]) -> dict[tuple[int, ...], list[float]]:
        texts = [text for group in groups for text in group]
        engine.llm_engine.reset_prefix_cache()  # of the round before
        found = engine.classify([{"prompt_token_ids": list(text)} for text in texts], use_tqdm=False)
        return {text: one.outputs.probs for text, one in zip(texts, found, strict=True)}

    return read


def main() -> None:
    """Some lines for each model and length; a way that gives other rewards than the first stops it."""
    for name, (width, layers, heads) in SIZES.items():
        with tempfile.TemporaryDirectory() as out:
            folder = Path(out)
            reward_models.save(
                folder, "LlamaForSequenceClassification", hidden_size=width, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=heads, intermediate_size=width * 8 // 3 // 16 * 16,
                max_position_embeddings=512,
            )  # fmt: skip
            runner = RewardModelRunner(Options(model=str(folder)))
            assert runner.packs
            ways = {
                "padded, 16,384 a pass": by(runner, False, 16384),
                "padded, 2,048": by(runner, False, 2048),
                "packed, 2,048": by(runner, True, 2048),
                **({"vLLM pooling": pooling(folder)} if "--pooling" in sys.argv else {}),
            }
            for prompt, response in LENGTHS:
                groups = text_groups(prompt, response, runner.config.vocab_size)
                print(f"{name}  {prompt} + {response}: {padding(groups)}", flush=True)
                for way, (speed, apart) in compared(ways, groups).items():
                    print(f"    {way:24s} {speed / 1000:6.1f}   {apart:.0e}", flush=True)


def padding(groups: Sequence[TextGroup]) -> str:
    """What is not a token of a conversation: padding of batches, and what packed rows save."""
    texts = [text for group in groups for text in group]
    used = sum(map(len, texts))
    passes = packing.batches(groups, 2048, False)
    area = sum(sum(map(len, one)) * max(len(groups[n][at]) for part in one for n, at in part) for one in passes)
    packed = sum(packing.size(group) for group in groups)
    return f"{used} tokens; padded batches read {area / used:.2f} times as many, packed rows {packed / used:.2f} times"


def compared(ways: dict[str, Way], groups: Sequence[TextGroup]) -> dict[str, tuple[float, float]]:
    """Tokens a second by way, and the largest difference of rewards."""
    used = sum(len(text) for group in groups for text in group)
    expected: dict[tuple[int, ...], list[float]] | None = None
    best, apart = dict.fromkeys(ways, float("inf")), dict.fromkeys(ways, 0.0)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            found = way(groups)
            best[name] = min(best[name], time.perf_counter() - began)
            expected = expected or found
            apart[name] = max(abs(found[text][0] - value[0]) for text, value in expected.items())
            assert apart[name] < 1e-3, f"{name}: rewards differ by {apart[name]}"
    return {name: (used / best[name], apart[name]) for name in ways}


if __name__ == "__main__":
    main()
