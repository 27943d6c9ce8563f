"""A checkpoint that is not exactly a head, its backbone and nothing beside is refused, with the way out."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from heads import LLAMA_GATE, WIDTH, configure, gate, labels, make, rand
from reward_models import SIZE, edit, load, save

from raft.core.errors import UserError
from raft.rewards.heads import HEADS

DAMAGED = {
    "regression": ({"regression_head.weight": rand(1, WIDTH)}, "LlamaRewardModel", {}),
    "mlp": (
        {
            "score.0.weight": rand(WIDTH, WIDTH), "score.0.bias": rand(WIDTH),
            "score.2.weight": rand(1, WIDTH), "score.2.bias": rand(1),
        },
        "INFORMForSequenceClassification", {},
    ),
    "attributes": (
        {"score.weight": rand(5, WIDTH), "score.bias": rand(5)}, "LlamaForDecisionTreeRewardModel", labels(5),
    ),
    "value": ({"v_head.summary.weight": rand(1, WIDTH), "v_head.summary.bias": rand(1)}, "GRewardModel", {}),
    "quantile": (
        {"regression_layer.weight": rand(8, WIDTH), **gate(LLAMA_GATE, 4, WIDTH)},
        "LlamaForRewardModelWithGating", {"num_quantiles": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "lost"),
    [(kind, name) for kind, (head, _, _) in DAMAGED.items() for name in head if "num_batches" not in name],
)
def test_a_head_that_lacks_any_of_its_tensors_is_refused(tmp_path: Path, kind: str, lost: str):
    head, architecture, config = DAMAGED[kind]
    options = {"label": 0} if kind == "attributes" else {}
    make(tmp_path, head, architecture, **config)
    load(tmp_path, **options)
    edit(tmp_path, lambda tensors: tensors.pop(lost))
    with pytest.raises(UserError):
        load(tmp_path, **options)


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_tensor_that_no_head_reads_is_refused(tmp_path: Path, kind: str):
    head, architecture, config = DAMAGED[kind]
    make(tmp_path, {**head, "extra_head.bias": rand(1)}, architecture, **config)
    with pytest.raises(UserError, match=r"unexpected extra_head\.bias"):
        load(tmp_path, label=0)


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_head_whose_weights_are_not_numbers_is_refused(tmp_path: Path, kind: str):
    head, architecture, config = DAMAGED[kind]
    make(tmp_path, head, architecture, **config)
    edit(tmp_path, lambda tensors: tensors[next(iter(head))][0].fill_(torch.nan))
    with pytest.raises(UserError, match="NaN or infinite"):
        load(tmp_path, label=0)


def test_tensors_and_architecture_that_disagree_are_refused_until_the_recipe_decides(tmp_path: Path):
    make(tmp_path, {"regression_head.weight": rand(1, WIDTH)}, "LlamaForSequenceClassification")
    with pytest.raises(UserError, match=r"reads head: classifier, but its checkpoint holds .*regression_head\.weight"):
        load(tmp_path)
    load(tmp_path, head="regression")
    with pytest.raises(UserError, match="holds the tensors of head: regression"):
        load(tmp_path, head="mlp")


def test_an_unknown_architecture_is_refused_until_the_recipe_decides(tmp_path: Path):
    make(tmp_path, {"regression_head.weight": rand(1, WIDTH)}, "SomebodysRewardModel")
    with pytest.raises(UserError, match=r"say so with reward\.head: regression"):
        load(tmp_path)
    load(tmp_path, head="regression")


def test_a_language_model_is_no_reward_model_unless_a_token_is_read(tmp_path: Path):
    save(tmp_path, "LlamaForCausalLM", **SIZE)
    with pytest.raises(UserError, match=r"without the head of a reward model.*reward\.head: token"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"without the head of a reward model"):
        load(tmp_path, head="classifier")
    load(tmp_path, head="token")


def test_an_internlm2_is_refused_with_the_reason(tmp_path: Path):
    make(tmp_path, {"v_head.weight": rand(1, WIDTH)}, "InternLM2ForRewardModel")
    with pytest.raises(UserError, match="neither its architecture nor its tokenizer is in transformers"):
        load(tmp_path)
    configure(tmp_path, model_type="internlm2")
    with pytest.raises(UserError, match="runs no code from elsewhere"):
        load(tmp_path)


def test_a_head_of_more_outputs_than_the_config_says_is_refused(tmp_path: Path):
    head = {"score.weight": rand(4, WIDTH), "score.bias": rand(4)}
    make(tmp_path, head, "LlamaForDecisionTreeRewardModel", **labels(5))
    with pytest.raises(UserError, match=r"the head has 4 outputs, but config\.json says num_labels: 5"):
        load(tmp_path, label=0)


def test_a_head_with_more_than_is_read_or_other_outputs_is_refused(tmp_path: Path):
    head = {f"v_head.summary.{at}.{part}": rand(*shape) for at, part, shape in [
        (0, "weight", (16, WIDTH)), (0, "bias", (16,)), (2, "weight", (1, 16)), (2, "bias", (1,)),
        (4, "weight", (1, 1)), (4, "bias", (1,)),
    ]}  # fmt: skip
    make(tmp_path / "a", head, "GRewardModel")
    with pytest.raises(UserError, match=r"does not read v_head\.summary\.4"):
        load(tmp_path / "a")
    make(tmp_path / "b", {"regression_head.weight": rand(2, WIDTH)}, "LlamaRewardModel")
    with pytest.raises(UserError, match="has 2 outputs, where 1 belongs"):
        load(tmp_path / "b")
    save(tmp_path / "c", "LlamaForCausalLM", **SIZE)
    with pytest.raises(UserError, match=r"reward\.label: 1000000 is not a token"):
        load(tmp_path / "c", head="token", label=1000000)


def test_a_gate_of_other_layers_than_its_config_says_is_refused(tmp_path: Path):
    head = {"regression_layer.weight": rand(8, WIDTH), **gate(LLAMA_GATE, 4, WIDTH)}
    make(tmp_path, head, "LlamaForRewardModelWithGating", num_quantiles=3)
    with pytest.raises(UserError, match="8 rows, no multiple of 3 quantiles"):
        load(tmp_path)
    configure(tmp_path, num_quantiles=2, gating_n_hidden=2)
    with pytest.raises(UserError, match="the gate has 4 linear maps and 3 norms; its config says 2"):
        load(tmp_path)


def test_the_page_has_each_head_with_tensors_that_are_its_own_and_no_other():
    page = (Path(__file__).parents[2] / "docs" / "reward-models.md").read_text(encoding="utf-8")
    lines = [line.split("|")[1:3] for line in page.split("## Heads")[1].split("\n\n")[1].splitlines()[2:]]
    named = {name.strip(" `"): re.findall("`([^`]+)`", cell) for name, cell in lines}
    assert set(named) == set(HEADS)
    for name, tensors in named.items():
        endings = ["", ".weight", ".layers.0.weight", ".bias"]
        assert tensors, name
        for tensor in tensors:
            assert any(re.fullmatch(HEADS[name].tensors, tensor + end) for end in endings), (name, tensor)


def test_the_names_of_heads_need_no_torch():
    script = "import sys, raft.rewards.model; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
