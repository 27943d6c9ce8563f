"""What raft adds to a vLLM worker (`worker_extension_cls`): new weights in place, and cheaper seeds.

vLLM's own reload is silently wrong for tied embeddings on the CPU: the packed copy of lm_head is not rebuilt, and
log-probabilities are off by up to 10 nats. So it is packed again here, and the generator proves the result with the
policy's probe.
"""

from typing import Any
from weakref import WeakKeyDictionary

AHEAD = 64  # numbers drawn at once


class Worker:
    """Mixed into vLLM's worker; a path travels to it, never tensors."""

    model_runner: Any
    reload_weights: Any  # the worker's own, in the context that some kernels ask for

    def load_policy(self, path: str) -> None:
        """Loads the weights of a model folder into the living model."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.reload_weights(weights_path=path)
        model = self.model_runner.get_model()
        for module in model.modules():
            if isinstance(module, ParallelLMHead) and next(module.parameters()).device.type == "cpu":
                module.quant_method.process_weights_after_loading(module)

    def draw_ahead(self) -> None:
        """Makes seeded sampling on the CPU cheaper, with the same tokens."""
        sampler = self.model_runner.sampler.topk_topp_sampler
        if sampler.forward == sampler.forward_cpu:
            sampler.forward = Drawn(sampler)


class Drawn:
    """vLLM's sampling on the CPU, but for where its numbers come from.

    Each token of a seeded request takes one number from the request's own generator. vLLM asks for it with a call into
    torch for each request and token; here a generator gives many at once, the same ones in the same order.
    """

    def __init__(self, sampler: Any):
        self.sampler = sampler
        self.ahead: WeakKeyDictionary[Any, list[int]] = WeakKeyDictionary()  # what each has given, the next one last

    def __call__(self, logits: Any, generators: dict[int, Any], k: Any, p: Any) -> tuple[Any, None]:
        """Shapes: logits [requests, vocabulary]; the tokens [requests], and nothing in place of processed logits."""
        import torch
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

        if len(generators) < len(logits):  # some are greedy or without a seed, and vLLM draws for those
            seeds = torch.randint(0, 2**31, (len(logits),))
            for row, generator in generators.items():
                seeds[row] = self._next(generator)
        else:
            seeds = torch.tensor([self._next(generators[row]) for row in range(len(logits))])
        logits = apply_top_k_top_p(logits, k, p).to(dtype=torch.float32)
        return torch.ops._C.fused_gumbel_argmax(logits, seeds), None

    def _next(self, generator: Any) -> int:
        import torch

        if not (numbers := self.ahead.get(generator)):
            numbers = torch.randint(0, 2**31, (AHEAD,), generator=generator).tolist()[::-1]
            self.ahead[generator] = numbers
        return numbers.pop()
