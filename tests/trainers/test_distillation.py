"""On-policy distillation against the divergence computed one token after the other by plain torch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuning import CONFIGS, EXAMPLES, SGD, TEXTS, difference, make_folders, without_dropout

from raft.core.errors import UserError
from raft.models import chat_templates, from_scratch
from raft.trainers.distillation import Distillation

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("policies")
    wide = {**CONFIGS["llama"], "hidden_size": 96, "head_dim": 48, "num_hidden_layers": 3}
    from_scratch.make(root / "teacher", TEXTS, wide, 280, seed=9)
    return {**make_folders(root), "teacher": root / "teacher"}


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def divergence(model: Any, teacher: Any, tokenizer: Any, forward: bool) -> torch.Tensor:
    above, below = torch.zeros(()), 0.0
    for one in EXAMPLES:
        prompt = chat_templates.encode_prompt(tokenizer, one.prompt)
        ids = torch.tensor([[*prompt, *one.response.token_ids]])
        own = model(input_ids=ids).logits[0].softmax(-1)
        with torch.no_grad():
            other = teacher(input_ids=ids).logits[0].softmax(-1)
        for place in range(len(prompt) - 1, ids.shape[1] - 1):
            p, q = (other[place], own[place]) if forward else (own[place], other[place])
            above = above + one.weight * sum(p[token] * torch.log(p[token] / q[token]) for token in range(len(p)))
            below += one.weight
    return above / below


def trained(start: Path, out: Path, teacher: Path, **options: Any) -> dict[str, float]:
    trainer = Distillation(
        teacher=str(teacher), **{"num_train_epochs": 1, "batch_size": 5, "lr_scheduler_type": "constant", **options}
    )
    return trainer.train(start, iter(EXAMPLES), out, 0, lambda *step: None, lambda *drop: None)


@pytest.mark.parametrize(("name", "kind"), [("llama", "reverse"), ("llama", "forward"), ("gpt2", "reverse")])
def test_one_step_is_the_formulas(folders, tmp_path, name, kind):
    model = loaded(folders[name])
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    loss = divergence(model, loaded(folders["teacher"]), tokenizer, kind == "forward")
    loss.backward()
    expected = {name: parameter.detach() - 0.5 * parameter.grad for name, parameter in model.named_parameters()}
    start = without_dropout(folders[name], tmp_path / "start")
    options = {"divergence": kind, "learning_rate": 0.5, "args": SGD, "max_tokens_per_microbatch": 40}
    measured = trained(start, tmp_path / "out", folders["teacher"], **options)
    assert measured["train/loss"] == pytest.approx(float(loss), rel=1e-4)
    found = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).named_parameters())
    assert difference(found, expected) < 2e-5


def test_a_policy_that_is_its_own_teacher_has_nothing_to_learn(folders, tmp_path):
    assert trained(folders["llama"], tmp_path, folders["llama"])["train/loss"] == pytest.approx(0, abs=1e-6)


@pytest.mark.nightly
def test_training_brings_the_policy_nearer_to_its_teacher(folders, tmp_path):
    measured = trained(folders["llama"], tmp_path, folders["teacher"], num_train_epochs=60, learning_rate=3e-3)
    assert measured["train/loss"] < 0.5 * measured["train/loss_first"]


def test_a_teacher_with_another_tokenizer_is_refused_by_its_name(folders, tmp_path):
    from_scratch.make(tmp_path / "other", ["Quite different words."], CONFIGS["llama"], 270, seed=1)
    with pytest.raises(UserError, match="has another tokenizer than the policy"):
        trained(folders["llama"], tmp_path / "out", tmp_path / "other")
