"""The proof that an engine holds the right weights.

A policy's folder carries probe.json: a few short texts, and the log-probability of each of their tokens as
transformers computes it in float32 from the weights in that folder. An engine that claims to hold the policy
computes the same numbers; if they disagree, it does not.

    {"tokens": [[ids], ...], "logprobs": [[...], ...], "before": [[...], ...],
     "bfloat16": {"logprobs": [[...], ...], "before": [[...], ...]}}

`logprobs[i][j]` is log p(tokens[i][j + 1] | tokens[i][: j + 1]); `before`, where there is one, is the same under
the policy that training started from, so that weights that were never replaced can be called by their name. An engine
in bfloat16 rounds the weights, and a small step of training is lost in that; so `bfloat16` has both of rounded weights.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raft.core.errors import UserError
from raft.models.chat_templates import check_rows, load_tokenizer, unembedded
from raft.models.loading import load_model

COUNT, LENGTH = 8, 64  # texts, and tokens of each at most

FIRST_TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Once upon a time there was a little girl who lived near the forest with her grandmother.",
    "Water boils at a lower temperature on a mountain, because the air presses less upon it.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Question: what is 12 * 7? Answer: 84.",
    "Le soleil se lève à l'est et se couche à l'ouest.",
    "吾輩は猫である。名前はまだ無い。",
    "Dear all,\n\nThank you for your letter. I am glad to hear that everybody is well.",
]

Logprobs = list[list[float]]


class ProbeError(UserError):
    """An engine does not hold the weights that it should."""


def first_texts(folder: Path) -> list[list[int]]:
    """Fixed sentences as tokens of the folder's tokenizer: what the first policy is probed with.

    Added tokens that the model has no embeddings for may be words; sentences with such are left out.
    """
    tokenizer = load_tokenizer(str(folder))
    texts = [ids for text in FIRST_TEXTS if len(ids := tokenizer(text)["input_ids"][:LENGTH]) > 1]
    strange = [fault for ids in texts if (fault := unembedded(tokenizer, ids)) is not None]
    if texts and len(strange) == len(texts):
        raise UserError(f"{folder}: {strange[0]}; put the tokenizer of this model into its folder")
    return [ids for ids in texts if unembedded(tokenizer, ids) is None]


def make(folder: Path, tokens: Sequence[Sequence[int]], out: Path) -> None:
    """Loads the model of a folder with transformers and writes its probe."""
    model = load_model(folder)
    check_rows(load_tokenizer(str(folder)), model, str(folder))
    write(out, tokens, of_engines(model, tokens))


def of_engines(model: Any, tokens: Sequence[Sequence[int]]) -> dict[str, Logprobs]:
    """`measure` of the weights as they are, and as an engine rounds them; by the number format of the weights."""
    found = {"float32": measure(model, tokens)}
    with _rounded(model):
        return found | {"bfloat16": measure(model, tokens)}


def measure(model: Any, tokens: Sequence[Sequence[int]]) -> Logprobs:
    """Log-probabilities in float32 of all tokens but the first of each text (at least two tokens), in eval mode."""
    import torch

    trains = model.training
    model.eval()
    with torch.no_grad():
        found = [_logprobs(model, torch.tensor([list(ids)], device=model.device)) for ids in tokens]
    model.train(trains)
    return found


@contextmanager
def _rounded(model: Any) -> Iterator[None]:
    """The weights as bfloat16 has them, in their own format, until the block ends.

    Each module rounds its own while it computes: a second copy of all of them would not always fit.
    """
    kept: dict[Any, list[tuple[Any, Any]]] = {}

    def rounds(module: Any, *_: Any) -> None:
        own = [(weights, weights.data) for weights in module.parameters(recurse=False)]
        for weights, data in own:
            weights.data = data.bfloat16().to(data.dtype)
        kept[module] = own

    def restores(module: Any, *_: Any) -> None:
        for weights, data in kept.pop(module):
            weights.data = data

    modules = [one for one in model.modules() if next(one.parameters(recurse=False), None) is not None]
    hooks = [one.register_forward_pre_hook(rounds) for one in modules]
    hooks += [one.register_forward_hook(restores, always_call=True) for one in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _logprobs(model: Any, ids: Any) -> list[float]:
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()


def write(
    path: Path,
    tokens: Sequence[Sequence[int]],
    logprobs: Mapping[str, Logprobs],
    before: Mapping[str, Logprobs] | None = None,
) -> None:
    """Writes a probe out of what `of_engines` says. UserError if a number is not finite: such weights are broken."""
    if not all(math.isfinite(value) for rows in logprobs.values() for row in rows for value in row):
        raise UserError(
            f"{path.parent}: the weights give log-probabilities that are not finite; if training just made them, "
            "its last step broke them: lower trainer.learning_rate"
        )

    def of(dtype: str) -> dict[str, Logprobs]:
        return {"logprobs": logprobs[dtype]} | ({} if before is None else {"before": before[dtype]})

    found = {"tokens": [[int(token) for token in ids] for ids in tokens], **of("float32"), "bfloat16": of("bfloat16")}
    path.write_text(json.dumps(found, allow_nan=False) + "\n", encoding="utf-8")


def tokens(path: Path) -> list[list[int]]:
    """The texts that an engine must measure for `check`."""
    return json.loads(path.read_text(encoding="utf-8"))["tokens"]


def check(path: Path, measured: Logprobs, tolerance: float, dtype: str = "float32") -> float:
    """Root mean square difference, in nats, between what an engine of this dtype measured and the probe.

    ProbeError if it exceeds the tolerance, or if the update is large enough to tell (a tenth of the tolerance)
    and the engine is nearer to the policy before it.
    """
    whole = json.loads(path.read_text(encoding="utf-8"))
    stored = whole.get(dtype, whole)  # float16 has nearly the digits of the weights
    distance = _distance(measured, stored["logprobs"], path)
    before = stored.get("before")
    if before is not None:
        old, moved = _distance(measured, before, path), _distance(stored["logprobs"], before, path)
        if moved > tolerance / 10 and old < distance:
            raise ProbeError(
                f"the engine still holds the weights of the policy before {path.parent}: its log-probabilities of "
                f"{len(measured)} fixed texts differ from that policy's by {old:.2g} nats (rms), from the new one's by "
                f"{distance:.2g}; the new weights did not arrive. Run the same command again: it starts a new engine"
            )
    if not distance <= tolerance:  # so that a NaN fails
        raise ProbeError(
            f"the engine does not hold the weights of {path.parent}: its log-probabilities of {len(measured)} fixed "
            f"texts differ from those of transformers by {distance:.2g} nats (rms), more than the {tolerance:g} that "
            "rounding explains. Either the weights were loaded wrongly (run the same command again: it starts a new "
            "engine), or engine and transformers disagree about this architecture (try generator.dtype: float32; if it "
            "stays, use generator.kind: transformers)"
        )
    return distance


def _distance(one: Logprobs, other: Logprobs, path: Path) -> float:
    if [len(row) for row in one] != [len(row) for row in other]:
        raise ProbeError(
            f"{path}: the engine measured texts of other lengths than the probe has; "
            "it owes one log-probability for each token but the first"
        )
    pairs = zip(itertools.chain(*one), itertools.chain(*other), strict=True)
    squares = [(a - b) ** 2 for a, b in pairs]
    return math.sqrt(sum(squares) / len(squares))
