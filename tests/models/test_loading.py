"""A model over several devices: which layers go where."""

import pytest
import torch
from reward_models import SIZE
from transformers import LlamaConfig, LlamaModel

from raft.models.loading import ROOM, places


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate asks the driver which of the GPUs that it is told of are there; here it believes what it is told."""
    monkeypatch.setattr("accelerate.utils.modeling.get_max_memory", dict)


def a_model(layers: int) -> LlamaModel:
    with torch.device("meta"):
        return LlamaModel(LlamaConfig(**{**SIZE, "num_hidden_layers": layers, "vocab_size": 64}))


def test_layers_go_to_gpus_in_their_order_and_evenly():
    model = a_model(12)
    size = sum(one.nbytes for one in model.parameters())
    found = places(model, dict.fromkeys(range(4), size))
    order = [place for name, place in found.items() if name.startswith("layers.")]
    assert len(order) == 12 and order == sorted(order) and set(order) == {0, 1, 2, 3}
    assert found["embed_tokens"] == 0 and found["norm"] == 3
    layer = sum(one.nbytes for one in model.layers[0].parameters())
    room = size / 4 + 1.25 * layer  # an even part, and what may be left over where layers stay whole
    assert all(layer * order.count(gpu) <= room for gpu in range(4))


def test_layers_stay_within_the_memory_that_is_free_or_the_model_is_refused():
    model = a_model(12)
    size = sum(one.nbytes for one in model.parameters())
    layer = sum(one.nbytes for one in model.layers[0].parameters())
    found = places(model, {0: size, 1: int(2.5 * layer / ROOM), 2: size})
    assert list(found.values()).count(1) <= 2
    with pytest.raises(MemoryError, match="2 GPUs do not hold it"):
        places(model, dict.fromkeys(range(2), size // 2))
