"""GPT-Neo for vLLM, which does not have it; vLLM imports this file when it meets the architecture.

Black et al. 2021, as transformers computes it: learned places, a norm before each half of a layer, attention
that is global and local in turns (a local layer reads the last `window_size` tokens, its own among them), and
scores that are not divided by the root of the head's size.

Shapes: hidden states are (tokens, hidden size), the tokens of all sequences of a batch one after another.
"""

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn
from transformers import GPTNeoConfig
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import get_act_fn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import LayerNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, make_layers, maybe_prefix
from vllm.sequence import IntermediateTensors

SCALE = 1.0  # of the scores of attention; nearly every other model has head_size ** -0.5


class SelfAttention(nn.Module):
    """Attention of one layer, global or local."""

    def __init__(
        self,
        config: GPTNeoConfig,
        cache: CacheConfig | None,
        quant: QuantizationConfig | None,
        window: int | None,
        prefix: str,
    ) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_heads
        self.qkv_proj = QKVParallelLinear(
            width, width // heads, heads, bias=False, quant_config=quant, prefix=f"{prefix}.qkv_proj"
        )
        self.out_proj = RowParallelLinear(width, width, quant_config=quant, prefix=f"{prefix}.out_proj")
        self.attn = Attention(
            heads // get_tensor_model_parallel_world_size(),
            width // heads,
            scale=SCALE,
            cache_config=cache,
            quant_config=quant,
            per_layer_sliding_window=window,
            prefix=f"{prefix}.attn",
        )

    def forward(self, hidden: Tensor) -> Tensor:
        qkv, _ = self.qkv_proj(hidden)
        out, _ = self.out_proj(self.attn(*qkv.chunk(3, dim=-1)))
        return out


class FeedForward(nn.Module):
    """The other half of a layer."""

    def __init__(self, config: GPTNeoConfig, quant: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        width = config.hidden_size
        inner = config.intermediate_size or 4 * width
        self.c_fc = ColumnParallelLinear(width, inner, quant_config=quant, prefix=f"{prefix}.c_fc")
        self.act = get_act_fn(config.activation_function)
        self.c_proj = RowParallelLinear(inner, width, quant_config=quant, prefix=f"{prefix}.c_proj")

    def forward(self, hidden: Tensor) -> Tensor:
        inner, _ = self.c_fc(hidden)
        out, _ = self.c_proj(self.act(inner))
        return out


class Layer(nn.Module):
    """One layer; its number, the last part of `prefix`, says whether its attention is local."""

    def __init__(
        self, config: GPTNeoConfig, cache: CacheConfig | None, quant: QuantizationConfig | None, prefix: str
    ) -> None:
        super().__init__()
        kind = config.attention_layers[int(prefix.rsplit(".", 1)[-1])]
        window = {"local": config.window_size, "global": None}[kind]
        self.ln_1 = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = nn.ModuleDict(
            {"attention": SelfAttention(config, cache, quant, window, f"{prefix}.attn.attention")}
        )
        self.ln_2 = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = FeedForward(config, quant, f"{prefix}.mlp")

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn["attention"](self.ln_1(hidden))
        return hidden + self.mlp(self.ln_2(hidden))


@support_torch_compile
class GPTNeoModel(nn.Module):
    """From tokens and their places to hidden states."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = cast(GPTNeoConfig, vllm_config.model_config.hf_config)
        cache, quant = vllm_config.cache_config, vllm_config.quant_config
        self.wte = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, quant_config=quant, prefix=f"{prefix}.wte"
        )
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        _, _, self.h = make_layers(
            config.num_layers, lambda prefix: Layer(config, cache, quant, prefix), prefix=f"{prefix}.h"
        )
        self.ln_f = LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def forward(self, input_ids: Tensor | None, positions: Tensor, inputs_embeds: Tensor | None = None) -> Tensor:
        hidden = (self.wte(input_ids) if inputs_embeds is None else inputs_embeds) + self.wpe(positions)
        for layer in self.h:
            hidden = layer(hidden)
        return self.ln_f(hidden)


class GPTNeoForCausalLM(nn.Module):
    """The model as vLLM calls it. Modules are named as the tensors of a checkpoint are."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
        },
        # Masks, which older versions of transformers saved beside the weights.
        orig_to_new_substr={".attention.bias": None, ".attention.masked_bias": None},
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config, quant = cast(GPTNeoConfig, vllm_config.model_config.hf_config), vllm_config.quant_config
        self.transformer = GPTNeoModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "transformer"))
        self.lm_head = ParallelLMHead(
            config.vocab_size, config.hidden_size, quant_config=quant, prefix=maybe_prefix(prefix, "lm_head")
        )
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.transformer.wte)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """The embeddings of tokens, without their places."""
        return self.transformer.wte(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of the last layer; there is no pipeline of several devices."""
        return self.transformer(input_ids, positions, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits, (tokens, vocabulary); None on the devices that do not gather them."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Takes the tensors of a checkpoint, and returns the names of those that were taken."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
