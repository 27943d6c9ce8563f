"""Engines of several recipes in one process: each policy is answered for by an engine of its own shape and options."""

import json

import pytest
import worlds

from raft.core.records import Policy, Prompt
from raft.generators import vllm
from raft.generators.transformers import Transformers
from raft.generators.vllm import VLLM
from raft.launch import vllm_options
from raft.models import from_scratch, loading, weight_check


def policy(folder, shape, seed) -> Policy:
    from_scratch.make(folder, (row["prompt"] for row in worlds.prompts(200)), {**worlds.TINY, **shape}, 300, seed)
    weight_check.make(folder, weight_check.first_texts(folder), folder / "probe.json")
    return Policy(folder, folder / "probe.json")


def test_a_published_model_and_what_training_saves_of_it_have_one_engine(tmp_path):
    folder, config = tmp_path / "published", {**worlds.TINY, "max_position_embeddings": 512}
    from_scratch.make(folder, (row["prompt"] for row in worlds.prompts(200)), config, 300, 0)
    published = json.loads((folder / "config.json").read_text())
    for name in ("dtype", "rope_parameters", "attention_bias", "mlp_bias", "pretraining_tp"):
        published.pop(name, None)
    older = {"torch_dtype": "bfloat16", "rope_theta": 500000.0, "transformers_version": "4.40.0", "use_cache": True}
    (folder / "config.json").write_text(json.dumps({**published, **older}))
    loading.load_model(folder).save_pretrained(tmp_path / "trained")
    assert json.loads((tmp_path / "trained" / "config.json").read_text())["dtype"] == "float32"
    assert vllm_options.shape(tmp_path / "trained") == vllm_options.shape(folder)
    (folder / "config.json").write_text(json.dumps({**published, **older, "rope_theta": 10000.0}))
    assert vllm_options.shape(tmp_path / "trained") != vllm_options.shape(folder)


NEO = {
    "model_type": "gpt_neo", "num_heads": 2, "num_layers": 2, "window_size": 8, "initializer_range": 0.25,
    "attention_types": [[["global", "local"], 1]], "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.engine
@pytest.mark.nightly
def test_policies_of_two_shapes_and_two_contexts_follow_each_other_in_one_process(tmp_path):
    """The second is a GPT-Neo with an untied head."""
    small = policy(tmp_path / "small", {}, 0)
    wide = policy(tmp_path / "wide", NEO, 1)
    prompts = [Prompt("p", text="the red fox ")]
    built = []
    try:
        for one, context in ((small, 128), (wide, 128), (wide, 256)):
            options = {"k": 1, "max_tokens": 4, "temperature": 0.0}
            (found,) = VLLM(max_model_len=context, **options).generate(one, prompts, 0)
            (wanted,) = Transformers(**options).generate(one, prompts, 0)
            assert found.responses[0].token_ids == wanted.responses[0].token_ids
            built += vllm._engines.values()
        assert len({id(one) for one in built}) == 3 and len(vllm._engines) == 1
    finally:
        vllm.close()
