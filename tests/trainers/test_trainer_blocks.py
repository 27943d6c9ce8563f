"""kind: sft with block_size: plain language modelling of all examples as one text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuning import CONFIGS, EXAMPLES, SGD, TEXTS, difference, train, weights

from raft.core.errors import UserError
from raft.models import chat_templates, from_scratch
from raft.trainers.policy import Corpus

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    from_scratch.make(folder, TEXTS, CONFIGS["llama"], 280, seed=3)
    return folder


def blocks(folder: Path, size: int) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stream = [
        token
        for one in EXAMPLES
        for token in [
            *chat_templates.encode_prompt(tokenizer, one.prompt),
            *chat_templates.trained_tokens(tokenizer, one.response),
        ]
    ]
    whole = len(stream) // size
    assert whole >= 3 and len(stream) % size
    return torch.tensor(stream[: whole * size]).view(whole, size)


@pytest.mark.parametrize("options", [{}, {"packing": False}, {"max_tokens_per_microbatch": 20}])
def test_one_step_on_blocks_is_the_mean_over_all_their_tokens(start: Path, tmp_path: Path, options: dict[str, Any]):
    size = 16
    ids = blocks(start, size)
    rate = 0.1
    measured = train(
        start, tmp_path / "out", block_size=size, batch_size=len(ids), learning_rate=rate, args=SGD, **options
    )
    assert measured["train/examples"] == len(ids) and measured["train/tokens"] == ids[:, 1:].numel()
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    logprobs = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    loss = -logprobs.gather(-1, ids[:, 1:, None]).mean()
    assert measured["train/loss"] == pytest.approx(loss.item(), abs=1e-5)
    loss.backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight -= rate * weight.grad
    assert difference(weights(tmp_path / "out"), model.state_dict()) < 1e-5


def test_blocks_that_cannot_be_are_refused(start: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"less than a block of 200; lower blocks"):
        train(start, tmp_path / "a", block_size=200)
    with pytest.raises(UserError, match=r"trainer\.block_size: 4096 tokens are more than"):
        train(start, tmp_path / "b", block_size=4096)


def test_an_example_with_a_token_that_the_model_lacks_is_left_out_of_the_blocks(start: Path, tmp_path: Path):
    strange = replace(EXAMPLES[0], prompt_id="s", response=replace(EXAMPLES[0].response, token_ids=[5, 1000]))
    found, dropped = [], []
    for number, examples in enumerate([EXAMPLES, [EXAMPLES[0], strange, *EXAMPLES[1:]]]):
        (tmp_path / str(number)).mkdir()
        corpus = Corpus(tmp_path / str(number), cut=False)
        corpus.read_blocks(
            chat_templates.load_tokenizer(str(start)), examples, 16, (256, "x"), lambda *one: dropped.append(one)
        )
        found.append([corpus.texts[index].tolist() for index in range(len(corpus))])
    assert found[0] == found[1] and [one[0] for one in dropped] == ["s"]
    assert "token 1000 (None) is beyond the" in dropped[0][2]
