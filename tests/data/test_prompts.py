"""Laws of raft.data.prompts: what of a row becomes a prompt, and what an iteration draws."""

import copy
import dataclasses
import json
from collections import Counter
from dataclasses import asdict
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raft.core import registry
from raft.core.errors import UserError
from raft.core.options import Fault
from raft.core.records import Drop, Prompt
from raft.data import prompts
from raft.data.prompts import File, Hub, Inline, Mixture, draw, held_out_key
from raft.models.chat_templates import encode_prompt, load_tokenizer

DATA = Path(__file__).parents[3] / "shared/data"
MESSAGES = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why?"},
]

NO_MESSAGES = "messages is not a list of messages such as {role: user, content: ...}"
NOTHING_LEFT = "messages ends with the assistant's own words; until: last-user leaves them out"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token for each character, a BOS before a text and an EOS after it, and a template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    letters = ["<s>", "</s>", "<unk>", *map(chr, range(32, 127)), "\n"]
    pieces = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, [], unk_token="<unk>"))
    pieces.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in letters[:2]])
    pieces.decoder = decoders.Fuse()
    frame = [("<s>", 0), ("</s>", 1)]
    pieces.post_processor = processors.TemplateProcessing(single=["<s>", "$A", "</s>"], special_tokens=frame)
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


def read(source: Any, tokenizer: Any) -> tuple[list[Prompt], list[Drop]]:
    found = list(prompts.read(source, tokenizer))
    assert all(isinstance(one, Prompt | Drop) for one in found)
    return [one for one in found if isinstance(one, Prompt)], [one for one in found if isinstance(one, Drop)]


def only(tokenizer: Any, row: Any, **options: Any) -> Prompt:
    """The prompt of one row."""
    kept, dropped = read(Inline(items=[row], **options), tokenizer)
    assert len(kept) == 1 and not dropped, dropped
    return kept[0]


def reason(tokenizer: Any, row: Any, **options: Any) -> str:
    """Why one row is dropped; the one before it is good."""
    good = {"prompt": "good", "messages": MESSAGES, **dict.fromkeys(options.get("meta") or [])}
    kept, dropped = read(Inline(items=[good, row], **options), tokenizer)
    assert len(kept) == len(dropped) == 1
    assert (dropped[0].prompt_id, dropped[0].index, dropped[0].stage) == ("000001", None, "collect")
    return dropped[0].reason


def fault_keys(**options: Any) -> list[str]:
    faults: list[Fault] = []
    registry.component("prompts", options, "prompts", faults)
    return [fault.key for fault in faults]


def test_a_text_is_a_prompt_and_the_other_columns_are_its_meta(tokenizer: Any):
    row = {"id": 7, "prompt": "Why?", "answer": 42, "tags": ["a"], "seen": float("nan"), "when": object()}
    assert only(tokenizer, row) == Prompt("7", text="Why?", meta={"answer": 42, "tags": ["a"]})
    assert only(tokenizer, row, meta=["answer"]).meta == {"answer": 42}
    assert only(tokenizer, row, meta=[]).meta == {}


def test_a_prompt_that_a_run_wrote_is_read_as_it_was(tokenizer: Any, tmp_path: Path):
    written = Prompt("x", text="Why?", meta={"answer": 42, "nested": {"a": [1]}})
    (tmp_path / "prompts.jsonl").write_text(json.dumps(written.row()))
    assert read(File(path=str(tmp_path / "prompts.jsonl"), prompt_column="text"), tokenizer)[0] == [written]


def test_rows_without_ids_are_numbered(tokenizer: Any):
    kept, dropped = read(Inline(items=["a", "", {"prompt": "c", "id": "x"}, "d"]), tokenizer)
    assert [one.id for one in kept] == ["000000", "x", "000003"] and dropped[0].prompt_id == "000001"


def test_prefix_and_suffix_surround_what_take_takes_out(tokenizer: Any):
    row = {"prompt": "Q: one A: two Q: three A: four"}
    assert only(tokenizer, row, extract="(.*A:)", prefix="[", suffix=" ").text == "[Q: one A: two Q: three A: "
    assert reason(tokenizer, "x", extract="(good)") == "empty: extract finds nothing"
    dialogue = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"
    assert only(tokenizer, dialogue, extract=r"(?s)(.*\n\nAssistant:)").text == dialogue[:-2]


ALPACA = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"


@pytest.mark.parametrize(
    "template, row, text",
    [
        ("{a}\n\n{b}", {"a": "x", "b": "y"}, "x\n\ny"),
        ("{a}\n\n{b}", {"a": "x", "b": ""}, "x"),
        ("{a}\n\n{b}", {"a": "x", "b": None}, "x"),
        ("{a}\n\n{b} \n", {"a": "x", "b": " \t"}, "x \n"),
        ("{a}, {b}, {c}.", {"a": "x", "b": "", "c": "z"}, "x, z."),
        ("{a}", {"a": "{b}"}, "{b}"),
        ("{{{a}}} {{b}}", {"a": "x"}, "{x} {b}"),
        ("{two words}{a}", {"two words": "x", "a": "y"}, "xy"),
        (ALPACA, {"instruction": "Do", "input": "this"}, "### Instruction:\nDo\n\n### Input:\nthis\n\n### Response:\n"),
        (ALPACA, {"instruction": "Do", "input": ""}, "### Instruction:\nDo\n\n### Response:\n"),
    ],
)  # fmt: skip
def test_a_template_is_filled_with_columns_and_an_empty_one_goes_with_the_text_before_it(
    tokenizer: Any, template: str, row: dict, text: str
):
    prompt = only(tokenizer, row, prompt_column=template)
    assert prompt.text == text and prompt.meta == row


@pytest.mark.parametrize(
    "row, why",
    [
        ({"a": "", "b": "y"}, "a is empty"),
        ({"a": None, "b": "y"}, "a is not text but null"),
        ({"a": "x"}, "no column b"),
        ({"a": "x", "b": 5}, "b is not text but int"),
    ],
)
def test_the_first_column_of_a_template_has_words_and_the_others_are_text(tokenizer: Any, row: dict, why: str):
    source = Inline(items=[{"a": "x", "b": "y"}, row], prompt_column="{a}-{b}")
    assert [one.reason for one in read(source, tokenizer)[1]] == [why]


def test_a_column_that_a_template_names_is_missing_from_the_first_row(tokenizer: Any):
    with pytest.raises(UserError, match=r"items\[0\]: no column b; columns: a$"):
        read(Inline(items=[{"a": "x"}], prompt_column="{a}-{b}"), tokenizer)


@pytest.mark.parametrize("beside", ["input", "context"])
def test_an_instruction_is_not_read_without_what_it_is_about(tokenizer: Any, beside: str):
    items = [{"instruction": "Who?", beside: ""}, {"instruction": "Translate", beside: "Hello"}]
    with pytest.raises(
        UserError, match=rf"items\[1\]: prompt_column: instruction leaves out the column {beside}, .*\{{{beside}"
    ):
        read(Inline(items=items, prompt_column="instruction"), tokenizer)
    kept, _ = read(Inline(items=items, prompt_column="{instruction}"), tokenizer)
    assert [one.text for one in kept] == ["Who?", "Translate"]
    kept, _ = read(Inline(items=items, prompt_column=f"{{instruction}} {{{beside}}}"), tokenizer)
    assert [one.text for one in kept] == ["Who?", "Translate Hello"]
    assert read(Inline(items=items[:1], prompt_column="instruction"), tokenizer)[0]


def test_with_id_null_rows_are_numbered_whatever_their_ids(tokenizer: Any):
    part = Inline(items=[{"id": 0, "prompt": "a"}, {"id": 0, "prompt": "b"}], id=None)
    kept, _ = read(Mixture(sources=[part, part]), tokenizer)
    assert [one.id for one in kept] == ["000000", "000001", "000002", "000003"]
    assert kept[0].meta == {"id": 0}


def test_a_chat_is_one_message_of_the_user_behind_that_of_the_system(tokenizer: Any):
    user = {"role": "user", "content": "<Hi>"}
    assert only(tokenizer, "Hi", format="chat", prefix="<", suffix=">").messages == [user]
    chat = only(tokenizer, "Hi", format="chat", prefix="<", suffix=">", system="Be kind.")
    assert chat.messages == [{"role": "system", "content": "Be kind."}, user] and chat.text is None


def test_messages_are_taken_as_they_are_and_a_system_message_of_their_own_stays(tokenizer: Any):
    assert only(tokenizer, {"messages": MESSAGES}, messages="messages").messages == MESSAGES
    system, own = ({"role": "system", "content": words} for words in ("Be kind.", "Be brief."))
    assert only(tokenizer, {"m": MESSAGES}, messages="m", system="Be kind.").messages == [system, *MESSAGES]
    assert only(tokenizer, {"m": [own, *MESSAGES]}, messages="m", system="Be kind.").messages == [own, *MESSAGES]


def test_what_comes_after_the_last_words_of_the_user_can_be_left_out(tokenizer: Any):
    said = [*MESSAGES, {"role": "gpt", "content": "No."}, {"role": "assistant", "content": "Yes."}]
    assert only(tokenizer, {"m": said}, messages="m", until="last-user").messages == MESSAGES
    assert only(tokenizer, {"m": MESSAGES}, messages="m", until="last-user").messages == MESSAGES
    nobody = {"messages": [{"role": "assistant", "content": "x"}]}
    assert reason(tokenizer, nobody, messages="messages", until="last-user") == "messages has no words of the user"


@pytest.mark.parametrize(
    "row, options, why",
    [
        ("", {}, "empty"),
        (" \n\t", {"prefix": "x"}, "empty"),
        ({"prompt": None}, {}, "prompt is not text but null"),
        ({"prompt": ["x"]}, {}, "prompt is not text but list"),
        ({"other": "x"}, {}, "no column prompt"),
        ("half \ud83d", {}, "prompt holds half a character (a lone surrogate)"),
        ({"messages": "x"}, {"messages": "messages"}, NO_MESSAGES),
        ({"messages": []}, {"messages": "messages"}, NO_MESSAGES),
        ({"messages": MESSAGES[:2]}, {"messages": "messages"}, NOTHING_LEFT),
        ({"messages": [{"role": "user"}]}, {"messages": "messages"}, "messages[0] has no content"),
        ({"messages": [{"role": "user", "content": " "}]}, {"messages": "messages"}, "the last message is empty"),
        ({"prompt": "x", "when": object()}, {"meta": ["when"]}, "column when cannot be written as JSON"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_prompt_is_dropped_with_the_reason(tokenizer: Any, row: Any, options: dict, why: str):
    assert reason(tokenizer, row, **options) == why


def test_columns_that_no_record_can_hold_are_left_out_of_meta(tokenizer: Any):
    def nested(levels: int) -> Any:
        return [nested(levels - 1)] if levels else 1

    row = {"prompt": "Why?", "\ud800": 1, "deep": nested(900), "flat": nested(90), "meta": {"in": nested(900), "x": 1}}
    prompt = only(tokenizer, row)
    assert prompt.meta == {"flat": nested(90), "x": 1} and prompt.row()
    assert "nested more than 100 deep" in reason(tokenizer, row, meta=["deep"])


@pytest.mark.parametrize("options, frame", [({}, 1), ({"format": "chat"}, len("[user][assistant]"))])
def test_the_longest_prompt_is_max_tokens_as_the_policy_reads_it(tokenizer: Any, options: dict, frame: int):
    for length, kept in ((4, True), (5, False)):
        source = Inline(items=["x" * length], max_prompt_length=4 + frame, **options)
        found, dropped = read(source, tokenizer)
        assert bool(found) == kept
        if kept:
            assert len(encode_prompt(tokenizer, found[0])) == 4 + frame
        else:
            assert dropped[0].reason == f"{5 + frame} tokens, more than prompts.max_prompt_length: {4 + frame}"


@pytest.mark.parametrize(
    "options, column",
    [({}, "prompt"), ({"messages": "talk"}, "talk"), ({"id": "key"}, "key"), ({"meta": ["gold"]}, "gold")],
)
def test_a_column_missing_from_the_first_row_is_the_users_fault(tokenizer: Any, options: dict, column: str):
    row = {name: "x" for name in ("question", "prompt") if name != column}
    with pytest.raises(UserError, match=rf"items\[0\]: no column {column}; columns: question"):
        read(Inline(items=[row], **options), tokenizer)


@pytest.mark.parametrize(
    "items", [["a", {"prompt": "b", "id": "000000"}], [{"prompt": "", "id": 5}, {"prompt": "b", "id": "5"}]]
)
def test_two_rows_of_one_id_are_the_users_fault_and_both_are_named(tokenizer: Any, items: list):
    with pytest.raises(UserError, match=r"items\[1\]: its id '\w+' is also that of items\[0\]"):
        read(Inline(items=items), tokenizer)


def test_the_same_id_in_two_parts_is_found_too(tokenizer: Any, tmp_path: Path):
    part = Inline(items=["x", {"prompt": "a", "id": "q"}])
    (tmp_path / "more.jsonl").write_text('{"prompt": "y"}\n{"prompt": "a", "id": "q"}\n')
    with pytest.raises(UserError, match=r"more\.jsonl:2: its id 'q' is also that of items\[1\]"):
        read(Mixture(sources=[part, File(path=str(tmp_path / "more.jsonl"))]), tokenizer)


@pytest.mark.parametrize("value", [True, 1.5, ["x"], "\ud83d"])
def test_an_id_is_text_or_a_whole_number(tokenizer: Any, value: Any):
    with pytest.raises(UserError, match=r"items\[0\]: the id .* is neither text nor a whole number"):
        read(Inline(items=[{"prompt": "x", "id": value}]), tokenizer)


def test_each_prompt_of_a_mixture_knows_its_part_and_is_read_as_the_part_says(tokenizer: Any):
    parts = [
        Inline(items=["a", "b"], weight=3.0),
        Inline(items=[{"q": "c"}], prompt_column="q", format="chat", max_prompt_length=512),
    ]
    mixture = Mixture(sources=parts, per_iteration=2)
    kept, _ = read(mixture, tokenizer)
    assert [(one.id, one.source, one.content) for one in kept] == [
        ("000000", 0, "a"),
        ("000001", 0, "b"),
        ("000002", 1, "c"),
    ]
    assert (
        kept[2].messages
        and [weight for weight, _ in mixture.parts()] == [3.0, 1.0]
        and mixture.max_prompt_length == 512
    )
    assert [one.source for one in read(Mixture(sources=parts[:1]), tokenizer)[0]] == [None, None]


def test_every_kind_is_built_from_its_options():
    part = {"kind": "list", "items": ["a"], "weight": 2}
    for options, made in [
        ({"kind": "file", "path": "a.jsonl", "max_prompt_length": 9}, File(path="a.jsonl", max_prompt_length=9)),
        ({"kind": "hub", "dataset": "owner/rows", "split": "test"}, Hub(dataset="owner/rows", split="test")),
        (part, Inline(items=["a"], weight=2.0)),
        ({"kind": "mixture", "sources": [part, part]}, Mixture(sources=[Inline(items=["a"], weight=2.0)] * 2)),
    ]:
        faults: list[Fault] = []
        assert registry.component("prompts", options, "prompts", faults) == made and not faults


@pytest.mark.parametrize(
    "options, key",
    [
        ({"prompt_column": "q", "messages": "m"}, "messages"),
        ({"messages": "m", "prefix": "x"}, "prefix"),
        ({"messages": "m", "extract": "(x)"}, "extract"),
        ({"system": "x"}, "system"),
        ({"extract": "x"}, "extract"),
        ({"extract": "(x"}, "extract"),
        ({"prompt_column": "{a"}, "prompt_column"),
        ({"prompt_column": "a}"}, "prompt_column"),
        ({"prompt_column": "{a}}"}, "prompt_column"),
        ({"prompt_column": "{}"}, "prompt_column"),
        ({"prompt_column": "{{a}}"}, "prompt_column"),
        ({"prompt_column": None}, "prompt_column"),
        ({"format": "html"}, "format"),
        ({"per_iteration": 0}, "per_iteration"),
        ({"max_prompt_length": 0}, "max_prompt_length"),
        ({"weight": 0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"items": []}, "items"),
    ],
)
def test_a_wrong_option_is_named(options: dict, key: str):
    assert fault_keys(**{"kind": "list", "items": ["a"], **options}) == [f"prompts.{key}"]


def test_a_mixture_is_a_list_of_sources_and_says_itself_how_many_are_drawn():
    part = {"kind": "list", "items": ["a"]}
    assert fault_keys(kind="mixture", sources=part) == ["prompts.sources"]
    assert fault_keys(kind="mixture", sources=[]) == ["prompts.sources"]
    assert fault_keys(kind="mixture", sources=[part, {**part, "per_iteration": 4}]) == [
        "prompts.sources[1].per_iteration"
    ]
    assert fault_keys(kind="mixture", sources=[{"kind": "mixture", "sources": [part]}]) == ["prompts.sources[0].kind"]


@pytest.mark.parametrize(
    "one, other",
    [("Why  not?\n", "why not?"), ("ﬁne", "FINE"), ("Cafe\u0301", "CAFÉ"), ("Straße", "STRASSE"), ("a\u3000b", " a b")],
)
def test_a_prompt_that_says_the_same_is_known_as_held_out(one: str, other: str):
    message = Prompt("2", messages=[{"role": "user", "content": other}])
    assert held_out_key(Prompt("1", text=one)) == held_out_key(Prompt("3", text=other)) == held_out_key(message)
    assert held_out_key(Prompt("1", text=one)) != held_out_key(Prompt("1", text=one + "!"))


# --- the draw

MIXTURES = [
    ([(1.0, 10)], 4),
    ([(1.0, 7)], 7),
    ([(1.0, 5)], 3),
    ([(3.0, 50), (1.0, 9)], 12),
    ([(0.1, 5), (0.45, 30), (0.45, 8)], 1),
    ([(0.1, 30), (0.2, 30), (0.7, 40)], 10),
    ([(1.0, 3), (1.0, 4), (1.0, 5)], 7),
    ([(5.0, 2), (1.0, 2), (1.0, 2), (1.0, 2)], 2),
]


def draws(parts: list, per_iteration: int, iterations: int, seed: int = 0) -> list[list[tuple[int, int]]]:
    return [draw(parts, per_iteration, seed, iteration) for iteration in range(1, iterations + 1)]


@pytest.mark.parametrize("parts, per_iteration", MIXTURES)
def test_every_iteration_draws_as_many_as_asked_and_none_twice(parts: list, per_iteration: int):
    for drawn in draws(parts, per_iteration, 40):
        assert len(drawn) == len(set(drawn)) == per_iteration
        assert all(0 <= index < parts[part][1] for part, index in drawn)


@pytest.mark.parametrize("parts, per_iteration", MIXTURES)
def test_every_prompt_of_a_part_comes_once_before_any_comes_twice(parts: list, per_iteration: int):
    seen = [Counter(dict.fromkeys(range(count), 0)) for _, count in parts]
    for drawn in draws(parts, per_iteration, 40):
        for part, index in drawn:
            seen[part][index] += 1
        assert all(max(one.values()) - min(one.values()) <= 1 for one in seen)


@pytest.mark.parametrize("parts, per_iteration", MIXTURES)
def test_each_part_is_drawn_from_by_its_weight_to_within_one_prompt(parts: list, per_iteration: int):
    weights = [Fraction(weight) for weight, _ in parts]
    total: Counter[int] = Counter()
    for iteration, drawn in enumerate(draws(parts, per_iteration, 60), start=1):
        total.update(part for part, _ in drawn)
        for part, weight in enumerate(weights):
            assert abs(total[part] - weight / sum(weights) * per_iteration * iteration) < 1


def test_parts_never_give_back_and_stay_within_one_whatever_the_weights():
    random = np.random.default_rng(0)
    mixtures = [(random.integers(1, 1000, size=random.integers(1, 9)), random.integers(1, 12)) for _ in range(100)]
    for found, size in [*mixtures, ([1, 1, 1, 12, 51], 2)]:  # the last one is too hard for largest remainders
        weights, size = [Fraction(int(one)) for one in found], int(size)
        shares = [weight / sum(weights) for weight in weights]
        history = prompts.allotted(shares, size, 50)
        for iteration, totals in enumerate(history):
            assert sum(totals) == size * iteration
            assert all(abs(one - share * size * iteration) < 1 for one, share in zip(totals, shares, strict=True))
        assert all(np.all(np.diff(two, axis=0) >= 0) for two in pairwise(history))


def test_a_draw_depends_on_the_seed_and_the_iteration_alone():
    parts = [(3.0, 50), (1.0, 9)]
    assert draw(parts, 12, 0, 7) == draws(parts, 12, 7)[6]
    assert draw(parts, 12, 0, 7) != draw(parts, 12, 1, 7) != draw(parts, 12, 1, 8)


def test_a_draw_is_the_same_on_every_machine_and_in_every_version():
    assert draw([(1.0, 5), (2.0, 6)], 6, seed=3, iteration=2) == [(1, 5), (0, 2), (0, 0), (1, 3), (1, 4), (1, 2)]


def test_the_order_of_an_iteration_mixes_its_parts():
    drawn = [part for part, _ in draw([(1.0, 500), (1.0, 500)], 200, 0, 1)]
    changes = sum(one != other for one, other in pairwise(drawn))
    assert 70 < changes < 130  # 199 places, each a change with probability 1/2: mean 100, deviation 7


def test_every_prompt_is_as_likely_in_the_first_iteration():
    counts = np.bincount([index for seed in range(2000) for _, index in draw([(1.0, 10)], 3, seed, 1)], minlength=10)
    chi2 = ((counts - 600) ** 2 / 600).sum()
    assert chi2 < 30  # 9 degrees of freedom; exceeded with probability 0.0004


@pytest.mark.parametrize(
    "parts, per_iteration, message",
    [
        ([(1.0, 3)], 4, r"prompts\.per_iteration: 4 takes 4 different prompts in one .* only 3; lower it to 3"),
        ([(1.0, 9), (1.0, 2)], 8, r"8 takes 4 different prompts from sources\[1\] .*only 2; lower it to 4"),
        ([(9.0, 99), (1.0, 0)], 2, r"takes 1 different prompts from sources\[1\] .*only 0"),
    ],
)  # fmt: skip
def test_too_few_prompts_for_an_iteration_are_the_users_fault(parts: list, per_iteration: int, message: str):
    with pytest.raises(UserError, match=message):
        draw(parts, per_iteration, 0, 1)


def test_a_draw_of_a_million_prompts_takes_little_time():
    assert len(draw([(1.0, 1_000_000), (1.0, 2000)], 2048, 0, 50)) == 2048


# --- real files

with_real_files = pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not beside the repository")


@with_real_files
def test_the_real_prompts_are_all_read(tokenizer: Any):
    stories = load_tokenizer(str(DATA / "models/TinyStories-656K"))
    kept, dropped = read(File(path=str(DATA / "prompts/tinystories_999_space.jsonl")), stories)
    assert len(kept) == 999 and not dropped and kept[0].id == "ts-0000" and kept[0].text.endswith(" ")
    for name, count in (("mt_bench_80", 80), ("ja_vicuna_qa_80", 80)):
        source = File(path=str(DATA / f"prompts/{name}.jsonl"), format="chat", max_prompt_length=4096)
        kept, dropped = read(source, tokenizer)
        assert len(kept) == count and not dropped
        assert "turns" in kept[0].meta and asdict(kept[0])["messages"][0]["role"] == "user"


@with_real_files
def test_real_dialogues_give_their_prompts(tokenizer: Any):
    path = DATA / "preferences/hh_harmless_test.jsonl.gz"
    options: dict[str, Any] = {
        "prompt_column": "chosen",
        "extract": r"(?s)(.*\n\nAssistant:)",
        "meta": [],
        "max_prompt_length": 10**6,
    }
    kept, dropped = read(File(path=str(path), **options), tokenizer)
    assert len(kept) == 2312 and not dropped
    assert all(one.text.startswith("\n\nHuman:") and one.text.endswith("\n\nAssistant:") for one in kept)


# As Zephyr's: whom it does not know it does not write.
ZEPHYR = """{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] + eos_token }}\
{% elif m['role'] == 'assistant' %}<|assistant|>{{ m['content'] + eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
# As Qwen's: tools before all, calls as JSON between marks, results as turns of the user, thinking to be turned off.
CALLING = """{% if tools %}[tools]{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}{% for m in messages %}\
{% if m['role'] == 'tool' %}[user]<tool_response>{{ m['content'] }}</tool_response>{% else %}[{{ m['role'] }}]\
{{ m['content'] if m['content'] is string else '' }}{% for c in m['tool_calls'] or [] %}<tool_call>\
{{ c['function'] | tojson }}</tool_call>{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]\
{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}"""
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALLS = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [{"name": "weather", "arguments": {"city": "Rome"}}]},
    {"role": "tool", "content": "dry", "tool_call_id": "1"},
]


def with_template(tokenizer: Any, template: str) -> Any:
    other = copy.copy(tokenizer)
    other.chat_template = template
    return other


def dropped_by(template: str, tokenizer: Any, messages: list[dict]) -> str:
    _, (drop,) = read(Inline(items=[{"m": messages}], messages="m"), with_template(tokenizer, template))
    return drop.reason.partition("leaves out ")[2]


def test_a_prompt_whose_words_the_template_leaves_out_is_dropped(tokenizer: Any):
    system = {"role": "system", "content": "Be kind."}
    assert dropped_by(ZEPHYR, tokenizer, [system, *MESSAGES]) == "the words of the system"
    assert dropped_by(ZEPHYR, tokenizer, [*MESSAGES[:2], {"role": "tool", "content": "x"}]) == (
        "the role tool, the words of the tool"
    )
    kept, _ = read(Inline(items=[{"m": MESSAGES}], messages="m"), with_template(tokenizer, ZEPHYR))
    assert kept == [Prompt("000000", messages=MESSAGES)]


@pytest.mark.parametrize("role", ["tool", "developer"])
def test_a_role_that_only_some_models_know_has_to_be_in_the_template(tokenizer: Any, role: str):
    anybody = tokenizer.chat_template  # writes every role as it is called
    assert dropped_by(anybody, tokenizer, [{"role": role, "content": "x"}, *MESSAGES]) == f"the role {role}"


def test_tool_calls_their_results_and_the_tools_are_read_by_the_policy(tokenizer: Any):
    rows = [{"m": CALLS, "tools": [WEATHER], "answer": 7}]
    calling = with_template(tokenizer, CALLING)
    ((prompt,), _) = read(Inline(items=rows, messages="m"), calling)
    assert prompt.tools == [WEATHER] and prompt.meta == {"answer": 7}
    assert calling.decode(encode_prompt(calling, prompt)) == (
        '[tools]{"type": "function", "function": {"name": "weather", "parameters": {}}}[user]Rain?[assistant]'
        '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>[user]<tool_response>dry'
        "</tool_response>[assistant]"
    )
    assert Prompt.of(prompt.row()) == prompt
    for other in (None, "[]"):  # two prompts that differ in their tools alone are two
        ((bare,), _) = read(Inline(items=[{"m": CALLS, "tools": other}], messages="m"), calling)
        assert bare.tools is None and held_out_key(bare) != held_out_key(prompt)


def test_tool_calls_that_the_template_does_not_write_are_dropped(tokenizer: Any):
    deaf = CALLING.replace("c['function'] | tojson", "''").replace("t | tojson", "''")
    (_, (drop,)) = read(Inline(items=[{"m": CALLS, "tools": [WEATHER]}], messages="m"), with_template(tokenizer, deaf))
    assert drop.reason.partition("leaves out ")[2] == (
        "the arguments of a tool call, the function of a tool call, the tools"
    )


def test_prompts_that_differ_in_a_call_alone_are_two():
    def key(city: str) -> str:
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
        return held_out_key(Prompt("x", [CALLS[0], {**CALLS[1], "tool_calls": [call]}, CALLS[2]]))

    assert key("Rome") == key("rome") != key("Oslo")


def test_variables_of_the_chat_template_reach_every_prompt_and_an_unknown_one_is_a_fault(tokenizer: Any):
    calling = with_template(tokenizer, CALLING)
    source = Inline(items=["Hi"], format="chat", chat_template_kwargs={"enable_thinking": False})
    ((prompt,), _) = read(source, calling)
    assert prompt.chat_template_kwargs == {"enable_thinking": False} and Prompt.of(prompt.row()) == prompt
    assert calling.decode(encode_prompt(calling, prompt)) == "[user]Hi[assistant]<think></think>"
    other = dataclasses.replace(source, chat_template_kwargs={"enable_thought": False})
    with pytest.raises(UserError, match=r"reads no variable enable_thought .*did you mean enable_thinking"):
        read(other, calling)


def test_options_of_chats_without_an_effect_are_faults():
    assert fault_keys(kind="list", items=["x"], chat_template_kwargs={"enable_thinking": False}) == [
        "prompts.chat_template_kwargs"
    ]
    assert fault_keys(kind="list", items=["x"], format="chat", chat_template_kwargs={"tools": []}) == [
        "prompts.chat_template_kwargs.tools"
    ]
    assert fault_keys(kind="list", items=["x"], until="last-user") == ["prompts.until"]
    assert fault_keys(kind="list", items=["x"], tools="functions") == ["prompts.tools"]
