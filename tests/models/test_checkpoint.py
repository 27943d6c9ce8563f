"""The files of a checkpoint: shards, old weights, and which of several kinds of weights is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from heads import WIDTH, make, rand
from reward_models import SIZE, groups, load, rewards, save
from safetensors.torch import load_file, save_file

from raft.core.errors import UserError
from raft.models import loading, weight_check
from raft.models.checkpoint import Checkpoint
from raft.rewards.model import RewardModel


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-zip"])
def test_old_weights_are_read_as_tensors_alone(tmp_path: Path, zipped: bool):
    weight = rand(1, WIDTH)
    make(tmp_path, {"regression_head.weight": weight}, "LlamaRewardModel")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # as checkpoints of 2023 have it
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (tmp_path / "model.safetensors").rename(tmp_path / "kept")
    found = rewards(RewardModel(model=str(tmp_path)), groups())
    (tmp_path / "kept").rename(tmp_path / "model.safetensors")
    assert found == pytest.approx(rewards(RewardModel(model=str(tmp_path)), groups()), abs=1e-6)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-zip"])
def test_a_policy_of_old_weights_is_the_same_policy(tmp_path: Path, zipped: bool):
    save(tmp_path, "LlamaForCausalLM", **SIZE)
    before = weight_check.measure(loading.load_model(tmp_path), [[5, 6, 7, 8]])
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert weight_check.measure(loading.load_model(tmp_path), [[5, 6, 7, 8]]) == before


def test_shards_are_read_by_their_index(tmp_path: Path):
    make(tmp_path, {"regression_head.weight": rand(1, WIDTH)}, "LlamaRewardModel")
    whole = rewards(RewardModel(model=str(tmp_path)), groups())
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    table = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in set(table.values()):
        part = {name: tensor for name, tensor in tensors.items() if table[name] == file}
        save_file(part, tmp_path / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": table}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert rewards(RewardModel(model=str(tmp_path)), groups()) == whole
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match="names files that are not there"):
        load(tmp_path)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("this must never run",))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-zip"])
def test_weights_that_are_a_program_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], zipped: bool):
    make(tmp_path, {"regression_head.weight": rand(1, WIDTH)}, "LlamaRewardModel")
    (tmp_path / "model.safetensors").unlink()
    evil = {"regression_head.weight": Evil()}
    torch.save(evil, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    for read in (load, loading.load_model):
        with pytest.raises(
            UserError, match=r"cannot be read as tensors alone \(damaged, or more than tensors\)"
        ) as told:
            read(tmp_path)
        assert "weights_only" not in str(told.value)  # torch's own words advise to run it
    assert "never" not in capsys.readouterr().out


def test_old_weights_that_were_cut_off_are_refused(tmp_path: Path):
    save(tmp_path, "LlamaForCausalLM", **SIZE)
    (tmp_path / "model.safetensors").rename(tmp_path / "whole")
    torch.save(load_file(tmp_path / "whole"), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with open(tmp_path / "pytorch_model.bin", "r+b") as file:
        file.truncate(2000)
    with pytest.raises(UserError, match="cannot be read as tensors alone"):
        Checkpoint(tmp_path)
    with pytest.raises(UserError):
        loading.load_model(tmp_path)


def test_of_several_kinds_of_weights_the_one_is_read_that_transformers_loads(tmp_path: Path):
    make(tmp_path, {"regression_head.weight": rand(1, WIDTH)}, "LlamaRewardModel")
    expected = rewards(RewardModel(model=str(tmp_path)), groups())
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "gone.bin"}}')
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "stale.safetensors"}}')
    assert rewards(RewardModel(model=str(tmp_path)), groups()) == expected
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text('{"weight')
    with pytest.raises(UserError, match="not an index of weights"):
        load(tmp_path)
