"""`raft show`: which prompts it picks, and the list of all."""

import json
from pathlib import Path

import folders
import pytest

from raft.cli import main as cli
from raft.cli import show

GAINS = [0.5, -1.0, 0.0, 2.0, 0.25]  # of the held-out prompts h0 to h4, from policy 0 to 2, on average over answers


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose held-out prompts gain what GAINS says; the gold reward is ten times the reward.

    The first answer to each alone would say the opposite.
    """

    def reward(policy: int, prompt: int, response: int) -> float:
        gain = GAINS[prompt % 5]
        return 1.0 + policy * (-gain if response == 0 else 3 * gain) / 2

    return folders.write_run(
        tmp_path_factory.mktemp("show") / "run", 5, 2, 2, lambda *at: f"answer {at}", reward, held_out=5
    )


@pytest.mark.parametrize(
    ("which", "prompt", "said"),
    [
        ("best", "h3", "the prompt that gained most (mean gold reward of its answers 10.000 -> 30.000"),
        ("worst", "h1", "the prompt that lost most, or gained least (mean gold reward of its answers 10.000 -> 0.000"),
        ("typical", "h4", "a typical prompt (mean gold reward of its answers 10.000 -> 12.500"),
    ],
)
def test_prompts_are_picked_by_how_much_they_gained_and_typical_is_the_median(run, which, prompt, said):
    shown = show.before_and_after(run, which)
    head, asked = shown.splitlines()[:2]
    assert head.startswith(f"{said}; answer ") and asked == f"prompt {prompt}: prompt {prompt[1:]}"
    assert "policy 0 (held-out prompt)" in shown and "policy 2 (held-out prompt)" in shown


def test_a_prompt_at_random_is_one_of_the_held_out_ones_and_not_always_the_same(run):
    found = {show.before_and_after(run, "random").splitlines()[1].split()[1].rstrip(":") for _ in range(60)}
    assert found <= {f"h{n}" for n in range(5)} and len(found) > 1


def test_the_list_has_every_held_out_prompt_the_one_that_gained_most_first(run):
    head, *lines = show.listed(run)
    assert head.split() == "prompt mean gold reward of policy 0 -> 2, and the gain".split()  # noqa: SIM905
    assert [line.split()[0] for line in lines] == ["h3", "h0", "h4", "h2", "h1"]
    assert lines[0].split()[1:5] == ["10.000", "->", "30.000", "+20.000"] and lines[0].endswith("prompt 3")


def test_the_list_of_training_prompts_has_those_of_every_iteration_and_the_rewards_of_their_responses(run, capsys):
    head, *lines = show.trained(run)
    assert head == "prompt  iteration  mean and best reward of its responses"
    assert [line.split()[:2] for line in lines] == [[f"p{n}", str(at)] for at in (1, 2) for n in range(5)]
    # of policy 1, and with a gain of 2.0: 1 - 2.0 / 2 and 1 + 3 * 2.0 / 2, on average 2
    assert lines[5 + 3].split()[2:4] == ["2.000", "4.000"] and lines[5 + 3].endswith("  prompt 3")
    assert cli.execute(cli.parse(["show", str(run), "--list", "--train"])) == 0
    assert capsys.readouterr().out.splitlines() == [head, *lines]


REWARDS = {0: [1.0, 2.0], 2: [1.5, 5.0]}  # of the two answers by each policy: they gain 0.5 and 3, on average 1.75


@pytest.mark.parametrize(
    ("same", "which", "said", "shown"),
    [
        ((), "best", "answer 2 of each policy", ["2.000  gold   20.000  0 1", "5.000  gold   50.000  2 1"]),
        ((), "worst", "answer 1 of each policy", ["1.000  gold   10.000  0 0", "1.500  gold   15.000  2 0"]),
        ((), "typical", "answer 1 of each policy", ["1.000  gold   10.000  0 0", "1.500  gold   15.000  2 0"]),
        ((0,), "typical", "answer 2 of each policy", ["2.000  gold   20.000  0 1", "5.000  gold   50.000  2 1"]),
        ((1,), "best", "answer 1 of each policy", ["1.000  gold   10.000  0 0", "1.500  gold   15.000  2 0"]),
        ((0, 1), "best", "both policies gave the same 2 answers, and one", ["1.000  gold   10.000  same 0"]),
    ],
)
def test_the_answers_that_are_shown_have_one_place_and_differ_wherever_two_of_one_place_do(
    tmp_path, same, which, said, shown
):
    run = folders.write_run(
        tmp_path / "run", 1, 2, 2,
        lambda policy, _, index: f"same {index}" if index in same else f"{policy} {index}",
        lambda policy, _, index: REWARDS.get(policy, [9.0, 9.0])[index], held_out=1,
    )  # fmt: skip
    head, *lines = show.before_and_after(run, which).splitlines()
    assert head.endswith(f"; {said} is shown, with its reward and gold reward):")
    assert [line.strip() for line in lines if "gold" in line] == shown


def test_answers_are_the_same_only_where_all_of_them_are(tmp_path):
    run = folders.write_run(tmp_path / "run", 1, 2, 2, lambda *_: "same", lambda *_: 0.5, held_out=1)
    head, _, *lines = show.before_and_after(run, "typical").splitlines()
    assert head.endswith("(mean gold reward of its answers 5.000 -> 5.000; all answers are the same, and one is shown, "
                         "with its reward and gold reward):")  # fmt: skip
    assert [line.split() for line in lines if line] == [
        ["policies", "0", "and", "2", "(held-out", "prompt)"], ["0.500", "gold", "5.000", "same"],
    ]  # fmt: skip


def test_of_evaluations_of_different_sizes_the_answers_that_both_have_are_compared(tmp_path):
    run = folders.write_run(tmp_path / "run", 1, 2, 1, lambda *at: f"{at}", lambda *at: float(at[0]), held_out=1)
    for file, name in (("responses", "responses"), ("scores", "scores"), ("gold", "scores")):
        path = run / f"iterations/001/evaluation/{file}.jsonl"
        row = json.loads(path.read_text())
        path.write_text(json.dumps({**row, name: row[name][:1]}) + "\n")
    assert "answer 1 of each policy is shown" in show.before_and_after(run, "best")
