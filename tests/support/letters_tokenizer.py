"""A tokenizer of characters with the marks of a chat, and what is asked and answered with it."""

from raft.core.records import Prompt

BOS, EOS, USER, ASSISTANT, SYSTEM = "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"
TURNS = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>\n' }}{% endfor %}"
ASK = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
BARE, WITH_BOS = TURNS + ASK, "{{ bos_token }}" + TURNS + ASK
ASKED = Prompt("p", messages=[{"role": "user", "content": "How are you today?"}])
STORY = Prompt("p", text="Once upon a time")
ANSWER = "Very well, thank you!"


def make(template: str | None = BARE, adds_bos: bool = False, adds_eos: bool = False, blank: str | None = None):
    """A tokenizer of characters; `blank` is how one of SentencePiece's kind writes a blank before a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = [BOS, EOS, USER, ASSISTANT, SYSTEM]
    letters = [*specials, "<unk>", "▁", *map(chr, range(32, 127)), "\n", "ou", "▁a"]
    merges = [("o", "u"), ("▁", "a")]
    pieces = Tokenizer(models.BPE({one: at for at, one in enumerate(letters)}, merges, unk_token="<unk>"))
    if blank:
        pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=blank, split=False)
        pieces.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        pieces.decoder = decoders.Fuse()
    pieces.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in specials])
    frame = [*[BOS] * adds_bos, "$A", *[EOS] * adds_eos]
    pieces.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[(BOS, 0), (EOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token=BOS, eos_token=EOS, unk_token="<unk>", chat_template=template
    )
