"""What vLLM does in Python for every token, done once for a response: a small model computes less than that costs.

Nothing here changes a result. vLLM itself says where a response ends; it is only asked less often.
"""

from collections.abc import Iterable
from typing import Any


class Gathered:
    """Outputs of the engine core, held back until their request is finished: vLLM then takes all its tokens at once.

    Log-probabilities go by vLLM altogether: `logprobs` has those of the sampled tokens by request, in order. With
    `each_step` tokens are passed on as they come, for stop strings have to be looked for in the text so far.
    """

    def __init__(self, each_step: bool):
        self.each_step = each_step
        self.tokens: dict[str, list[int]] = {}
        self.logprobs: dict[str, list[float]] = {}

    def take(self, outputs: Iterable[Any]) -> list[Any]:
        """What vLLM's output processor is to see of the outputs of a step."""
        passed = []
        for output in outputs:
            name = output.request_id
            if output.new_logprobs is not None:
                self.logprobs.setdefault(name, []).extend(output.new_logprobs.logprobs[:, 0].tolist())
                output.new_logprobs = None
            if self.each_step:
                passed.append(output)
            elif output.finish_reason is None:
                self.tokens.setdefault(name, []).extend(output.new_token_ids)
            else:
                output.new_token_ids = [*self.tokens.pop(name, []), *output.new_token_ids]
                passed.append(output)
        return passed


class Slots:
    """In place of `KVCacheManager.allocate_slots`: asks it only when the last block of a request is full.

    vLLM looks for new blocks, old ones and such as could be shared for each token of each request. A block is then
    known for sharing when the next one is begun, not when it is full, and that is all that differs.
    """

    def __init__(self, manager: Any):
        self.allocate, self.nothing = manager.allocate_slots, manager.empty_kv_cache_blocks
        only = manager.coordinator.single_type_managers[0]
        self.blocks, self.size = only.req_to_blocks, only.block_size

    def __call__(self, request: Any, new: int, **more: Any) -> Any:
        """The blocks that a request needs for `new` tokens more, None if there are too few."""
        if more == {"num_lookahead_tokens": 0}:  # how a request is asked for that is running already
            room = len(self.blocks[request.request_id]) * self.size
            if request.num_computed_tokens + new <= room:
                return self.nothing
        return self.allocate(request, new, **more)

    @classmethod
    def shorten(cls, manager: Any) -> None:
        """Puts it in its place, where all layers see all tokens: other caches let blocks go in between."""
        from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

        if [type(one) for one in manager.coordinator.single_type_managers] == [FullAttentionManager]:
            manager.allocate_slots = cls(manager)


class Room:
    """How much of the cache responses take that are read and written in full.

    With no more of them under way than it holds so, none is ever thrown out and computed again. A window of attention
    lets blocks go early; what it saves is not counted.
    """

    def __init__(self, cache: Any):
        """Of vLLM's `KVCacheConfig`."""
        self.blocks = cache.num_blocks - 1  # one stands for those that are not there
        self.sizes = [group.kv_cache_spec.block_size for group in cache.kv_cache_groups if not group.host_resident]

    def taken(self, tokens: int) -> int:
        """Blocks of a response that has so many tokens, its prompt's among them."""
        return sum(-(-tokens // size) for size in self.sizes)
