"""The laws of Sampling: what cleaning keeps, and which options are refused. With real small tokenizers."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from raft.core.records import Response
from raft.core.registry import build
from raft.generators.sampling import Sampling, first_of, spell, spelled_by

TEXTS = ["hello world", "the cat sat on the mat", "User: who are you?\nAssistant: a cat é"] * 4


def byte_level(**options) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text, and characters that span tokens."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **options)
    raw.decoder = decoders.ByteLevel()
    pieces = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "special_tokens": ["<eos>"]}
    raw.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=330, **pieces))
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


@pytest.fixture(scope="module")
def across_words():
    """A tokenizer whose tokens may hold white space anywhere."""
    return byte_level(use_regex=False)


@pytest.fixture(scope="module")
def metaspace():
    """A tokenizer that marks words with a leading ▁ and drops the first space when it decodes, as Llama 2 does."""
    words = ["<eos>", "▁the", "▁cat", "▁sat", "▁", "s"]
    raw = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


def answer(tokenizer, *pieces: str, reason: str = "stop", text: str | None = None) -> Response:
    """A response whose tokens are those of the pieces, one after the other, with made-up log-probabilities."""
    ids = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    spelled = tokenizer.decode(ids, skip_special_tokens=True) if text is None else text
    return Response(spelled, ids, [-0.1 * at for at in range(len(ids))], reason)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_marker_at_a_token_boundary_keeps_the_tokens_and_their_logprobs(tokenizer):
    raw = answer(tokenizer, "the cat sat", "\n", "User: who", reason="length")
    clean = Sampling(truncate_at=["\nUser:"]).clean(raw, tokenizer)
    kept = len(ids_of(tokenizer, "the cat sat"))
    assert clean == Response("the cat sat", raw.token_ids[:kept], raw.logprobs[:kept], "marker")


def test_a_marker_inside_a_token_encodes_the_text_again_and_forgets_the_logprobs(tokenizer):
    assert len(ids_of(tokenizer, " the")) == 1
    clean = Sampling(truncate_at=["he mat"]).clean(answer(tokenizer, "cat on", " the", " mat"), tokenizer)
    assert clean == Response("cat on t", ids_of(tokenizer, "cat on t"), None, "marker")


def test_the_first_marker_in_the_text_counts_and_not_the_first_in_the_list(tokenizer):
    clean = Sampling(truncate_at=["mat", "sat"]).clean(answer(tokenizer, "the cat ", "sat on the ", "mat"), tokenizer)
    assert clean.text == "the cat "
    assert first_of(["x", "cat", "the"], "the cat") == 0 and first_of(["x"], "the cat") is None


def test_a_character_that_spans_tokens_before_a_marker_keeps_its_tokens(tokenizer):
    assert len(ids_of(tokenizer, "日")) == 3
    raw = answer(tokenizer, "cat 日", "\nUser:")
    kept = len(ids_of(tokenizer, "cat 日"))
    assert Sampling(truncate_at=["\nUser:"]).clean(raw, tokenizer).logprobs == raw.logprobs[:kept]


def test_a_response_cut_at_a_marker_loses_its_end_token(tokenizer):
    clean = Sampling(truncate_at=["\n"]).clean(answer(tokenizer, "the cat", "\n", "sat", "<eos>"), tokenizer)
    assert (clean.token_ids, clean.finish_reason) == (ids_of(tokenizer, "the cat"), "marker")


def test_strip_keeps_the_end_token_of_a_response_that_ended_by_itself(tokenizer):
    raw = answer(tokenizer, "the cat", " ", " ", "<eos>")
    clean = Sampling(strip=True).clean(raw, tokenizer)
    kept = len(ids_of(tokenizer, "the cat"))
    assert clean == Response(
        "the cat", [*raw.token_ids[:kept], tokenizer.eos_token_id], [*raw.logprobs[:kept], raw.logprobs[-1]], "stop"
    )


def test_strip_keeps_an_end_token_that_the_tokenizer_does_not_call_special(tokenizer):
    raw = answer(tokenizer, "the cat", " ", "?", text="the cat ")
    assert Sampling(strip=True).clean(raw, tokenizer).token_ids == ids_of(tokenizer, "the cat") + ids_of(tokenizer, "?")


def test_strip_inside_a_token_encodes_again_and_still_ends(across_words):
    last = ids_of(across_words, "the ")[-1]
    assert across_words.decode([last]).strip() != across_words.decode([last]) != " "
    raw = answer(across_words, "the ", "<eos>")
    clean = Sampling(strip=True).clean(raw, across_words)
    assert clean == Response("the", [*ids_of(across_words, "the"), across_words.eos_token_id], None, "stop")


def test_strip_never_gives_an_end_to_a_response_cut_by_the_limit(tokenizer):
    clean = Sampling(strip=True).clean(answer(tokenizer, "the cat", " ", reason="length"), tokenizer)
    assert (clean.token_ids, clean.finish_reason) == (ids_of(tokenizer, "the cat"), "length")


def test_white_space_at_the_beginning_leaves_the_text_and_stays_in_the_tokens(tokenizer):
    raw = answer(tokenizer, " the cat", "<eos>")
    clean = Sampling(strip=True).clean(raw, tokenizer)
    assert clean == Response("the cat", raw.token_ids, raw.logprobs, "stop")


def test_what_needs_no_cleaning_is_the_same_object(tokenizer):
    raw = answer(tokenizer, "the cat", "<eos>")
    assert Sampling(truncate_at=["\n"], strip=True).clean(raw, tokenizer) is raw


def test_nothing_left_is_an_empty_response(tokenizer):
    assert Sampling(truncate_at=["the"]).clean(answer(tokenizer, "the cat"), tokenizer) == Response(
        "", [], [], "marker"
    )


def test_unknown_logprobs_stay_unknown(tokenizer):
    raw = Response("the cat\nsat", ids_of(tokenizer, "the cat\nsat"), None, "length")
    assert Sampling(truncate_at=["\n"]).clean(raw, tokenizer).logprobs is None


def test_a_continuation_keeps_the_space_before_its_first_word(metaspace):
    the, cat, sat = (metaspace.convert_tokens_to_ids(word) for word in ("▁the", "▁cat", "▁sat"))
    whole, prompt = metaspace.decode([the, cat, sat]), metaspace.decode([the])
    assert metaspace.decode([cat, sat]) == "cat sat"  # why spell is needed
    assert prompt + spell(metaspace, [cat, sat]) == whole == "the cat sat"
    assert spelled_by(metaspace, [cat, sat], " cat") == 1
    assert spell(metaspace, []) == ""


@pytest.mark.parametrize(
    "options, key",
    [
        ({"k": 0}, "k"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 0.0, "k": 2}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a", ""]}, "stop"),
        ({"truncate_at": [""]}, "truncate_at"),
    ],
)
def test_a_bad_option_is_named(options, key):
    faults = []
    assert build(Sampling, options, "generator", faults) is None
    assert [fault.key for fault in faults] == [f"generator.{key}"]


def test_greedy_with_one_response_is_allowed():
    faults = []
    assert build(Sampling, {"temperature": 0, "k": 1}, "generator", faults) and not faults


def byte_fallback() -> PreTrainedTokenizerFast:
    """A tokenizer of SentencePiece's kind: words begin with ▁, what it does not know is spelled in bytes."""
    words = ["<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁cat", "▁", "s"]
    raw = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=[], byte_fallback=True))
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


def bytes_of(tokenizer, text: str) -> list[int]:
    """The tokens that spell a text byte by byte, in either kind of tokenizer."""
    fallback = "<0x00>" in tokenizer.get_vocab()
    pieces = [f"<0x{byte:02X}>" for byte in text.encode()] if fallback else pre_tokenized(text)
    return tokenizer.convert_tokens_to_ids(pieces)


def pre_tokenized(text: str) -> list[str]:
    """The letters by which byte-level tokenizers write the bytes of a text."""
    return list(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0])


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("text", ["日", "é", "🙂 s", "日s本", "s 日"])
def test_a_character_of_several_tokens_is_spelled_once_at_either_edge(make, text):
    tokenizer = make()
    ids = bytes_of(tokenizer, text)
    assert len(ids) == len(text.encode()) and spell(tokenizer, ids) == text
    assert spelled_by(tokenizer, ids, text) == len(ids)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_response_that_the_limit_cuts_inside_a_character_ends_before_it(make, missing):
    tokenizer = make()
    ids = bytes_of(tokenizer, "日🙂")[:-missing]
    assert spell(tokenizer, ids) == "日"
    assert spelled_by(tokenizer, ids, "日") == 3
    raw = Response("日", ids, [-1.0] * len(ids), "length")
    assert Sampling(strip=True, truncate_at=["日"]).clean(raw, tokenizer) == Response("", [], [], "marker")


def test_a_response_that_begins_inside_a_character_says_so(tokenizer):
    assert spell(tokenizer, bytes_of(tokenizer, "日s")[1:]) == "\ufffd\ufffds"  # two of its three bytes


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_a_text_is_what_vllms_own_stream_spells(make):
    from tokenizers.decoders import DecodeStream

    tokenizer = make()
    prompt = tokenizer("s", add_special_tokens=False)["input_ids"]
    for text in ("日本 s🙂", "🙂", "s日"):
        for length in range(1, len(text.encode()) + 1):
            ids, stream = bytes_of(tokenizer, text)[:length], DecodeStream(ids=prompt, skip_special_tokens=True)
            theirs = "".join(filter(None, (stream.step(tokenizer.backend_tokenizer, token) for token in ids)))
            assert spell(tokenizer, ids) == theirs
