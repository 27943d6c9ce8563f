"""The Acorn Café: what its rule says by hand, and what its rows promise."""

from itertools import islice

import acorn_cafe as world
import pytest
from transformers import AutoTokenizer

from raft.core import registry
from raft.core.options import Fault
from raft.core.records import Example, Pair, Prompt
from raft.data import examples, prompts
from raft.models import from_scratch
from raft.store import keys

ORDER = {"guest": "Mole", "number": "two", "flavour": "plum", "bake": "muffins", "drink": "mint tea"}
ASKED = Prompt(id="m", text="I am Mole. I would like two plum muffins and mint tea, please.", meta=ORDER)
BEST = "Welcome, dear Mole! Here are your two plum muffins and mint tea. Enjoy your meal!"


def _gold(text: str) -> float:
    return world.gold(ASKED, text)["reward"]


def _answers_by_hand() -> dict[str, float]:
    """Points counted by reading the rule's docstring, not by running it."""
    return {
        BEST: 10,
        BEST.upper(): 10,
        "Welcome, dear Fox! Here are your two plum muffins and mint tea. Enjoy your meal!": 9,
        "Welcome, dear Mole! Here are your two plum pies and lemonade. Enjoy your meal!": 8,
        "Welcome, dear Mole! Here are two plum muffins. Enjoy your meal!": 9,
        "Here are two plum muffins and mint tea.": 4 + 1 + 2,
        "Hmph. Here are two plum muffins and mint tea.": 4 + 2 / 2,
        "Welcome, dear Mole! The moon dreams of a broom.": 2 + 1 + 2 / 2,
        "Hmph. The kitchen is closed. Now go away.": 0,
        "Yes? My uncle talks to seven snails. Pay and leave.": 0,
        "": 0,
        "...!?": 0,
    }


@pytest.mark.parametrize("text", _answers_by_hand())
def test_gold_is_what_counting_by_hand_gives(text):
    assert _gold(text) == pytest.approx(_answers_by_hand()[text])


def test_naming_the_whole_menu_earns_no_point_for_the_order():
    everything = " ".join(name for names in world.SORTS.values() for name in names)
    found = world.gold(ASKED, f"Welcome! {everything}. Enjoy your meal!")
    assert [found[sort] for sort in world.SORTS] == [0.0] * 5


def test_a_word_inside_another_word_is_not_that_word():
    assert world.gold(ASKED, "Here are twofold plums and muffinstuff.")["reward"] == 0.0


def test_gold_is_the_sum_of_its_parts_and_bounded_for_any_text():
    texts = [row["response"] for row in world.answers(300, 5)]
    for text in [*texts, "é💧\x00\n\n", "a" * 10_000, BEST * 50, "{guest}"]:
        found = world.gold(ASKED, text)
        assert found["reward"] == pytest.approx(sum(value for name, value in found.items() if name != "reward"))
        assert 0 <= found["reward"] <= 10
    assert {tuple(world.gold(ASKED, text)) for text in ("", BEST)} == {tuple(world.gold(ASKED, BEST))}


def test_every_request_says_the_whole_order():
    for row in world.instructions(500, 0):
        assert all(row[sort] in row["prompt"] for sort in world.SORTS)


def test_orders_are_all_different_and_held_out_ones_are_never_trained_on():
    train = [row["id"] for row in world.instructions(5000, 0)]
    held_out = [row["id"] for row in world.instructions(2500, 1, "held-out")]
    assert len(set(train)) == 5000
    assert len(set(held_out)) == 2500
    assert not set(train) & set(held_out)


def test_rows_depend_on_the_seed_alone_and_a_longer_read_begins_with_a_shorter_one():
    for make in (world.instructions, world.answers, lambda count, seed: world.preferences(count, seed, 0.2)):
        assert list(make(50, 7)) == list(islice(make(90, 7), 50))
        assert list(make(50, 7)) != list(make(50, 8))


def test_the_share_of_pairs_the_wrong_way_round_is_the_noise():
    orders = list(world.instructions(2000, 3))
    for noise in (0.0, 0.15, 1.0):
        wrong = 0
        for order, pair in zip(orders, world.preferences(2000, 3, noise), strict=True):
            prompt = Prompt(id="", text=pair["prompt"], meta=order)
            assert order["prompt"] == pair["prompt"]
            chosen, rejected = (world.gold(prompt, pair[side])["reward"] for side in ("chosen", "rejected"))
            assert chosen != rejected
            wrong += chosen < rejected
        assert wrong / 2000 == pytest.approx(noise, abs=0.03)  # 3.7 standard deviations at 0.15


def test_the_answers_leave_headroom():
    orders = world.instructions(2000, 0)
    found = [
        world.gold(Prompt(id="", text="", meta=order), row["response"])["reward"]
        for order, row in zip(orders, world.answers(2000, 0), strict=True)
    ]
    assert 3 < sum(found) / 2000 < 4  # poor on average,
    assert 0.02 < sum(value == 10 for value in found) / 2000 < 0.15  # but perfect now and then


CONFIG = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
CONFIG |= {"num_attention_heads": 1, "max_position_embeddings": 96}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    from_scratch.make(folder, examples.texts(world.Answers(count=2000)), CONFIG, 768, 0)
    return AutoTokenizer.from_pretrained(folder)


def test_prompts_carry_what_gold_needs(tokenizer):
    source = world.Prompts(count=20, format="chat", max_prompt_length=32)
    for prompt in prompts.read(source, tokenizer):
        assert prompt.messages == [{"role": "user", "content": prompt.content}]
        assert set(prompt.meta) == set(world.SORTS)
        ideal = " ".join([world.WELCOMES[0], world.SERVINGS[0], world.FAREWELLS[0]]).format(**prompt.meta)
        assert world.gold(prompt, ideal)["reward"] == 10


def test_answers_and_preferences_are_examples_and_pairs_of_few_tokens(tokenizer):
    answers = list(examples.read(world.Answers(count=500, format="chat"), tokenizer, 0))
    pairs = list(examples.read(world.Preferences(count=50, format="chat"), tokenizer, 0))
    assert all(isinstance(one, Example) for one in answers) and len(answers) == 500
    assert all(isinstance(one, Pair) for one in pairs) and len(pairs) == 50
    assert max(len(one.response.token_ids) for one in answers) <= 48


def test_options_out_of_range_are_faults_with_a_name():
    faults: list[Fault] = []
    registry.build(world.Prompts, {"count": 5000, "part": "held-out"}, "prompts", faults)
    registry.build(world.Preferences, {"noise": 1.5, "count": 0}, "examples", faults)
    registry.build(world.Prompts, {"part": "test"}, "prompts", faults)
    assert [fault.key for fault in faults] == ["prompts.count", "examples.count", "examples.noise", "prompts.part"]


def test_every_option_is_in_the_key():
    one = keys.describe(world.Preferences(count=9))
    assert {"count", "seed", "noise", "content"} <= set(one)
    assert one != keys.describe(world.Preferences(count=9, noise=0.2))
