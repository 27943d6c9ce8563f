"""Laws of raft.models.reasoning: where the answer begins, and that its tokens stay those that were generated."""

from pathlib import Path
from typing import Any

import pytest

from raft.core.records import Example, Group, Prompt, Response, Score
from raft.generators.sampling import Sampling
from raft.launch.local import Local
from raft.models.reasoning import answer_at, opening, without_thought
from raft.pipeline.stages import _scored
from raft.trainers.policy import Corpus

SPECIAL = ["[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<|end|>"]
PLAIN = ["<think>", "</think>"]  # tokens that are spelled in texts, as Qwen3's are


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Characters, and some marks that are one token each; "!\\n" and ">\\n" are one token, too."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    letters = ["</s>", "<unk>", *map(chr, range(32, 127)), "\n", "\n\n", ">\n", ">4"]
    merges = [("\n", "\n"), (">", "\n"), (">", "4")]
    pieces = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, merges, unk_token="<unk>"))
    pieces.decoder = decoders.Fuse()
    pieces.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    pieces.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in SPECIAL])
    pieces.add_tokens([AddedToken(one, special=False, normalized=False) for one in PLAIN])
    return PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="</s>", unk_token="<unk>")


def generated(tokenizer: Any, written: str, reason: str = "stop") -> Response:
    """A response as generators read it: special tokens are in the tokens, not in the text."""
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return Response(text, ids, [-0.5 * at for at in range(len(ids))], reason)


def finished(tokenizer: Any, written: str, reason: str = "stop", prompt: str = "", **options: Any) -> Response:
    sampling = Sampling(**options)
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return sampling.finish(generated(tokenizer, written, reason), tokenizer, sampling.opening(tokenizer, asked))


@pytest.mark.parametrize(
    "written, at",
    [
        ("4", 0),
        ("<think>a</think>4", 16),
        ("a</think>4", 9),  # the template opened it
        (" \n<think>a", None),
        ("Write <think> first.", 0),
        ("[THINK]a[/THINK]4", 16),
        ("<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>4", 65),
        ("<think>a</think>b</think>4", 16),  # the first end, as vLLM's parsers have it
    ],
)
def test_the_answer_begins_behind_the_end_of_the_thought(written: str, at: int | None):
    assert answer_at(written) == at


def test_what_the_prompt_opens_is_a_thought_until_its_end():
    assert answer_at("a", opened=True) is None
    assert answer_at("a</think>4", opened=True) == 9
    assert answer_at("<a>x</a>4", ["<a>", "</a>"]) == 8 and answer_at("<think>a</think>4", ["<a>", "</a>"]) == 0


@pytest.mark.parametrize(
    "thought",
    [
        "<think>\n\n</think>\n\n",
        "<think>2 + 2</think>",
        "[THINK]2 + 2[/THINK] ",
        "<|channel|>analysis<|message|>2<|end|><|channel|>final<|message|>",
    ],
)
def test_a_thought_is_cut_off_by_token(tokenizer: Any, thought: str):
    whole, head = generated(tokenizer, thought + "It is 4</s>"), generated(tokenizer, thought)
    found = finished(tokenizer, thought + "It is 4</s>")
    assert found.text == "It is 4" and found.finish_reason == "stop"
    assert (found.token_ids, found.logprobs) == (whole.token_ids, whole.logprobs)
    assert found.reasoning_tokens == len(head.token_ids) and found.reasoning == head.text
    assert Response(**found.row()) == found


def test_a_response_without_a_thought_stays_as_it_is(tokenizer: Any):
    plain = generated(tokenizer, "It is 4</s>")
    assert finished(tokenizer, "It is 4</s>") == plain
    assert set(plain.row()) == {"text", "token_ids", "logprobs", "finish_reason"}
    kept = finished(tokenizer, "<think>2</think>4", reasoning="keep")
    assert kept.text == "<think>2</think>4" and kept.reasoning is None


def test_a_thought_that_does_not_end_has_no_answer(tokenizer: Any):
    cut = finished(tokenizer, "<think>2 + 2", "length")
    assert (cut.text, cut.reasoning, cut.reasoning_tokens) == ("", "<think>2 + 2", len(cut.token_ids))
    assert cut.unanswered is not None and "cut by the token limit" in cut.unanswered
    assert finished(tokenizer, "<think>2 + 2</s>").unanswered == "a thought without an answer"
    assert finished(tokenizer, "<think>2</think></s>").unanswered == "a thought without an answer"
    assert finished(tokenizer, "</s>").unanswered is None  # an empty answer is an answer


@pytest.mark.parametrize(
    "prompt, count", [("Q<think>\n", 2), ("Q<think>", 1), ("Q<think>\n\n</think>\n\n", 0), ("", 0)]
)
def test_a_thought_that_the_template_opens_is_one(tokenizer: Any, prompt: str, count: int):
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert opening(tokenizer, asked) == count
    response = finished(tokenizer, "2 + 2", "length", prompt)
    assert (response.reasoning is not None, response.opened) == (count > 0, count)


def test_markers_clean_the_answer_alone(tokenizer: Any):
    found = finished(tokenizer, "<think>a\nUser: b</think>\n\n 4 \nUser: c", truncate_at=["\nUser:"], strip=True)
    assert found.text == "4" and found.finish_reason == "marker"
    head = generated(tokenizer, "<think>a\nUser: b</think>\n\n ").token_ids
    assert found.token_ids == [*head, *generated(tokenizer, "4").token_ids]
    assert found.logprobs == [-0.5 * at for at in range(len(found.token_ids))]


def test_a_mark_that_ends_inside_a_token_is_told_by_text(tokenizer: Any):
    blank = finished(tokenizer, "<a>x</a>\n4", reasoning_marks=["<a>", "</a>"])  # ">\n" is one token
    assert blank.text == "4" and blank.reasoning_tokens == len(blank.token_ids) - 1
    inside = finished(tokenizer, "<a>x</a>42", reasoning_marks=["<a>", "</a>"])  # ">4" is one token
    assert inside.text == "42" and inside.reasoning == "<a>x</a>" and inside.reasoning_tokens is None


def test_of_a_text_alone_the_thought_is_taken_off_too():
    def read(text: str) -> Response:
        return without_thought(Response(text, [], None, "stop"))

    assert read("Lily") == Response("Lily", [], None, "stop")
    assert read("<think>\n\n</think>\n\nLily").text == "Lily"
    assert read("<think>\nOnce upon a time").unanswered == "a thought without an answer"


class Lengths:
    """A reward that is asked only for answers."""

    def score(self, groups: Any) -> Any:
        for group in groups:
            assert group.responses and all(one.text for one in group.responses)
            yield [Score(float(len(one.text))) for one in group.responses]


def test_no_reward_is_asked_of_a_thought_without_an_answer(tokenizer: Any):
    cut, good = finished(tokenizer, "<think>2", "length"), finished(tokenizer, "<think>2</think>four")
    groups = [
        Group(Prompt("a", text=""), [cut, good, cut]),
        Group(Prompt("b", text=""), [cut]),
        Group(Prompt("c", text=""), [good]),
    ]
    found = {group.prompt.id: scores for group, scores in _scored(Local(), Lengths(), groups)}
    assert [[one.reward for one in found[name]] for name in "abc"] == [[None, 4.0, None], [None], [4.0]]
    assert found["a"][0].error == cut.unanswered


def test_the_trainer_learns_the_thought_or_takes_it_out_by_token(tokenizer: Any, tmp_path: Path):
    asked = Prompt("p", text="Q<think>\n")
    ids = tokenizer(asked.text)["input_ids"]
    example = Example("p", finished(tokenizer, "2</think>\n\n4</s>", prompt="Q<think>\n"), text=asked.text)
    assert Corpus(tmp_path).tokens(tokenizer, example) == (ids, example.response.token_ids)
    assert Corpus(tmp_path, cut=True).tokens(tokenizer, example) == (ids[:1], example.response.token_ids[-2:])
    plain = Example("p", finished(tokenizer, "4</s>"), text="Q")
    assert Corpus(tmp_path, cut=True).tokens(tokenizer, plain) == (ids[:1], plain.response.token_ids)


def test_marks_that_are_no_pair_or_have_no_effect_are_faults():
    def keys(**options: Any) -> list[str]:
        return [key for key, _ in Sampling(**options).faults()]

    assert keys(reasoning_marks=["<a>"]) == keys(reasoning_marks=["<a>", ""]) == ["reasoning_marks"]
    assert keys(reasoning="keep", reasoning_marks=["<a>", "</a>"]) == ["reasoning_marks"]
    assert not keys(reasoning_marks=["<a>", "</a>"])


def test_rows_of_examples_have_what_a_thought_needs_and_nothing_else(tokenizer: Any):
    plain, thought = finished(tokenizer, "4"), finished(tokenizer, "<think>2</think>4")
    for response in (plain, thought):
        example = Example("p", response, text="Q")
        assert example.row()["response"] == response.row() and Example.of(example.row()) == example
