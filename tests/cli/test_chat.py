"""raft chat: prompts answered by policy 0 and another policy, as the run would ask them."""

from pathlib import Path
from typing import Any

import pytest
import worlds

from raft.cli import chat
from raft.core.errors import UserError
from raft.core.records import Policy, Prompt
from raft.core.seeds import derive
from raft.generators.transformers import Transformers

TEXT = "the red fox 7 "


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of one iteration, whose policy was trained far enough to speak in another way."""
    folder = tmp_path_factory.mktemp("chat")
    worlds.make_recipe(folder, iterations=1, trainer={"learning_rate": 3e-2, "num_train_epochs": 4})
    assert worlds.raft(folder, "run", "recipe.yaml").returncode == 0
    return folder


def said(world: Path, *arguments: str) -> str:
    done = worlds.raft(world, "chat", "outputs/tiny", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answer(world: Path, policy: int, seed: int) -> str:
    """What the run's own generator answers."""
    made = Transformers(k=1, max_tokens=12)
    path = world / f"outputs/tiny/iterations/00{policy}/policy"
    prompt = Prompt("typed", text=TEXT)
    (group,) = made.generate(Policy(path, path / "probe.json"), [prompt], derive(seed, "chat"))
    return chat.written(group.responses[0])


def test_both_policies_answer_as_the_runs_generator_does_with_the_same_seed(world, capsys):
    answers = [answer(world, policy, 0) for policy in (0, 1)]
    assert answers[0] != answers[1]
    for _ in range(2):
        chat.chat(world / "outputs/tiny", TEXT, 1)
        printed = capsys.readouterr().out
        chat.say(f"policy 0: {answers[0]}")
        chat.say(f"policy 1: {answers[1]}")
        assert printed == capsys.readouterr().out
    chat.chat(world / "outputs/tiny", TEXT, 1, seed=5)
    assert capsys.readouterr().out != printed


def test_the_command_answers_an_argument_and_every_typed_line(world):
    printed = said(world, TEXT, "--policy", "1")
    assert [line.split(":")[0] for line in printed.splitlines() if line.startswith("policy ")] == [
        "policy 0",
        "policy 1",
    ]
    typed = f"{TEXT}\n\n{'long ' * 400}\n{TEXT}\n"
    done = worlds.raft(world, "chat", "outputs/tiny", "--policy", "last", typed=typed)
    assert done.returncode == 0 and done.stdout == printed * 2, done.stderr
    assert done.stderr.count("raft: prompt typed has ") == 1 and "Traceback" not in done.stderr


def test_what_a_policy_says_cannot_act_on_the_terminal(world):
    printed = said(world, TEXT, "--policy", "1")
    assert all(character.isprintable() or character in "\n\t" for character in printed)


def test_policy_0_is_not_printed_twice(world):
    printed = said(world, TEXT, "--policy", "0")
    assert "is policy 0, the base model itself" in printed and printed.count("policy 0: ") == 1


def test_a_run_whose_best_policy_is_policy_0_says_that_no_other_is_better_wherever_the_best_is_taken(tmp_path):
    # every policy answers as policy 0 does
    worlds.make_recipe(tmp_path, iterations=2, trainer={"learning_rate": 1e-30})
    why = "no policy is better than policy 0 by the held-out reward, so this is the base model; --policy last takes "
    for arguments in (
        ["run", "recipe.yaml"],
        ["chat", "outputs/tiny", TEXT],
        ["export", "outputs/tiny", "--to", "best"],
        ["export", "tiny", "--alpaca-eval", "answers.json"],
    ):
        done = worlds.raft(tmp_path, *arguments)
        assert done.returncode == 0 and done.stdout.count(f"{why}policy 2") == 1, (arguments, done.stdout, done.stderr)
    for arguments in (["chat", "outputs/tiny", TEXT, "--policy", "last"], ["export", "outputs/tiny", "--policy", "0"]):
        done = worlds.raft(tmp_path, *arguments)
        assert done.returncode == 0 and "no policy is better" not in done.stdout, (arguments, done.stdout)


def test_a_prompt_that_cannot_be_asked_and_a_run_without_a_policy_are_refused(world, tmp_path):
    for arguments in (["outputs/tiny", ""], ["outputs/tiny", "x", "--policy", "9"], ["outputs", "x"]):
        done = worlds.raft(world, "chat", *arguments)
        assert done.returncode == 2 and done.stderr.startswith("raft: ") and "Traceback" not in done.stderr
    with pytest.raises(UserError, match="no policy to talk to"):
        chat.speakers(tmp_path, {"job": "label"}, "best")


@pytest.mark.parametrize("section, expected", [
    ({"kind": "file", "prefix": "Q: ", "suffix": "\nA:"}, {"text": "Q: hello\nA:"}),
    ({"kind": "hub", "format": "chat", "system": "Be brief.", "chat_template_kwargs": {"thinking": False}},
     {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
      "chat_template_kwargs": {"thinking": False}}),
    ({"kind": "hub", "messages": "turns", "until": "last-user"}, {"messages": [{"role": "user", "content": "hello"}]}),
    ({"kind": "mixture", "sources": [{"kind": "file", "prefix": "1 "}, {"kind": "file"}]}, {"text": "1 hello"}),
    ({"kind": "own:Prompts"}, {"text": "hello"}),
])  # fmt: skip
def test_a_typed_text_is_asked_as_the_prompts_of_the_run(section: dict[str, Any], expected: dict[str, Any]):
    assert chat.asked({"prompts": section}, "hello") == Prompt("typed", **expected)


def test_sampling_is_that_of_the_run_whatever_generated():
    made = chat.generator(
        {"generator": {"kind": "vllm", "k": 8, "temperature": 0.0, "max_tokens": 7, "engine_args": {}}}
    )
    assert (made.k, made.temperature, made.max_tokens) == (1, 0.0, 7)
    assert chat.generator({}).max_tokens == Transformers().max_tokens
