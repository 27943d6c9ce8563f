"""How likely responses are under a policy, computed by transformers: one and the same arithmetic for every policy."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from raft import chat, probe
from raft.records import Group

BLOCK = 16  # groups that share batches; fixed, because floats can depend on the batch
BATCH_TOKENS = 8192  # positions of one forward pass, padding included

Row = tuple[list[int], int]  # the tokens of prompt and response, and how many of them are the prompt's


def response_likelihoods(folder: Path, groups: Iterable[Group]) -> Iterator[list[float]]:
    """For each group, the natural log-probability of each response's tokens given its prompt, at temperature 1."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = probe.load_model(folder).to(device), chat.load_tokenizer(str(folder))
    iterator = iter(groups)
    while block := list(itertools.islice(iterator, BLOCK)):
        rows = [row for group in block for row in _rows(tokenizer, group)]
        found = iter(_measured(model, rows))
        yield from ([next(found) for _ in group.responses] for group in block)


def _rows(tokenizer: Any, group: Group) -> Iterator[Row]:
    prompt = chat.encode_prompt(tokenizer, group.prompt)
    return ((prompt + response.token_ids, len(prompt)) for response in group.responses)


def _measured(model: Any, rows: list[Row]) -> list[float]:
    """The sums in the order of the rows; batches are of rows of like length."""
    sums = [0.0] * len(rows)
    batch: list[int] = []
    for place in sorted(range(len(rows)), key=lambda place: len(rows[place][0]), reverse=True):
        if batch and (len(batch) + 1) * len(rows[batch[0]][0]) > BATCH_TOKENS:
            _fill(model, rows, batch, sums)
            batch = []
        batch.append(place)
    _fill(model, rows, batch, sums)
    return sums


def _fill(model: Any, rows: list[Row], batch: list[int], sums: list[float]) -> None:
    import torch

    longest = max(len(rows[place][0]) for place in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long, device=model.device)
    attended, counted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.float32)
    for at, place in enumerate(batch):
        tokens, start = rows[place]
        ids[at, : len(tokens)] = torch.tensor(tokens)
        attended[at, : len(tokens)] = 1
        counted[at, start : len(tokens)] = 1
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=attended, use_cache=False).logits[:, :-1].float()
    likely = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0] * counted[:, 1:]
    for place, total in zip(batch, likely.sum(-1).tolist(), strict=True):
        sums[place] = total
