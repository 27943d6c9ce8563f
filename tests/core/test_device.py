"""The device: its switches are those of each stage, memory is one sentence, and keys hold what `auto` became."""

import os
import subprocess
import sys

import pytest
import torch

from raft.core import device
from raft.core.errors import UserError
from raft.core.registry import build
from raft.generators.transformers import Transformers
from raft.generators.vllm import VLLM
from raft.rewards.model import RewardModel
from raft.store import keys
from raft.trainers import hf_trainer
from raft.trainers.sft import SFT


def test_a_key_holds_what_auto_became_so_rows_of_a_cpu_and_of_a_gpu_are_never_mixed(monkeypatch):
    sections = (Transformers(), VLLM(max_tokens=8), RewardModel(model="base", template="plain"), SFT())
    monkeypatch.setattr("raft.store.keys._described", lambda owner, item, *_: getattr(owner, item.name))
    on_cpu = [keys.describe(one) for one in sections]
    assert [one.get("dtype", one.get("mixed_precision")) for one in on_cpu] == ["float32"] * 4
    assert on_cpu[2]["max_tokens_per_batch"] == 2048 and on_cpu[3]["max_tokens_per_microbatch"] == 2048
    monkeypatch.setattr(device, "current", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    on_gpu = [keys.describe(one) for one in sections]
    assert [one.get("dtype", one.get("mixed_precision")) for one in on_gpu] == ["bfloat16"] * 4
    assert on_gpu[2]["max_tokens_per_batch"] == 16384 and on_gpu[3]["max_tokens_per_microbatch"] == 8192
    assert keys.describe(Transformers(device="cpu"))["dtype"] == "float32"
    assert keys.describe(Transformers(dtype="float16"))["dtype"] == "float16"


def test_training_leaves_no_switch_of_determinism_to_the_stages_after_it(monkeypatch):
    from transformers.trainer_utils import enable_full_determinism

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with device.deterministic_switches_kept():
        enable_full_determinism(1)
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and "CUDA_LAUNCH_BLOCKING" not in os.environ


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA Error: out of memory at cumem_allocator.cpp:62"),
        ValueError("No available memory for the cache blocks."),
    ],
)
def test_memory_that_does_not_suffice_is_one_sentence_that_says_what_to_lower(fault):
    with (
        pytest.raises(UserError, match=r"the engine does not fit the memory .*; lower x"),
        device.fits("the engine", "lower x"),
    ):
        raise fault


def test_other_faults_pass():
    with pytest.raises(RuntimeError, match="a bug"), device.fits("the engine", "lower x"):
        raise RuntimeError("a bug")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_would_break_the_weights_is_refused(value):
    with pytest.raises(UserError, match=r"norm of the gradients is (nan|inf) at step 3.*mixed_precision: float32"):
        hf_trainer._finite("norm of the gradients is", value, 3)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("tensor_parallel_size", 0), ("pipeline_parallel_size", 2),
        ("data_parallel_size", 2), ("skip_tokenizer_init", True), ("revision", "main"),
        ("logprobs_mode", "processed_logprobs"), ("load_format", "dummy"), ("worker_cls", "x"), ("runner", "pooling"),
        ("speculative_config", {}), ("enable_lora", True), ("swap_space", 4), ("model_weights", "x"),
    ],
)  # fmt: skip
def test_an_option_of_the_engine_that_cannot_work_is_refused_by_check(option, value):
    faults = []
    build(VLLM, {"max_tokens": 8, "engine_args": {option: value}}, "generator", faults)
    assert [fault.key for fault in faults] == [f"generator.engine_args.{option}"]


def test_options_of_speed_are_free():
    faults = []
    options = {"disable_log_stats": False, "use_tqdm_on_load": True, "tensor_parallel_size": 2, "max_num_seqs": 8}
    build(VLLM, {"max_tokens": 8, "engine_args": options}, "generator", faults)
    assert faults == []


def test_matrix_products_are_the_same_with_any_number_of_threads():
    """These shapes are among those that Intel's library adds up in another order with two threads than with one."""
    script = (
        "import raft.core.device, torch\n"
        "for rows, inner, columns in [(33, 1024, 32), (33, 1024, 512), (100, 1024, 96), (700, 1024, 128)]:\n"
        "    x, w, found = torch.randn(rows, inner), torch.randn(columns, inner), []\n"
        "    for threads in (1, 2, 3):\n"
        "        torch.set_num_threads(threads)\n"
        "        found.append(torch.nn.functional.linear(x, w))\n"
        "    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]), (rows, inner, columns)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
