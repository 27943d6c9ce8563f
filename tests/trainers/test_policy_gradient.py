"""The clipped policy gradient: every number is compared with a plain-torch computation of the formula."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuning import CONFIGS, SGD, difference, example, make_folders, without_dropout

from raft.core.errors import UserError
from raft.core.records import Example, Response
from raft.models import chat_templates
from raft.trainers.policy_gradient import PolicyGradient

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = [1.0, -0.5, 2.0, -1.5, 0.25]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_folders(tmp_path_factory.mktemp("policies"))


def logprobs(model: Any, tokenizer: Any, one: Example) -> torch.Tensor:
    """The log-probability of each response token, computed for this text alone."""
    prompt = chat_templates.encode_prompt(tokenizer, one.prompt)
    ids = torch.tensor([[*prompt, *one.response.token_ids]])
    found = model(input_ids=ids).logits[0].log_softmax(-1)
    return torch.stack([found[place - 1, ids[0, place]] for place in range(len(prompt), ids.shape[1])])


def generated(model: Any, tokenizer: Any, moved: float) -> list[Example]:
    """Examples whose stored log-probabilities are off those of the model by up to `moved`, in either direction."""
    found = []
    for number, (words, weight) in enumerate(zip([9, 3, 17, 1, 6], WEIGHTS, strict=True)):
        one = example(number, words, weight)
        with torch.no_grad():
            own = logprobs(model, tokenizer, one)
        old = own + moved * torch.linspace(-1, 1, len(own)) if len(own) > 1 else own - moved
        response = Response("", one.response.token_ids, old.tolist(), "stop")
        found.append(Example(one.prompt_id, response, text=one.text, weight=weight))
    return found


def formula(model: Any, tokenizer: Any, examples: list[Example], low: float, high: float) -> torch.Tensor:
    """The loss one token after the other, case by case."""
    above, count = torch.zeros(()), 0
    for one in examples:
        for new, old in zip(logprobs(model, tokenizer, one), one.response.logprobs or [], strict=True):
            ratio = torch.exp(new - old)
            beyond = ratio > high if one.weight > 0 else ratio < low
            above = (
                above - one.weight * (high if one.weight > 0 else low if beyond else ratio)
                if beyond
                else (above - one.weight * ratio)
            )
            count += 1
    return above / count


def trained(start: Path, out: Path, examples: list[Example], **options: Any) -> dict[str, float]:
    dropped: list[Any] = []
    trainer = PolicyGradient(
        **{"num_train_epochs": 1, "batch_size": 5, "lr_scheduler_type": "constant", "args": SGD, **options}
    )
    measured = trainer.train(start, iter(examples), out, 0, lambda *step: None, lambda *drop: dropped.append(drop))
    assert not dropped
    return measured


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("options", [{}, {"max_tokens_per_microbatch": 30}, {"clip": 0.1, "clip_higher": 0.3}], ids=str)
def test_one_step_is_the_formulas_with_tokens_beyond_the_clip_on_both_sides(folders, tmp_path, name, options):
    low, high = 1 - options.get("clip", 0.2), 1 + options.get("clip_higher", 0.2)
    model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    examples = generated(model, tokenizer, 0.5)
    loss = formula(model, tokenizer, examples, low, high)
    loss.backward()
    expected = {name: parameter.detach() - 0.5 * parameter.grad for name, parameter in model.named_parameters()}
    start = without_dropout(folders[name], tmp_path / "start")
    measured = trained(start, tmp_path / "out", examples, learning_rate=0.5, **options)
    found = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).named_parameters())
    assert measured["train/loss"] == pytest.approx(float(loss), rel=1e-4)
    assert 0.1 < measured["train/clip_fraction"] < 0.9
    assert difference(found, expected) < 2e-5


def test_the_first_step_on_fresh_responses_has_a_ratio_of_one(folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32).eval()
    examples = generated(model, AutoTokenizer.from_pretrained(folders["llama"]), 0.0)
    measured = trained(folders["llama"], tmp_path, examples)
    tokens = [9, 3, 17, 1, 6]
    mean = sum(weight * count for weight, count in zip(WEIGHTS, tokens, strict=True)) / sum(tokens)
    assert measured["train/loss"] == pytest.approx(-mean, rel=1e-4)
    assert measured["train/clip_fraction"] == 0
    assert measured["train/approx_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.nightly
def test_positive_weights_raise_the_likelihood_negative_ones_lower_it_and_the_clip_holds_both(folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    examples = generated(model, tokenizer, 0.0)
    moved: dict[str, list[float]] = {}
    for name, more in {"clipped": {}, "free": {"clip": 1.0, "clip_higher": 1e9}}.items():
        options = {"num_train_epochs": 60, "learning_rate": 1e-3, "args": {"optim": "adamw_torch"}, **more}
        measured = trained(folders["llama"], tmp_path / name, examples, **options)
        assert (measured["train/clip_fraction"] > 0.5) == (name == "clipped")
        after = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
        with torch.no_grad():
            steps = [logprobs(after, tokenizer, one) - torch.tensor(one.response.logprobs) for one in examples]
        moved[name] = [float(step.mean()) for step in steps]
        assert all(step * weight > 0 for step, weight in zip(moved[name], WEIGHTS, strict=True))
    assert max(map(abs, moved["clipped"])) < 0.5 * max(map(abs, moved["free"]))


def test_what_has_no_log_probabilities_or_no_weight_is_dropped_with_its_reason(folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32).eval()
    good = generated(model, AutoTokenizer.from_pretrained(folders["llama"]), 0.0)[:2]
    dropped: list[tuple] = []
    weightless = Example("9", good[0].response, text="x", weight=0.0)
    measured = PolicyGradient(num_train_epochs=1).train(
        folders["llama"], iter([*good, example(7, 5), weightless]), tmp_path, 0, lambda *step: None,
        lambda *drop: dropped.append(drop),
    )  # fmt: skip
    assert measured["train/examples"] == 2
    assert [(prompt_id, reason.split(" ")[0]) for prompt_id, _, reason in dropped] == [("7", "there"), ("9", "weight")]
    with pytest.raises(UserError, match="no log-probabilities"):
        PolicyGradient().train(
            folders["llama"], iter([example(7, 5)]), tmp_path, 0, lambda *step: None, lambda *drop: None
        )
