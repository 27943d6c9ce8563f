"""Training by several processes: equal to one process but for the rounding of sums, and by sums, not by means."""

import multiprocessing
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tuning import EXAMPLES, SGD, difference, make_folders

from raft.core import ranks
from raft.core.records import Pair, Response
from raft.trainers.reward_model import BradleyTerry
from raft.trainers.sft import SFT

FACTORS = {"learning_rate": 0.05, "lr_scheduler_type": "constant", "num_train_epochs": 2}
ALONE = {**FACTORS, "max_tokens_per_microbatch": 1, "args": SGD}  # each example is a pass of its own
SIDES = [("kind" + " words" * (n % 4), "rude" + "!" * (n + 1)) for n in range(9)]
PAIRS = [
    Pair(str(n), Response(better, [], None, "stop"), Response(worse, [], None, "stop"), text="Say: ")
    for n, (better, worse) in enumerate(SIDES)
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
}


def train_all(rank: int, count: int, address: str, folders: dict[str, Path], out: Path) -> None:
    """What one of the processes does: all cases, one after the other."""
    torch.set_num_threads(1)
    with ranks.joined(rank, count, address):
        for name, (start, kind, examples, options) in CASES.items():
            place = out / name if rank == 0 else out / f"{name}, rank {rank}"
            measured = kind(**options).train(
                folders[start], iter(examples), place, 0, lambda done, total: None, lambda *drop: None
            )
            if rank == 0:
                (place / "loss").write_text(repr(measured["train/loss"]))
            assert rank == 0 or not list(place.glob("*.safetensors"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The policies before, what one process made of each, and what two did."""
    folders = make_folders(tmp_path_factory.mktemp("policies"))
    found = {0: next(iter(folders.values())).parent}
    for count in (1, 2):
        found[count] = tmp_path_factory.mktemp(f"ranks{count}")
    train_all(0, 1, "", folders, found[1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=train_all, args=(rank, 2, address, folders, found[2])) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_what_one_does(trained, case):
    one, two = (load_file(trained[count] / case / "model.safetensors") for count in (1, 2))
    before = load_file(trained[0] / CASES[case][0] / "model.safetensors")
    moved = difference({name: before[name] for name in one if name in before}, {n: one[n] for n in one if n in before})
    assert difference(one, two) < 1e-3 * moved, "a loss of the wrong scale would differ by half of what training moved"
    losses = [float((trained[count] / case / "loss").read_text()) for count in (1, 2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
