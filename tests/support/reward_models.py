"""Tiny reward models with random weights for the tests, and the mathematics of a Llama apart from any library's."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from raft.core.records import Group, Prompt, Response
from raft.rewards.model import RewardModel

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
SPECIALS = [PAD, BOS, EOS, "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}"
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def make_tokenizer(**options: Any) -> Any:
    """A tokenizer of characters that adds a BOS, as its template does too."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = {one: at for at, one in enumerate([*SPECIALS, *map(chr, range(32, 127))])}
    pieces = Tokenizer(models.WordLevel(letters, unk_token="?"))
    pieces.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    pieces.decoder = decoders.Fuse()
    pieces.add_special_tokens(SPECIALS)
    frame = [BOS, "$A"] if "cls_token" not in options else [BOS, "$A", EOS]
    pieces.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[(BOS, 1), (EOS, 2)])
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": "?", "chat_template": TEMPLATE}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, **names, **options)


def save(folder: Path, architecture: str, seed: int = 0, **config: Any) -> Any:
    """A model folder with random weights, large enough that rewards differ; returns the model."""
    import transformers

    tokenizer = make_tokenizer(**({"cls_token": BOS, "sep_token": EOS} if architecture.startswith("Bert") else {}))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    cls = getattr(transformers, architecture)
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = cls(cls.config_class(**{**ids, "num_labels": 1, **config})).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    model.save_pretrained(folder)
    return model


TEXTS = ["Hi.", "", "A rather longer answer, which goes on and on.", "No", "Yes, of course I will!"]


def groups(texts: list[str] = TEXTS) -> list[Group]:
    turns = [{"role": "user", "content": "How are you?"}]
    responses = [Response(text, [], None, "stop") for text in texts]
    return [Group(Prompt(f"p{k}", messages=turns), responses) for k in range(2)]


def rewards(model: RewardModel, given: list[Group]) -> list[float]:
    scores = [one for row in model.score(given) for one in row]
    assert all(one.error is None for one in scores), scores
    return [one.reward for one in scores]


def chat_ids(tokenizer: Any, text: str) -> list[int]:
    written = f"{BOS}<|user|>How are you?{EOS}<|assistant|>{text}{EOS}"
    return tokenizer(written, add_special_tokens=False)["input_ids"]


def llama_hidden(folder: Path, ids: list[int]) -> torch.Tensor:
    """The hidden states of a Llama in float64, [tokens, width], from the formulas and the tensors' names."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    w = {name: tensor.double() for name, tensor in tensors.items()}
    heads, shared = config["num_attention_heads"], config["num_attention_heads"] // config["num_key_value_heads"]
    x, length = w["model.embed_tokens.weight"][ids], len(ids)
    width = x.shape[1] // heads
    theta = config["rope_parameters"]["rope_theta"]
    angle = torch.arange(length).double()[:, None] / theta ** (torch.arange(0, width, 2).double() / width)
    turn = torch.polar(torch.ones_like(angle), angle)

    def norm(h: torch.Tensor, name: str) -> torch.Tensor:
        return h / (h.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * w[name]

    def split(h: torch.Tensor, rotate: bool) -> torch.Tensor:
        h = h.view(length, -1, width).transpose(0, 1)
        if not rotate:
            return h
        turned = torch.complex(h[..., : width // 2], h[..., width // 2 :]) * turn
        return torch.cat([turned.real, turned.imag], -1)

    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        h = norm(x, at + "input_layernorm.weight")
        q, k, v = (h @ w[f"{at}self_attn.{one}_proj.weight"].T for one in "qkv")
        q, k, v = split(q, True), split(k, True), split(v, False)
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        later = torch.ones(length, length).triu(1).bool()
        seen = (q @ k.transpose(1, 2) / math.sqrt(width)).masked_fill(later, -math.inf)
        x = x + (seen.softmax(-1) @ v).transpose(0, 1).reshape(length, -1) @ w[at + "self_attn.o_proj.weight"].T
        h = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (h @ w[f"{at}mlp.{one}_proj.weight"].T for one in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ w[at + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight")


def llama_reward(folder: Path, ids: list[int]) -> float:
    """The reward of a Llama classifier: a linear map of the last token."""
    weight = load_file(folder / "model.safetensors")["score.weight"].double()
    return (llama_hidden(folder, ids)[-1] @ weight[0]).item()


def edit(folder: Path, change: Any) -> None:
    """Changes the tensors of a model folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path, **options: Any) -> None:
    RewardModel(model=str(folder), **options).runner  # noqa: B018
