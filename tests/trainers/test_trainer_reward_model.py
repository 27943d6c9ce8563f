"""Training a reward model from pairs: compared with plain torch, one conversation at a time."""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from raft.core.errors import UserError
from raft.core.records import Pair, Prompt, Response
from raft.models import from_scratch, reward_templates
from raft.trainers.reward_model import HEAD_STD, BradleyTerry

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.1}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SHAPE, "intermediate_size": 96},
    "qwen3": {"model_type": "qwen3", **SHAPE, "intermediate_size": 96, "num_key_value_heads": 1, "head_dim": 32},
    "gemma2": {"model_type": "gemma2", **SHAPE, "intermediate_size": 96, "num_key_value_heads": 1, "head_dim": 32},
    "gpt2": {"model_type": "gpt2", **SHAPE, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
}
SGD = {"optim": "sgd", "max_grad_norm": 0.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in CONFIGS}
    for name, folder in made.items():
        from_scratch.make(folder, ["kind words are good words", "rude!"], CONFIGS[name], 280, seed=3)
    return made


def pair(number: int, chosen: str, rejected: str) -> Pair:
    good, bad = (Response(text, [], None, "stop") for text in (chosen, rejected))
    return Pair(str(number), good, bad, text=f"Order {number}: ")


PAIRS = [pair(n, "kind words" + " indeed" * (n % 3), "rude" + "!" * (n * 5 % 7)) for n in range(12)]


def train(start: Path, out: Path, pairs: Iterable[Pair] = PAIRS, seed: int = 0, **options: Any) -> dict[str, float]:
    return BradleyTerry(**{"lr_scheduler_type": "constant", **options}).train(
        start, iter(pairs), out, seed, lambda done, total: None, lambda *drop: None
    )


def reward(model: Any, tokenizer: Any, prompt: str, response: str) -> torch.Tensor:
    """One conversation alone, read by transformers itself."""
    ids = reward_templates.encode(tokenizer, Prompt("p", text=prompt), response, "plain")
    return model(input_ids=torch.tensor([ids])).logits[0, 0]


def formula(model: Any, tokenizer: Any, pairs: list[Pair]) -> torch.Tensor:
    margins = [
        reward(model, tokenizer, one.text or "", one.chosen.text)
        - reward(model, tokenizer, one.text or "", one.rejected.text)
        for one in pairs
    ]
    return -torch.stack(margins).sigmoid().log().mean()


@pytest.fixture(scope="module")
def classifiers(folders, tmp_path_factory) -> dict[str, Path]:
    """Reward models to start from: a training with no step's worth of learning leaves the fresh head."""
    made = {name: tmp_path_factory.mktemp(f"{name}-classifier") for name in CONFIGS}
    for name, folder in made.items():
        train(folders[name], folder, learning_rate=0.0, num_train_epochs=1)
    return made


MANY = {"max_tokens_per_microbatch": 100}  # forward passes in a step
PADDED = {"packing": False, "max_tokens_per_microbatch": 200}


@pytest.mark.parametrize(
    ("name", "options"), [*((name, MANY) for name in CONFIGS), ("llama", {}), ("gpt2", PADDED)], ids=str
)
def test_one_step_of_gradient_descent_is_the_formulas(classifiers, tmp_path, name, options):
    start = classifiers[name]
    model = AutoModelForSequenceClassification.from_pretrained(start, dtype=torch.float32, attn_implementation="eager")
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    loss = formula(model, AutoTokenizer.from_pretrained(start), PAIRS)
    loss.backward()
    expected = {key: value.detach() - value.grad for key, value in model.named_parameters()}
    measured = train(start, tmp_path, learning_rate=1.0, args=SGD, **options)
    found = dict(AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).named_parameters())
    assert measured["train/loss"] == pytest.approx(float(loss), rel=1e-5)
    assert max(float((found[key] - expected[key]).abs().max()) for key in expected) < 2e-5
    assert max(float((before[key] - expected[key]).abs().max()) for key in expected) > 1e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_the_folder_loads_as_a_classifier_and_nothing_is_missing(classifiers, name):
    model, info = AutoModelForSequenceClassification.from_pretrained(classifiers[name], output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == AutoTokenizer.from_pretrained(classifiers[name]).pad_token_id


def test_only_the_head_is_fresh_and_it_depends_on_the_seed_alone(folders, classifiers, tmp_path):
    torch.manual_seed(99)
    for name, seed in (("again", 0), ("other", 1)):
        train(folders["llama"], tmp_path / name, seed=seed, learning_rate=0.0, num_train_epochs=1)
    read = AutoModelForSequenceClassification.from_pretrained
    first, again, other = (
        read(path).state_dict() for path in (classifiers["llama"], tmp_path / "again", tmp_path / "other")
    )
    language = AutoModelForCausalLM.from_pretrained(folders["llama"]).state_dict()
    assert all(torch.equal(first[key], language[key]) for key in first if key != "score.weight")
    assert torch.equal(first["score.weight"], again["score.weight"])
    assert not torch.equal(first["score.weight"], other["score.weight"])
    assert HEAD_STD / 2 < float(first["score.weight"].std()) < HEAD_STD * 2


def test_a_reward_model_learns_and_goes_on_from_where_it_was(folders, tmp_path):
    options = BradleyTerry(num_train_epochs=4, batch_size=4, learning_rate=1e-3)
    learned = options.train(folders["llama"], iter(PAIRS), tmp_path / "one", 0, lambda *step: None, lambda *drop: None)
    assert learned["train/loss_first"] == pytest.approx(math.log(2), abs=0.1)
    assert learned["train/loss"] < 0.4
    assert learned["train/accuracy"] > 0.9
    assert learned["train/margin"] > 0.5
    assert (learned["train/steps"], learned["train/examples"]) == (12, 12)
    again = train(tmp_path / "one", tmp_path / "two", learning_rate=0.0)
    assert again["train/loss"] < learned["train/loss"]


def test_evaluation_is_the_formula_over_all_pairs_that_fit(folders, tmp_path):
    train(folders["gpt2"], tmp_path, num_train_epochs=4, learning_rate=1e-3, batch_size=4)
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    model.eval()
    long = pair(0, "kind words " * 50, "rude")
    for packing in (True, False):
        options = BradleyTerry(batch_size=5, max_length=60, packing=packing)
        found = options.evaluate(tmp_path, iter([*PAIRS, long]))
        assert found["eval/loss"] == pytest.approx(float(formula(model, tokenizer, PAIRS)), rel=1e-5)
        assert (found["eval/pairs"], found["eval/dropped"]) == (12, 1)
        assert found["eval/accuracy"] == 1
        assert found["eval/margin"] > 0.5


def test_transformers_reads_the_same_reward_from_a_padded_batch(folders, tmp_path):
    train(folders["llama"], tmp_path)
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    texts = ["Order 1: kind", "Order 2: kind words indeed<|end|>"]  # the second ends with the end token
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    batch["input_ids"][batch["attention_mask"] == 0] = model.config.pad_token_id
    with torch.no_grad():
        together = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
        alone = [model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).logits[0, 0] for text in texts]
    assert torch.allclose(together, torch.stack(alone), atol=1e-5)


def test_where_padding_is_the_end_token_another_one_is_written_in_the_config(folders, tmp_path):
    from raft.trainers.reward_model import _pad

    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    tokenizer.pad_token = tokenizer.eos_token
    assert _pad(tokenizer) == tokenizer.bos_token_id != tokenizer.eos_token_id


def test_a_pair_with_a_longer_side_is_named_and_left_out(folders, tmp_path):
    dropped: list[tuple] = []
    pairs = [*PAIRS, pair(98, "kind " * 100, "rude"), pair(99, "kind", "rude " * 100)]
    options = BradleyTerry(max_length=100)
    found = options.train(
        folders["llama"], iter(pairs), tmp_path, 0, lambda *step: None, lambda *drop: dropped.append(drop)
    )
    assert found["train/examples"] == 12
    assert [prompt_id for prompt_id, _, _ in dropped] == ["98", "99"]
    assert dropped[0][2].endswith("more than trainer.max_length (100)")


def test_a_pair_with_a_token_that_the_model_lacks_is_named_and_left_out(folders, tmp_path):
    shutil.copytree(folders["llama"], tmp_path / "start")
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    tokenizer.add_tokens(["indeed"])  # two of three pairs say it
    tokenizer.save_pretrained(tmp_path / "start")
    dropped: list[tuple] = []
    found = BradleyTerry().train(
        tmp_path / "start", iter(PAIRS), tmp_path / "out", 0, lambda *step: None, lambda *drop: dropped.append(drop)
    )
    assert found["train/examples"] == 4
    assert [prompt_id for prompt_id, _, _ in dropped] == [str(n) for n in range(12) if n % 3]
    assert "('indeed') is beyond the" in dropped[0][2]


def test_no_pair_at_all_is_an_error(folders, tmp_path):
    with pytest.raises(UserError, match="no pair to train on"):
        train(folders["llama"], tmp_path, [])
    with pytest.raises(UserError, match="no pair to evaluate"):
        train(folders["llama"], tmp_path)
        BradleyTerry().evaluate(tmp_path, [])


def test_a_classifier_without_its_head_is_refused(classifiers, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in classifiers["llama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"score\.weight"):
        train(tmp_path, tmp_path / "out")


def test_lora_trains_the_head_too_and_is_merged(folders, classifiers, tmp_path):
    train(folders["llama"], tmp_path, learning_rate=1e-2, lora={"r": 2, "target_modules": ["q_proj"]})
    read = AutoModelForSequenceClassification.from_pretrained
    start, found = read(classifiers["llama"]).state_dict(), read(tmp_path).state_dict()
    changed = {key for key in start if not torch.equal(start[key], found[key])}
    assert changed == {"score.weight", *(f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))}


def test_rewards_are_told_apart_in_mixed_precision_too(folders, tmp_path):
    found = train(folders["llama"], tmp_path, learning_rate=0.0, mixed_precision="bfloat16")
    exact = train(folders["llama"], tmp_path, learning_rate=0.0, mixed_precision="float32")
    assert found["train/margin"] != exact["train/margin"]
    assert found["train/loss"] == pytest.approx(exact["train/loss"], abs=0.01)


def test_a_start_with_another_number_of_outputs_or_without_a_last_token_is_refused(folders, tmp_path):
    from transformers import AutoConfig

    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    llama = AutoConfig.from_pretrained(folders["llama"], num_labels=2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = AutoConfig.for_model("bert", **sizes, vocab_size=280, num_labels=1)
    for name, config in {"two outputs": llama, "bert": bert}.items():
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(UserError, match=name):
            train(tmp_path / name, tmp_path / "out")


def test_conversations_are_read_in_the_models_own_template(folders, tmp_path):
    turns = [{"role": "user", "content": "Tea?"}]
    good, bad = (Response(text, [], None, "stop") for text in ("Gladly.", "No!"))
    found = train(folders["llama"], tmp_path, [Pair("1", good, bad, messages=turns)], template="chat")
    assert found["train/examples"] == 1
    with pytest.raises(UserError, match="use template"):
        train(folders["llama"], tmp_path, [Pair("1", good, bad, messages=turns)])
