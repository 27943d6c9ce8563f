"""A model from nothing: seeded random weights, and a byte-level BPE tokenizer trained on the job's own texts.

What a recipe's `policy: {config: {model_type: llama, ...}, vocab_size: 768}` asks for. The folder is complete:
transformers and vLLM load it like any other, and the same inputs give the same bytes.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raft.core.atomic import make_readable
from raft.core.errors import Stopped, UserError

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
BYTES = 256
LAYERS = 1000


def make(
    folder: Path,
    texts: Iterable[str],
    config: dict[str, Any],
    vocab_size: int,
    seed: int,
    chat_template: str | None = None,
) -> None:
    """Writes a model folder: float32 safetensors, tokenizer, chat template, generation config.

    `config` is what transformers' `AutoConfig.for_model` takes. The tokenizer has at most `vocab_size` pieces, learned
    from `texts`, and the model as many as the tokenizer. `chat_template` is Jinja text, None for CHAT_TEMPLATE; it
    has to end the turn of the assistant with `eos_token`, or the policy would never learn to stop.
    """
    tokenizer = _tokenizer(texts, vocab_size, chat_template or CHAT_TEMPLATE)
    model = _model(config, tokenizer, seed)
    tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    make_readable(folder)


def _tokenizer(texts: Iterable[str], vocab_size: int, chat_template: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    markers = list(dict.fromkeys([BEGIN, END, PAD, *ROLES, *re.findall(r"<\|\w+\|>", chat_template)]))
    if vocab_size < BYTES + len(markers):
        least = BYTES + len(markers)
        raise UserError(f"policy.vocab_size: {vocab_size} is too small; the bytes and markers alone need {least}")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_pieces(texts, vocab_size, markers),
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=markers[3:],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
    _check_turns(tokenizer)
    return tokenizer


def _pieces(texts: Iterable[str], vocab_size: int, markers: list[str]) -> Any:
    """A byte-level BPE: every text is spelled in bytes, so there is no unknown token and nothing is lost."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=markers, initial_alphabet=alphabet, show_progress=False
    )
    pieces.train_from_iterator(texts, trainer)
    return pieces


def _check_turns(tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    if not tokenizer.apply_chat_template(turns, tokenize=False).rstrip().endswith(END):
        raise UserError(
            "policy.chat_template: it does not end the assistant's turn with eos_token, so the policy would never "
            "learn to stop; write {{ eos_token }} there"
        )


def _model(config: dict[str, Any], tokenizer: Any, seed: int) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if "vocab_size" in config:
        raise UserError("policy.config.vocab_size: the tokenizer decides it; give policy.vocab_size")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    try:
        shape = AutoConfig.for_model(**config, **ids, vocab_size=len(tokenizer))
        _check_size(shape)
    except (Stopped, UserError):
        raise
    except Exception as fault:
        reason = " ".join(str(fault).split())
        raise UserError(
            f"policy.config: transformers makes no model of it ({type(fault).__name__}: {reason})"
        ) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(shape, dtype=torch.float32)


def _check_size(shape: Any) -> None:
    """UserError if a model of this config has no room in the memory of this machine; built without numbers to see."""
    import torch
    from transformers import AutoModelForCausalLM

    layers = getattr(shape.get_text_config(), "num_hidden_layers", None) or 0
    if layers > LAYERS:
        raise UserError(f"policy.config: {layers:,} layers are more than the {LAYERS:,} that are made from nothing")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    size, room = 4 * model.num_parameters(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > room:
        raise UserError(
            f"policy.config: it describes a model of {size / 4e9:.3g} billion parameters, {size / 1e9:.3g} GB in "
            f"float32, and this machine has {room / 1e9:.3g} GB; what is not given has the default of its model_type: "
            "give hidden_size, intermediate_size, num_hidden_layers and num_attention_heads"
        )
