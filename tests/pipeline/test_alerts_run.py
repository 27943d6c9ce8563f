"""What is said of a real run, of a tiny policy, and that its figures are what its files say."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
import yaml

from raft.core.records import read
from raft.metrics import text_metrics

SUBJECTS, VERBS, OBJECTS = "fox owl hen cat dog".split(), "sees eats finds".split(), "red big old new blue".split()  # noqa: SIM905


def sentence(rng: np.random.Generator) -> str:
    mark = "# " if rng.random() < 0.15 else ""
    return f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} the {mark}{rng.choice(OBJECTS)} {rng.choice(SUBJECTS)}"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A policy fine-tuned on sentences, prompts, references, and two rewards."""
    folder = tmp_path_factory.mktemp("alerts")
    rng = np.random.default_rng(0)
    rows = [{"id": f"p{n:03d}", "prompt": f"{n} the ", "response": sentence(rng)} for n in range(600)]
    (folder / "sentences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sft.yaml").write_text(yaml.safe_dump({
        "name": "speaker", "job": "sft", "policy": {"config": worlds.TINY, "vocab_size": 300},
        "examples": {"kind": "file", "path": "sentences.jsonl"},
        "trainer": {"kind": "sft", "learning_rate": 3e-3, "num_train_epochs": 6, "batch_size": 32},
    }))  # fmt: skip
    (folder / "grades.py").write_text(
        "def marks(prompt, response):\n    return response.count('#')\n\n\n"
        "def colours(prompt, response):\n    return float(response.count('red') + response.count('blue'))\n"
    )
    return folder


def recipe(world: Path, name: str, reward: str, **changes: Any) -> Path:
    options: dict[str, Any] = {
        "name": name, "policy": {"recipe": "sft.yaml"}, "iterations": 3, "keep_policies": "best",
        "prompts": {"kind": "file", "path": "sentences.jsonl", "per_iteration": 48, "max_prompt_length": 16},
        "generator": {"kind": "transformers", "k": 8, "max_tokens": 40, "batch_size": 48},
        "reward": {"kind": "rule", "function": f"grades:{reward}"},
        "trainer": {"kind": "sft", "learning_rate": 1e-3, "num_train_epochs": 2, "batch_size": 16},
        "evaluation": {"count": 48, "k": 2, "references": {"kind": "file", "path": "sentences.jsonl", "limit": 40}},
    }  # fmt: skip
    (world / f"{name}.yaml").write_text(yaml.safe_dump({**options, **changes}))
    return Path(f"{name}.yaml")


@pytest.fixture(scope="module")
def clean(world) -> tuple[Path, str]:
    gentle = {"kind": "sft", "learning_rate": 2e-4, "num_train_epochs": 1, "batch_size": 16}
    done = worlds.raft(
        world, "run", recipe(world, "clean", "colours", iterations=2, trainer=gentle, keep_policies="all")
    )
    assert done.returncode == 0, done.stderr
    return world / "outputs" / "clean", done.stdout


@pytest.mark.nightly
def test_a_clean_real_run_raises_nothing(clean):
    _, told = clean
    assert "warning:" not in told and "watch:" not in told


@pytest.mark.nightly
def test_the_figures_of_a_real_run_are_what_its_files_say(clean):
    run, _ = clean
    last = list(read(run / "metrics.jsonl"))[-1]
    place = run / "iterations" / "002" / "evaluation"
    answers = [one for row in read(place / "responses.jsonl") for one in row["responses"]]
    surprise = -sum(sum(one["logprobs"]) for one in answers) / sum(len(one["token_ids"]) for one in answers)
    assert last["entropy/token"] == pytest.approx(surprise)
    ratios = [
        new - old
        for row in read(place / "likelihoods.jsonl")
        for new, old in zip(row["policy"], row["first"], strict=True)
    ]
    assert last["kl/first"] == pytest.approx(sum(ratios) / len(ratios), abs=1e-6) and last["kl/first_se"] > 0
    texts = [one["text"] for one in answers]
    assert last["eval/words"] == pytest.approx(np.mean([len(text_metrics.words(text)) for text in texts]))
    assert last["eval/truncated"] == np.mean([one["finish_reason"] == "length" for one in answers])


@pytest.mark.nightly
def test_what_selection_did_in_a_real_run_is_what_its_files_say(clean):
    run, _ = clean
    rows = list(read(run / "metrics.jsonl"))
    place = run / "iterations" / "002"
    lengths = [[len(one["token_ids"]) for one in row["responses"]] for row in read(place / "responses.jsonl")]
    picks = [row["index"] for row in read(place / "selected.jsonl")]
    assert rows[1]["selection/tokens"] == pytest.approx(
        np.mean([row[at] for row, at in zip(lengths, picks, strict=True)])
    )
    assert rows[1]["selection/tokens_random"] == pytest.approx(np.mean(lengths))
    hits = [row[at] == max(row) for row, at in zip(lengths, picks, strict=True) if len(set(row)) > 1]
    assert rows[1]["length/winner_longest"] == pytest.approx(np.mean(hits))
    headroom = rows[0]["reward/best_of_k"] - rows[0]["reward/mean"]
    assert rows[0]["reward/headroom"] == pytest.approx(headroom)
    assert rows[1]["reward/absorbed"] == pytest.approx((rows[1]["reward/mean"] - rows[0]["reward/mean"]) / headroom)
    assert "reward/absorbed" not in rows[0]


@pytest.mark.nightly
def test_the_perplexity_of_a_real_run_is_what_transformers_says(clean):
    import torch
    from transformers import AutoModelForCausalLM

    from raft.core.records import Example
    from raft.models.chat_templates import encode_prompt, load_tokenizer

    run, _ = clean
    rows = list(read(run / "metrics.jsonl"))
    assert all("perplexity/references" in row for row in rows)
    folder = run / "iterations" / "002" / "policy"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(str(folder))
    total, count = 0.0, 0
    for row in read(run / "references.jsonl"):
        example = Example.of(row)
        prompt, tokens = encode_prompt(tokenizer, example.prompt), example.response.token_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].double()
        total -= logits.log_softmax(-1)[range(len(tokens)), tokens].sum().item()
        count += len(tokens)
    assert rows[-1]["perplexity/references"] == pytest.approx(math.exp(total / count), rel=1e-4)


@pytest.mark.nightly
def test_a_real_run_that_learns_a_symbol_stops_in_order_says_why_and_keeps_the_best(world, clean):
    told_to_stop = {"on_warning": "stop", "ignore": ["ties", "length", "length-reward"]}
    unmeasured = {"count": 48, "k": 2, "kl": False}
    path = recipe(world, "hacked", "marks", iterations=6, alerts=told_to_stop, evaluation=unmeasured)
    done = worlds.raft(world, "run", path)
    assert done.returncode == 0, done.stderr
    assert "warning: n-grams: '#' is in" in done.stdout
    assert "(alerts.on_warning: stop) because of n-grams" in done.stdout and "alerts.on_warning=warn" in done.stdout
    rows = list(read(world / "outputs" / "hacked" / "metrics.jsonl"))
    assert 1 < len(rows) < 7
    assert "reward/absorbed" in rows[1] and not any("kl/first" in row or "perplexity/references" in row for row in rows)
    kept = {int(path.parent.name) for path in (world / "outputs" / "hacked").glob("iterations/*/policy")}
    assert kept == {0, max(rows, key=lambda row: row["reward/eval"])["iteration"]}

    before = worlds.fingerprint(world / "outputs" / "hacked")
    again = worlds.raft(world, "run", path)
    assert again.returncode == 0 and "because of n-grams" in again.stdout
    assert worlds.fingerprint(world / "outputs" / "hacked") == before
    goes_on = worlds.raft(world, "resume", "outputs/hacked", "alerts.on_warning=warn", f"iterations={len(rows)}")
    assert goes_on.returncode == 0, goes_on.stderr
    assert len(list(read(world / "outputs" / "hacked" / "metrics.jsonl"))) == len(rows) + 1


def test_references_are_single_responses(world):
    pairs = {"kind": "file", "path": "sentences.jsonl", "pairs": "columns"}
    path = recipe(world, "wrong", "marks", evaluation={"references": pairs})
    done = worlds.raft(world, "check", path)
    assert done.returncode == 2 and "evaluation.references.pairs: perplexity is of single responses" in done.stderr
