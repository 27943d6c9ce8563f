"""No test reaches a network; the folder with real weights and text is used where it is there."""

import atexit
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

signal.signal(
    signal.SIGHUP, signal.SIG_DFL
)  # nohup ignores it, and every command that a test starts would inherit that
atexit.register(gc.unfreeze)  # nanobind takes what is frozen at the end for a leak, and prints pages about it
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
if PARALLEL := "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker, and each command that it starts, has one core

MATERIAL = Path(__file__).parent.parent.parent / "shared" / "data"


SLOW = (  # whole runs, the longest first
    "test_loop", "test_api", "test_replay", "test_damage", "test_faults", "test_export", "test_chat", "test_label",
    "test_branch", "test_mirror", "test_compression", "test_harness", "test_bad_input", "test_own_kinds",
    "test_compare", "test_judge", "test_missing_rewards", "test_report", "test_forecast", "test_figures",
    "test_api_page", "test_alerts_run", "test_evaluate_reward", "test_status", "test_doctor", "test_trackers",
    "test_drops", "test_preflight_data", "test_catalog", "test_judge_server", "test_theory", "test_gpt_neo",
    "test_engine",  # with vLLM
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, whole runs next, what needs the engine last; workers side by side begin with the whole runs.

    Otherwise the longest file would be left to one worker at the end.
    """
    slow = {name: number for number, name in enumerate(SLOW)}

    def turn(item: pytest.Item) -> tuple[bool, int]:
        place = slow.get(item.path.stem, len(SLOW) if PARALLEL else -1)
        return item.get_closest_marker("engine") is not None, place

    items.sort(key=turn)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models are trained faster so, and where no collection of garbage looks through the libraries."""
    import torch
    from transformers import Trainer  # noqa: F401

    gc.freeze()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def material() -> Path:
    """Real weights and text that are no part of the project."""
    if not MATERIAL.is_dir():
        pytest.skip("the folder with real weights and text is not here")
    return MATERIAL
