"""A tiny judge that knows by heart what to say: trained with raft's own trainer on all that the tests ask it."""

from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path

from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from raft.core.records import Example, Group, Prompt, Response
from raft.models.chat_templates import render
from raft.trainers.sft import SFT

WORDS = ["fox", "bee", "elk", "ape", "cat", "dog"]
FAIR, BIASED, MIXED, MUTE = "{{ a }} or {{ b }}", "{{ a }}, {{ b }}", "{{ a }}/{{ b }}", "{{ a }} with {{ b }}"
GRADE, TEXT = "{{ response }}!", "Q: {{ response }}\nScore: "
REPLIES = ["[[A]]", "[[B]]", "[[C]]", "[[A]] no [[B]]", "hm"]
GRADES = {"fox": "so [[7]]", "bee": "[[3]] no [[2.5]]", "elk": "[[99]]", "ape": "[[10]]", "cat": "hm", "dog": "[[-1]]"}
SCORES = {"fox": "8 fine", "bee": "2.5 poor", "elk": "none", "ape": "1 poor", "cat": "9 of 10", "dog": "6"}


def shown(template: str, a: str, b: str) -> str:
    """A pairwise question as the judge reads it."""
    return template.replace("{{ a }}", a).replace("{{ b }}", b)


def mixed(a: str, b: str) -> str:
    """What the judge says without any order in it."""
    return REPLIES[(7 * WORDS.index(a) + 3 * WORDS.index(b) + WORDS.index(a) * WORDS.index(b)) % 5]


def says() -> dict[str, str]:
    """All questions and their answers: fair ones prefer the first in the alphabet."""
    table = {f"{word}!": grade for word, grade in GRADES.items()}
    for a, b in permutations(WORDS, 2):
        table[shown(FAIR, a, b)] = "[[A]]" if a < b else "[[B]]"
        table[shown(BIASED, a, b)] = "[[A]]"
        table[shown(MIXED, a, b)] = mixed(a, b)
        table[shown(MUTE, a, b)] = "hm"
    return table


def group(*texts: str, name: str = "p") -> Group:
    """Responses to one prompt."""
    return Group(
        Prompt(name, messages=[{"role": "user", "content": "?"}]), [Response(t, [], None, "stop") for t in texts]
    )


def brute(template: str, texts: list[str]) -> list[list[float]]:
    """Wins and losses of each response, by asking the table of answers in both orders."""
    table, rows = says(), [[0.0, 0.0] for _ in texts]
    for i, j in combinations(range(len(texts)), 2):
        asked = (shown(template, texts[a], texts[b]) for a, b in ((i, j), (j, i)))
        first, second = (table[question].rpartition("[[")[2][:1] for question in asked)
        for one, other, verdicts in ((i, j, "AB"), (j, i, "BA")):
            if first + second == verdicts:
                rows[one][0] += 1
                rows[other][1] += 1
    return rows


def counts(scores, *names: str) -> list[list[float]]:
    """These parts of each score."""
    return [[score.parts[name] for name in names] for score in scores]


def examples(table: dict[str, str]) -> list[Example]:
    """What it learns: a table of questions, and to continue a text. Answers are ended by the end token."""
    tokenizer = tiny_tokenizer()
    rows = [({"messages": [{"role": "user", "content": question}]}, answer) for question, answer in table.items()]
    rows += [({"text": TEXT.replace("{{ response }}", word)}, answer) for word, answer in SCORES.items()]
    return [_example(tokenizer, number, asked, answer) for number, (asked, answer) in enumerate(rows)]


def _example(tokenizer, number: int, asked: dict, answer: str) -> Example:
    ids = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
    return Example(str(number), Response(answer, ids, None, "stop"), **asked)


def make(folder: Path, table: dict[str, str]) -> Path:
    """The model folder of a judge that knows this part of `says`."""
    tokenizer, start = tiny_tokenizer(), folder / "start"
    model = tiny_model("llama", len(tokenizer))
    for weights in model.parameters():
        weights.data.mul_(0.25 if weights.dim() > 1 else 1)
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    trainer = SFT(
        learning_rate=8e-3,
        num_train_epochs=80,
        batch_size=48,
        lr_scheduler_type="cosine",
        warmup_ratio=0.1,
        packing=False,
    )
    for lesson in range(8):
        if lesson:  # few answers are wrong by now
            trainer = replace(trainer, learning_rate=1e-3, num_train_epochs=20)
        judge = folder / f"judge-{lesson}"
        trainer.train(start, examples(table), judge, lesson, lambda done, total: None, lambda *filters: None)
        if not (wrong := forgotten(judge, table)):
            return judge
        start = judge
    raise AssertionError(f"the judge has not learnt {wrong}")


def forgotten(folder: Path, table: dict[str, str]) -> list[str]:
    """The questions of a chat that the judge does not answer as it has learnt to, by transformers' own generation."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), tiny_tokenizer()
    options = {"max_new_tokens": 20, "do_sample": False, "repetition_penalty": 1.0, "pad_token_id": 0}
    wrong = []
    for question, answer in table.items():
        ids = tokenizer(render(tokenizer, [{"role": "user", "content": question}], ask=True), return_tensors="pt")
        said = model.generate(**ids, **options)[0, ids["input_ids"].shape[1] :]
        wrong += [question] if tokenizer.decode(said).partition("<eos>")[0] != answer else []
    return wrong
