"""Runs with text of all kinds, hostile and foreign, and what a page made of them holds."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

from folders import response, write_run

from raft.core import records
from raft.core.records import Group, Pair, Prompt, Score

HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='pwned = 2'><!-- <script>"
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
ARABIC = "كان يا مكان في قديم الزمان، قطة صغيرة اسمها لولو."
OVERRIDE = "evil \u202e reversed \u2066 and \x1b[31m red \U000e0041 tag"


def text(policy: int, prompt: int, index: int) -> str:
    """Of prompt 1 hostile, Japanese, Arabic and invisible text; else words that tell where they are from."""
    odd = [HOSTILE, JAPANESE, ARABIC, OVERRIDE]
    if prompt == 1:
        return odd[index % 4]
    return f'One day policy {policy} met "{prompt}".\nIt was the {"last" if policy == 2 else "first"} word {index}.'


def reward(policy: int, prompt: int, index: int) -> float | None:
    """Prompt 0 is tied, prompt 2 has a response without a reward, prompt 3 gains most."""
    if prompt == 0:
        return 1.0
    if (prompt, index) == (2, 1):
        return None
    return float(policy * (10 if prompt == 3 else 1) + ((index * 3 + prompt) % 7))


def make_run(folder: Path) -> Path:
    """A run of two iterations; whatever a person or a model wrote in it is hostile."""
    write_run(folder, prompts=6, k=4, iterations=2, text=text, reward=reward, question="Tell me of {} <b>".format)
    doctor = [{"reward": "reward", "check": "same_everywhere", "level": "warning", "message": f"look {HOSTILE}"}]
    records.write(folder / "doctor.jsonl", doctor)
    (folder / "resolved.yaml").write_text(f"name: mine\niterations: 2\n# {HOSTILE}\n")
    return folder


def blocks(page: bytes) -> dict[str, bytes]:
    """What is packed in a page, by the name of the block."""
    found = re.findall(rb'<script type="application/octet-stream;base64" id="([^"]+)">([^<]*)</script>', page)
    return {name.decode(): gzip.decompress(base64.b64decode(packed, validate=True)) for name, packed in found}


def facts(page: bytes) -> dict[str, Any]:
    (found,) = re.findall(rb'<script type="application/json" id="facts">([^<]*)</script>', page)
    return json.loads(found)


def packed_groups(page: bytes, key: str) -> list[dict[str, Any]]:
    """The groups of a batch, in the order of its chunks."""
    (batch,) = [one for one in facts(page)["batches"] if one["key"] == key]
    chunks = blocks(page)
    found: list[dict[str, Any]] = []
    for number, start in enumerate(batch["starts"]):
        assert start == len(found)
        found += map(json.loads, chunks[f"chunk-{key}-{number}"].split(b"\n"))
    return found


def make_labelled(run: Path) -> Path:
    """A run of job: label: one prompt, three responses that only compare with each other, one pair."""
    run.mkdir()
    (run / "run.json").write_text('{"job": "label", "seed": 0}')
    made = [response(one, seed) for seed, one in enumerate(("good", "bad", "good"))]
    prompt = Prompt("p", text="which? ")
    records.write(run / "prompts.jsonl", [prompt.row()])
    records.write(run / "responses.jsonl", [Group(prompt, made).row()])
    scores = [Score(0.5, rank=1), Score(-1.0, rank=2), Score(0.6, rank=0)]
    records.write(run / "scores.jsonl", [{"prompt_id": "p", "scores": [one.row() for one in scores]}])
    records.write(run / "selected.jsonl", [Pair("p", made[2], made[1], text="which? ").row()])
    return run
