"""Engines of several recipes in one process: each policy is answered for by an engine of its own shape and options."""

import pytest
import worlds

from raft import probe, scratch
from raft.generators import vllm
from raft.generators.transformers import Transformers
from raft.generators.vllm import VLLM
from raft.records import Policy, Prompt

pytestmark = pytest.mark.engine


def policy(folder, shape, seed) -> Policy:
    scratch.make(folder, (row["prompt"] for row in worlds.prompts(200)), {**worlds.TINY, **shape}, 300, seed)
    probe.make(folder, probe.first_texts(folder), folder / "probe.json")
    return Policy(folder, folder / "probe.json")


def test_policies_of_two_shapes_and_two_contexts_follow_each_other_in_one_process(tmp_path):
    small = policy(tmp_path / "small", {}, 0)
    wide = policy(tmp_path / "wide", {"hidden_size": 96, "num_attention_heads": 3}, 1)
    prompts = [Prompt("p", text="the red fox ")]
    engines = []
    try:
        for one, context in ((small, 128), (wide, 128), (wide, 256)):
            options = {"k": 1, "max_tokens": 4, "temperature": 0.0}
            (found,) = VLLM(context=context, **options).generate(one, prompts, 0)
            (wanted,) = Transformers(**options).generate(one, prompts, 0)
            assert found.responses[0].token_ids == wanted.responses[0].token_ids
            engines += vllm._engines.values()
        assert len({id(one) for one in engines}) == 3 and len(vllm._engines) == 1
    finally:
        vllm.close()
