"""No test reaches a network; the folder with real weights and text is used where it is there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

MATERIAL = Path(__file__).parent.parent.parent / "shared" / "data"


SLOW = {  # whole runs
    "test_loop", "test_bad_input", "test_comparison", "test_label", "test_advice_run", "test_forecast", "test_tracking",
    "test_watch", "test_branch", "test_fallback", "test_own_kinds",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, whole runs next, what needs the engine last."""
    items.sort(key=lambda item: (item.get_closest_marker("engine") is not None, item.path.stem in SLOW))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models are trained faster so."""
    import torch

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
