"""How likely responses are: against the sum that one writes down, also where nothing comes before a response."""

from pathlib import Path

import pytest
import torch
import worlds

from raft.core.progress import Progress
from raft.core.records import Example, Group, Prompt, Response, read, write
from raft.models import chat_templates, loading
from raft.models.logprobs import Likelihood
from raft.pipeline import stages
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return worlds.make_policy(tmp_path_factory.mktemp("base"))


def by_hand(policy: Path, before: list[int], response: list[int]) -> float:
    """The sum over the tokens of a response that something comes before."""
    logits = loading.load_model(policy)(torch.tensor([before + response])).logits[0].log_softmax(-1)
    tokens = before + response
    return sum(float(logits[at - 1, tokens[at]]) for at in range(max(1, len(before)), len(tokens)))


@pytest.mark.parametrize("text", ["", "the red fox "])
def test_a_response_after_no_token_is_given_its_first_one(policy, text):
    tokenizer = chat_templates.load_tokenizer(str(policy))
    before = chat_templates.encode_prompt(tokenizer, prompt := Prompt("a", text=text))
    assert (before == []) == (text == ""), "a tokenizer without BOS"
    answers = [tokenizer(one)["input_ids"] for one in ("runs and sees", "sits", "the hen eats the big cat")]
    group = Group(prompt, [Response("", ids, None, "stop") for ids in answers])
    expected = [by_hand(policy, before, ids) for ids in answers]
    (scores,) = Likelihood(folder=policy).score([group])
    assert [score.reward for score in scores] == pytest.approx(expected, abs=1e-4)


def test_a_perplexity_counts_the_tokens_that_were_predicted(policy, tmp_path):
    ids = chat_templates.load_tokenizer(str(policy))("the hen eats the big cat")["input_ids"]
    rows = [
        Example(name, Response("", ids, None, "stop"), text=text).row() for name, text in (("a", ""), ("b", "the "))
    ]
    write(tmp_path / "references.jsonl", rows)
    path = tmp_path / "out.jsonl"
    output = ArtifactWriter(path, path, "", 0, 0, Progress("a", "prompts"))
    references = Artifact(tmp_path / "references.jsonl", {"rows": 2})
    stages.reference_logprobs(None, output, Artifact(policy, {}), references)

    assert [row["tokens"] for row in read(path)] == [len(ids) - 1, len(ids)]
