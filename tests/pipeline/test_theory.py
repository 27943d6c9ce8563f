"""Against theory: over a small discrete set of answers, best-of-K and its fine-tuning are known exactly."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import worlds

from raft.cli.forecast import Quiet
from raft.config import recipe
from raft.core.records import read
from raft.generators import vllm
from raft.metrics.reward_metrics import best_of_n_distribution, expected_best_of_n
from raft.pipeline import loop

pytestmark = [pytest.mark.engine, pytest.mark.nightly]
K, COUNT = 4, 1024


def answer_probabilities(policy: Path, text: str) -> np.ndarray:
    """What the policy says next, over all tokens, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(policy)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(policy)(ids).logits[0, -1].double().softmax(-1).numpy()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """One iteration on one question, asked COUNT times; an answer is one token, its reward is read off its text."""
    folder = tmp_path_factory.mktemp("theory")
    items = [{"id": f"q{n}", "prompt": "the fox sees a "} for n in range(COUNT)]
    worlds.make_recipe(
        folder,
        iterations=1,
        prompts={"kind": "list", "items": items, "per_iteration": COUNT, "max_prompt_length": 64},
        generator={"kind": "vllm", "k": K, "max_tokens": 1},
        reward={"kind": "rule", "function": "grades:grade"},
        trainer={
            "kind": "sft",
            "learning_rate": 3e-3,
            "num_train_epochs": 60,
            "batch_size": COUNT,
            "max_tokens_per_microbatch": 16384,
            "packing": False,
        },
        evaluation={"prompts": {"kind": "list", "items": ["the hen eats "]}, "count": 1, "k": 1, "gold": None},
    )
    (folder / "grades.py").write_text(
        "import zlib\n\n\ndef grade(prompt, response):\n"
        '    """One of eight grades, by the text: many answers tie."""\n'
        "    return float(zlib.crc32(response.encode('ascii', 'ignore')) % 8)\n"
    )
    with contextlib.chdir(folder):
        loop.run(recipe.load(Path("recipe.yaml")), Quiet())
    vllm.close()
    return folder


@pytest.fixture(scope="module")
def exact(finished) -> tuple[np.ndarray, np.ndarray]:
    """The first policy's probabilities and the reward of each token, from what the run itself decoded."""
    import zlib

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(finished / "base")
    texts = [tokenizer.decode([token], skip_special_tokens=True) for token in range(len(tokenizer))]
    grades = np.array([float(zlib.crc32(text.encode("ascii", "ignore")) % 8) for text in texts])
    return answer_probabilities(finished / "base", "the fox sees a "), grades


def test_drawn_answers_have_the_policys_probabilities(finished, exact):
    probabilities, grades = exact
    drawn = [
        one["token_ids"][0]
        for row in read(finished / "outputs/tiny/iterations/001/responses.jsonl")
        for one in row["responses"]
    ]
    assert_distributed(np.bincount(drawn, minlength=len(probabilities)), probabilities)
    mean = json.loads((finished / "outputs/tiny/iterations/001/metrics.json").read_text())["previous"]["reward/mean"]
    spread = np.sqrt(probabilities @ grades**2 - (probabilities @ grades) ** 2)
    assert mean == pytest.approx(probabilities @ grades, abs=4 * spread / np.sqrt(K * COUNT))


def test_selected_answers_have_the_exact_distribution_of_the_best_of_k(finished, exact):
    probabilities, grades = exact
    chosen = [row["response"]["token_ids"][0] for row in read(finished / "outputs/tiny/iterations/001/selected.jsonl")]
    expected = best_of_n_distribution(probabilities, grades, K)
    assert_distributed(np.bincount(chosen, minlength=len(expected)), expected)
    best = json.loads((finished / "outputs/tiny/iterations/001/metrics.json").read_text())["previous"][
        "reward/best_of_k"
    ]
    spread = np.sqrt(expected @ grades**2 - (expected @ grades) ** 2)
    assert best == pytest.approx(expected_best_of_n(probabilities, grades, K), abs=4 * spread / np.sqrt(COUNT))


def test_the_fine_tuned_policy_is_the_best_of_k_of_the_policy_before(finished, exact):
    probabilities, grades = exact
    expected = best_of_n_distribution(probabilities, grades, K)
    after = answer_probabilities(finished / "outputs/tiny/iterations/001/policy", "the fox sees a ")
    error = np.sqrt(expected * (1 - expected) / COUNT)
    assert np.all(np.abs(after - expected) <= 5 * error + 0.01)
    by_grade = [after[grades == grade].sum() for grade in range(8)]
    assert by_grade == pytest.approx(
        [expected[grades == grade].sum() for grade in range(8)], abs=4 * 0.5 / np.sqrt(COUNT)
    )
    spread = np.sqrt(expected @ grades**2 - (expected @ grades) ** 2)
    gained = after @ grades - probabilities @ grades
    assert after @ grades == pytest.approx(expected @ grades, abs=4 * spread / np.sqrt(COUNT) + 0.02)
    assert gained > 1.0  # the law is not met by a policy that stood still


def assert_distributed(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square over the answers that are expected at least five times, the others taken together."""
    expected = probabilities * counts.sum()
    often = expected >= 5
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    statistic = float(((observed - wanted) ** 2 / np.maximum(wanted, 1e-9)).sum())
    degrees = len(wanted) - 1
    assert statistic < degrees + 5 * np.sqrt(2 * degrees)
