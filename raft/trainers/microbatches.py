"""Texts of a training step as rows of a forward pass, and the proof that texts in one row do not see each other."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raft.core.errors import UserError
from raft.models import loading, packed_attention, packing
from raft.models.packing import Layout
from raft.trainers import hf_trainer, sharding
from raft.trainers.hf_trainer import TrainerOptions

Groups = Sequence[Sequence[np.ndarray]]  # texts by what they begin with: both sides of a pair, or each text alone


def longest(options: TrainerOptions, model: Any) -> tuple[int, str]:
    """The most tokens that a text may have, and what says so."""
    positions = loading.positions(hf_trainer.plain(model)) or options.max_length
    return min((options.max_length, "trainer.max_length"), (positions, "max_position_embeddings of the model"))


def pack_or_pad(options: TrainerOptions, model: Any, groups: Groups) -> Layout:
    """Texts as one input of the model, in their order."""
    if options.packing and packed_attention.adopted(hf_trainer.plain(model)):
        return packing.pack(groups)
    texts = list(itertools.chain.from_iterable(groups))
    if not options.packing:
        return packing.pad(texts)
    layout = packing.pack([[text] for text in texts])
    del layout.inputs["attention_mask"]  # attention that is not ours tells texts apart by their positions
    return layout


def split(options: TrainerOptions, model: Any, groups: Groups) -> list[list[int]]:
    """The groups of a step, by forward pass."""
    capacity = options.max_tokens_per_microbatch or packing.FORWARD[hf_trainer.device().type]
    if not options.packing:
        return packing.rows([len(group) * max(map(len, group)) for group in groups], capacity)
    size = packing.size if packed_attention.adopted(hf_trainer.plain(model)) else _tokens
    return packing.bins([size(group) for group in groups], capacity)


def _tokens(group: Sequence[np.ndarray]) -> int:
    return sum(map(len, group))


def prove(options: TrainerOptions, model: Any, groups: Groups, forward: Callable[[Any, dict[str, Any]], Any]) -> None:
    """UserError if two texts in one packed row see each other: their outputs must be those that each has alone.

    `forward` gives the model's output [1, tokens, ...] for its inputs.
    """

    def outputs(*chosen: Sequence[np.ndarray]) -> list[Any]:
        layout = pack_or_pad(options, model, chosen)
        inputs = packed_attention.inputs(layout.inputs, hf_trainer.device())
        seen = sharding.within(model, forward, inputs)[0].float()
        return [seen[places] for places in layout.places]

    model.eval()
    with hf_trainer.looking(options):
        together = outputs(*groups)
        alone = [outputs([text])[0] for group in groups for text in group]
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(together, alone, strict=True))
    if not difference <= (0.05 if hf_trainer.mixed(options) else 1e-3):
        raise UserError(
            f"this architecture mixes packed examples: the outputs of {type(hf_trainer.plain(model)).__name__} for "
            f"texts in one row differ from those for each alone by {difference:.2g} of the largest; "
            "set trainer.packing: false"
        )
