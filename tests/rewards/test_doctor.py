"""Laws of the doctor: a sound reward model passes, and each thing that can be wrong with one has its finding."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from folders import stamp
from heads import LLAMA_GATE, gate, make, rand, speak_llama
from reward_models import SIZE, edit, save

from raft.config import preflight, recipe
from raft.core.records import Prompt, read
from raft.models import chat_templates
from raft.rewards import doctor
from raft.rewards.model import RewardModel

PROMPTS = [Prompt(f"p{n}", messages=[{"role": "user", "content": f"How are you, {n}?"}]) for n in range(3)]
CHECKS = ["head", "bos", "round_trip", "padding", "same_everywhere", "tells_apart", "room"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save(folder, "LlamaForSequenceClassification", num_key_value_heads=2, max_position_embeddings=256, **SIZE)
    return folder


def findings(reward: Any, prompts: list[Prompt] = PROMPTS) -> dict[str, doctor.Finding]:
    return {one.check: one for one in doctor.examine(reward, prompts)}


def test_a_sound_reward_model_passes_every_check_but_what_its_tokenizer_cannot_write(llama: Path):
    found = findings(RewardModel(model=str(llama)))
    assert list(found) == CHECKS
    assert found["same_everywhere"].message == (
        "the same alone, in a batch, in a shuffled batch, as it is scored, padded on the left"
    )
    assert found["bos"].message == "a conversation begins with 1 BOS"
    assert found["round_trip"].level == "warning" and "吾輩" in found["round_trip"].message  # a tokenizer of ASCII
    assert {one.level for check, one in found.items() if check not in ("round_trip", "tells_apart")} == {"ok"}


def test_a_reward_that_depends_on_its_batch_is_a_fault(llama: Path):
    reward = RewardModel(model=str(llama))

    def leak(module: Any, args: Any, given: Any, output: Any) -> Any:
        """As if rows saw each other: what a batch's size is gets into every row."""
        output.last_hidden_state.add_(0.05 * len(given["input_ids"]))
        return output

    reward.runner.model.register_forward_hook(leak, with_kwargs=True)
    found = findings(reward)["same_everywhere"]
    assert found.level == "fault" and "in a batch differs from the same alone" in found.message


def test_a_model_that_reads_its_padding_is_found_by_padding_on_the_other_side(llama: Path):
    reward = RewardModel(model=str(llama))

    def forget(module: Any, args: Any, given: Any) -> Any:
        """As if the mask were lost."""
        mask = given["attention_mask"]
        return args, {**given, "attention_mask": torch.ones_like(mask) if mask.ndim == 2 else mask}

    reward.runner.model.register_forward_pre_hook(forget, with_kwargs=True)
    found = findings(reward)["same_everywhere"]
    assert found.level == "fault" and "padded on the left" in found.message


def test_a_reward_with_the_wrong_sign_is_warned_of(llama: Path):
    reward = RewardModel(model=str(llama))
    before = findings(reward)["tells_apart"]
    right = int(before.message.split(" of 6")[0].split()[-1])
    reward.runner.head.weights["score.weight"].neg_()
    after = findings(reward)["tells_apart"]
    assert f" {6 - right} of 6" in after.message
    assert {before.level, after.level} == ({"ok"} if right == 3 else {"ok", "warning"})


def test_a_reward_model_that_raft_trained_is_known_by_its_accuracy_and_not_by_plain_pairs(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(doctor, "PAIRS", doctor.PAIRS[:1])
    model = tmp_path / "run" / "reward-model"
    shutil.copytree(llama, model)
    reward = RewardModel(model=str(model))
    if findings(reward)["tells_apart"].level == "ok":
        reward.runner.head.weights["score.weight"].neg_()
    stamp(model)
    assert findings(reward)["tells_apart"].level == "warning", "nothing is known of its accuracy"
    stamp(model.with_name("metrics.json"), measured={"eval/accuracy": 0.8125})
    found = findings(reward)["tells_apart"]
    assert found.level == "ok" and "on held-out pairs of its own kind its accuracy is 0.812" in found.message


def test_prompts_that_leave_no_room_are_counted(llama: Path):
    found = findings(RewardModel(model=str(llama), max_length=60))["room"]
    assert found.level == "warning" and "of 3 prompts with a short answer 3 are too long" in found.message
    cut = findings(RewardModel(model=str(llama), max_length=110, truncation="prompt"))["room"]
    assert cut.level == "ok" or "lose their beginning" in cut.message


def test_only_what_is_too_long_is_told_as_too_long(tmp_path: Path):
    """A quantile head cannot read what holds no question, and no limit of tokens would change that."""
    head = {"regression_layer.weight": rand(8, SIZE["hidden_size"]), **gate(LLAMA_GATE, 4, SIZE["hidden_size"])}
    make(tmp_path, head, "LlamaForRewardModelWithGating", num_quantiles=2)
    speak_llama(tmp_path)
    reward = RewardModel(model=str(tmp_path), template="plain", max_length=120)
    assert doctor._head(reward, [])[1].startswith(f"whole, {len(reward.runner.names)} outputs (")
    short, long = Prompt("short", text="no marks"), Prompt("long", text="on and on " * 12)
    level, message = doctor._room(reward, [short])
    assert level == "warning" and "0 are too long" in message and "raise max_length" not in message
    assert "1 cannot be scored for another reason (the first: " in message and "no question ends in it" in message
    level, message = doctor._room(reward, [short, long])
    assert level == "warning" and "1 are too long" in message and "raise max_length" in message
    assert "1 cannot be scored for another reason" in message


def test_a_tokenizer_that_can_write_everything_passes(tmp_path: Path):
    worlds.make_policy(tmp_path / "bytes")
    save(tmp_path / "model", "LlamaForSequenceClassification", vocab_size=400, **SIZE)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((tmp_path / "bytes" / name).read_bytes())
    prompts = [Prompt("p", text="the red fox ")]
    assert findings(RewardModel(model=str(tmp_path / "model"), template="plain"), prompts)["round_trip"].level == "ok"


def test_padding_that_is_also_the_end_is_told(tmp_path: Path):
    save(tmp_path, "LlamaForSequenceClassification", **SIZE)
    tokenizer = speak_llama(tmp_path)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    edit(tmp_path, lambda tensors: None)
    reward = RewardModel(model=str(tmp_path))
    assert "padding and EOS are the same token" in doctor._padding(reward, PROMPTS)[1]


def test_the_longest_answers_are_measured_in_the_tokens_of_the_reward_model(llama: Path, tmp_path: Path):
    """The policy's tokens are of several letters, those of this reward model of one letter each."""
    tokenizer = chat_templates.load_tokenizer(str(worlds.make_policy(tmp_path / "policy")))
    prompts = [Prompt(f"p{n}", text=f"the red fox sees {n} hens ") for n in range(3)]
    reward = RewardModel(model=str(llama), template="plain")
    for limit in (20, 200):
        answers = doctor.Answers(tokenizer, limit)
        text = answers.longest(prompts)
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == limit
        letters = 1 + max(len(prompt.content) for prompt in prompts) + len(text)  # with one BOS
        (found,) = [one for one in doctor.examine(reward, prompts, answers=answers) if one.check == "longest_answer"]
        assert f"makes {letters} tokens here" in found.message
        assert found.level == ("ok" if letters <= 256 else "warning")
    assert "more than the 256 that are read" in found.message and "selection.max_failed_fraction" in found.message
    fits = int(found.message.split("lower generator.max_tokens to about ")[1].split(",")[0])
    assert len(doctor.Answers(tokenizer, fits).longest(prompts)) + letters - len(text) <= 256 + 8


def test_check_foresees_answers_that_the_reward_model_cannot_read(llama: Path, tmp_path: Path):
    reward = {"kind": "model", "model": str(llama), "template": "plain"}
    worlds.make_recipe(tmp_path, reward={"kind": "ensemble", "members": {"a": reward}})
    assert "reads" not in worlds.raft(tmp_path, "check", "recipe.yaml").stdout
    told = worlds.raft(
        tmp_path, "check", "recipe.yaml", "prompts.max_prompt_length=16", "generator.max_tokens=240"
    ).stdout
    assert "warning: reward.members.a: answers of generator.max_tokens: 240 have about" in told
    assert "it reads 256" in told and "selection.max_failed_fraction" in told


def test_check_foresees_nothing_of_a_policy_whose_tokenizer_keeps_nothing(llama: Path, tmp_path: Path):
    """Its tokenizer knows one Han character alone, so a sentence of English has no token."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    worlds.make_recipe(tmp_path, reward={"kind": "model", "model": str(llama), "template": "plain"})
    pieces = Tokenizer(models.BPE({"日": 0}, []))
    pieces.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    pieces.save(str(tmp_path / "base" / "tokenizer.json"))
    loaded = recipe.load(tmp_path / "recipe.yaml", [f"policy.model={tmp_path / 'base'}"])
    assert list(preflight.foreseen(loaded)) == []


def test_a_run_keeps_what_the_doctor_found_and_tells_its_warnings(llama: Path, tmp_path: Path):
    reward = {"kind": "ensemble", "members": {"judge": {"kind": "model", "model": str(llama), "template": "plain"}}}
    worlds.make_recipe(tmp_path, reward=reward, iterations=1)
    done = worlds.raft(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    rows = list(read(tmp_path / "outputs/tiny/doctor.jsonl"))
    assert [row["check"] for row in rows] == [*CHECKS, "longest_answer"] and {row["reward"] for row in rows} == {
        "reward.judge"
    }
    assert "warning: reward.judge: round trip: the reward model's tokenizer changes or loses characters" in done.stdout


@pytest.mark.nightly
def test_check_measure_examines_the_rewards_of_a_recipe_and_starts_nothing(llama: Path, tmp_path: Path):
    worlds.make_recipe(tmp_path, reward={"kind": "model", "model": str(llama), "template": "plain"})
    done = worlds.raft(tmp_path, "check", "recipe.yaml", "--measure")
    assert done.returncode == 0, done.stderr
    assert "ok       reward: same everywhere: the same alone, in a batch" in done.stdout
    assert [file.name for file in (tmp_path / "outputs" / "tiny").iterdir()] == ["forecast.json"]
    worlds.make_recipe(tmp_path, reward={"kind": "model", "model": str(llama), "template": "chat"})
    done = worlds.raft(tmp_path, "check", "recipe.yaml", "--measure")
    assert done.returncode == 2 and "use template: plain" in done.stderr and "Traceback" not in done.stderr
