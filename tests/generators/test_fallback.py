"""transformers answers where vLLM lacks the architecture: always, said aloud, and as if it had been asked for."""

import json
import shutil

import pytest
from worlds import fingerprint, make_recipe, prompts, raft

from raft.core import device
from raft.generators.fallback import supported_or_transformers
from raft.generators.transformers import Transformers
from raft.generators.vllm import VLLM
from raft.generators.vllm_plugin import architectures
from raft.models import from_scratch
from raft.store.keys import Artifact

CODEGEN = {"model_type": "codegen", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256, "rotary_dim": 8}


def folder_of(path, *names: str):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"architectures": list(names)}))
    return path


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM", "GPTNeoForCausalLM"])
def test_vllm_runs_its_own_architectures_those_of_transformers_and_those_of_raft(tmp_path, name):
    assert architectures.lacking(folder_of(tmp_path, name)) is None


@pytest.mark.parametrize("name", ["CodeGenForCausalLM", "XGLMForCausalLM", "logging", "Nonsense"])
def test_vllm_lacks_what_neither_has_code_for_it(tmp_path, name):
    assert architectures.lacking(folder_of(tmp_path, name)) == name


def test_a_folder_that_names_no_architecture_is_left_to_vllm(tmp_path):
    assert architectures.lacking(folder_of(tmp_path)) is None


def test_an_architecture_that_another_plug_in_may_have_added_is_left_to_vllm(tmp_path, monkeypatch):
    plugin = architectures.entry_points(group=architectures.PLUGINS)["raft"]
    other = type(plugin)("other", "other.package:register", architectures.PLUGINS)
    monkeypatch.setattr(architectures, "entry_points", lambda group: [plugin, other])
    assert architectures.lacking(folder_of(tmp_path, "Nonsense")) is None


@pytest.mark.parametrize(
    ("sizes", "lacks"),
    [
        ({"hidden_size": 96, "num_attention_heads": 2}, None),
        ({"hidden_size": 96, "num_attention_heads": 4}, 24),
        ({"hidden_size": 96, "num_attention_heads": 4, "head_dim": 64}, None),
        ({"n_embd": 160, "n_head": 4}, 40),
        ({"text_config": {"hidden_size": 64, "num_attention_heads": 4}}, 16),
        ({"hidden_size": 96, "num_attention_heads": 4, "kv_lora_rank": 8}, None),
        ({"hidden_size": 96}, None),
    ],
)
def test_transformers_answers_where_vllm_has_no_kernel_for_the_heads_on_a_cpu(tmp_path, monkeypatch, sizes, lacks):
    (folder_of(tmp_path) / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **sizes}))
    notices: list[str] = []
    found = supported_or_transformers(VLLM(k=3), Artifact(tmp_path, {}), notices.append)
    assert (type(found), found.k) == (VLLM if lacks is None else Transformers, 3)
    said = f"heads of size {lacks} on a CPU (it runs 32, 48, 64"
    assert [said in one for one in notices] == [True] * (lacks is not None)
    monkeypatch.setattr(device, "current", lambda: "cuda")
    assert supported_or_transformers(VLLM(k=3), Artifact(tmp_path, {}), notices.append) == VLLM(k=3)


@pytest.mark.nightly
def test_a_run_names_the_generator_that_answered_and_is_the_run_that_asked_for_it(tmp_path):
    sampling = {"k": 4, "max_tokens": 12, "temperature": 0.8}
    asked = make_recipe(
        tmp_path, name="asked", iterations=1, generator={"kind": "transformers", "batch_size": 16, **sampling}
    )
    shutil.rmtree(tmp_path / "base")
    from_scratch.make(tmp_path / "base", (row["prompt"] for row in prompts(200)), CODEGEN, 300, 0)
    said = raft(tmp_path, "run", asked)
    assert said.returncode == 0 and "notice" not in said.stdout, said.stderr
    lacking = make_recipe(
        tmp_path, name="lacking", iterations=1, generator={"kind": "vllm", "max_model_len": 200, **sampling}
    )
    said = raft(tmp_path, "run", lacking)
    assert said.returncode == 0, said.stderr
    assert "notice: vLLM cannot run CodeGenForCausalLM, so transformers answers" in said.stdout
    assert "generator.max_model_len is for vLLM alone" in said.stdout
    runs = [tmp_path / "outputs" / name for name in ("asked", "lacking")]
    stamp = json.loads((runs[1] / "iterations/001/responses.jsonl.stamp.json").read_text())
    assert stamp["key"]["section"]["is"] == "generator/transformers"
    assert fingerprint(runs[0]) == fingerprint(runs[1])
