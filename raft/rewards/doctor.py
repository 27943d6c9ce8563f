"""Whether a reward model says what it should, before a run trusts it: quick checks, each with what to do about it.

The model is the real one, the prompts are the run's own; nothing is trained and nothing is drawn. A fault stops a run,
a warning is printed and kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from raft.core.errors import RowError
from raft.core.records import Group, Prompt, Response
from raft.core.run_paths import RunPaths
from raft.store.stamps import read_stamp

PAIRS = [  # a question, a better and a worse answer; a model that does not distinguish them is read wrongly
    ("What is the capital of France?", "The capital of France is Paris.", "banana banana banana banana"),
    ("How do I boil an egg?", "Put it into boiling water for about eight minutes, then cool it.", "I won't tell you."),
    ("Please thank my colleague for her help.", "Thank you so much for your help, how kind.", "Go away, idiot."),
    ("What is 2 + 3?", "2 + 3 = 5.", "The moon is made of green cheese and so are you and so are you."),
    ("日本の首都はどこですか。", "日本の首都は東京です。", "わかりません。わかりません。わかりません。"),
    ("Name a fruit.", "An apple is a fruit.", "!!!!!! ??? ###"),
]  # fmt: skip
ROUND_TRIP = ["The quick brown fox, 12.5 % of it!", "吾輩は猫である。名前はまだ無い。"]
ANSWERS = ["Yes.", "That depends on what you mean, but I will gladly try to help you with it, step by step."]
REFUSED = "status 4"  # in what is said of a request that the server does not take
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.1}  # of an output, alone or in a batch

Level = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """What a check found: `reward` is the dotted name of the reward model, `message` says what to do."""

    reward: str
    check: str
    level: Level
    message: str

    def row(self) -> dict[str, Any]:
        """As a row of doctor.jsonl."""
        return asdict(self)


@dataclass(frozen=True)
class Answers:
    """How long answers can become: `max_tokens` tokens of the policy's tokenizer."""

    tokenizer: Any
    max_tokens: int

    def longest(self, prompts: Sequence[Prompt]) -> str:
        """A text of as many tokens as an answer can have, in the words of the prompts."""
        ids = self.tokenizer("\n".join(prompt.content for prompt in prompts), add_special_tokens=False)["input_ids"]
        times = -(-self.max_tokens // max(1, len(ids)))
        return self.tokenizer.decode((ids * times)[: self.max_tokens], skip_special_tokens=True)


def examine(
    reward: Any, prompts: Sequence[Prompt], name: str = "reward", answers: Answers | None = None
) -> Iterator[Finding]:
    """The findings on a reward and its members, with a few prompts of the run. Rules have none.

    With `answers` also whether the longest answers of the policy fit what the reward model reads.
    """
    for member, inner in getattr(reward, "members", {}).items():
        yield from examine(inner, prompts, f"{name}.{member}", answers)
    if hasattr(reward, "requests") and getattr(reward, "remote", False) and prompts:
        yield Finding(name, "server", *_server(reward, prompts[0]))
    if hasattr(reward, "runner"):
        prompts, refused = _readable(reward, prompts)
        if refused:
            yield Finding(name, "conversations", "warning" if prompts else "fault", refused)
        if not prompts:
            return
        loaded = (_head, _bos, _round_trip, _padding, _same_everywhere, _tells_apart, _room)
        served = (_served, _bos, _round_trip, _tells_apart, _room)
        for check in served if getattr(reward, "remote", False) else loaded:
            level, message = check(reward, prompts)
            yield Finding(name, check.__name__.strip("_"), level, message)
        if answers is not None and prompts:
            yield Finding(name, "longest_answer", *_longest_answer(reward, prompts, answers))


def findings(reward: Any, prompts: Sequence[Prompt], name: str, answers: Answers | None) -> list[Finding]:
    """`examine` as a list."""
    return list(examine(reward, prompts, name, answers))


def _server(reward: Any, prompt: Prompt) -> tuple[Level, str]:
    """Whether a judge behind a url answers at all: one group of two short responses, before anything is generated."""
    (scores,) = reward.score([Group(prompt, [Response(text, [], None, "stop") for text in ANSWERS])])
    errors = [score.error or "" for score in scores if score.reward is None]
    if len(errors) < len(scores):
        return "ok", f"{reward.model} answers"
    refused = any(REFUSED in error for error in errors)
    return "fault" if refused else "warning", f"{reward.model} rated neither of two short responses: {errors[0]}"


def _readable(reward: Any, prompts: Sequence[Prompt]) -> tuple[list[Prompt], str | None]:
    """The prompts that the reward model's template can write with an answer, and what became of the others."""
    readable, refused = [], []
    for prompt in prompts:
        try:
            reward.encode(prompt, ANSWERS[0])
            readable.append(prompt)
        except RowError as fault:
            refused.append(f"prompt {prompt.id}: {fault}")
    summary = f"{len(refused)} of {len(prompts)} prompts cannot be scored; the first: {refused[0]}" if refused else None
    return readable, summary


def _head(reward: Any, prompts: Sequence[Prompt]) -> tuple[Level, str]:
    runner = reward.runner
    tensors = "read by transformers" if runner.head is None else ", ".join(sorted(runner.head.weights)[:4])
    if len(runner.names) == 1:
        return "ok", f"whole, one output ({tensors})"
    return "ok", f"whole, {len(runner.names)} outputs ({tensors}); the reward is {_read(runner)}"


def _served(reward: Any, prompts: Sequence[Prompt]) -> tuple[Level, str]:
    """Rows alone and together, of a server that has been proved when it was met (`rewards.served`)."""
    rows = _rows(reward, prompts)
    alone = {row: reward.runner.outputs([[row]])[row] for row in rows}
    together = reward.runner.outputs([rows])
    apart = [abs(a - b) for row in rows for a, b in zip(alone[row], together[row], strict=True)]
    return "ok", (
        f"raw outputs by vLLM's server, the same alone and together up to {max(apart, default=0.0):.2g}; the reward is "
        f"{_read(reward.runner)}"
    )


def _rows(reward: Any, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """A few conversations that can be scored, as tokens."""
    rows = {reward.encode(prompt, answer)[0] for prompt in prompts[:3] for answer in ANSWERS}
    return sorted(row for row in rows if reward.fault(row) is None)


def _read(runner: Any) -> str:
    name = runner.names[runner.chosen]
    if runner.reading == "logit":
        return name
    what = {"log-odds": "log p - log(1 - p)", "probability": "the probability"}[runner.reading]
    return f"{what} of {name} among {', '.join(runner.names)} (reward.read: logit takes its output as it is)"


def _bos(reward: Any, prompts: Sequence[Prompt]) -> tuple[Level, str]:
    first = reward.runner.tokenizer.bos_token_id
    if first is None:
        return "ok", "the tokenizer has no BOS"
    counts = {_leading(reward.encode(prompt, ANSWERS[0])[0], first) for prompt in prompts}
    if max(counts, default=0) > 1:
        return "fault", "a conversation begins with more than one BOS; set bos: auto, or fix the template"
    if len(counts) > 1:
        return "warning", "some conversations begin with a BOS and some do not; look at the template"
    return "ok", f"a conversation begins with {max(counts, default=0)} BOS"


def _round_trip(reward: Any, prompts: Sequence[Prompt]) -> tuple[Level, str]:
    tokenizer = reward.runner.tokenizer
    lost = [
        text
        for text in ROUND_TRIP
        if tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() != text
    ]
    if not lost:
        return "ok", "English and Japanese come back whole from the tokenizer"
    return "warning", (
        f"the reward model's tokenizer changes or loses characters of {' and of '.join(map(repr, lost))}, so it "
        "misreads such texts; use another reward model if your prompts or answers contain them"
    )


def _padding(reward: Any, prompts: Sequence[Prompt]) -> tuple[Level, str]:
    tokenizer = reward.runner.tokenizer
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        return "ok", "padding and EOS are the same token; the reward is read by position, so a real EOS counts"
    return "ok", "the reward is read by position, so no token is taken for padding"


def _same_everywhere(reward: Any, prompts: Sequence[Prompt]) -> tuple[Level, str]:
    """One row alone, in a batch, in a shuffled batch, and padded on the other side."""
    runner = reward.runner
    rows = _rows(reward, prompts)
    if len(rows) < 2:
        return "warning", "fewer than two of the first prompts can be read at all; see the check room"
    alone = {row: runner.read_together([row])[0] for row in rows}
    packed = runner.outputs([rows])
    ways = {
        "in a batch": runner.read_together(rows),
        "in a shuffled batch": runner.read_together(rows[::-1])[::-1],
        "as it is scored": [packed[row] for row in rows],
    }
    if runner.takes_positions:
        ways["padded on the left"] = runner.read_padded_left(rows)
    limit = TOLERANCE[str(runner.model.dtype).removeprefix("torch.")]
    for way, batched in ways.items():
        pairs = [
            (a, b) for row, outputs in zip(rows, batched, strict=True) for a, b in zip(alone[row], outputs, strict=True)
        ]
        apart = max(abs(a - b) for a, b in pairs)
        if not apart <= limit * max(1.0, *(abs(a) for a, _ in pairs)):
            return (
                "fault",
                f"a reward {way} differs from the same alone by {apart:.2g}; set dtype: float32, or use another model",
            )
    return "ok", f"the same alone, {', '.join(ways)}"


def _tells_apart(reward: Any, prompts: Sequence[Prompt]) -> tuple[Level, str]:
    groups = [
        Group(prompt, [Response(text, [], None, "stop") for text in answers])
        for prompt, *answers in (asked(reward.template, number) for number in range(len(PAIRS)))
    ]
    scores = [row for row in reward.score(groups) if all(score.reward is not None for score in row)]
    if len(scores) > 1 and len({score.reward for row in scores for score in row}) == 1:
        return (
            "fault",
            f"every answer has the reward {scores[0][0].reward:g}; look at template and head, or take another model",
        )
    right = sum(better.reward > worse.reward for better, worse in scores)
    if right * 2 >= len(scores) and scores:
        return "ok", f"prefers the better answer in {right} of {len(scores)} sanity pairs"
    if (accuracy := _measured_accuracy(Path(reward.model))) is not None:
        return "ok", (
            f"prefers the better answer in {right} of {len(scores)} sanity pairs, which it was not made for; on "
            f"held-out pairs of its own kind its accuracy is {accuracy:.3f}"
        )
    return "warning", (
        f"prefers the better answer in only {right} of {len(scores)} sanity pairs; that is to be expected of a model "
        "trained on other matters (measure it on pairs of its own kind, job: evaluate-reward), else look at template, "
        "label and head"
    )


def _measured_accuracy(model: Path) -> float | None:
    """The accuracy on held-out pairs of a reward model that raft trained, None where it is not known."""
    if read_stamp(model) is None or (stamp := read_stamp(RunPaths(model.parent).metrics)) is None:
        return None
    return stamp["measured"].get("eval/accuracy")


def _room(reward: Any, prompts: Sequence[Prompt]) -> tuple[Level, str]:
    encoded = [reward.encode(prompt, ANSWERS[1]) for prompt in prompts]
    long = sum(len(ids) > reward.limit for ids, _ in encoded)
    cut = sum(gone > 0 for _, gone in encoded)
    others = [fault for ids, _ in encoded if len(ids) <= reward.limit and (fault := reward.fault(ids)) is not None]
    summary = (
        f"of {len(encoded)} prompts with a short answer {long} are too long to be scored, {cut} lose their beginning"
    )
    if others:
        summary += f", {len(others)} cannot be scored for another reason (the first: {others[0]})"
    if not long and not cut:
        return "warning" if others else "ok", summary
    return (
        "warning",
        f"{summary}; raise max_length (the model reads {reward.runner.longest}), or lower prompts.max_prompt_length",
    )


def _longest_answer(reward: Any, prompts: Sequence[Prompt], answers: Answers) -> tuple[Level, str]:
    """Whether answers of `generator.max_tokens` can be scored, in the reward model's own tokens."""
    text = answers.longest(prompts)
    encoded = [reward.encode(prompt, text) for prompt in prompts]
    longest, cut = max(len(ids) for ids, _ in encoded), sum(gone > 0 for _, gone in encoded)
    long = sum(len(ids) > reward.limit for ids, _ in encoded)
    summary = f"an answer of generator.max_tokens: {answers.max_tokens} makes {longest} tokens here with its prompt"
    if not long:
        return "ok", summary + (f"; {cut} of {len(encoded)} prompts lose their beginning to it" if cut else "")
    frame = max(len(reward.encode(prompt, "")[0]) for prompt in prompts)
    fits = max(0, int(answers.max_tokens * (reward.limit - frame) / max(1, longest - frame)))
    return "warning", (
        f"{summary}, more than the {reward.limit} that are read (reward.max_length: {reward.max_length}, the model: "
        f"{reward.runner.longest}), for {long} of {len(encoded)} prompts. Such answers have no reward, and more of "
        f"them than selection.max_failed_fraction stop the run: lower generator.max_tokens to about {fits}"
        + (", or raise reward.max_length" if reward.max_length < reward.runner.longest else "")
        + ("" if reward.truncation == "prompt" else ", or set truncation: prompt")
    )


def _leading(ids: Sequence[int], token: int) -> int:
    count = 0
    while count < len(ids) and ids[count] == token:
        count += 1
    return count


def asked(template: str, number: int) -> tuple[Prompt, str, str]:
    """A question of PAIRS as the template writes it, with its better and its worse answer."""
    question, better, worse = PAIRS[number]
    if template == "plain":
        return Prompt(f"doctor-{number}", text=f"{question}\n"), better, worse
    return Prompt(f"doctor-{number}", messages=[{"role": "user", "content": question}]), better, worse
