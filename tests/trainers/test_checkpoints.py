"""A training that is killed goes on from a step, and ends with the bytes of one that was not."""

from pathlib import Path
from typing import Any

import pytest
from tuning import EXAMPLES, make_folders

from raft.core.errors import Stopped
from raft.core.records import Pair, Response
from raft.trainers.reward_model import BradleyTerry
from raft.trainers.sft import SFT
from raft.trainers.trl import DPO, KTO

pytestmark = pytest.mark.usefixtures("one_thread")

EACH_STEP = 1e-9  # minutes
PAIRS = [
    Pair(str(n), *(Response(text, [], None, "stop") for text in ("kind" + " words" * n, "rude")), text="Say: ")
    for n in range(6)
]
CHOSEN = [Pair(one.prompt_id, one.response, EXAMPLES[0].response, text=one.text) for one in EXAMPLES]
OPTIONS = {"batch_size": 2, "num_train_epochs": 2, "learning_rate": 1e-2, "lr_scheduler_type": "cosine"}
CASES: dict[str, tuple[str, type, list[Any], dict[str, Any]]] = {
    "sft": ("llama", SFT, EXAMPLES, OPTIONS),
    "dropout": ("gpt2", SFT, EXAMPLES, OPTIONS),
    "adapter": ("llama-tied", SFT, EXAMPLES, {**OPTIONS, "lora": {"r": 2, "lora_dropout": 0.5}}),
    "reward model": ("qwen3", BradleyTerry, PAIRS, OPTIONS),
    "dpo": ("llama-tied", DPO, CHOSEN, {**OPTIONS, "lora": {"r": 2, "lora_dropout": 0.5}}),
    "kto": ("gpt2", KTO, CHOSEN, {**OPTIONS, "args": {"disable_dropout": False}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_folders(tmp_path_factory.mktemp("policies"))


def train(folder: Path, case: str, out: Path, kept: Path, stop: int | None = None, **more: Any) -> list[int]:
    """Trains, and returns the steps that it made; after step `stop` it is stopped."""
    _, kind, examples, options = CASES[case]
    steps = []

    def advance(done: int, total: int) -> None:
        steps.append(done)
        if done == stop:
            raise Stopped

    measured = kind(**options, **more).train(folder, iter(examples), out, 0, advance, lambda *drop: None, kept)
    (out / "measured").write_text(repr(measured))
    return steps


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize(
    "case", [*list(CASES)[:4], *(pytest.param(case, marks=pytest.mark.nightly) for case in list(CASES)[4:])]
)
def test_a_training_goes_on_from_its_last_checkpoint_with_the_same_bytes(folders, case, tmp_path):
    start = folders[CASES[case][0]]
    whole = train(start, case, tmp_path / "whole", tmp_path / "none", checkpoint_minutes=0)
    assert not list((tmp_path / "none").iterdir())
    for stop in (2, 4):  # stopped twice, the second time after it went on
        with pytest.raises(Stopped):
            train(start, case, tmp_path / f"stopped{stop}", tmp_path / "kept", stop, checkpoint_minutes=EACH_STEP)
        assert [path.name for path in (tmp_path / "kept").glob("checkpoint-*")] == [f"checkpoint-{stop}"]
    rest = train(start, case, tmp_path / "rest", tmp_path / "kept", checkpoint_minutes=EACH_STEP)
    assert rest == whole[4:]
    assert content(tmp_path / "rest") == content(tmp_path / "whole")


def test_a_training_that_goes_on_says_from_which_step(folders, tmp_path, capsys):
    with pytest.raises(Stopped):
        train(folders["llama"], "sft", tmp_path / "stopped", tmp_path / "kept", 3, checkpoint_minutes=EACH_STEP)
    assert "training goes on" not in capsys.readouterr().err
    rest = train(folders["llama"], "sft", tmp_path / "rest", tmp_path / "kept")
    assert f"training goes on from step 3 of {rest[-1]}\n" in capsys.readouterr().err and rest[0] == 4


def test_a_checkpoint_that_was_not_finished_is_not_used(folders, tmp_path):
    with pytest.raises(Stopped):
        train(folders["llama"], "sft", tmp_path / "stopped", tmp_path / "kept", 3, checkpoint_minutes=EACH_STEP)
    (tmp_path / "kept" / "checkpoint-3" / "measured.json").unlink()
    assert train(folders["llama"], "sft", tmp_path / "again", tmp_path / "kept")[0] == 1


def test_a_short_training_makes_no_checkpoint(folders, tmp_path):
    train(folders["llama"], "sft", tmp_path / "out", tmp_path / "kept")
    assert not list(tmp_path.glob("kept/*"))
