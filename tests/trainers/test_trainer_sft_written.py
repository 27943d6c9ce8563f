"""What supervised fine-tuning leaves: the same bytes twice, a complete folder, its probe, and figures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from tuning import CONFIGS, EXAMPLES, difference, make_folders, train, weights

from raft.core.errors import UserError
from raft.models import loading, weight_check
from raft.trainers import hf_trainer
from raft.trainers.sft import SFT

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_folders(tmp_path_factory.mktemp("policies"))


SUPPORT = Path(__file__).parents[1] / "support"
SCRIPT = """
import sys, torch
from pathlib import Path
tests, start, out, noise = sys.argv[1:]
sys.path.insert(0, tests)
from tuning import train
for name, lora in {"full": None, "lora": {"r": 2, "lora_dropout": 0.1}}.items():
    torch.manual_seed(int(noise))
    options = {"num_train_epochs": 2, "batch_size": 2, "learning_rate": 1e-3, "lora": lora}
    train(Path(start), Path(out) / noise / name, seed=7, **options)
"""


@pytest.mark.nightly
def test_two_processes_make_the_same_bytes_whatever_the_state_of_the_global_generator(folders, tmp_path):
    given = [str(SUPPORT), str(folders["gpt2"]), str(tmp_path)]  # gpt2 has dropout
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
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1, "others may read some of it only"


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_probe_is_of_the_weights_in_the_folder_and_of_those_before(folders, tmp_path, name, dtype):
    train(folders[name], tmp_path, learning_rate=1e-2, save_dtype=dtype)
    stored = json.loads((tmp_path / "probe.json").read_text())
    after = weight_check.measure(loading.load_model(tmp_path), stored["tokens"])
    before = weight_check.measure(loading.load_model(folders[name]), stored["tokens"])
    assert weight_check.check(tmp_path / "probe.json", after, 1e-5) < 1e-5
    assert np.allclose(np.concatenate(before), np.concatenate(stored["before"]), atol=1e-6)
    with pytest.raises(weight_check.ProbeError, match="still holds"):
        weight_check.check(tmp_path / "probe.json", before, 0.2)


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
    options = SFT(num_train_epochs=2, batch_size=2)
    options.train(folders["llama"], iter(EXAMPLES), tmp_path, 0, lambda *step: told.append(step), lambda *drop: None)
    assert told == [(step, 6) for step in range(1, 7)]
    assert capfd.readouterr() == ("", "")


def test_the_numbers_that_are_returned(folders, tmp_path):
    found = train(folders["llama"], tmp_path, num_train_epochs=3, batch_size=2, learning_rate=1e-2, packing=False)
    assert found["train/steps"] == 9
    assert found["train/examples"] == 5
    assert found["train/tokens"] == sum(len(one.response.token_ids) for one in EXAMPLES)
    assert 0 < found["train/padding"] < 0.6
    assert found["train/loss"] < found["train/loss_first"]


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("lora", [None, {"r": 2, "target_modules": "all-linear"}], ids=["full", "lora"])
def test_training_keeps_the_tensors_that_it_started_from(folders, tmp_path, name, lora):
    train(folders[name], tmp_path, lora=lora)
    start, found = weights(folders[name]), weights(tmp_path)
    assert {one: tensor.shape for one, tensor in start.items()} == {one: tensor.shape for one, tensor in found.items()}


def test_a_tensor_that_training_would_lose_stops_it(folders, tmp_path):
    model, tokenizer = loading.load_model(folders["llama"]), AutoTokenizer.from_pretrained(folders["llama"])
    del model.model.layers[1]
    with pytest.raises(UserError, match=r"has 12 tensors, and .* has 21 \(lost: model\.layers\.1\.input_layernorm"):
        hf_trainer.save(model, tokenizer, folders["llama"], tmp_path, "float32")
