"""Training by several processes: equal to one process but for the rounding of sums, and by sums, not by means."""

import contextlib
import json
import multiprocessing
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tuning import EXAMPLES, SGD, difference, make_folders

from raft.core import ranks
from raft.core.errors import Stopped
from raft.core.records import Pair, Response
from raft.trainers.distillation import Distillation
from raft.trainers.policy_gradient import PolicyGradient
from raft.trainers.reward_model import BradleyTerry
from raft.trainers.sft import SFT
from raft.trainers.trl import DPO, KTO

FACTORS = {"learning_rate": 0.05, "lr_scheduler_type": "constant", "num_train_epochs": 2}
ALONE = {**FACTORS, "max_tokens_per_microbatch": 1, "args": SGD}  # each example is a pass of its own
SIDES = [("kind" + " words" * (n % 4), "rude" + "!" * (n + 1)) for n in range(9)]
PAIRS = [
    Pair(str(n), Response(better, [], None, "stop"), Response(worse, [], None, "stop"), text="Say: ")
    for n, (better, worse) in enumerate(SIDES)
]
GENERATED = [
    replace(one, weight=weight, response=replace(one.response, logprobs=[-5.0] * len(one.response.token_ids)))
    for one, weight in zip(EXAMPLES, [1.0, -0.5, 2.0, -1.5, 0.25], strict=True)
]
CHOSEN = [
    Pair(one.prompt_id, one.response, EXAMPLES[2].response, text=one.text)
    for one in EXAMPLES[:5]
    if one.prompt_id != "2"
]
CASES: dict[str, tuple[str, type, list[Any], dict[str, Any]]] = {
    "five passes": ("llama", SFT, EXAMPLES, {**ALONE, "batch_size": 5}),
    "a rank without a pass": ("llama", SFT, EXAMPLES, {**ALONE, "batch_size": 1}),
    "tied embeddings": ("llama-tied", SFT, EXAMPLES, {**ALONE, "batch_size": 5}),
    "clipped": ("llama", SFT, EXAMPLES, {**ALONE, "batch_size": 5, "args": {"optim": "sgd", "max_grad_norm": 0.01}}),
    "padded": ("llama", SFT, EXAMPLES, {**ALONE, "batch_size": 5, "packing": False}),
    "packed": ("llama", SFT, EXAMPLES, {**ALONE, "batch_size": 5, "max_tokens_per_microbatch": 30}),
    "adapter": ("llama", SFT, EXAMPLES, {**ALONE, "batch_size": 5, "lora": {"r": 4, "init_lora_weights": False}}),
    "reward model": ("llama", BradleyTerry, PAIRS, {**ALONE, "batch_size": 3}),
    "policy gradient": ("llama", PolicyGradient, GENERATED, {**ALONE, "batch_size": 5, "clip": 0.9}),
    "distillation": ("llama", Distillation, EXAMPLES, {**ALONE, "batch_size": 5, "teacher": "qwen3"}),
    "dpo": ("llama", DPO, CHOSEN, {**ALONE, "batch_size": 3}),
    "kto": ("llama", KTO, CHOSEN, {**ALONE, "batch_size": 3}),
}


SHARDED = (
    "five passes", "tied embeddings", "reward model", "a rank without a pass", "clipped", "policy gradient",
    "distillation",
)  # fmt: skip
# Of whole weights, then of sharded ones; the others are left to the night.
FIRST = (
    ["five passes", "a rank without a pass", "reward model", "policy gradient"],
    ["five passes", "tied embeddings"],
)
OTHERS = tuple(
    [name for name in names if name not in first] for names, first in zip((CASES, SHARDED), FIRST, strict=True)
)


def train_all(
    rank: int, count: int, address: str, folders: dict[str, Path], out: Path, names: list[str], shard: bool = False
) -> None:
    """What one of the processes does: some cases, one after the other."""
    torch.set_num_threads(1)
    with ranks.joined(rank, count, address, shard):
        for name in names:
            start, kind, examples, options = CASES[name]
            place = out / name if rank == 0 else out / f"{name}, rank {rank}"
            if "teacher" in options:
                options = {**options, "teacher": str(folders[options["teacher"]])}
            measured = kind(**options).train(
                folders[start], iter(examples), place, 0, lambda done, total: None, lambda *drop: None
            )
            if rank == 0:
                (place / "loss").write_text(repr(measured["train/loss"]))
            assert rank == 0 or not list(place.glob("*.safetensors"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The policies before."""
    return make_folders(tmp_path_factory.mktemp("policies"))


@pytest.fixture(scope="module", params=[FIRST, pytest.param(OTHERS, marks=pytest.mark.nightly)], ids=["", "others"])
def trained(request: pytest.FixtureRequest, folders, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What one process made of each policy, and what two did, with whole and with sharded weights."""
    whole, sharded = request.param
    found = {name: tmp_path_factory.mktemp(name) for name in ("one", "two", "sharded")}
    train_all(0, 1, "", folders, found["one"], list(dict.fromkeys([*whole, *sharded])))
    two_ranks(train_both, folders, found["two"], found["sharded"], request.param, free_address())
    return found


def train_both(
    rank: int, count: int, address: str, folders: dict[str, Path], two: Path, sharded: Path, names: Any, other: str
) -> None:
    """Cases with whole weights, then those that shard, in the same processes."""
    train_all(rank, count, address, folders, two, names[0])
    train_all(rank, count, other, folders, sharded, names[1], True)


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def two_ranks(function: Callable[..., None], *arguments: Any) -> None:
    """Runs a function in two processes that can meet."""
    address = free_address()
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=function, args=(rank, 2, address, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.parametrize("how", ["two", "sharded"])
def test_two_ranks_train_what_one_does(trained, folders, how):
    cases = sorted(place.name for place in trained[how].iterdir() if "," not in place.name)
    assert cases
    for case in cases:
        same_but_for_rounding(trained, folders, how, case)


def same_but_for_rounding(trained: dict[str, Path], folders: dict[str, Path], how: str, case: str) -> None:
    one, two = (load_file(trained[name] / case / "model.safetensors") for name in ("one", how))
    before = load_file(folders[CASES[case][0]] / "model.safetensors")
    moved = difference({name: before[name] for name in one if name in before}, {n: one[n] for n in one if n in before})
    assert difference(one, two) < 1e-3 * moved, "a loss of the wrong scale would differ by half of what training moved"
    losses = [float((trained[name] / case / "loss").read_text()) for name in ("one", how)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    if (trained["one"] / case / "probe.json").exists():
        probes = [json.loads((trained[name] / case / "probe.json").read_text()) for name in ("one", how)]
        assert np.allclose(*(np.concatenate(one["logprobs"]) for one in probes), atol=1e-3)
    files = [sorted(file.name for file in (trained[name] / case).iterdir()) for name in ("one", how)]
    assert files[0] == files[1]


def stop_and_go_on(rank: int, count: int, address: str, start: Path, out: Path) -> None:
    """A sharded training, whole, and one that is stopped at a step and goes on."""
    torch.set_num_threads(1)
    steps: list[int] = []

    def advance(done: int, total: int) -> None:
        steps.append(done)
        if name == "stopped" and done == 3:
            raise Stopped

    with ranks.joined(rank, count, address, shard=True):
        for name in ("whole", "stopped", "rest"):
            place, kept = out / name if rank == 0 else out / f"{name}, rank {rank}", out / "kept"
            trainer = SFT(batch_size=2, learning_rate=1e-2, checkpoint_minutes=0 if name == "whole" else 1e-9)
            with contextlib.suppress(Stopped):
                trainer.train(start, iter(EXAMPLES), place, 0, advance, lambda *drop: None, kept)
            assert steps == {"whole": [1, 2, 3, 4, 5, 6], "stopped": [1, 2, 3], "rest": [4, 5, 6]}[name]
            steps.clear()


@pytest.mark.nightly
def test_a_sharded_training_goes_on_from_its_checkpoint_with_the_same_bytes(folders, tmp_path):
    two_ranks(stop_and_go_on, folders["llama-tied"], tmp_path)
    for file in ("model.safetensors", "probe.json"):
        assert (tmp_path / "rest" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
