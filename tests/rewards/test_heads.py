"""Every head that a published reward model has: a tiny checkpoint of its tensors, and its formula worked out apart.

The backbone is a Llama whose hidden states come from `reward_models.llama_hidden`, plain torch in float64, and (for the
Gemmas) transformers' own backbone without any of raft's code; the heads are written out here once more.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from heads import LLAMA_GATE, LLAMA_MARK, WIDTH, configure, gate, labels, make, rand, speak_llama
from reward_models import SIZE, TEXTS, chat_ids, edit, groups, llama_hidden, load, make_tokenizer, rewards, save
from safetensors.torch import load_file

from raft.core.errors import UserError
from raft.core.records import Group, Prompt, Response
from raft.rewards.model import RewardModel

Formula = Callable[[torch.Tensor, list[int]], Any]  # hidden states [tokens, width] and ids -> outputs


def check(folder: Path, formula: Formula, **options: Any) -> None:
    """The outputs alone, batched, shuffled, and in a batch with longer rows, are the formula's."""
    tokenizer = make_tokenizer()
    expected = []
    for text in TEXTS:
        ids = chat_ids(tokenizer, text)
        expected.append(float(formula(llama_hidden(folder, ids), ids)))
    assert max(expected) - min(expected) > 0.01
    for max_tokens_per_batch in (1, 100, 16384):
        reward = RewardModel(model=str(folder), max_tokens_per_batch=max_tokens_per_batch, **options)
        assert rewards(reward, groups())[:5] == pytest.approx(expected, abs=1e-4)
    shuffled = rewards(reward, groups(TEXTS[::-1]))
    assert shuffled[:5] == pytest.approx(expected[::-1], abs=1e-4)


def test_a_regression_head_is_a_linear_map_of_the_last_token(tmp_path: Path):
    weight = rand(1, WIDTH)
    make(
        tmp_path, {"regression_head.weight": weight}, "LlamaRewardModel", **labels(2)
    )  # its config says nothing of labels
    check(tmp_path, lambda h, ids: h[-1] @ weight[0].double())


def test_an_mlp_head_is_two_maps_with_a_relu(tmp_path: Path):
    head = {
        "score.0.weight": rand(WIDTH, WIDTH), "score.0.bias": rand(WIDTH),
        "score.2.weight": rand(1, WIDTH), "score.2.bias": rand(1),
    }  # fmt: skip
    make(tmp_path, head, "INFORMForSequenceClassification")
    w = {name: tensor.double() for name, tensor in head.items()}

    def formula(h: torch.Tensor, ids: list[int]) -> Any:
        inner = torch.clamp(w["score.0.weight"] @ h[-1] + w["score.0.bias"], min=0)
        return w["score.2.weight"][0] @ inner + w["score.2.bias"][0]

    check(tmp_path, formula)


def test_an_attributes_head_adds_its_bias_and_names_its_outputs(tmp_path: Path):
    weight, bias = rand(5, WIDTH), rand(5, scale=3)
    make(
        tmp_path, {"score.weight": weight, "score.bias": bias}, "LlamaForDecisionTreeRewardModel", **labels(5)
    )  # fmt: skip
    check(tmp_path, lambda h, ids: h[-1] @ weight[2].double() + bias[2].double(), label="coherence")
    ((score, *_), _) = RewardModel(model=str(tmp_path), label=0).score(groups())
    h = llama_hidden(tmp_path, chat_ids(make_tokenizer(), TEXTS[0]))[-1]
    assert list(score.parts) == ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
    assert list(score.parts.values()) == pytest.approx((weight.double() @ h + bias).tolist(), abs=1e-4)
    with pytest.raises(UserError, match=r"reward\.label is not given, but .* has 5 outputs; allowed: 0 to 4, or helpf"):
        load(tmp_path)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_value_head_of_layers_has_a_relu_between_them(tmp_path: Path, layers: int):
    head: dict[str, torch.Tensor] = {}
    sizes = [WIDTH, *[16] * layers, 1]
    for number in range(layers + 1):
        head[f"v_head.summary.{2 * number}.weight"] = rand(sizes[number + 1], sizes[number], seed=number)
        head[f"v_head.summary.{2 * number}.bias"] = rand(sizes[number + 1], seed=number)
    make(tmp_path, head, "GRewardModel", vhead_num_layers=layers)

    def formula(h: torch.Tensor, ids: list[int]) -> Any:
        x = h[-1]
        for number in range(layers + 1):
            x = head[f"v_head.summary.{2 * number}.weight"].double() @ x + head[f"v_head.summary.{2 * number}.bias"]
            x = x.clamp(min=0) if number < layers else x
        return x[0]

    check(tmp_path, formula)


def test_a_linear_value_head_has_a_bias(tmp_path: Path):
    weight, bias = rand(1, WIDTH), rand(1, scale=2)
    make(tmp_path, {"v_head.summary.weight": weight, "v_head.summary.bias": bias}, "GRewardModel")
    check(tmp_path, lambda h, ids: h[-1] @ weight[0].double() + bias[0].double())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("token", [None, 7])
def test_a_token_head_is_the_logit_of_one_token_of_a_language_model(tmp_path: Path, tied: bool, token: int | None):
    save(tmp_path, "LlamaForCausalLM", num_key_value_heads=2, tie_word_embeddings=tied, **SIZE)
    tensors = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in tensors) is not tied
    row = tensors["model.embed_tokens.weight" if tied else "lm_head.weight"][token or 0].double()
    check(tmp_path, lambda h, ids: h[-1] @ row, head="token", label=token)


def gated(
    w: dict[str, torch.Tensor], places: tuple[list[int], list[int]], h: torch.Tensor, heat: float
) -> torch.Tensor:
    """The gate's formula: linear, ReLU, (x - mean) / sqrt(var + eps) * weight + bias, and a softmax at the end."""
    w = {name: tensor.double() for name, tensor in w.items()}
    maps, norms = places
    for map_at, norm_at in zip(maps, norms, strict=False):
        h = (w[f"gating.layers.{map_at}.weight"] @ h).clamp(min=0)
        at = f"gating.layers.{norm_at}"
        h = (h - w[f"{at}.running_mean"]) / (w[f"{at}.running_var"] + 1e-5).sqrt() * w[f"{at}.weight"] + w[f"{at}.bias"]
    h = w[f"gating.layers.{maps[-1]}.weight"] @ h + w[f"gating.layers.{maps[-1]}.bias"]
    odds = (h / heat).exp()
    return odds / odds.sum() * w["gating.logit_scale"]


GEMMA_GATE = ([0, 4, 8, 11], [2, 6, 10])  # linear, ReLU, norm, dropout, but none after the last norm


@pytest.mark.parametrize("transform", [False, True])
def test_a_quantile_head_weighs_its_attributes_by_a_gate_that_reads_the_question(tmp_path: Path, transform: bool):
    attributes, quantiles, heat = 4, 3, 5.0
    head = {"regression_layer.weight": rand(attributes * quantiles, WIDTH), **gate(LLAMA_GATE, attributes, WIDTH)}
    if transform:
        head["reward_transform_matrix"] = rand(attributes, attributes)
    more = {"num_objectives": attributes, "num_quantiles": quantiles, "gating_temperature": heat, "vocab_size": 110}
    folder = make(tmp_path, head, "LlamaForRewardModelWithGating", **more)
    grown = torch.cat([load_file(folder / "model.safetensors")["model.embed_tokens.weight"], rand(20, WIDTH)])[:110]
    edit(folder, lambda tensors: tensors.update({"model.embed_tokens.weight": grown}))
    tokenizer = speak_llama(folder)
    mark = tokenizer(LLAMA_MARK, add_special_tokens=False)["input_ids"]
    assert len(mark) == 3 + len("assistant") + 1
    expected, parts = [], []
    for text in TEXTS:
        turns = [("user", "How are you?"), ("assistant", text)]
        written = "<s>" + "".join(
            f"<|start_header_id|>{role}<|end_header_id|>\n\n{said}<|eot_id|>" for role, said in turns
        )
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        at = max(at for at in range(len(ids)) if ids[at : at + len(mark)] == mark)
        h = llama_hidden(folder, ids)
        means = (head["regression_layer.weight"].double() @ h[-1]).view(attributes, quantiles).mean(1)
        means = means @ head["reward_transform_matrix"].double() if transform else means
        expected.append(float(gated(head, LLAMA_GATE, h[at], heat) @ means))
        parts.append(means.tolist())
    for max_tokens_per_batch in (1, 16384):
        reward = RewardModel(model=str(folder), max_tokens_per_batch=max_tokens_per_batch)
        assert rewards(reward, groups()) == pytest.approx(expected * 2, abs=1e-4)
    (first, _) = reward.score(groups())
    assert [list(score.parts.values()) for score in first] == [pytest.approx(one, abs=1e-4) for one in parts]
    named = rewards(RewardModel(model=str(folder), label="LABEL_2"), groups())
    assert named[:5] == pytest.approx([one[2] for one in parts], abs=1e-4)


def test_a_quantile_head_reports_a_conversation_without_a_question(tmp_path: Path):
    head = {"regression_layer.weight": rand(8, WIDTH), **gate(LLAMA_GATE, 4, WIDTH)}
    make(tmp_path, head, "LlamaForRewardModelWithGating", num_quantiles=2)
    speak_llama(tmp_path)
    given = [Group(Prompt("p", text="no marks"), [Response(" here", [], None, "stop")])]
    ((score,),) = RewardModel(model=str(tmp_path), template="plain").score(given)
    assert score.reward is None and "no question ends in it" in score.error


def test_a_quantile_head_on_gemma_2_has_its_own_mark_and_places(tmp_path: Path):
    """The backbone is transformers' own Gemma 2, eager, so that its soft cap is there; the head is written out."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    attributes, quantiles = 5, 2
    more = {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 0.5}
    model = save(tmp_path, "Gemma2ForSequenceClassification", vocab_size=120, **more, **SIZE)
    head = {"regression_layer.weight": rand(attributes * quantiles, WIDTH), **gate(GEMMA_GATE, attributes, WIDTH)}

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["score.weight"]
        tensors.update(head)

    edit(tmp_path, change)
    configure(tmp_path, architectures=["Gemma2ForQuantileSequenceClassification"], num_quantiles=quantiles)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    marks = ["<start_of_turn>", "<end_of_turn>", "\n"]
    tokenizer.add_tokens([AddedToken(one, special=one != "\n", normalized=False) for one in marks])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' "
        "+ m['content'] + '<end_of_turn>\n' }}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path)
    model.set_attn_implementation("eager")
    expected = []
    for text in TEXTS:
        start = "<start_of_turn>user\nHow are you?"
        before = tokenizer(start, add_special_tokens=False)["input_ids"]
        whole = f"{start}<end_of_turn>\n<start_of_turn>model\n{text}<end_of_turn>\n"
        ids = [1, *tokenizer(whole, add_special_tokens=False)["input_ids"]]  # the tokenizer adds the BOS
        h = model.model(torch.tensor([ids])).last_hidden_state[0].double()
        means = (head["regression_layer.weight"].double() @ h[-1]).view(attributes, quantiles).mean(1)
        expected.append(float(gated(head, GEMMA_GATE, h[1 + len(before)], 1.0) @ means))
    assert rewards(RewardModel(model=str(tmp_path)), groups()) == pytest.approx(expected * 2, abs=1e-4)


def frame_pairs(folder: Path) -> Any:
    """Gives a folder a tokenizer that frames a question and its answer as two segments."""
    from tokenizers import processors

    tokenizer = make_tokenizer(cls_token="<s>", sep_token="</s>")
    tokenizer.bos_token = tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_a_deberta_reads_question_and_answer_as_a_pair(tmp_path: Path):
    """classifier(gelu(pooler(h of [CLS]))); the encoder itself is transformers' own."""
    sizes = {
        "type_vocab_size": 0, "position_biased_input": False, "pooler_hidden_size": WIDTH, "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 128, "max_position_embeddings": 128,
    }  # fmt: skip
    model = save(tmp_path, "DebertaV2ForSequenceClassification", **sizes, **SIZE)
    tokenizer = frame_pairs(tmp_path)
    expected = []
    for text in TEXTS:
        ids = [1, *tokenizer("How are you?", add_special_tokens=False)["input_ids"], 2]
        ids += [*tokenizer(text, add_special_tokens=False)["input_ids"], 2]
        first = model.deberta(torch.tensor([ids])).last_hidden_state[0, 0].double()
        pooled = model.pooler.dense.weight.double() @ first + model.pooler.dense.bias.double()
        pooled = pooled * 0.5 * (1 + torch.erf(pooled / 2**0.5))
        expected.append(float(model.classifier.weight[0].double() @ pooled + model.classifier.bias[0].double()))
    assert max(expected) - min(expected) > 0.01
    for max_tokens_per_batch in (1, 16384):
        reward = RewardModel(model=str(tmp_path), template="pair", max_tokens_per_batch=max_tokens_per_batch)
        assert rewards(reward, groups()) == pytest.approx(expected * 2, abs=1e-4)


def test_an_encoder_with_token_types_is_told_the_segments(tmp_path: Path):
    model = save(tmp_path, "BertForSequenceClassification", max_position_embeddings=128, **SIZE)
    tokenizer = frame_pairs(tmp_path)
    expected = []
    for text in TEXTS:
        question = [1, *tokenizer("How are you?", add_special_tokens=False)["input_ids"], 2]
        answer = [*tokenizer(text, add_special_tokens=False)["input_ids"], 2]
        types = torch.tensor([[0] * len(question) + [1] * len(answer)])
        expected.append(model(torch.tensor([question + answer]), token_type_ids=types).logits[0, 0].item())
    assert rewards(RewardModel(model=str(tmp_path), template="pair"), groups()) == pytest.approx(expected * 2, abs=1e-4)


def test_an_armorm_weighs_its_objectives_by_a_gate_of_layers_without_norms(tmp_path: Path):
    count, heat = 6, 5.0
    head = {
        "regression_layer.weight": rand(count, WIDTH),
        "reward_transform_matrix": torch.eye(count) + rand(count, count, scale=0.2),
        "gating.logit_scale": torch.tensor([1.3]),
    }
    for place, (rows, columns) in enumerate([(12, WIDTH), (12, 12), (12, 12), (count, 12)]):
        head[f"gating.layers.{place}.weight"] = rand(rows, columns, seed=place)
        head[f"gating.layers.{place}.bias"] = rand(rows, seed=place)
    more = {"num_objectives": count, "gating_temperature": heat, "gating_n_hidden": 3, "vocab_size": 110}
    folder = make(tmp_path, head, "LlamaForRewardModelWithGating", **more)
    grown = torch.cat([load_file(folder / "model.safetensors")["model.embed_tokens.weight"], rand(20, WIDTH)])[:110]
    edit(folder, lambda tensors: tensors.update({"model.embed_tokens.weight": grown}))
    tokenizer = speak_llama(folder)
    mark = tokenizer(LLAMA_MARK, add_special_tokens=False)["input_ids"]
    w = {name: tensor.double() for name, tensor in head.items()}
    expected, objectives = [], []
    for text in TEXTS:
        turns = [("user", "How are you?"), ("assistant", text)]
        written = "<s>" + "".join(
            f"<|start_header_id|>{role}<|end_header_id|>\n\n{said}<|eot_id|>" for role, said in turns
        )
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        h = llama_hidden(folder, ids)
        gate = h[max(at for at in range(len(ids)) if ids[at : at + len(mark)] == mark)]
        for place in range(4):
            gate = w[f"gating.layers.{place}.weight"] @ gate + w[f"gating.layers.{place}.bias"]
            gate = gate.clamp(min=0) if place < 3 else gate
        odds = (gate / heat).exp()
        weights = odds / odds.sum() * w["gating.logit_scale"]
        found = w["regression_layer.weight"] @ h[-1]
        expected.append(sum(float(weights[k] * (found @ w["reward_transform_matrix"])[k]) for k in range(count)))
        objectives.append(found.tolist())
    assert max(expected) - min(expected) > 0.01
    for max_tokens_per_batch in (1, 16384):
        reward = RewardModel(model=str(folder), max_tokens_per_batch=max_tokens_per_batch)
        assert rewards(reward, groups()) == pytest.approx(expected * 2, abs=1e-4)
    (first, _) = reward.score(groups())
    assert [list(score.parts.values()) for score in first] == [pytest.approx(one, abs=1e-4) for one in objectives]
    edit(folder, lambda tensors: tensors.pop("reward_transform_matrix"))
    with pytest.raises(UserError, match=r"head: objectives lacks the tensor 'reward_transform_matrix'"):
        load(folder)


CLASSES = [  # what the config says, what the recipe says, and what becomes of the three outputs
    ({}, {}, "log-odds"),
    ({"problem_type": "single_label_classification"}, {}, "log-odds"),
    ({"problem_type": "single_label_classification"}, {"read": "logit"}, "logit"),
    ({"problem_type": "single_label_classification"}, {"read": "probability"}, "probability"),
    ({"problem_type": "regression"}, {}, "logit"),
    ({"problem_type": "multi_label_classification"}, {}, "logit"),
    ({"problem_type": "multi_label_classification"}, {"read": "probability"}, "sigmoid"),
    ({"id2label": {"0": "helpfulness", "1": "safety", "2": "tone"}, "label2id": None}, {}, "logit"),
]


@pytest.mark.parametrize("architecture", ["LlamaForSequenceClassification", "BertForSequenceClassification"])
@pytest.mark.parametrize(("config", "options", "kind"), CLASSES)
def test_a_class_of_one_softmax_is_read_as_its_log_odds(
    tmp_path: Path, architecture: str, config: dict[str, Any], options: dict[str, Any], kind: str
):
    save(tmp_path, architecture, num_labels=3, max_position_embeddings=128, **SIZE)
    configure(tmp_path, **{"problem_type": None, **config})
    (scores, _) = RewardModel(model=str(tmp_path), label=1, **options).score(groups())
    for score in scores:
        outputs = torch.tensor(list(score.parts.values()), dtype=torch.float64)
        p = outputs.softmax(0)[1]
        formulas = {
            "logit": outputs[1], "log-odds": p.log() - (1 - p).log(), "probability": p,
            "sigmoid": 1 / (1 + (-outputs[1]).exp()),
        }  # fmt: skip
        assert score.reward == pytest.approx(float(formulas[kind]), abs=1e-5)
    assert len({score.reward for score in scores}) > 1


def test_one_output_is_read_as_it_is_and_a_regression_has_no_probability(tmp_path: Path):
    save(tmp_path, "LlamaForSequenceClassification", **SIZE)
    raw = rewards(RewardModel(model=str(tmp_path)), groups())
    odds = rewards(RewardModel(model=str(tmp_path), read="probability"), groups())
    assert odds == pytest.approx([float(torch.tensor(one).sigmoid()) for one in raw], abs=1e-6)
    configure(tmp_path, problem_type="regression")
    with pytest.raises(UserError, match=r"reward\.read: log-odds, but .* has no classes"):
        load(tmp_path, read="log-odds")


POSITIONS = {  # behind their padding token begin the positions of all but the last two
    "Roberta": 128, "XLMRoberta": 128, "Camembert": 128, "MPNet": 128, "Longformer": 128, "Bert": 130, "Electra": 130,
}  # fmt: skip


@pytest.mark.parametrize("family", POSITIONS)
def test_an_encoder_reads_as_many_tokens_as_it_has_positions_for(tmp_path: Path, family: str):
    more = {"attention_window": 16} if family == "Longformer" else {}
    padding = {} if family in ("Bert", "Electra") else {"pad_token_id": 1, "bos_token_id": 0}
    save(
        tmp_path, f"{family}ForSequenceClassification", max_position_embeddings=130, **SIZE, **more, **padding,
    )  # fmt: skip
    reward = RewardModel(model=str(tmp_path), template="plain")
    assert reward.runner.longest == POSITIONS[family]
    frame = len(reward.encode(Prompt("p", text="x"), "y")[0]) - 2
    room = POSITIONS[family] - frame
    given = [Group(Prompt("p", text="x"), [Response("y" * (room + more), [], None, "stop") for more in (-1, 0)])]
    ((fits, long),) = reward.score(given)
    assert (
        fits.reward is not None
        and long.error
        == f"{POSITIONS[family] + 1} tokens, more than the {POSITIONS[family]} that the reward model reads"
    )
