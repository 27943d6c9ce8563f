"""Laws of kind: model, on tiny checkpoints with random weights; the expected rewards are worked out apart."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reward_models import PAD, SIZE, TEXTS, chat_ids, edit, groups, llama_reward, load, make_tokenizer, rewards, save

from raft.core.errors import UserError
from raft.core.records import Group, Prompt, Response, Score
from raft.models import loading
from raft.rewards.model import RewardModel


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save(folder, "LlamaForSequenceClassification", num_key_value_heads=2, max_position_embeddings=256, **SIZE)
    return folder


def test_the_reward_of_a_llama_is_its_formula(llama: Path):
    tokenizer = make_tokenizer()
    expected = [llama_reward(llama, chat_ids(tokenizer, text)) for text in TEXTS]
    assert max(expected) - min(expected) > 0.1
    assert rewards(RewardModel(model=str(llama)), groups()) == pytest.approx(expected * 2, abs=1e-5)


def test_a_reward_does_not_depend_on_the_batch_or_the_order(llama: Path):
    together = rewards(RewardModel(model=str(llama)), groups())
    alone = rewards(RewardModel(model=str(llama), max_tokens_per_batch=1), groups())
    backwards = rewards(RewardModel(model=str(llama)), groups(TEXTS[::-1]))
    assert together == pytest.approx(alone, abs=1e-5)
    assert together[:5] == backwards[:5][::-1]


def test_a_response_that_ends_in_the_padding_token_is_read_at_its_end(llama: Path):
    tokenizer = make_tokenizer()
    texts = [f"Hi{PAD}", f"Hi{PAD}{PAD}", "Hi", "A longer one."]
    # Written in a text prompt, where special tokens are marks; in a response they are words.
    empty = Response("", [], None, "stop")
    given = [Group(Prompt(f"{at}", text=f"Say: {text}"), [empty]) for at, text in enumerate(texts)]
    ids = [tokenizer(f"Say: {text}")["input_ids"] for text in texts]
    assert ids[1][-3:] == [ids[0][-2], 0, 0]
    found = rewards(RewardModel(model=str(llama), template="plain"), given)
    assert found == pytest.approx([llama_reward(llama, row) for row in ids], abs=1e-5)
    assert len({round(one, 4) for one in found}) == 4


def test_a_gpt2_reads_the_last_hidden_state_with_its_head(tmp_path: Path):
    config = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    model = save(tmp_path, "GPT2ForSequenceClassification", num_labels=3, **config)
    tokenizer = make_tokenizer()
    expected = []
    for text in TEXTS:
        hidden = model.transformer(torch.tensor([chat_ids(tokenizer, text)])).last_hidden_state
        expected.append((hidden[0, -1].double() @ model.score.weight[2].double()).item())
    assert rewards(RewardModel(model=str(tmp_path), label=2, read="logit"), groups()) == pytest.approx(
        expected * 2, abs=1e-5
    )


def test_a_bert_reads_its_pooled_first_token(tmp_path: Path):
    model = save(tmp_path, "BertForSequenceClassification", max_position_embeddings=128, **SIZE)
    tokenizer = make_tokenizer()
    expected = []
    for text in TEXTS:
        ids = [1, *tokenizer(f"Well? {text}", add_special_tokens=False)["input_ids"], 2]
        hidden = model.bert.encoder(model.bert.embeddings(torch.tensor([ids]))).last_hidden_state
        pooled = (hidden[0, 0] @ model.bert.pooler.dense.weight.T + model.bert.pooler.dense.bias).tanh()
        expected.append((pooled @ model.classifier.weight[0] + model.classifier.bias[0]).item())
    given = [Group(Prompt("p", text="Well? "), [Response(text, [], None, "stop") for text in TEXTS])]
    reward = RewardModel(model=str(tmp_path), template="plain", max_length=128)
    assert rewards(reward, given) == pytest.approx(expected, abs=1e-5)


def test_a_conversation_is_read_with_one_bos(llama: Path):
    reward = RewardModel(model=str(llama))
    ids, _ = reward.encode(groups()[0].prompt, "Hi.")
    assert ids.count(1) == 1 and ids[0] == 1


def test_bfloat16_is_close_and_its_head_does_not_round(llama: Path):
    exact = rewards(RewardModel(model=str(llama)), groups())
    rough = rewards(RewardModel(model=str(llama), dtype="bfloat16"), groups())
    assert rough != exact
    assert rough == pytest.approx(exact, abs=0.1)
    assert any(torch.tensor(one).bfloat16().item() != one for one in rough)


def test_a_conversation_that_is_too_long_is_an_error_of_its_own(llama: Path):
    found = list(RewardModel(model=str(llama), max_length=40).score(groups()))
    whole = [score for row in RewardModel(model=str(llama)).score(groups()) for score in row]
    assert found[0][2] == Score(None, error="62 tokens, more than reward.max_length")
    assert [one.reward for one in found[0][:2]] == pytest.approx([one.reward for one in whole[:2]], abs=1e-5)


def test_a_conversation_longer_than_the_model_reads_is_an_error_too(llama: Path):
    (row, _) = RewardModel(model=str(llama)).score(groups(["x" * 300, "x"]))
    assert row[0].error == "317 tokens, more than the 256 that the reward model reads"
    assert row[1].error is None


def test_a_prompt_can_be_cut_and_the_cut_is_counted(llama: Path):
    given = [Group(Prompt("p", text="Once upon a time"), [Response(" there was", [], None, "stop")])]
    ((found,),) = RewardModel(model=str(llama), template="plain", max_length=20, truncation="prompt").score(given)
    expected = llama_reward(llama, make_tokenizer()("on a time there was")["input_ids"])
    assert found.parts == {"cut_tokens": 7.0}
    assert found.reward == pytest.approx(expected, abs=1e-5)


def test_a_response_is_never_cut(llama: Path):
    given = [Group(Prompt("p", text="Once"), [Response("x" * 30, [], None, "stop")])]
    ((found,),) = RewardModel(model=str(llama), template="plain", max_length=20, truncation="prompt").score(given)
    assert found == Score(None, error="31 tokens, more than reward.max_length")


def test_older_turns_go_first(llama: Path):
    turns = [("user", "x" * 40), ("assistant", "y"), ("user", "How are you?")]
    prompt = Prompt("p", messages=[{"role": role, "content": content} for role, content in turns])
    reward = RewardModel(model=str(llama), max_length=40, truncation="prompt")
    ((found,),) = reward.score([Group(prompt, [Response("Hi.", [], None, "stop")])])
    assert found.parts == {"cut_tokens": 45.0}
    assert found.reward == rewards(reward, groups(["Hi."]))[0]


def test_text_prompts_need_the_plain_template(llama: Path):
    given = [Group(Prompt("p", text="Once"), [Response("x", [], None, "stop")])]
    with pytest.raises(UserError, match=r"plain text, but the template is chat; use template: plain"):
        list(RewardModel(model=str(llama)).score(given))


def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path):
    save(tmp_path, "LlamaForCausalLM", tie_word_embeddings=True, **SIZE)
    with pytest.raises(UserError, match=r"is a LlamaForCausalLM without the head of a reward model"):
        load(tmp_path)


def test_a_checkpoint_with_a_tensor_too_many_is_refused(tmp_path: Path):
    save(tmp_path, "LlamaForSequenceClassification", **SIZE)
    edit(tmp_path, lambda tensors: tensors.update({"score.bias": torch.ones(1)}))
    with pytest.raises(UserError, match=r"holds the tensor score\.bias, which belongs to head: attributes"):
        load(tmp_path)


def test_a_head_of_another_shape_is_refused(tmp_path: Path):
    save(tmp_path, "LlamaForSequenceClassification", **SIZE)
    edit(tmp_path, lambda tensors: tensors.update({"score.weight": torch.ones(2, 32)}))
    with pytest.raises(UserError, match=r"the head has 2 outputs, but config\.json says num_labels: 1"):
        load(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_numbers_are_refused(tmp_path: Path, value: float):
    save(tmp_path, "LlamaForSequenceClassification", **SIZE)
    edit(tmp_path, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][3].fill_(value))
    with pytest.raises(UserError, match=r"NaN or infinite: layers\.1\.mlp\.up_proj\.weight"):
        load(tmp_path)


def test_one_logit_of_several_has_to_be_named(tmp_path: Path, llama: Path):
    save(tmp_path, "LlamaForSequenceClassification", num_labels=3, **SIZE)
    load(tmp_path, label=2)
    with pytest.raises(UserError, match=r"reward\.label is 3, but .* has 3 outputs; allowed: 0 to 2"):
        load(tmp_path, label=3)
    with pytest.raises(UserError, match=r"reward\.label is not given, but .* has 3 outputs; allowed: 0 to 2"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"reward\.label is 1"):
        load(llama, label=1)


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    save(tmp_path, "LlamaForSequenceClassification", **SIZE)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        load(tmp_path)


def test_a_soft_cap_is_never_left_out(tmp_path: Path):
    model = save(
        tmp_path, "Gemma2ForSequenceClassification", num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8,
        attn_logit_softcapping=0.1, **SIZE,
    )  # fmt: skip
    with pytest.raises(UserError, match="sdpa leaves out the soft cap"):
        load(tmp_path, attn_implementation="sdpa")
    ids = torch.tensor([chat_ids(make_tokenizer(), "Hi.")])
    model.set_attn_implementation("eager")
    expected = (model.model(ids).last_hidden_state[0, -1] @ model.score.weight[0]).item()
    model.set_attn_implementation("sdpa")
    without = (model.model(ids).last_hidden_state[0, -1] @ model.score.weight[0]).item()
    assert abs(without - expected) > 0.01
    assert rewards(RewardModel(model=str(tmp_path)), groups(["Hi."]))[0] == pytest.approx(expected, abs=1e-5)


def test_a_reward_that_is_not_finite_is_an_error(tmp_path: Path):
    save(tmp_path, "LlamaForSequenceClassification", **SIZE)
    edit(tmp_path, lambda tensors: tensors["score.weight"].fill_(3e38))
    found = [score for row in RewardModel(model=str(tmp_path)).score(groups()) for score in row]
    broken = [score for score in found if score.reward is None]
    assert broken and all("not a finite number" in score.error for score in broken)


@pytest.fixture
def crowded(llama: Path) -> Iterator[tuple[RewardModel, list[int]]]:
    """A reward model whose memory holds 100 tokens, and the sizes of the batches that it tried."""
    reward, tried = RewardModel(model=str(llama)), []

    def admit(module: Any, args: Any, given: dict[str, Any]) -> None:
        tried.append(given["input_ids"].numel())
        if tried[-1] > 100:
            raise torch.cuda.OutOfMemoryError("no room")

    hook = reward.runner.model.register_forward_pre_hook(admit, with_kwargs=True)
    yield reward, tried
    hook.remove()


def test_a_batch_that_does_not_fit_is_halved(llama: Path, crowded: tuple[RewardModel, list[int]]):
    reward, tried = crowded
    assert rewards(reward, groups()) == pytest.approx(rewards(RewardModel(model=str(llama)), groups()), abs=1e-5)
    assert tried[0] > 100 >= max(tried[1:])


def test_a_row_that_does_not_fit_is_told(llama: Path):
    reward = RewardModel(model=str(llama))

    def refuse(module: Any, args: Any) -> None:
        raise torch.cuda.OutOfMemoryError("no room")

    reward.runner.model.register_forward_pre_hook(refuse)
    with pytest.raises(UserError, match=r"one conversation of \d+ tokens does not fit"):
        list(reward.score(groups()))


def test_batches_keep_to_the_token_budget(llama: Path):
    reward, shapes = RewardModel(model=str(llama), max_tokens_per_batch=64), []

    def watch(module: Any, args: Any, given: dict[str, Any]) -> None:
        shapes.append(tuple(given["input_ids"].shape))

    reward.runner.model.register_forward_pre_hook(watch, with_kwargs=True)
    rewards(reward, groups())
    assert shapes and all(rows == 1 and tokens <= 64 for rows, tokens in shapes)


def test_a_released_model_comes_back(llama: Path):
    reward = RewardModel(model=str(llama))
    reward.release()
    before = rewards(reward, groups())
    reward.release()
    assert rewards(reward, groups()) == before


def test_layers_that_are_spread_over_devices_give_the_same_rewards_and_come_back(llama: Path, monkeypatch):
    """With devices that are both the CPU: what moves states between layers is accelerate's."""
    alone = rewards(RewardModel(model=str(llama)), groups())
    layers = ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")
    spreads: list[Any] = []

    def over(model: Any) -> None:
        spreads.append(model)
        loading.spread(model, dict.fromkeys(layers, "cpu"))

    monkeypatch.setattr(loading, "to_device", over)
    reward = RewardModel(model=str(llama))
    assert rewards(reward, groups()) == rewards(reward, groups()) == alone
    (model,) = spreads  # once, and not again for each block
    assert all(hasattr(model.get_submodule(name), "_hf_hook") for name in layers)
    reward.release()
    assert not any(hasattr(one, "_hf_hook") for one in model.modules())
    assert rewards(reward, groups()) == alone and spreads == [model, model]


def test_groups_without_responses_keep_their_place(llama: Path):
    one, two = groups(["Hi."])
    empty = Group(one.prompt, [])
    assert [len(row) for row in RewardModel(model=str(llama)).score([empty, one, empty, two])] == [0, 1, 0, 1]
    assert list(RewardModel(model=str(llama)).score([])) == []
