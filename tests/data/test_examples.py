"""Laws of raft.data.examples: what of a row becomes an example or a pair."""

import gzip
import json
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raft.core import registry
from raft.core.errors import UserError
from raft.core.options import Fault
from raft.core.records import Drop, Example, Pair
from raft.core.seeds import derive
from raft.data import examples
from raft.data.examples import FileExamples, InlineExamples, pairs, read, supervised, texts
from raft.models.chat_templates import load_tokenizer

DATA = Path(__file__).parents[3] / "shared/data"
HH, SST2 = DATA / "preferences/hh_harmless_test.jsonl.gz", DATA / "reward/sst2.dev.txt"
EOS = 0


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token for each byte, an EOS, and a template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces.decoder = decoders.ByteLevel()
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>\n{% endfor %}"
    ask = "{% if add_generation_prompt %}[assistant]{% endif %}"
    return PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="</s>", chat_template=template + ask)


def split(found: Any) -> tuple[list, list[Drop]]:
    found = list(found)
    return [one for one in found if not isinstance(one, Drop)], [one for one in found if isinstance(one, Drop)]


def rows(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"p{index}", "response": f"r{index}"} for index in range(count)]


def dialogue(prompt: str, reply: str) -> str:
    return f"\n\nHuman: {prompt}\n\nAssistant:{reply}"


def test_a_response_is_its_own_tokens_and_its_end(tokenizer: Any):
    (example,), dropped = split(
        supervised(InlineExamples(items=[{"prompt": "Ask: ", "response": "Größe"}]), tokenizer, 0)
    )
    assert not dropped and example.prompt_id == "000000" and example.text == "Ask: " and example.messages is None
    assert tokenizer.decode(example.response.token_ids) == "Größe</s>"
    assert (example.response.text, example.response.finish_reason, example.response.logprobs) == ("Größe", "stop", None)
    assert (example.index, example.reward, example.weight) == (0, None, 1.0)


def test_a_response_of_tokens_that_the_model_lacks_is_dropped(tokenizer: Any, tmp_path: Path):
    late = deepcopy(tokenizer)
    late.add_tokens(["late"])
    late.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(tokenizer)}))
    items = [{"prompt": "a", "response": "early"}, {"prompt": "b", "response": "too late"}]
    section = InlineExamples(items=items, max_bad_rows_fraction=1.0)
    (kept,), (dropped,) = split(supervised(section, load_tokenizer(str(tmp_path)), 0))
    assert kept.response.text == "early" and f"token {len(tokenizer)} ('late') is beyond" in dropped.reason


def test_a_response_in_a_chat_ends_as_the_template_says(tokenizer: Any):
    section = InlineExamples(items=rows(1), format="chat", system="Be kind.")
    (example,), _ = split(supervised(section, tokenizer, 0))
    assert example.messages == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "p0"}]
    assert tokenizer.decode(example.response.token_ids) == "r0</s>"


def test_without_a_field_the_whole_text_is_learned(tokenizer: Any):
    (example,), _ = split(
        supervised(InlineExamples(items=[{"story": "Once."}], prompt_column=None, response="story"), tokenizer, 0)
    )
    assert example.text == "" and tokenizer.decode(example.response.token_ids) == "Once.</s>"


TALK = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
    {"role": "assistant", "content": "b"},
]


def test_the_answer_that_messages_end_with_is_the_response(tokenizer: Any):
    for options in ({}, {"response": None}):
        section = InlineExamples(items=[{"prompt": "q", "messages": TALK}], messages="messages", system="s", **options)
        (example,), _ = split(supervised(section, tokenizer, 0))
        assert example.messages == [{"role": "system", "content": "s"}, *TALK[:3]] and example.response.text == "b"
        assert tokenizer.decode(example.response.token_ids) == "b</s>"


def test_a_column_of_the_response_answers_messages_that_end_with_a_question(tokenizer: Any):
    section = InlineExamples(
        items=[{"m": TALK[:3], "response": "c"}, {"m": TALK, "response": "c"}], messages="m", max_bad_rows_fraction=1
    )
    (example,), (drop,) = split(supervised(section, tokenizer, 0))
    assert (example.messages, example.response.text) == (TALK[:3], "c") and "own words" in drop.reason


@pytest.mark.parametrize(
    "talk, why", [(TALK[:3], "does not end with a reply"), (TALK[1:2], "no message before"), (TALK[1:1], "not a list")]
)
def test_messages_without_a_question_and_its_answer_are_malformed(tokenizer: Any, talk: Any, why: str):
    section = InlineExamples(items=[{"m": talk}], messages="m", response=None, max_bad_rows_fraction=1)
    made, (drop,) = split(supervised(section, tokenizer, 0))
    assert not made and why in drop.reason


def test_a_prompt_and_a_response_may_be_written_from_several_columns(tokenizer: Any):
    items = [
        {"instruction": "Translate", "input": "Hello", "steps": "think", "output": "Bonjour"},
        {"instruction": "Who?", "input": "", "steps": None, "output": "Lily"},
    ]
    section = InlineExamples(items=items, prompt_column="{instruction}\n\n{input}", response="{output} {{{steps}}}")
    made, dropped = split(supervised(section, tokenizer, 0))
    assert [one.text for one in made] == ["Translate\n\nHello", "Who?"] and not dropped
    assert [one.response.text for one in made] == ["Bonjour {think}", "Lily}"]


def test_an_example_comes_back_from_its_row(tokenizer: Any):
    for made in split(supervised(InlineExamples(items=rows(2)), tokenizer, 0))[0]:
        assert Example.of(json.loads(json.dumps(made.row()))) == made
    given = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    for made in split(pairs(InlineExamples(items=given), 0))[0]:
        assert Pair.of(json.loads(json.dumps(made.row()))) == made


def test_given_pairs_keep_their_prompt_and_their_order(tokenizer: Any):
    section = InlineExamples(
        items=[{"q": "p", "good": "a", "bad": "b", "id": 7}], prompt_column="q", chosen="good", rejected="bad"
    )
    (pair,), _ = split(pairs(section, 0))
    assert (pair.prompt_id, pair.text, pair.chosen.text, pair.rejected.text) == ("7", "p", "a", "b")
    assert [one.token_ids for one in (pair.chosen, pair.rejected)] == [[], []]


def test_the_prompt_of_two_dialogues_is_what_they_share_up_to_the_last_reply(tokenizer: Any):
    head = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    section = InlineExamples(items=[{"chosen": head + " yes", "rejected": head + " no"}], prompt_column=None)
    (pair,), _ = split(pairs(section, 0))
    assert (pair.text, pair.chosen.text, pair.rejected.text) == (head, " yes", " no")


def test_texts_that_are_no_dialogues_have_no_prompt(tokenizer: Any):
    section = InlineExamples(items=[{"chosen": "see\n\nAssistant: a", "rejected": "b"}], prompt_column=None)
    (pair,), _ = split(pairs(section, 0))
    assert (pair.text, pair.chosen.text, pair.rejected.text) == ("", "see\n\nAssistant: a", "b")


@pytest.mark.parametrize(
    "chosen, rejected, why",
    [
        (dialogue("a", " x"), dialogue("b", " y"), "prompts differ"),
        (dialogue("a", " x"), "y", "prompts differ"),
        (dialogue("a", " "), dialogue("a", " y"), "chosen is empty"),
        (dialogue("a", " x"), dialogue("a", ""), "rejected is empty"),
        (dialogue("a", " x"), dialogue("a", " x"), "chosen and rejected are equal"),
        ("", "x", "chosen is empty"),
        ("x", None, "rejected is not text but null"),
        ("x", "\udc00", "rejected holds half a character (a lone surrogate)"),
    ],
)
def test_a_row_that_is_no_pair_is_dropped_with_its_place(tokenizer: Any, chosen: Any, rejected: Any, why: str):
    items = [{"chosen": "a", "rejected": "b"}, {"chosen": chosen, "rejected": rejected}]
    made, dropped = split(pairs(InlineExamples(items=items, prompt_column=None, max_bad_rows_fraction=0.5), 0))
    assert len(made) == 1 and dropped == [Drop("000001", None, "load_examples", f"items[1]: {why}")]


def test_the_section_says_whether_its_rows_are_pairs(tokenizer: Any):
    both = [{"prompt": "p", "response": "r", "chosen": "a", "rejected": "b"}]
    assert isinstance(next(read(InlineExamples(items=both), tokenizer, 0)), Example)
    assert isinstance(next(read(InlineExamples(items=both, pairs="columns"), tokenizer, 0)), Pair)
    with pytest.raises(UserError, match="no column response"):
        list(read(InlineExamples(items=[{"chosen": "a", "rejected": "b"}], prompt_column=None), tokenizer, 0))


def test_more_malformed_rows_than_allowed_stop_with_the_place(tokenizer: Any, tmp_path: Path):
    content = rows(100)
    content[10]["response"] = content[50]["response"] = ""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    made, dropped = split(supervised(FileExamples(path=str(path), max_bad_rows_fraction=0.02), tokenizer, 0))
    assert len(made) == 98 and [one.reason for one in dropped] == [
        f"{path}:{line}: response is empty" for line in (11, 51)
    ]
    said = r"2 of the first 100 rows cannot be used: response is empty \(the first: .*rows\.jsonl:11\)"
    with pytest.raises(
        UserError,
        match=said + r"\. examples\.max_bad_rows_fraction: 0\.01 allows 1 of 100; .* raise max_bad_rows_fraction",
    ):
        list(supervised(FileExamples(path=str(path)), tokenizer, 0))


def test_where_no_row_can_be_used_the_reasons_are_given_and_no_number_is_to_be_raised(tokenizer: Any):
    items = [{"prompt": "p", "response": ["r"]}, {"prompt": "", "response": "r"}, {"prompt": "p", "response": ["r"]}]
    with pytest.raises(UserError) as found:
        list(supervised(InlineExamples(items=items), tokenizer, 0))
    assert str(found.value) == (
        "none of the first 3 rows can be used: response is not text but list (2 rows, the first: items[0]); "
        "empty (items[1]); say with prompt_column or messages, and with "
        "response, where prompt and response stand (docs/recipes.md)"
    )


def test_rows_of_another_layout_than_the_one_named_are_told_theirs():
    items = [{"instruction": "i", "completions": [], "prompt": ["p"], "chosen": {}, "rejected": {}}] * 3
    with pytest.raises(UserError, match=r"none of the first 3 rows .* pairs: columns; .* of pairs: .*ultrafeedback"):
        list(pairs(InlineExamples(items=items, pairs="columns"), 0))


def test_rows_set_aside_and_the_others_are_all_rows_and_none_twice(tokenizer: Any):
    section = InlineExamples(items=rows(50), held_out=12)
    learned, aside = ([one.prompt_id for one in read(section, tokenizer, 5, side)] for side in (False, True))
    assert len(aside) == 12 and sorted(learned + aside) == [f"{index:06d}" for index in range(50)]
    assert aside == [one.prompt_id for one in read(section, tokenizer, 5, True)]
    assert aside != [one.prompt_id for one in read(section, tokenizer, 6, True)]
    assert list(read(InlineExamples(items=rows(3)), tokenizer, 5, True)) == []


def test_no_prompt_is_on_both_sides_of_the_split(tokenizer: Any):
    """Rows come whole prompts at a time, in the seeded order, until there are enough; case and space make no prompt."""
    items = [{"prompt": f"{' ' * (n % 2)}P{n % 7}".swapcase(), "chosen": f"c{n}", "rejected": "r"} for n in range(28)]
    section = InlineExamples(items=items, pairs="columns", held_out=9)
    learned, aside = ([one.text.strip().lower() for one in read(section, None, 3, side)] for side in (False, True))
    assert len(learned) + len(aside) == 28 and not {*learned} & {*aside}
    assert len(aside) == 12  # four rows of each prompt: two prompts would be 8 rows, too few
    order = np.random.default_rng(derive(3, "held out")).permutation(28) % 7
    assert {*aside} == {f"p{n}" for n in list(dict.fromkeys(order.tolist()))[:3]}
    with pytest.raises(UserError, match="of 28 rows, of 7 prompts that are held out whole, leave none"):
        list(read(InlineExamples(items=items, pairs="columns", held_out=25), None, 3))


def test_where_every_row_has_a_prompt_of_its_own_the_first_of_the_seeded_order_are_set_aside():
    section = InlineExamples(items=rows(50), held_out=12)
    order = np.random.default_rng(derive(5, "held out")).permutation(50)
    assert np.flatnonzero(examples._set_aside(section, 5)).tolist() == sorted(order[:12].tolist())


def test_limit_takes_the_first_rows_and_sets_aside_among_them(tokenizer: Any):
    section = InlineExamples(items=rows(50), limit=10, held_out=4)
    both = [one.prompt_id for side in (False, True) for one in read(section, tokenizer, 0, side)]
    assert sorted(both) == [f"{index:06d}" for index in range(10)]
    assert list(texts(InlineExamples(items=rows(9), limit=2))) == ["p0", "r0", "p1", "r1"]


def test_all_rows_set_aside_leave_none_to_learn_from(tokenizer: Any):
    with pytest.raises(UserError, match=r"examples\.held_out: 3 of 3 rows"):
        list(read(InlineExamples(items=rows(3), held_out=3), tokenizer, 0))


def rated(**labels: int) -> list[dict[str, Any]]:
    """So many rows of each label; a text begins with its label."""
    return [
        {"text": f"{name[1:]} {index}", "label": name[1:]} for name, count in labels.items() for index in range(count)
    ]


@pytest.mark.parametrize("bad, good", [(3, 8), (8, 3), (5, 5), (1, 4)])
def test_two_labels_give_as_many_pairs_as_the_larger_has_rows_and_use_all_rows_evenly(
    tokenizer: Any, bad: int, good: int
):
    section = InlineExamples(items=rated(_0=bad, _1=good), pairs="from_labels")
    made, dropped = split(read(section, tokenizer, 0))
    assert len(made) == max(bad, good) and not dropped
    assert {(one.text, one.chosen.text[0], one.rejected.text[0]) for one in made} == {("", "1", "0")}
    assert len({one.prompt_id for one in made}) == len(made)
    for side, count in (("chosen", good), ("rejected", bad)):
        used = Counter(getattr(one, side).text for one in made)
        assert len(used) == count and max(used.values()) - min(used.values()) <= 1


def test_each_label_is_paired_with_the_next_lower_one_by_number(tokenizer: Any):
    section = InlineExamples(items=rated(_10=4, _9=2, _2=3), pairs="from_labels")
    made, _ = split(read(section, tokenizer, 0))
    sides = Counter((one.chosen.text.split()[0], one.rejected.text.split()[0]) for one in made)
    assert sides == {("10", "9"): 4, ("9", "2"): 3}


def test_partners_are_a_matter_of_the_seed(tokenizer: Any):
    section = InlineExamples(items=rated(_0=20, _1=20), pairs="from_labels")
    ids = [[one.prompt_id for one in read(section, tokenizer, seed)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_rows_set_aside_are_paired_among_themselves(tokenizer: Any):
    section = InlineExamples(items=rated(_0=20, _1=20), pairs="from_labels", held_out=10)
    used = [
        {text for one in read(section, tokenizer, 0, side) for text in (one.chosen.text, one.rejected.text)}
        for side in (False, True)
    ]
    assert [len(one) for one in used] == [30, 10] and not used[0] & used[1]


def test_labels_that_are_no_numbers_and_texts_of_two_labels_are_dropped(tokenizer: Any):
    items = [
        {"text": "a", "label": 1},
        {"text": "a", "label": "0"},
        {"text": "b", "label": "nan"},
        {"text": "c", "label": None},
    ]
    section = InlineExamples(items=items, pairs="from_labels", max_bad_rows_fraction=0.5)
    made, dropped = split(read(section, tokenizer, 0))
    assert not made and [one.reason for one in dropped] == [
        "items[2]: label is not a number but 'nan'",
        "items[3]: label is not a number but None",
        "the same text is labelled 1 and 0",
    ]


def test_one_label_alone_makes_no_pairs(tokenizer: Any):
    with pytest.raises(UserError, match="all rows have the label 1"):
        list(read(InlineExamples(items=rated(_1=3), pairs="from_labels"), tokenizer, 0))


def test_the_texts_for_a_tokenizer_are_all_that_is_said():
    assert list(texts(InlineExamples(items=[*rows(1), {"prompt": "x"}], format="chat"))) == ["p0", "r0"]
    given = InlineExamples(
        items=[{"chosen": dialogue("q", "a"), "rejected": dialogue("q", "b")}], prompt_column=None, pairs="columns"
    )
    assert list(texts(given)) == [dialogue("q", ""), "a", "b"]
    assert list(texts(InlineExamples(items=rated(_0=2), pairs="from_labels"))) == ["0 0", "0 1"]


@pytest.mark.parametrize(
    "options, key",
    [
        ({"limit": 0}, "limit"),
        ({"held_out": -1}, "held_out"),
        ({"max_bad_rows_fraction": 1.5}, "max_bad_rows_fraction"),
        ({"response": None}, "response"),
        ({"response": "{a"}, "response"),
        ({"pairs": "all"}, "pairs"),
        ({"pairs": "from_labels", "format": "chat"}, "format"),
        ({"prompt_column": None, "format": "chat"}, "format"),
        ({"prompt_column": None, "prefix": "x"}, "prefix"),
    ],
)
def test_a_wrong_option_is_named(options: dict, key: str):
    faults: list[Fault] = []
    registry.build(InlineExamples, {"items": [{"prompt": "p"}], **options}, "examples", faults)
    assert [fault.key for fault in faults] == [f"examples.{key}"]


def test_every_kind_takes_the_same_options():
    for name, options in (
        ("FileExamples", {"path": "a.csv"}),
        ("HubExamples", {"dataset": "a/b"}),
        ("InlineExamples", {"items": ["x"]}),
    ):
        faults: list[Fault] = []
        made = registry.build(
            getattr(examples, name), {**options, "prompt_column": None, "held_out": 3}, "examples", faults
        )
        assert not faults and (made.prompt_column, made.held_out, made.response) == (None, 3, "response")


# --- real files


@pytest.mark.skipif(not HH.exists(), reason="the real HH-RLHF dialogues are not beside the repository")
def test_of_the_real_dialogues_five_differ_in_prompt_and_four_have_no_reply(tokenizer: Any):
    section = FileExamples(path=str(HH), prompt_column=None, pairs="columns")
    made, dropped = split(read(section, tokenizer, 0))
    reasons = Counter(one.reason.split(": ")[1] for one in dropped)
    assert len(made) + len(dropped) == 2312 and reasons == {"prompts differ": 5, "chosen is empty": 4}
    with gzip.open(HH, "rt", encoding="utf-8") as lines:
        originals = [json.loads(line) for line in lines]
    for one in made:
        assert one.text + one.chosen.text == originals[int(one.prompt_id)]["chosen"]
        assert one.text + one.rejected.text == originals[int(one.prompt_id)]["rejected"]


@pytest.mark.skipif(not SST2.exists(), reason="the real SST-2 file is not beside the repository")
def test_real_labels_give_pairs_of_a_good_and_a_bad_sentence(tokenizer: Any):
    section = FileExamples(path=str(SST2), pattern=r"(?P<label>[01]) (?P<text>.*)", pairs="from_labels")
    made, dropped = split(read(section, tokenizer, 0))
    sides: dict[str, set[str]] = {"0": set(), "1": set()}
    for line in SST2.read_text(encoding="utf-8").splitlines():
        sides[line[0]].add(line[2:])
    assert not dropped and len(made) == max(444, 428) == max(map(len, sides.values()))
    assert {one.chosen.text for one in made} == sides["1"] and {one.rejected.text for one in made} == sides["0"]
