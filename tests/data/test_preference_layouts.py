"""Laws of preference layouts: small files of the format of each published data set, and what becomes of their rows."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raft.core import registry
from raft.core.errors import UserError
from raft.core.options import Fault
from raft.core.records import Drop, Pair
from raft.data.examples import Examples, FileExamples, HubExamples, InlineExamples, read, texts
from raft.data.preference_layouts import LAYOUTS


def gathered(section: Examples, held_out: bool = False) -> tuple[list[Pair], list[Drop]]:
    """The pairs and the drops of a section, which needs no tokenizer."""
    found = list(read(section, None, 0, held_out))
    return [one for one in found if isinstance(one, Pair)], [one for one in found if isinstance(one, Drop)]


def of_file(folder: Path, pairs: str, rows: list[dict[str, Any]], **options: Any) -> FileExamples:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return FileExamples(**{"path": str(path), "pairs": pairs, "max_bad_rows_fraction": 1.0, **options})


def said(*contents: str) -> list[dict[str, str]]:
    """A chat in which user and assistant take turns."""
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)]


def short(pair: Pair) -> tuple[str, str, str, str]:
    """A pair of which the prompt is one question."""
    assert pair.text is None and pair.messages is not None and [one["role"] for one in pair.messages] == ["user"]
    return pair.prompt_id, pair.messages[0]["content"], pair.chosen.text, pair.rejected.text


# --- Anthropic's dialogues

HEAD = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: More\n\nAssistant:"


def test_whole_dialogues_become_messages_and_their_last_replies(tmp_path: Path):
    section = of_file(tmp_path, "hh-rlhf", [{"chosen": HEAD + " yes", "rejected": HEAD + " no\n"}])
    (pair,), dropped = gathered(section)
    assert not dropped and pair.messages == said("Hi", "Hello.", "More")
    assert (pair.prompt_id, pair.chosen.text, pair.rejected.text, pair.subset) == ("000000", "yes", "no", None)
    assert pair.chosen.token_ids == pair.rejected.token_ids == []
    assert list(texts(section)) == ["Hi\nHello.\nMore", "yes", "no"]


@pytest.mark.parametrize(
    "chosen, rejected, why",
    [
        (HEAD + " x", HEAD.replace("More", "Less") + " y", "prompts differ"),
        (HEAD + " ", HEAD + " y", "chosen is empty"),
        (HEAD + " x", HEAD, "rejected is empty"),
        (HEAD + " x", HEAD + "  x ", "chosen and rejected are equal"),
        (HEAD + " x\n\nAssistant: a", HEAD + " x\n\nAssistant: b", "does not end with the words of the user"),
        (HEAD + " x\n\nHuman: bye", HEAD + " y", "not a dialogue"),
        ("Hi\n\nAssistant: x", HEAD + " y", "not a dialogue"),
        ("\n\nHuman: Hi", HEAD + " y", "not a dialogue"),
        ("\n\nHuman: \n\nAssistant: x", "\n\nHuman: \n\nAssistant: y", "the prompt is empty"),
        (HEAD + " x", None, "rejected is not text but null"),
        (HEAD + " x", ["y"], "rejected is not text but list"),
    ],
)
def test_dialogues_that_are_no_pair_are_malformed(tmp_path: Path, chosen: Any, rejected: Any, why: str):
    rows = [{"chosen": HEAD + " a", "rejected": HEAD + " b"}, {"chosen": chosen, "rejected": rejected}]
    section = of_file(tmp_path, "hh-rlhf", rows)
    pairs, (drop,) = gathered(section)
    assert len(pairs) == 1 and drop.prompt_id == "000001"
    assert drop.reason.startswith(f"{section.path}:2: ") and why in drop.reason
    with pytest.raises(UserError, match=r"1 of the first 2 rows cannot be used: .*rows\.jsonl:2"):
        gathered(of_file(tmp_path, "hh-rlhf", rows, max_bad_rows_fraction=0.01))


def test_the_speakers_of_a_prompt_take_turns(tmp_path: Path):
    head = "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d\n\nHuman: e\n\nAssistant:"
    (pair,), _ = gathered(of_file(tmp_path, "hh-rlhf", [{"chosen": head + " x", "rejected": head + " y"}]))
    assert pair.messages == said("a\n\nb", "c\n\nd", "e")


def test_a_dialogue_and_its_split_are_the_same_pair(tmp_path: Path):
    whole, _ = gathered(of_file(tmp_path, "hh-rlhf", [{"chosen": HEAD + " x", "rejected": HEAD + " y"}]))
    row = {"prompt": HEAD, "response": " x", "chosen": " x", "rejected": " y"}
    split, _ = gathered(of_file(tmp_path, "hh-rlhf-split", [row]))
    assert whole == split
    _, (drop,) = gathered(of_file(tmp_path, "hh-rlhf-split", [{**row, "prompt": HEAD + " I"}]))
    assert "prompt does not end with \"Assistant:\" but with 'I'" in drop.reason


def test_of_the_real_dialogues_five_differ_in_prompt_and_four_have_no_reply(material: Path):
    path = material / "preferences" / "hh_harmless_test.jsonl.gz"
    pairs, dropped = gathered(FileExamples(path=str(path), pairs="hh-rlhf"))
    assert len(pairs) == 2312 - 9
    assert Counter(one.reason.split(": ")[1] for one in dropped) == {"prompts differ": 5, "chosen is empty": 4}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        originals = [json.loads(line) for line in lines]
    for one in pairs:
        assert [turn["role"] for turn in one.messages] == ["user", "assistant"] * (len(one.messages) // 2) + ["user"]
        for side in ("chosen", "rejected"):
            words = " ".join([one.prompt.content, getattr(one, side).text]).split()
            original = originals[int(one.prompt_id)][side]
            assert words == original.replace("\n\nHuman:", " ").replace("\n\nAssistant:", " ").split()


def test_one_turn_alone_is_what_has_one_question(material: Path):
    path = material / "preferences" / "hh_harmless_test.jsonl.gz"
    pairs, dropped = gathered(FileExamples(path=str(path), pairs="hh-rlhf", single_turn=True))
    reasons = Counter("turns" if one.reason == "more than one turn" else "malformed" for one in dropped)
    assert len(pairs) + reasons["turns"] + reasons["malformed"] == 2312 and reasons["turns"] > 1000
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        single = [row for row in map(json.loads, lines) if row["chosen"].count("\n\nHuman:") == 1]
    assert len(single) - 9 <= len(pairs) <= len(single)


# --- UltraFeedback


def rated(*scores: Any, instruction: Any = "q") -> dict[str, Any]:
    """A row whose responses are named a, b, ... `overall_score` says the opposite, and is not to be believed."""
    completions = [
        {"model": "m", "response": chr(97 + index), "fine-grained_score": score, "overall_score": 10 - index}
        for index, score in enumerate(scores)
    ]
    return {"source": "s", "instruction": instruction, "models": [], "completions": completions}


def test_every_two_responses_of_unequal_score_are_a_pair(tmp_path: Path):
    pairs, dropped = gathered(of_file(tmp_path, "ultrafeedback", [rated(5.0), rated(3, 4.5, 4.5, 1.25)]))
    assert [short(one) for one in pairs] == [
        ("000001-0-1", "q", "b", "a"),
        ("000001-0-2", "q", "c", "a"),
        ("000001-0-3", "q", "a", "d"),
        ("000001-1-3", "q", "b", "d"),
        ("000001-2-3", "q", "c", "d"),
    ]
    assert [(one.prompt_id, one.index, one.stage, one.reason) for one in dropped] == [
        ("000000", None, "load_examples", "fewer than two responses"),
        ("000001-1-2", None, "load_examples", "a tie, both are rated 4.5"),
    ]


def test_a_broken_response_spoils_its_row_alone(tmp_path: Path):
    bad = [rated(1, "N/A"), rated(1, None), rated(1, True), rated(1, float("nan")), rated(1, 2, instruction=" ")]
    empty, equal, none = rated(1, 2, 3), rated(1, 2, 3), {"instruction": "q", "completions": None}
    empty["completions"][2]["response"] = ""
    equal["completions"][2]["response"] = "a"
    pairs, dropped = gathered(of_file(tmp_path, "ultrafeedback", [*bad, empty, none, equal, rated(1, 2)]))
    assert [one.prompt_id for one in pairs] == ["000007-0-1", "000007-1-2", "000008-0-1"]
    reasons = [one.reason.split(": ", 1)[-1] for one in dropped]
    assert reasons == [
        "fine-grained_score is not a number but 'N/A'",
        "fine-grained_score is not a number but None",
        "fine-grained_score is not a number but True",
        "fine-grained_score is not a number but nan",
        "the prompt is empty",
        "chosen is empty",
        "completions is not a list of responses with their scores",
        "the same text is rated 1 and 3",
    ]


def test_all_pairs_of_a_row_are_on_one_side_of_the_split(tmp_path: Path):
    section = of_file(tmp_path, "ultrafeedback", [rated(1, 2, 3, instruction=f"q{n}") for n in range(20)], held_out=6)
    sides = [Counter(one.prompt_id[:6] for one in gathered(section, side)[0]) for side in (False, True)]
    assert [len(side) for side in sides] == [14, 6] and not sides[0].keys() & sides[1].keys()
    assert {count for side in sides for count in side.values()} == {3}


# --- HelpSteer


def test_helpsteer2_marks_the_turns_and_says_how_much_better_the_second_is(tmp_path: Path):
    many = "Hi {x}\n<extra_id_1>Assistant\nHello.\n\nYou?\n<extra_id_1>User\nMore"
    row = {"split": "train", "response_1": "one", "response_2": "two"}
    rows = [
        {**row, "prompt": "c#", "preference_strength": -1},
        {**row, "prompt": many, "preference_strength": 3},
        {**row, "prompt": "c#", "preference_strength": 0},
        {**row, "prompt": "c#", "preference_strength": 4},
        {**row, "prompt": "c#", "preference_strength": None},
        {**row, "prompt": many + "\n<extra_id_1>Assistant\nYes", "preference_strength": 1},
    ]
    (first, second), dropped = gathered(of_file(tmp_path, "helpsteer2", rows))
    assert short(first) == ("000000", "c#", "one", "two")
    assert second.messages == said("Hi {x}", "Hello.\n\nYou?", "More")
    assert (second.chosen.text, second.rejected.text) == ("two", "one")
    assert [one.reason.split(": ", 1)[-1] for one in dropped] == [
        "a tie",
        "preference_strength is not a whole number from -3 to 3 but 4",
        "preference_strength is not a whole number from -3 to 3 but None",
        "the prompt does not end with the words of the user",
    ]


def helpsteer3(language: str, preference: int, *context: str) -> dict[str, Any]:
    return {
        "domain": "general", "language": language, "context": said(*context), "response1": "one", "response2": "two",
        "overall_preference": preference, "individual_preference": [{"score": preference, "reasoning": "because"}],
    }  # fmt: skip


HELPSTEER3 = [
    helpsteer3("english", -2, "q"),
    helpsteer3("japanese", 1, "問"),
    helpsteer3("japanese", 0, "問"),
    helpsteer3("japanese", 3, "a", "b", "c"),
    helpsteer3("japanese", 3, "a", "b"),
]


def test_helpsteer3_keeps_the_language_and_the_single_turns_that_are_asked_for(tmp_path: Path):
    pairs, dropped = gathered(of_file(tmp_path, "helpsteer3", HELPSTEER3))
    assert [(one.prompt_id, one.chosen.text, one.subset) for one in pairs] == [
        ("000000", "one", "general"), ("000001", "two", "general"), ("000003", "two", "general"),
    ]  # fmt: skip
    assert pairs[2].messages == said("a", "b", "c") and [one.prompt_id for one in dropped] == ["000002", "000004"]
    (pair,), dropped = gathered(of_file(tmp_path, "helpsteer3", HELPSTEER3, single_turn=True, language="Japanese"))
    assert short(pair) == ("000001", "問", "two", "one")
    assert [one.reason.split(": ", 1)[-1] for one in dropped] == [
        "the language is english, not Japanese",
        "a tie",
        "more than one turn",
        "context ends with the assistant's own words, so there is nothing left to say",
    ]


def test_what_is_filtered_out_is_no_malformed_row(tmp_path: Path):
    rows = [*HELPSTEER3[:4], *[helpsteer3("english", 0, "q")] * 4]
    pairs, dropped = gathered(of_file(tmp_path, "helpsteer3", rows, max_bad_rows_fraction=0.0, language="japanese"))
    assert len(pairs) == 2 and len(dropped) == 6


def test_a_system_message_goes_before_the_prompts_of_a_layout(tmp_path: Path):
    section = of_file(tmp_path, "helpsteer3", HELPSTEER3[:1], system="Be kind.", single_turn=True)
    (pair,), _ = gathered(section)
    assert pair.messages == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}]


def test_a_system_message_is_no_turn(tmp_path: Path):
    row = helpsteer3("english", -1)
    row["context"] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
    (pair,), _ = gathered(of_file(tmp_path, "helpsteer3", [row], single_turn=True, system="Be kind."))
    assert pair.messages == row["context"]


# --- arenas


def duel(winner: Any, a: tuple[str, ...], b: tuple[str, ...], language: str = "Japanese") -> dict[str, Any]:
    one, other = ([{**turn, "speaker": "?"} for turn in said(*side)] for side in (a, b))
    return {
        "id": 7, "model_a": "x", "model_b": "y", "winner": winner, "judge": "j", "turn": len(a) // 2,
        "conversation_a": one, "conversation_b": other, "language": language, "tstamp": 1.5, "flagged": False,
    }  # fmt: skip


def test_the_winner_of_a_duel_is_chosen_and_ties_of_any_name_are_dropped(tmp_path: Path):
    rows = [duel(winner, ("q", "from a"), ("q", "from b")) for winner in ("model_a", "model_b")]
    rows += [duel(tie, ("q", "x"), ("q", "y")) for tie in ("tie", "tie(both good)", "tie (bothbad)", "tie(both bad)")]
    pairs, dropped = gathered(of_file(tmp_path, "arena", rows))
    assert [short(one)[1:] for one in pairs] == [("q", "from a", "from b"), ("q", "from b", "from a")]
    assert [one.reason for one in dropped] == ["a tie"] * 4


def test_duels_of_several_turns_can_be_compared_only_where_the_same_was_asked(tmp_path: Path):
    rows = [
        duel("model_a", ("q", "x", "and?", "good"), ("q", "x", "and?", "bad")),
        duel("model_a", ("q", "x", "and?", "good"), ("q", "y", "and?", "bad")),
        duel("model_a", ("q", "good"), ("p", "bad")),
        duel("model_a", ("q", "good"), ("q",)),
        duel("model_c", ("q", "good"), ("q", "bad")),
        duel("model_b", ("q", ""), ("q", "good"), language="English"),
        {**duel("model_a", ("q", "good"), ("q", "bad")), "conversation_a": "q"},
    ]
    (pair,), dropped = gathered(of_file(tmp_path, "arena", rows))
    assert pair.messages == said("q", "x", "and?") and (pair.chosen.text, pair.rejected.text) == ("good", "bad")
    reasons = [one.reason.split(": ", 1)[-1] for one in dropped]
    assert reasons == [
        "more than one turn, and the conversations differ before the last reply",
        "prompts differ",
        "conversation_b does not end with a reply",
        "winner is neither model_a nor model_b nor a tie but 'model_c'",
        "rejected is empty",
        "conversation_a is not a list of messages such as {role: user, content: ...}",
    ]
    none, dropped = gathered(of_file(tmp_path, "arena", rows[:1], single_turn=True))
    assert not none and dropped[0].reason == "more than one turn"
    none, dropped = gathered(of_file(tmp_path, "arena", rows[5:6], language="japanese"))
    assert not none and dropped[0].reason == "the language is English, not japanese"


# --- RewardBench, from a folder that is laid out like a data set of the hub


def benched(prompt: Any, subset: Any = "hep-cpp", **more: Any) -> dict[str, Any]:
    return {
        "prompt": prompt, "chosen": "good", "chosen_model": "m", "rejected": "bad", "rejected_model": "n",
        "subset": subset, "id": 3, **more,
    }  # fmt: skip


def as_dataset(folder: Path, rows: list[dict[str, Any]]) -> HubExamples:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "bench" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "bench" / "data" / "filtered-00000-of-00001.parquet")
    return HubExamples(dataset=str(folder / "bench"), split="filtered", pairs="reward-bench", max_bad_rows_fraction=1.0)


def test_rewardbench_is_read_from_parquet_and_its_repeated_ids_do_no_harm(tmp_path: Path):
    section = as_dataset(tmp_path, [benched("q"), benched("p", "math-prm"), benched("", chosen=""), benched("r", None)])
    pairs, dropped = gathered(section)
    assert [short(one) for one in pairs] == [("000000", "q", "good", "bad"), ("000001", "p", "good", "bad")]
    assert [one.subset for one in pairs] == ["hep-cpp", "math-prm"]
    assert [one.reason.split(": ", 1)[-1] for one in dropped] == [
        "the prompt is empty",
        "subset is not text but null",
    ]


def test_the_prior_test_sets_of_rewardbench_have_messages(tmp_path: Path):
    (one, other), dropped = gathered(as_dataset(tmp_path, [benched(said("q")), benched(said("a", "b", "c"), "shp")]))
    assert not dropped and short(one)[1] == "q" and other.messages == said("a", "b", "c") and other.subset == "shp"


def test_every_good_answer_of_rewardbench_2_is_better_than_every_bad_one(tmp_path: Path):
    rows = [
        benched("q", "Ties", chosen=["a", "b"], rejected=["x", "y", "z"]),
        benched("p", chosen=["a"], rejected=["x"]),
    ]
    pairs, dropped = gathered(of_file(tmp_path, "reward-bench", [*rows, benched("r", chosen=["a"], rejected=[])]))
    assert [(one.prompt_id, one.chosen.text, one.rejected.text) for one in pairs] == [
        ("000000-0-0", "a", "x"), ("000000-0-1", "a", "y"), ("000000-0-2", "a", "z"),
        ("000000-1-0", "b", "x"), ("000000-1-1", "b", "y"), ("000000-1-2", "b", "z"),
        ("000001", "a", "x"),
    ]  # fmt: skip
    assert {one.subset for one in pairs[:6]} == {"Ties"} and len(dropped) == 1
    assert dropped[0].reason.endswith("rejected is neither text nor a list of texts")


def parts(*contents: str) -> list[dict[str, Any]]:
    """A chat as the arena of 2025 has it."""
    return [
        {**turn, "content": [{"type": "text", "text": turn["content"], "image": None, "mimeType": None}]}
        for turn in said(*contents)
    ]


def test_an_arena_whose_contents_are_parts_and_of_which_both_may_be_bad(tmp_path: Path):
    rows = [
        {
            "winner": winner,
            "conversation_a": parts("q", "from a"),
            "conversation_b": parts("q", "from b"),
            "language": "en",
        }
        for winner in ("model_b", "both_bad", "tie")
    ]
    pairs, dropped = gathered(of_file(tmp_path, "arena", rows))
    assert [short(one)[1:] for one in pairs] == [("q", "from b", "from a")]
    assert [one.reason for one in dropped] == ["a tie"] * 2


# --- others


def nectar(*answers: tuple[float, str], prompt: str = "\n\nHuman: q\n\nAssistant: ") -> dict[str, Any]:
    ranked = [{"answer": text, "model": "m", "rank": rank} for rank, text in answers]
    return {"prompt": prompt, "answers": ranked, "turns": 1, "num_responses": len(ranked), "good_natured": True}


PKU = {
    "prompt": "q", "response_0": "x", "response_1": "y", "is_response_0_safe": False, "is_response_1_safe": True,
    "better_response_id": 0, "safer_response_id": 1,
}  # fmt: skip


def shp(labels: Any) -> dict[str, Any]:
    return {"history": "q", "human_ref_A": "from A", "human_ref_B": "from B", "labels": labels, "score_A": 3}


def webgpt(one: float, other: float) -> dict[str, Any]:
    question = {"dataset": "eli5", "id": "7", "full_text": "q"}
    return {"question": question, "answer_0": "x", "answer_1": "y", "score_0": one, "score_1": other}


def test_the_lower_rank_of_nectar_is_the_better_answer(tmp_path: Path):
    rows = [
        nectar((2.0, " b "), (1.0, "a"), (2.0, "c")),
        nectar((1.0, "a"), prompt=HEAD),
        nectar((1.0, "a"), prompt="q"),
    ]
    pairs, dropped = gathered(of_file(tmp_path, "nectar", rows))
    assert [short(one) for one in pairs] == [("000000-0-1", "q", "a", "b"), ("000000-1-2", "q", "a", "c")]
    reasons = [one.reason.split(": ", 1)[-1] for one in dropped]
    assert reasons[:2] == ["a tie, both are ranked 2", "fewer than two responses"] and "not a dialogue" in reasons[2]


def test_pku_says_which_response_is_better_and_which_is_safer(tmp_path: Path):
    for name, chosen in (("pku-saferlhf", "x"), ("pku-saferlhf-safer", "y")):
        broken = {**PKU, "better_response_id": 2, "safer_response_id": True}
        (pair,), (drop,) = gathered(of_file(tmp_path, name, [PKU, broken]))
        assert short(pair)[1:3] == ("q", chosen) and "is neither 0 nor 1 but" in drop.reason


def test_label_1_of_shp_is_for_the_first_comment(tmp_path: Path):
    pairs, dropped = gathered(of_file(tmp_path, "shp", [shp(1), shp(0), shp(1.0), shp("1"), shp(None)]))
    assert [one.chosen.text for one in pairs] == ["from A", "from B", "from A"] and len(dropped) == 2


def test_the_higher_score_of_webgpt_is_the_better_answer(tmp_path: Path):
    rows = [webgpt(0.5, -0.5), webgpt(-1.0, 1.0), webgpt(0.0, 0.0), {**webgpt(1.0, 0.0), "question": "q"}]
    pairs, dropped = gathered(of_file(tmp_path, "webgpt", rows))
    assert [short(one)[1:] for one in pairs] == [("q", "x", "y"), ("q", "y", "x")]
    assert [one.reason.split(": ", 1)[-1] for one in dropped] == [
        "a tie, both are rated 0", "question is not a mapping with full_text",
    ]  # fmt: skip


def test_a_preference_that_pandas_wrote_as_a_fraction_is_the_same(tmp_path: Path):
    for strength, chosen in ((-2, "x"), (1, "y"), (3, "y")):
        for written in (strength, float(strength)):
            row = {**HELPSTEER3[0], "response1": "x", "response2": "y", "overall_preference": written}
            assert gathered(of_file(tmp_path, "helpsteer3", [row]))[0][0].chosen.text == chosen
    for bad in (-2.5, 4.0, True, "1", None):
        pairs, _ = gathered(of_file(tmp_path, "helpsteer3", [{**HELPSTEER3[0], "overall_preference": bad}]))
        assert not pairs


# --- pairs of messages, as TRL, Skywork, UltraFeedback-binarized and Tulu 3 have them

ANSWER, OTHER = said("q", "good")[1:], said("q", "bad")[1:]
SYSTEM = {"role": "system", "content": "s"}
GIVEN = {
    "prompt and answers as messages": ({"prompt": said("q"), "chosen": ANSWER, "rejected": OTHER}, said("q")),
    "conversations alone": ({"chosen": said("q", "good"), "rejected": said("q", "bad")}, said("q")),
    "conversations beside their prompt": (
        {"prompt": "q", "chosen": said("q", "good"), "rejected": said("q", "bad")}, said("q"),
    ),
    "conversations of several turns behind a system message": (
        {
            "prompt": " q",
            "chosen": [SYSTEM, *said("q", "a", "b", "good")],
            "rejected": [SYSTEM, *said("q", "a", "b", "bad")],
        },
        [SYSTEM, *said("q", "a", "b")],
    ),
    "a prompt as text and answers as messages": ({"prompt": "q", "chosen": ANSWER, "rejected": OTHER}, said("q")),
    "a prompt as messages and whole conversations": (
        {"prompt": said("q"), "chosen": said("q", "good"), "rejected": said("q", "bad")}, said("q"),
    ),
    "a prompt as messages, whose conversations are longer": (
        {"prompt": said("q"), "chosen": said("q", "a", "b", "good"), "rejected": said("q", "a", "b", "bad")},
        said("q", "a", "b"),
    ),
    "parts": ({"chosen": parts("q", "good"), "rejected": parts("q", "bad")}, said("q")),
    "ShareGPT": (
        {
            "chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}],
            "rejected": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "bad"}],
        },
        said("q"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_pairs_of_messages_are_what_they_have_in_common_and_two_answers(tmp_path: Path, name: str):
    row, prompt = GIVEN[name]
    options: list[dict[str, Any]] = [{}] if "prompt" in row else [{"prompt_column": None}]
    if isinstance(row.get("prompt"), list):
        options.append({"messages": "prompt"})
    for where in options:
        ((pair,), dropped) = gathered(of_file(tmp_path, "columns", [row], **where))
        assert not dropped and (pair.messages, pair.text) == (prompt, None)
        assert (pair.chosen.text, pair.rejected.text) == ("good", "bad")


CONVERSATIONS = {"chosen": said("q", "good"), "rejected": said("q", "bad")}
NO_PAIR = {
    "equal": ({"chosen": said("q", "x"), "rejected": said("q", "x")}, "chosen and rejected are equal"),
    "other questions": ({"chosen": said("q", "x"), "rejected": said("p", "y")}, "differ before their last message"),
    "other lengths": ({"chosen": said("q", "x"), "rejected": said("q", "a", "b", "y")}, "differ before their last"),
    "no answer": ({"chosen": said("q", "x", "r"), "rejected": said("q", "x", "s")}, "chosen does not end with a reply"),
    "no prompt": ({"chosen": ANSWER, "rejected": OTHER}, "chosen and rejected have no prompt in common"),
    "one text": ({"chosen": said("q", "x"), "rejected": "y"}, "rejected is not a list of messages"),
    "an empty answer": ({"chosen": said("q", " "), "rejected": said("q", "y")}, "chosen is empty"),
    "another prompt": ({**CONVERSATIONS, "prompt": "p"}, "does not hold the prompt"),
    "another beginning": ({**CONVERSATIONS, "prompt": said("p")}, "chosen does not begin with the prompt"),
    "an unknown role": (
        {**CONVERSATIONS, "chosen": [{"role": "narrator", "content": "q"}, *ANSWER]}, "unknown role 'narrator'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_PAIR)
def test_messages_that_are_no_pair_are_malformed(tmp_path: Path, name: str):
    row, why = NO_PAIR[name]
    pairs, (drop,) = gathered(
        of_file(tmp_path, "columns", [row], **({} if "prompt" in row else {"prompt_column": None}))
    )
    assert not pairs and why in drop.reason, drop.reason


def test_conversations_without_the_column_of_the_prompt_are_told_the_way_out(tmp_path: Path):
    section = of_file(tmp_path, "columns", [GIVEN["conversations alone"][0]])
    with pytest.raises(
        UserError, match="no column prompt; columns: chosen, rejected; with prompt_column: null the prompt is"
    ):
        gathered(section)


# --- all of them

ROWS = {
    "hh-rlhf": {"chosen": HEAD + " x", "rejected": HEAD + " y"},
    "hh-rlhf-split": {"prompt": HEAD, "chosen": " x", "rejected": " y"},
    "ultrafeedback": rated(1, 2),
    "helpsteer2": {"prompt": "q", "response_1": "x", "response_2": "y", "preference_strength": 1},
    "helpsteer3": HELPSTEER3[0],
    "arena": duel("model_a", ("q", "x"), ("q", "y")),
    "reward-bench": benched("q"),
    "nectar": nectar((1.0, "x"), (2.0, "y")),
    "pku-saferlhf": PKU,
    "pku-saferlhf-safer": PKU,
    "shp": shp(1),
    "webgpt": webgpt(0.5, -0.5),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_data_set_is_refused_at_its_first_row(tmp_path: Path, name: str):
    assert len(gathered(of_file(tmp_path, name, [ROWS[name]]))[0]) == 1
    for column in LAYOUTS[name].columns:
        row = {key: value for key, value in ROWS[name].items() if key != column}
        with pytest.raises(UserError, match=rf"rows\.jsonl:1: no column {column}; columns: "):
            gathered(of_file(tmp_path, name, [row]))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_pair_of_a_layout_comes_back_from_its_row_and_repeats(tmp_path: Path, name: str):
    section = of_file(tmp_path, name, [ROWS[name]] * 3)
    pairs, dropped = gathered(section)
    assert len({one.prompt_id for one in pairs}) == 3 and not dropped and pairs == gathered(section)[0]
    assert pairs == [Pair.of(json.loads(json.dumps(one.row()))) for one in pairs]
    assert len(gathered(of_file(tmp_path, name, [ROWS[name]] * 3, limit=2))[0]) == 2


def test_the_page_has_each_layout_with_its_columns_and_no_other():
    assert set(ROWS) == set(LAYOUTS)
    page = (Path(__file__).parents[2] / "docs" / "preference-data.md").read_text(encoding="utf-8")
    lines = [line.split("|")[1:4] for line in page.split("| `pairs` |")[1].splitlines() if line.startswith("| `")]
    columns = {name.strip(" `"): re.findall("`([^`]+)`", cell) for name, _, cell in lines}
    columns["pku-saferlhf-safer"] = [*columns["pku-saferlhf"][:3], *columns["pku-saferlhf-safer"]]
    assert columns == {name: list(layout.columns) for name, layout in LAYOUTS.items()}


@pytest.mark.parametrize(
    "options, keys",
    [
        ({"pairs": "hh-rlhf", "prompt_column": None, "id": "n", "format": "chat"}, ["prompt_column", "format", "id"]),
        ({"pairs": "arena", "chosen": "a", "rejected": "b", "messages": "c"}, ["messages", "chosen", "rejected"]),
        ({"pairs": "ultrafeedback", "single_turn": True}, ["single_turn"]),
        ({"pairs": "columns", "single_turn": True, "language": "english"}, ["single_turn", "language"]),
        ({"single_turn": True}, ["single_turn"]),
        ({"pairs": "hh-rlhf", "language": "english"}, ["language"]),
        ({"pairs": "helpsteer3", "language": "english", "single_turn": True, "system": "s", "limit": 3}, []),
        ({"pairs": "helpsteer"}, ["pairs"]),
    ],
)
def test_an_option_without_an_effect_is_refused(options: dict[str, Any], keys: list[str]):
    faults: list[Fault] = []
    registry.build(InlineExamples, {"items": [ROWS["arena"]], **options}, "examples", faults)
    assert sorted(fault.key for fault in faults) == sorted(f"examples.{key}" for key in keys), faults
