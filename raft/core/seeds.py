"""Every random choice has a seed derived from what it decides, never from a global stream.

So a choice does not depend on what was done before it, in which order, or in which process: a response
is keyed by (run seed, iteration, prompt id, k), a draw of prompts by (run seed, pass over the prompts).
"""

from hashlib import blake2b


def derive(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on all parts and on their order; equal parts give equal seeds anywhere."""
    digest = blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
