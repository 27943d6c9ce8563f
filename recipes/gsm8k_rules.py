"""The reward of recipes/qwen3-1.7b-gsm8k.yaml: whether a response ends in the right number."""

from dataclasses import replace

from raft.core.records import Prompt
from raft.rewards.rules import exact_answer

MARK = "####"  # GSM8K writes the answer behind it, at the end of a worked solution


def correct(prompt: Prompt, response: str, field: str = "answer") -> float:
    """1.0 if the last number of the response is the one behind the mark in `prompt.meta[field]`, else 0.0."""
    _, mark, reference = prompt.meta[field].rpartition(MARK)
    if not mark:
        raise ValueError(f"prompt {prompt.id} has no {MARK} in its meta field {field!r}")
    return exact_answer(replace(prompt, meta={field: reference.strip()}), response, field)
