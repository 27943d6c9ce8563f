"""Attention over packed rows (`models.packing.pack`), for decoders of transformers whose attention can be replaced.

Which segments a row has travels as the model's 4-D attention mask, which transformers hands down to the attention as it
is: int64 [1, 1, segments, 4]. With any other mask the attention is that of `sdpa`. For its own packed rows transformers
makes a mask of tokens x tokens, of which most is unused; here each segment is computed separately.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from raft.models import packing

NAME = "raft_packed"  # in the registers of transformers
TOGETHER = {"cuda"}  # kinds of devices where a call costs more than padding: texts of similar length share it
CANNOT = (NotImplementedError, AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError)

Span = tuple[int, int, int, int]


def inputs(layout: Mapping[str, Any], device: Any = None) -> dict[str, Any]:
    """What the model's forward takes, on its device; but segments stay in host memory, for they are read in Python."""
    import torch

    return {name: torch.as_tensor(array, device="cpu" if array.ndim == 4 else device) for name, array in layout.items()}


def adopt(model: Any, see: Callable[..., Any]) -> bool:
    """Gives the model this attention if it then computes for packed texts what it computes for each alone.

    `see(model, **inputs)` is what the model computes [1, tokens, ...]. Decided on made-up texts, so by the model alone;
    a model that cannot keeps the attention that it had.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation
    with suppress(*CANNOT):
        model.set_attn_implementation(_register())
        if config._attn_implementation == NAME and _agrees(model, see, config.vocab_size):
            return True
    if config._attn_implementation != before:
        model.set_attn_implementation(before)
    return False


def adopted(model: Any) -> bool:
    """Whether the model has this attention."""
    return model.config.get_text_config()._attn_implementation == NAME


def _agrees(model: Any, see: Callable[..., Any], vocabulary: int) -> bool:
    import torch

    random = np.random.default_rng(0)
    pieces = [random.integers(vocabulary, size=length) for length in (packing.MIN_SHARED_PREFIX, 3, 6, 4)]
    groups = [[np.concatenate([pieces[0], rest]) for rest in pieces[1:3]], [pieces[3]]]
    layout = packing.pack(groups)
    some = next(model.parameters())
    trains = model.training
    model.eval()
    with torch.no_grad():
        together = see(model, **inputs(layout.inputs, some.device))[0].float()
        texts = (torch.as_tensor(text, device=some.device)[None] for group in groups for text in group)
        alone = [see(model, input_ids=text)[0].float() for text in texts]
    model.train(trains)
    apart = max(
        float((together[places] - single).abs().max() / single.abs().max())
        for places, single in zip(layout.places, alone, strict=True)
    )
    return apart < (1e-3 if some.dtype == torch.float32 else 0.05)


@lru_cache
def _register() -> str:
    """Makes the attention known to transformers, and returns its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *, scaling: float | None = None,
    dropout: float = 0.0, sliding_window: int | None = None, **more: Any,
) -> tuple[Any, None]:  # fmt: skip
    """The attention function; shapes as in transformers: [1, heads, tokens, width], out [1, tokens, heads, width]."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout,
            sliding_window=sliding_window, **more,
        )  # fmt: skip
    for option in ("softcap", "s_aux", "position_bias"):
        if more.get(option) is not None:
            raise NotImplementedError(f"packed attention has no {option}")
    groups = getattr(module, "num_key_value_groups", 1)
    options = {"scale": scaling, "dropout_p": dropout}
    segments = tuple(map(tuple, attention_mask[0, 0].tolist()))
    bundles = _bundles(segments, query.device, sliding_window, query.device.type in TOGETHER)
    # Split at once: the gradient of a slice is as large as what it was cut out of.
    apart = (states[0].transpose(0, 1).split([bundle.length for bundle in bundles]) for states in (query, key, value))
    seen = (bundle.attend(q, k, v, groups, options) for bundle, q, k, v in zip(bundles, *apart, strict=True))
    return torch.cat([piece for pieces in seen for piece in pieces])[None], None


class Bundle(NamedTuple):
    """Adjacent segments that are attended to together: one and those that continue it, or some of similar length."""

    length: int  # of all its segments
    mask: Any = None  # of the segment's queries and keys, where plain causality is not all
    rest: "Rest | None" = None

    def attend(self, query: Any, key: Any, value: Any, groups: int, options: dict[str, Any]) -> Iterator[Any]:
        """What the tokens of these segments take from those that they see. Shapes [tokens, heads, width]."""
        shared = self.length if self.rest is None else self.rest.shared
        if shared:
            q, k, v = (states[None, :shared] for states in (query, key, value))
            yield _attend(q, k, v, self.mask, groups, options)
        if self.rest is not None:
            yield self.rest.attend(query, key, value, groups, options)


class Rest(NamedTuple):
    """Spans that continue a shared segment, or no segment, padded to the longest."""

    shared: int
    mask: Any  # of queries and keys, where plain causality is not all
    queries: Any  # [segments, longest]: which token of the bundle each query is
    keys: Any  # [segments, shared + longest]
    kept: Any  # which of the queries, as one line, are tokens and not padding

    def attend(self, query: Any, key: Any, value: Any, groups: int, options: dict[str, Any]) -> Any:
        """As `Bundle.see`, for the tokens behind the shared ones."""

        def chosen(states: Any, which: Any) -> Any:
            return states.index_select(0, which.view(-1)).view(*which.shape, *states.shape[1:])

        q, k, v = chosen(query, self.queries), chosen(key, self.keys), chosen(value, self.keys)
        return _attend(q, k, v, self.mask, groups, options).index_select(0, self.kept)


def _attend(query: Any, key: Any, value: Any, mask: Any, groups: int, options: dict[str, Any]) -> Any:
    """Attention, causal without a mask. Shapes [rows, tokens, heads, width]; out [rows x tokens, heads, width]."""
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.integrations.sdpa_attention import repeat_kv

    q, k, v = (states.transpose(1, 2) for states in (query, key, value))
    causal = mask is None and q.shape[2] > 1
    grouped = mask is None and groups > 1 and q.device.type in TOGETHER  # its kernels take a key for several queries
    if not grouped:
        k, v = repeat_kv(k, groups), repeat_kv(v, groups)
    seen = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped, **options)
    return seen.transpose(1, 2).flatten(0, 1)


@lru_cache(maxsize=16)
def _bundles(segments: tuple[Span, ...], device: Any, window: int | None, together: bool) -> list[Bundle]:
    import torch

    with torch.inference_mode(False):  # what is kept here may be used in training next
        bundles = []
        for lengths, rest in _grouped(segments, together):
            shared, others = (lengths[0], rest) if len(lengths) == 1 else (0, lengths)
            padded = _rest(shared, others, window, device) if others else None
            bundles.append(Bundle(shared + sum(others), _mask(0, shared, window, device), padded))
        return bundles


def _grouped(segments: Sequence[Span], together: bool) -> Iterator[tuple[list[int], list[int]]]:
    """Lengths of a segment and of those that continue it; or, `together`, of some that are alone and of like length."""
    alone: list[int] = []
    at = 0
    while at < len(segments):
        start, length, *_ = segments[at]
        at += 1
        rest = []
        while at < len(segments) and segments[at][2:] == (start, length):
            rest.append(segments[at][1])
            at += 1
        if alone and (rest or not together or max(*alone, length) > 2 * min(*alone, length)):
            yield alone, []
            alone = []
        if rest:
            yield [length], rest
        else:
            alone.append(length)
    if alone:
        yield alone, []


def _rest(shared: int, lengths: Sequence[int], window: int | None, device: Any) -> Rest:
    import torch

    longest = max(lengths)
    steps, sizes = np.arange(longest), np.array(lengths)[:, None]
    starts = shared + np.cumsum([0, *lengths[:-1]])[:, None]
    # What a short segment lacks is filled with its last token again: no real query sees a key behind its own place.
    queries = starts + np.minimum(steps, sizes - 1)
    keys = np.concatenate([np.tile(np.arange(shared), (len(lengths), 1)), queries], 1)
    indices = (torch.as_tensor(index, device=device) for index in (queries, keys, np.flatnonzero(steps < sizes)))
    return Rest(shared, _mask(shared, longest, window, device), *indices)


def _mask(shared: int, length: int, window: int | None, device: Any) -> Any:
    """Which keys [shared + length] each query [length] sees: all up to its own place, or the last `window` of them.

    None where that is plain causality.
    """
    import torch

    if not shared and (window is None or length <= window):
        return None
    behind = torch.arange(shared, shared + length, device=device)[:, None] - torch.arange(
        shared + length, device=device
    )
    return (behind >= 0) if window is None else (behind >= 0) & (behind < window)
