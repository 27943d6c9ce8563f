"""Loading a model with transformers: whole, without code from elsewhere, and without words on the screen."""

import pickle
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raft.core import device, garbage
from raft.core.errors import UserError
from raft.models import model_folder
from raft.models.checkpoint import Checkpoint, unreadable

FILLED = 0.75  # of a GPU's free memory that weights may take before they are spread over several
ROOM = 0.9  # of each GPU's free memory that they may take then

# Constants that older versions of transformers saved beside the weights; they are computed now.
OLD_BUFFERS = re.compile(r"(^|\.)(attn|attention)\.(attention\.)?(masked_)?bias$|rotary_emb\.inv_freq$|position_ids$")


def load_model(folder: Path, kind: str = "CausalLM", may_lack: Collection[str] = (), **options: Any) -> Any:
    """The model of a folder in float32 (or `dtype`), without code from elsewhere, in eval mode.

    Old weights (pytorch_model*.bin) are read as tensors alone; transformers does not unpickle anything else.

    UserError if tensors are missing (but those in `may_lack`) or left over: transformers would only warn, and
    go on with random weights. Left over are also those that a class is told to ignore: the towers of a multimodal
    model, of which only the language model would be kept. `options` go to `from_pretrained`.
    """
    import torch
    import transformers

    garbage.spare()
    model_folder.check(model_folder.whole(folder))
    options.setdefault("dtype", torch.float32)
    try:
        options.setdefault(
            "attn_implementation", attention(transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False))
        )
        with quiet():
            model, info = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
                folder,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except UserError:
        raise
    except pickle.UnpicklingError as fault:
        raise unreadable(folder, fault) from fault
    except Exception as fault:
        raise UserError(
            f"{folder}: transformers cannot load a model from here ({fault}); the folder needs config.json, and "
            "weights (*.safetensors), of an architecture that transformers knows"
        ) from fault
    _complete(folder, {str(key) for key in info["missing_keys"]} - set(may_lack), "missing")
    _complete(folder, (left_over(info) | ignored(folder, model)) - set(may_lack), "left over")
    return model


def to_device(model: Any) -> None:
    """Moves a model to the accelerator, or its layers to all GPUs that the process sees where one does not hold it.

    Its states move between them in a forward pass; each layer computes as it does on one GPU.
    """
    import torch

    gpus = range(device.count())
    free = {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in gpus if len(gpus) > 1}
    if free and sum(one.nbytes for one in model.parameters()) > FILLED * free[0]:
        spread(model, places(model, free))
    else:
        model.to(device.current())


def places(model: Any, room: dict[int, int]) -> dict[str, Any]:
    """On which GPU each layer goes, evenly and in their order, by the bytes that are free on each.

    MemoryError: all of them together do not hold the model.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = list(model._no_split_modules or ())
    most = get_balanced_memory(model, {gpu: int(ROOM * size) for gpu, size in room.items()}, whole)
    found: dict[str, Any] = infer_auto_device_map(model, most, whole)
    if not set(found.values()) <= set(room):
        raise MemoryError(f"out of memory: {len(room)} GPUs do not hold it")
    return found


def spread(model: Any, where: dict[str, Any]) -> None:
    """Moves the layers of a model to their devices."""
    from accelerate import dispatch_model

    dispatch_model(model, where, force_hooks=True)


def to_host(model: Any) -> None:
    """Moves a model to host memory, from one device or several."""
    import torch
    from accelerate.hooks import remove_hook_from_submodules

    remove_hook_from_submodules(model)
    torch.nn.Module.to(model, "cpu")  # a model that was spread has a `to` that warns of hooks, which are gone


def skeleton(folder: Path, kind: str = "CausalLM", **options: Any) -> Any:
    """The model of a folder without its weights, on torch's meta device; `options` as in `load_model`."""
    import torch
    import transformers

    more = {name: value for name, value in options.items() if name not in ("attn_implementation", "may_lack")}
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, **more)
    how = options.get("attn_implementation") or attention(config)
    with torch.device("meta"):
        auto = getattr(transformers, f"AutoModelFor{kind}")
        return auto.from_config(config, trust_remote_code=False, dtype=torch.float32, attn_implementation=how).eval()


def positions(model: Any) -> int | None:
    """The most tokens that a model has positions for, None where nothing limits them.

    RoBERTa and its kin count positions from behind the row of their padding token, so fewer can be used than
    max_position_embeddings says.
    """
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None and getattr(module, "weight", None) is not None:
            return len(module.weight) - padding - 1
    return most


def ignored(folder: Path, model: Any) -> set[str]:
    """The tensors of a folder that the class of its model is told to leave out, constants of old versions apart."""
    patterns = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    if not patterns:
        return set()
    own = {key.removeprefix(f"{model.base_model_prefix}.") for key in model.state_dict()}
    names = {name for name in Checkpoint(folder).names if name.removeprefix(f"{model.base_model_prefix}.") not in own}
    return {name for name in names if any(one.search(name) for one in patterns) and not OLD_BUFFERS.search(name)}


def attention(config: Any) -> str | None:
    """The fast kernels of transformers ignore Gemma 2's soft capping without a word; only the plain one has it."""
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def left_over(info: dict[str, Any]) -> set[str]:
    """The tensors of a checkpoint that its model did not take, by what `from_pretrained` reports of the loading."""
    return {key for key in map(str, info["unexpected_keys"]) if not OLD_BUFFERS.search(key)}


def _complete(folder: Path, keys: set[str], what: str) -> None:
    if keys:
        some = ", ".join(sorted(keys)[:5])
        raise UserError(
            f"{folder}: {len(keys)} tensors are {what} ({some}); the weights do not belong to config.json: "
            "use the folder that they were saved in"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers inside the block, and no warnings of tensors: the run has its own of both."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
