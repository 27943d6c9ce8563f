"""Model folders of strangers: what raft says of them before anything is built, and what of them it reads."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import worlds
from heads import configure
from reward_models import SIZE, groups, load, make_tokenizer, rewards, save
from safetensors.torch import load_file, save_file

from raft.config import preflight
from raft.config.recipe import RecipeError
from raft.config.recipe import load as load_recipe
from raft.core.errors import UserError
from raft.models import checkpoint, hub, loading, model_folder, weight_check
from raft.models.chat_templates import load_tokenizer
from raft.pipeline import stages
from raft.rewards.model import RewardModel


def adapter(folder: Path, task: str, base: str = "some/base") -> dict[str, torch.Tensor]:
    """Writes the files that peft saves for a model of SIZE."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSequenceClassification
    tuned = get_peft_model(kind.from_pretrained(folder), LoraConfig(r=2, task_type=task, target_modules=["q_proj"]))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    tuned.peft_config["default"].base_model_name_or_path = base
    tuned.save_pretrained(folder / "tuned")
    return tuned


def refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, str]:
    recipe = worlds.make_recipe(tmp_path, **{"reward": {"function": "length"}, **changes})
    monkeypatch.chdir(tmp_path)
    try:
        preflight.check(load_recipe(recipe))
    except RecipeError as caught:
        return {fault.key: fault.message for fault in caught.faults}
    return {}


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "LlamaForSequenceClassification"])
def test_an_adapter_beside_weights_is_refused_by_everything_that_reads_a_model(tmp_path: Path, architecture: str):
    save(tmp_path, architecture, **SIZE)
    adapter(tmp_path, "CAUSAL_LM" if "Causal" in architecture else "SEQ_CLS")
    for file in (tmp_path / "tuned").glob("adapter_*"):
        file.rename(tmp_path / file.name)
    kind = architecture.removeprefix("LlamaFor")
    for read in (hub.locate_model, load, lambda folder: loading.load_model(Path(folder), kind)):
        with pytest.raises(UserError, match=r"adapter_config.json, adapter_model.safetensors\) beside the weights"):
            read(str(tmp_path))


def test_the_command_that_a_refused_adapter_is_told_merges_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "base", "LlamaForSequenceClassification", **SIZE)
    tuned = adapter(tmp_path / "base", "SEQ_CLS", base=str(tmp_path / "base"))
    make_tokenizer().save_pretrained(tmp_path / "base" / "tuned")
    with pytest.raises(UserError, match=f"is an adapter for {tmp_path}/base, not a whole model; merge the two") as told:
        hub.locate_model(str(tmp_path / "base" / "tuned"))
    monkeypatch.chdir(tmp_path)
    exec(str(told.value).split('python -c "')[1].removesuffix('"'), {})
    merged = RewardModel(model=str(tmp_path / "tuned-merged"), max_length=200)
    ids = [merged.encode(groups()[0].prompt, text.text)[0] for text in groups()[0].responses]
    expected = [tuned(input_ids=torch.tensor([row])).logits[0, 0].item() for row in ids]
    assert rewards(merged, groups())[:5] == pytest.approx(expected, abs=1e-4)


WRONG = {
    "max_position_embeddings": ("many", "'many', not a whole number"),
    "num_hidden_layers": (10**6, "1,000,000, but the weights are"),
    "vocab_size": (10**9, "no tensor has a side of more than"),
    "num_labels": (10**8, "no tensor has a side of more than"),
    "hidden_size": ([32], "not a whole number"),
    "architectures": (5, "no list of names"),
    "model_type": (["llama"], "no name"),
    "eos_token_id": ([[2]], "no token id or list of them"),
    "id2label": ([1], "not a mapping"),
    "attention_dropout": (2.0, "no share from 0 to 1"),
    "transformers_weights": ("../other.safetensors", "raft reads none but model.safetensors"),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_config_that_cannot_be_that_of_the_weights_is_refused_before_anything_is_built(tmp_path: Path, key: str):
    save(tmp_path, "LlamaForSequenceClassification", **SIZE)
    value, words = WRONG[key]
    configure(tmp_path, **{key: value})
    for read in (load, loading.load_model):
        with pytest.raises(UserError, match=f"config.json: {key} is|config.json: {key} names") as told:
            read(tmp_path)
        assert words in str(told.value)


@pytest.mark.parametrize("text", ["[" * 20_000, '{"a": ' * 20_000 + "1" + "}" * 20_000])
def test_a_config_that_is_nested_too_deep_is_refused(tmp_path: Path, text: str):
    save(tmp_path, "LlamaForCausalLM", **SIZE)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"is nested too deep|is not JSON"):
        loading.load_model(tmp_path)


def test_end_tokens_of_generation_that_are_no_ids_are_refused(tmp_path: Path):
    save(tmp_path, "LlamaForCausalLM", **SIZE)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [[2]]}')
    with pytest.raises(UserError, match=r"generation_config.json: eos_token_id is \[\[2\]\], no token id"):
        model_folder.check(tmp_path)


@pytest.mark.parametrize(
    "name", ["../other/w.safetensors", "/w.safetensors", ".w.safetensors", "a/w.safetensors", "w.md", 5]
)
def test_an_index_names_nothing_but_shards_beside_it_which_the_digest_covers(tmp_path: Path, name: Any):
    save(tmp_path, "LlamaForCausalLM", **SIZE)
    (tmp_path / "model.safetensors").rename(tmp_path / "w.safetensors")
    tensors = load_file(tmp_path / "w.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "w.safetensors")}))
    before = hub.identity(tmp_path)
    loading.load_model(tmp_path)
    save_file({key: value + 1 for key, value in tensors.items()}, tmp_path / "w.safetensors", {"format": "pt"})
    assert hub.identity(tmp_path) != before
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}))
    for read in (checkpoint.Checkpoint, loading.load_model, load):
        with pytest.raises(UserError, match="raft reads only shards"):
            read(tmp_path)


def test_a_policy_has_the_weights_that_are_read_and_no_others(tmp_path: Path):
    save(tmp_path, "LlamaForCausalLM", **SIZE)
    for stray in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "x.gguf"):
        (tmp_path / stray).write_bytes(b"stale")
    read = {file.name for file in tmp_path.iterdir() if not checkpoint.unread(tmp_path, file)}
    assert read == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "mxfp4", "none known"])
def test_quantised_policies_are_refused_before_anything_is_generated(tmp_path: Path, monkeypatch, method: str):
    assert refusals(tmp_path, monkeypatch) == {}
    configure(tmp_path / "base", quantization_config={"quant_method": method, "bits": 4})
    (told,) = refusals(tmp_path, monkeypatch).values()
    assert f"quantised weights (quantization_config: {method}), which cannot be trained" in told


def test_a_tokenizer_that_is_not_whole_is_told_before_it_is_used(tmp_path: Path):
    save(tmp_path, "LlamaForCausalLM", **SIZE)
    described = tmp_path / "tokenizer_config.json"
    whole = json.loads(described.read_text())
    described.write_text(json.dumps({**whole, "model_max_length": "x"}))
    with pytest.raises(UserError, match=r"tokenizer_config.json: model_max_length is 'x', not a number"):
        load_tokenizer(str(tmp_path))
    described.write_text(json.dumps({**whole, "padding_side": "up"}))
    with pytest.raises(UserError, match=r"no tokenizer could be loaded \([^\n]*up\); a model folder needs one"):
        load_tokenizer(str(tmp_path))
    described.write_text(json.dumps({**whole, "tokenizer_class": "LlamaTokenizer"}))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer could be loaded|its tokenizer knows no words"):
        load_tokenizer(str(tmp_path))


def test_what_is_wrong_with_a_policy_names_the_folder_that_the_recipe_names(tmp_path: Path):
    save(tmp_path / "mine", "LlamaForCausalLM", **SIZE)
    configure(tmp_path / "mine", hidden_act="banana")
    place = tmp_path / "run" / ".policy.tmp"
    place.parent.mkdir()
    start, output = SimpleNamespace(model=str(tmp_path / "mine"), revision=None), SimpleNamespace(path=place)
    with pytest.raises(UserError, match=f"^{tmp_path}/mine: .*banana"):
        stages.link_model(start, output, probed=True)


def test_a_tokenizer_with_more_pieces_than_the_model_has_rows_is_refused_at_load(tmp_path: Path):
    save(tmp_path, "LlamaForCausalLM", vocab_size=90, **SIZE)
    with pytest.raises(UserError, match="the tokenizer has 101 tokens, but the model has embeddings for 90"):
        weight_check.make(tmp_path, [[5, 6]], tmp_path / "probe.json")
    save(tmp_path / "judge", "LlamaForSequenceClassification", vocab_size=90, **SIZE)
    with pytest.raises(UserError, match="the model has embeddings for 90"):
        load(tmp_path / "judge")


def test_an_added_token_beyond_the_rows_harms_only_the_conversation_that_names_it(tmp_path: Path):
    save(tmp_path, "LlamaForSequenceClassification", max_position_embeddings=256, **SIZE)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(tmp_path)
    (scores, _) = RewardModel(model=str(tmp_path)).score(groups(["No", "an <image>"]))
    assert scores[0].reward is not None and scores[1].reward is None
    assert "embeddings for 101 tokens" in scores[1].error


def test_a_reward_model_without_a_template_is_told_by_its_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "judge", "LlamaForSequenceClassification", **SIZE)
    (tmp_path / "judge" / "chat_template.jinja").unlink()
    judge = {"kind": "model", "model": "judge"}
    found = refusals(tmp_path, monkeypatch, reward=judge)
    assert list(found) == ["reward.template"] and found["reward.template"].endswith("use template: plain")
    found = refusals(tmp_path, monkeypatch, reward=judge, prompts={"format": "chat"})
    assert "judge has no chat template" in found["reward.template"]
    with pytest.raises(UserError, match=r"reward\.template: chat, but .* has no chat template; for text prompts"):
        load(tmp_path / "judge")


STATEFUL = {
    "mamba": {"state_size": 8},
    "qwen3_5_text": {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "num_attention_heads": 2},
    "llama": None, "gpt2": None, "qwen3": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", STATEFUL)
def test_packing_is_refused_before_anything_is_generated_where_a_state_is_carried(
    tmp_path: Path, monkeypatch, kind: str
):
    worlds.make_recipe(tmp_path)
    (tmp_path / "base" / "model.safetensors").unlink()  # its headers are of another model
    configure(tmp_path / "base", model_type=kind)
    found = refusals(tmp_path, monkeypatch)
    assert list(found) == ([] if STATEFUL[kind] is None else ["trainer.packing"])
    assert refusals(tmp_path, monkeypatch, trainer={"packing": False}) == {}


def multimodal(kind: str) -> Any:
    """A tiny model that reads images, too, of one of the published classes."""
    import transformers as t

    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 101, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    sees = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    small = {**sees, "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    if kind == "gemma3":
        marks = {"image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92, "mm_tokens_per_image": 4}
        return t.Gemma3ForConditionalGeneration(t.Gemma3Config(text_config=text, vision_config=small, **marks))
    if kind == "qwen3_5":
        linear = {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2}
        tower = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
        marks = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
        options = {**text, **linear, "linear_num_value_heads": 2, "num_hidden_layers": 4}
        return t.Qwen3_5ForConditionalGeneration(t.Qwen3_5Config(text_config=options, vision_config=tower, **marks))
    config = t.LlavaConfig(
        text_config={"model_type": "llama", **text}, vision_config={"model_type": "clip_vision_model", **small},
        image_token_index=90,
    )  # fmt: skip
    return t.LlavaForConditionalGeneration(config)


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_5", "llava"])
def test_a_multimodal_policy_is_refused_and_its_language_model_alone_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    worlds.make_recipe(tmp_path)
    for file in ("model.safetensors", "config.json", "generation_config.json"):
        (tmp_path / "base" / file).unlink(missing_ok=True)
    whole = multimodal(kind).eval()
    whole.save_pretrained(tmp_path / "base")
    found = refusals(tmp_path, monkeypatch)
    assert "text_config, vision_config" in found["policy.model"] and "docs/models.md" in found["policy.model"]
    script = (Path(__file__).parents[2] / "docs" / "models.md").read_text().split("```python\n")[1].split("```")[0]
    exec(script.replace("FOLDER", str(tmp_path / "base")).replace("OUT", str(tmp_path / "text")), {})
    alone = loading.load_model(tmp_path / "text")
    assert model_folder.untrainable(tmp_path / "text") is None
    ids = torch.tensor([[1, 5, 6, 7, 8, 9]])
    with torch.no_grad():
        assert (alone(input_ids=ids).logits - whole(input_ids=ids).logits).abs().max() < 1e-5


def test_towers_that_a_class_is_told_to_leave_out_are_missed_at_load(tmp_path: Path):
    multimodal("qwen3_5").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"tensors are left over \(model\.visual\."):
        loading.load_model(tmp_path)
