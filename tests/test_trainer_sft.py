"""Supervised fine-tuning: every number is compared with a plain-torch computation of the formula."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft import chat, plugins, probe, scratch
from raft.errors import UserError
from raft.records import Example, Response
from raft.trainers import fitting, packing
from raft.trainers.sft import SFT, Corpus, Likelihood

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
ROTARY = {**SHAPE, "head_dim": 32, "max_position_embeddings": 256, "initializer_range": 0.1}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **ROTARY, "tie_word_embeddings": False},
    "llama-tied": {"model_type": "llama", **ROTARY, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **ROTARY},
    "gemma2": {"model_type": "gemma2", **ROTARY, "sliding_window": 8, "query_pre_attn_scalar": 32},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 256,
        "initializer_range": 0.1,
    },
}
TEXTS = [
    "The fox likes plums.",
    "An owl, by night, sees all.",
    "Two scones?",
    "Mint tea and a bun for the mole, please!",
]
SGD = {"optim": "sgd", "max_grad_norm": 0.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in CONFIGS}
    for name, folder in made.items():
        scratch.make(folder, TEXTS, CONFIGS[name], 280, seed=3)
    return made


def example(number: int, words: int, weight: float = 1.0, finish_reason: str = "stop") -> Example:
    tokens = np.random.default_rng(number).integers(10, 260, words).tolist()
    response = Response("", tokens, None, finish_reason)
    return Example(str(number), response, text=TEXTS[number % 4][: 6 + number], weight=weight)


EXAMPLES = [
    example(n, words, weight) for n, (words, weight) in enumerate([(9, 1.0), (3, 2.5), (17, 0.5), (1, 1.0), (6, 1.5)])
]


def train(
    start: Path, out: Path, examples: Iterable[Example] = EXAMPLES, seed: int = 0, **options: Any
) -> dict[str, float]:
    return SFT(**{"epochs": 1, "batch_size": 5, "schedule": "constant", **options}).train(
        start, iter(examples), out, seed, lambda done, total: None, lambda *drop: None
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def formula(model: Any, tokenizer: Any, examples: list[Example]) -> torch.Tensor:
    """sum of weight * nll / sum of weight, one example after the other, without padding, packing or batches."""
    above, below = torch.zeros(()), 0.0
    for one in examples:
        prompt = chat.encode_prompt(tokenizer, one.prompt)
        response = chat.trained_tokens(tokenizer, one.response)
        ids = torch.tensor([[*prompt, *response]])
        logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        for place in range(len(prompt), ids.shape[1]):
            above = above - one.weight * logprobs[place - 1, ids[0, place]]
            below += one.weight
    return above / below


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_texts_do_not_see_each_other(folders, name):
    model = probe.load_model(folders[name])
    texts = [np.random.default_rng(seed).integers(10, 260, size) for seed, size in enumerate([20, 1, 33])]
    with torch.no_grad():
        together = model(**fitting.tensors(packing.pack(texts).inputs), use_cache=False).logits[0]
        alone = torch.cat([model(input_ids=torch.tensor(text)[None], use_cache=False).logits[0] for text in texts])
    assert float((together - alone).abs().max()) < 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_the_proof_of_packing_passes_and_fails_where_the_mask_is_broken(folders, name):
    model = probe.load_model(folders[name])
    texts = [np.random.default_rng(seed).integers(10, 260, 20) for seed in range(2)]
    fitting.prove(SFT(), model, texts, lambda model, inputs: model(**inputs, use_cache=False).logits)
    with pytest.raises(UserError, match="mixes packed examples"):
        fitting.prove(SFT(), model, texts, lambda model, inputs: model(inputs["input_ids"], use_cache=False).logits)


MANY = {"tokens_per_forward": 30}  # forward passes in a step
PADDED = {"packing": False, "tokens_per_forward": 60}


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


def fresh(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())


def without_dropout(folder: Path, copy: Path) -> Path:
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    config.update({key: 0.0 for key in config if key in ("attn_pdrop", "embd_pdrop", "resid_pdrop")})
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_a_step_in_many_forward_passes_has_many_bins(folders, tmp_path):
    corpus = Corpus(tmp_path)
    corpus.read(chat.load_tokenizer(str(folders["llama"])), EXAMPLES, (1000, "trainer.max_length"), lambda *drop: None)
    batches = SFT(tokens_per_forward=30)._batches(corpus, np.arange(5))
    assert len(batches) > 2
    assert sum(float(batch["weights"].sum()) for batch in batches) == pytest.approx(1)


def test_only_the_places_that_predict_a_response_are_projected_on_the_vocabulary(folders, tmp_path):
    model = probe.load_model(folders["llama"])
    corpus = Corpus(tmp_path)
    corpus.read(chat.load_tokenizer(str(folders["llama"])), EXAMPLES, (1000, "trainer.max_length"), lambda *drop: None)
    (batch,) = SFT()._batches(corpus, np.arange(5))
    loss = Likelihood(model)
    assert loss.selects
    assert loss._logits(model, fitting.tensors(batch)).shape[1] == corpus.learned
    loss.selects = False
    whole = float(loss(model, fitting.tensors(batch))["loss"])
    loss.selects = True
    assert whole == pytest.approx(float(loss(model, fitting.tensors(batch))["loss"]), rel=1e-6)


def test_the_end_is_learned_where_there_was_one_and_never_added_to_what_was_cut(folders, tmp_path):
    tokenizer = chat.load_tokenizer(str(folders["llama"]))
    corpus = Corpus(tmp_path)
    rows = [example(1, 4, finish_reason=reason) for reason in ("stop", "length", "marker")]
    corpus.read(tokenizer, rows, (1000, "trainer.max_length"), lambda *drop: None)
    responses = [corpus.texts[index][corpus.begins[index] :].tolist() for index in range(3)]
    assert responses[0] == responses[1] == rows[0].response.token_ids
    assert responses[2] == [*rows[2].response.token_ids, tokenizer.eos_token_id]


def test_what_cannot_be_learned_is_named_with_its_reason_and_never_cut(folders, tmp_path):
    dropped: list[tuple] = []
    rows = [example(0, 200), example(1, 0), example(2, 5, weight=0.0), example(3, 400), example(0, 5)]
    found = SFT(max_length=300, epochs=1).train(
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


def refused(start: Path, out: Path, examples: list[Example] = EXAMPLES, **options: Any) -> str:
    with pytest.raises(UserError) as fault:
        train(start, out, examples, **options)
    return str(fault.value)


def test_nothing_to_train_on_is_an_error_with_a_way_out(folders, tmp_path):
    assert "none was given" in refused(folders["llama"], tmp_path, [])


def test_a_loss_that_is_not_finite_stops_with_its_step(folders, tmp_path):
    message = refused(folders["llama"], tmp_path, learning_rate=1e30, epochs=6, batch_size=2, args=SGD)
    assert "at step" in message and "trainer.learning_rate" in message


def test_weights_that_the_last_step_broke_are_not_written(folders, tmp_path):
    assert "not finite" in refused(folders["llama"], tmp_path, learning_rate=1e38, args=SGD)
    assert not (tmp_path / "model.safetensors").exists()


SCRIPT = """
import sys, torch
from pathlib import Path
tests, start, out, noise = sys.argv[1:]
sys.path.insert(0, tests)
from test_trainer_sft import train
for name, lora in {"full": None, "lora": {"r": 2, "lora_dropout": 0.1}}.items():
    torch.manual_seed(int(noise))
    train(Path(start), Path(out) / noise / name, epochs=2, batch_size=2, seed=7, learning_rate=1e-3, lora=lora)
"""


def test_two_processes_make_the_same_bytes_whatever_the_state_of_the_global_generator(folders, tmp_path):
    given = [str(Path(__file__).parent), str(folders["gpt2"]), str(tmp_path)]  # gpt2 has dropout
    running = [subprocess.Popen([sys.executable, "-c", SCRIPT, *given, noise]) for noise in ("1", "2")]
    assert [process.wait() for process in running] == [0, 0]
    for name in ("full", "lora"):
        one, other = ((tmp_path / noise / name / "model.safetensors").read_bytes() for noise in ("1", "2"))
        assert one == other


def test_another_seed_makes_other_weights(folders, tmp_path):
    for seed in (1, 2):
        train(folders["llama"], tmp_path / str(seed), seed=seed, batch_size=2)
    assert difference(weights(tmp_path / "1"), weights(tmp_path / "2")) > 0


@pytest.mark.parametrize("lora", [None, {"r": 2}], ids=["full", "lora"])
def test_checkpointed_activations_change_no_bit(folders, tmp_path, lora):
    for flag in (False, True):
        train(folders["gpt2"], tmp_path / str(flag), learning_rate=1e-3, gradient_checkpointing=flag, lora=lora)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("False", "True"))
    assert one == other != (folders["gpt2"] / "model.safetensors").read_bytes()


def test_loading_the_data_in_another_process_changes_no_bit(folders, tmp_path):
    for workers in (0, 1):
        train(folders["gpt2"], tmp_path / str(workers), batch_size=2, args={"dataloader_num_workers": workers})
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("0", "1"))
    assert one == other


def test_the_folder_is_complete(folders, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    for file in folders["llama"].iterdir():
        (start / file.name).symlink_to(file)
    strange = {"temperature": 0.6, "do_sample": False, "eos_token_id": 1}  # transformers refuses to save this
    (start / "generation_config.json").unlink()
    (start / "generation_config.json").write_text(json.dumps(strange))
    train(start, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == strange
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert config["use_cache"]
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "out")("The fox")["input_ids"]
        == AutoTokenizer.from_pretrained(start)("The fox")["input_ids"]
    )
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "probe.json",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_probe_is_of_the_weights_in_the_folder_and_of_those_before(folders, tmp_path, name, dtype):
    train(folders[name], tmp_path, learning_rate=1e-2, save_dtype=dtype)
    stored = json.loads((tmp_path / "probe.json").read_text())
    after = probe.measure(probe.load_model(tmp_path), stored["tokens"])
    before = probe.measure(probe.load_model(folders[name]), stored["tokens"])
    assert probe.check(tmp_path / "probe.json", after, 1e-5) < 1e-5
    assert np.allclose(np.concatenate(before), np.concatenate(stored["before"]), atol=1e-6)
    with pytest.raises(probe.ProbeError, match="still holds"):
        probe.check(tmp_path / "probe.json", before, 0.2)


def test_lora_is_merged_into_weights_of_the_same_names(folders, tmp_path):
    train(folders["llama"], tmp_path, learning_rate=1e-2, lora={"r": 4, "target_modules": ["q_proj", "v_proj"]})
    start, found = weights(folders["llama"]), weights(tmp_path)
    changed = {name for name in start if not torch.equal(start[name], found[name])}
    assert changed == {f"model.layers.{layer}.self_attn.{which}_proj.weight" for layer in (0, 1) for which in "qv"}
    update = (
        found["model.layers.0.self_attn.q_proj.weight"] - start["model.layers.0.self_attn.q_proj.weight"]
    ).double()
    assert torch.linalg.matrix_rank(update, rtol=1e-4) <= 4


def test_progress_is_told_at_each_step_and_nothing_is_printed(folders, tmp_path, capfd):
    told: list[tuple[int, int]] = []
    options = SFT(epochs=2, batch_size=2)
    options.train(folders["llama"], iter(EXAMPLES), tmp_path, 0, lambda *step: told.append(step), lambda *drop: None)
    assert told == [(step, 6) for step in range(1, 7)]
    assert capfd.readouterr() == ("", "")


def test_the_numbers_that_are_returned(folders, tmp_path):
    found = train(folders["llama"], tmp_path, epochs=3, batch_size=2, learning_rate=1e-2, packing=False)
    assert found["train/steps"] == 9
    assert found["train/examples"] == 5
    assert found["train/tokens"] == sum(len(one.response.token_ids) for one in EXAMPLES)
    assert 0 < found["train/padding"] < 0.6
    assert found["train/loss"] < found["train/loss_first"]


def test_padding_is_none_where_texts_are_packed(folders, tmp_path):
    assert train(folders["llama"], tmp_path)["train/padding"] == 0


def test_mixed_precision_carries_float32_weights_that_small_updates_move(folders, tmp_path):
    train(folders["llama"], tmp_path / "mixed", learning_rate=1e-6, precision="bfloat16")
    train(folders["llama"], tmp_path / "float32", learning_rate=1e-6, precision="float32")
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
        folders["llama"], tmp_path, epochs=2, batch_size=2, schedule="linear", warmup=1 / 3, learning_rate=0.1, args=SGD
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


def faults(**options: Any) -> dict[str, str]:
    found: list[plugins.Fault] = []
    plugins.component("trainer", {"kind": "sft", **options}, "trainer", found)
    return {fault.key: fault.message for fault in found}


def test_wrong_options_are_named_before_anything_heavy_is_imported():
    assert faults(epochs=0, warmup=2, lora={"r": 8}, args={"adam_beta2": 0.95}).keys() == {
        "trainer.epochs",
        "trainer.warmup",
    }
    assert "did you mean adam_beta2" in faults(args={"adam_beta_2": 0.95})["trainer.args.adam_beta_2"]
    assert "learning_rate" not in faults(args={"learning_rate": 1})["trainer.args.learning_rate"].split("free are")[1]
    assert "did you mean lora_alpha" in faults(lora={"alpha": 8})["trainer.lora.alpha"]
    assert "constant_with_warmup" in faults(schedule="constant", warmup=0.1)["trainer.warmup"]
    script = (
        "import sys; from raft import plugins; found = []; "
        "plugins.component('trainer', {'kind': 'sft', 'lora': {'q': 1}, 'args': {'optm': 1}}, 'trainer', found); "
        "assert len(found) == 2, found; assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_names_read_from_source_are_those_of_the_classes():
    from dataclasses import fields

    from peft import LoraConfig
    from transformers import TrainingArguments

    read = set(fitting.options_of("transformers", "training_args.py", "TrainingArguments"))
    assert read == {field.name for field in fields(TrainingArguments) if field.init}
    assert set(fitting.options_of("peft", "tuners/lora/config.py", "LoraConfig")) < {
        field.name for field in fields(LoraConfig)
    }
