"""What raft adds to a vLLM worker (`worker_extension_cls`): new weights in place.

vLLM's own reload is silently wrong for tied embeddings on the CPU: the packed copy of lm_head is not rebuilt, and
log-probabilities are off by up to 10 nats. So it is packed again here, and the generator proves the result with the
policy's probe.
"""

from typing import Any


class Worker:
    """Mixed into vLLM's worker; a path travels to it, never tensors."""

    get_model: Any  # both are the worker's own
    reload_weights: Any

    def load_policy(self, path: str) -> None:
        """Loads the weights of a model folder into the living model."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.reload_weights(weights_path=path)
        for module in self.get_model().modules():
            if isinstance(module, ParallelLMHead) and next(module.parameters()).device.type == "cpu":
                module.quant_method.process_weights_after_loading(module)
