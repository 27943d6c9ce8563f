"""Supervised fine-tuning: every number is compared with a plain-torch computation of the formula."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuning import (
    CONFIGS,
    EXAMPLES,
    SGD,
    difference,
    example,
    fresh,
    make_folders,
    refused,
    train,
    weights,
    without_dropout,
)

from raft.core.errors import UserError
from raft.core.records import Example
from raft.models import chat_templates, loading, packed_attention
from raft.trainers import hf_trainer, microbatches
from raft.trainers.policy import Corpus, Predictions
from raft.trainers.sft import SFT, Likelihood

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_folders(tmp_path_factory.mktemp("policies"))


def formula(model: Any, tokenizer: Any, examples: list[Example]) -> torch.Tensor:
    """sum of weight * nll / sum of weight, one example after the other, without padding, packing or batches."""
    above, below = torch.zeros(()), 0.0
    for one in examples:
        prompt = chat_templates.encode_prompt(tokenizer, one.prompt)
        response = chat_templates.trained_tokens(tokenizer, one.response)
        ids = torch.tensor([[*prompt, *response]])
        logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        for place in range(len(prompt), ids.shape[1]):
            above = above - one.weight * logprobs[place - 1, ids[0, place]]
            below += one.weight
    return above / below


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_texts_do_not_see_each_other(folders, name):
    model = hf_trainer.ready(SFT(), loading.load_model(folders[name]))
    texts = [np.random.default_rng(seed).integers(10, 260, size) for seed, size in enumerate([20, 1, 33])]
    layout = microbatches.pack_or_pad(SFT(), model, [[text] for text in texts])
    with torch.no_grad():
        together = model(**packed_attention.inputs(layout.inputs), use_cache=False).logits[0]
        alone = torch.cat([model(input_ids=torch.tensor(text)[None], use_cache=False).logits[0] for text in texts])
    assert float((together - alone).abs().max()) < 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_the_proof_of_packing_passes_and_fails_where_the_mask_is_broken(folders, name):
    model = hf_trainer.ready(SFT(), loading.load_model(folders[name]))
    texts = [[np.random.default_rng(seed).integers(10, 260, 20)] for seed in range(2)]
    microbatches.prove(SFT(), model, texts, lambda model, inputs: model(**inputs, use_cache=False).logits)
    with pytest.raises(UserError, match="mixes packed examples"):
        microbatches.prove(
            SFT(), model, texts, lambda model, inputs: model(inputs["input_ids"], use_cache=False).logits
        )


MANY = {"max_tokens_per_microbatch": 30}  # forward passes in a step
PADDED = {"packing": False, "max_tokens_per_microbatch": 60}


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, MANY) for name in CONFIGS), ("llama", {}), ("llama", PADDED), ("gpt2", PADDED)],
    ids=str,
)
def test_one_step_of_gradient_descent_is_the_formulas(folders, tmp_path, name, options):
    model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32, attn_implementation="eager")
    model.eval()  # without dropout, as below
    loss = formula(model, AutoTokenizer.from_pretrained(folders[name]), EXAMPLES)
    loss.backward()
    expected = {name: parameter.detach() - 0.5 * parameter.grad for name, parameter in model.named_parameters()}
    start = without_dropout(folders[name], tmp_path / "start")
    measured = train(start, tmp_path / "out", learning_rate=0.5, args=SGD, **options)
    found = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).named_parameters())
    assert measured["train/loss"] == pytest.approx(float(loss), rel=1e-5)
    assert difference(found, expected) < 2e-5
    assert difference(expected, {name: value.detach() for name, value in fresh(start).items()}) > 1e-2


def test_a_step_in_many_forward_passes_has_many_bins(folders, tmp_path):
    corpus = Corpus(tmp_path)
    corpus.read(
        chat_templates.load_tokenizer(str(folders["llama"])), EXAMPLES, (1000, "trainer.max_length"), lambda *drop: None
    )
    batches = SFT(max_tokens_per_microbatch=30)._batches(loading.load_model(folders["llama"]), corpus, np.arange(5))
    assert len(batches) > 2
    assert sum(float(batch["weights"].sum()) for batch in batches) == pytest.approx(1)


def test_only_the_places_that_predict_a_response_are_projected_on_the_vocabulary(folders, tmp_path):
    model = loading.load_model(folders["llama"])
    corpus = Corpus(tmp_path)
    corpus.read(
        chat_templates.load_tokenizer(str(folders["llama"])), EXAMPLES, (1000, "trainer.max_length"), lambda *drop: None
    )
    (batch,) = SFT()._batches(model, corpus, np.arange(5))
    loss, predictions = Likelihood(model), Predictions(model)
    assert predictions.selects
    assert predictions._kept(model, hf_trainer.tensors(batch)).shape[1] == corpus.learned
    loss.predictions.selects = False
    whole = float(loss(model, hf_trainer.tensors(batch))["loss"])
    loss.predictions.selects = True
    assert whole == pytest.approx(float(loss(model, hf_trainer.tensors(batch))["loss"]), rel=1e-6)


def test_the_end_is_learned_where_there_was_one_and_never_added_to_what_was_cut(folders, tmp_path):
    tokenizer = chat_templates.load_tokenizer(str(folders["llama"]))
    corpus = Corpus(tmp_path)
    rows = [example(1, 4, finish_reason=reason) for reason in ("stop", "length", "marker")]
    corpus.read(tokenizer, rows, (1000, "trainer.max_length"), lambda *drop: None)
    responses = [corpus.texts[index][corpus.begins[index] :].tolist() for index in range(3)]
    assert responses[0] == responses[1] == rows[0].response.token_ids
    assert responses[2] == [*rows[2].response.token_ids, tokenizer.eos_token_id]


def test_what_cannot_be_learned_is_named_with_its_reason_and_never_cut(folders, tmp_path):
    dropped: list[tuple] = []
    rows = [example(0, 200), example(1, 0), example(2, 5, weight=0.0), example(3, 400), example(0, 5)]
    found = SFT(max_length=300, num_train_epochs=1).train(
        folders["llama"], iter(rows), tmp_path, 0, lambda *step: None, lambda *drop: dropped.append(drop)
    )
    assert found["train/examples"] == 2
    assert [prompt_id for prompt_id, _, _ in dropped] == ["1", "2", "3"]
    assert "no tokens" in dropped[0][2]
    assert "weight 0" in dropped[1][2]
    assert dropped[2][2].endswith("more than max_position_embeddings of the model (256)")
    assert "tokens, more than trainer.max_length (20)" in refused(
        folders["llama"], tmp_path, [example(0, 200)], max_length=20
    )


def test_nothing_to_train_on_is_an_error_with_a_way_out(folders, tmp_path):
    assert "none was given" in refused(folders["llama"], tmp_path, [])


def test_a_loss_that_is_not_finite_stops_with_its_step(folders, tmp_path):
    message = refused(folders["llama"], tmp_path, learning_rate=1e30, num_train_epochs=6, batch_size=2, args=SGD)
    assert "at step" in message and "trainer.learning_rate" in message


def test_weights_that_the_last_step_broke_are_not_written(folders, tmp_path):
    assert "not finite" in refused(folders["llama"], tmp_path, learning_rate=1e38, args=SGD)
    assert not (tmp_path / "model.safetensors").exists()


def test_padding_is_none_where_texts_are_packed(folders, tmp_path):
    assert train(folders["llama"], tmp_path)["train/padding"] == 0


def test_mixed_precision_carries_float32_weights_that_small_updates_move(folders, tmp_path):
    train(folders["llama"], tmp_path / "mixed", learning_rate=1e-6, mixed_precision="bfloat16")
    train(folders["llama"], tmp_path / "float32", learning_rate=1e-6, mixed_precision="float32")
    start, mixed, exact = weights(folders["llama"]), weights(tmp_path / "mixed"), weights(tmp_path / "float32")
    assert 0 < difference(start, mixed) < 3e-6
    assert 0 < difference(mixed, exact) < 3e-6


def test_a_schedule_falls_linearly_to_zero_over_all_epochs(folders, tmp_path, monkeypatch):
    rates: list[float] = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), step(self, *a))[1]
    )
    train(
        folders["llama"],
        tmp_path,
        num_train_epochs=2,
        batch_size=2,
        lr_scheduler_type="linear",
        warmup_ratio=1 / 3,
        learning_rate=0.1,
        args=SGD,
    )
    assert rates == pytest.approx([0, 0.05, 0.1, 0.075, 0.05, 0.025])


def test_tensors_that_are_missing_or_left_over_are_errors(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    for name in ("missing", "left over"):
        folder = without_dropout(folders["llama"], tmp_path / name)
        tensors = load_file(folder / "model.safetensors")
        tensors["extra" if name == "left over" else "model.norm.weight"] = tensors.pop("model.norm.weight")
        if name == "missing":
            del tensors["model.norm.weight"]
        else:
            tensors["model.norm.weight"] = tensors["extra"].clone()
        (folder / "model.safetensors").unlink()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        assert f"1 tensors are {name}" in refused(folder, tmp_path / "out")
