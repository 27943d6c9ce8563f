"""Tiny random models with a tokenizer of bytes."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from raft.core.records import Policy

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}{{ 'a: ' if add_generation_prompt }}"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, an end token and a second one that is not called special; no padding token."""
    alphabet = ["<eos>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={piece: at for at, piece in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", chat_template=TEMPLATE)


def tiny_model(kind: str, words: int) -> torch.nn.Module:
    """A random model whose next-token distribution is far from uniform, so that a mistake shows."""
    torch.manual_seed(1)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=words, n_embd=64, n_head=2, n_layer=2, n_positions=64))
    else:
        sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96, "num_hidden_layers": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=words, max_position_embeddings=64, head_dim=32, **sizes))
    for weights in model.parameters():
        weights.data.mul_(4 if weights.dim() > 1 else 1)
    own = {"temperature": 0.1, "do_sample": True, "repetition_penalty": 3.0}
    model.generation_config = GenerationConfig(eos_token_id=[0, 1], **own)
    return model


def tiny_policy(folder, kind: str = "llama") -> Policy:
    tokenizer = tiny_tokenizer()
    tiny_model(kind, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Policy(folder, folder / "probe.json")
