"""Killed at any moment and continued by the same command, a run ends exactly as if nothing had happened.

Real training. `make test` kills a run with transformers three times, and one with vLLM while it generates; `make
faults` kills runs of both generators over all stages, KILLS times in all (25 if it is not set).
"""

import math
import os
import random
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import worlds

RECIPE = {
    "generator": {"kind": "vllm", "k": 4, "max_tokens": 24},
    "prompts": {"per_iteration": 24},
    "selection": {"kind": "best-of-k", "filters": ["truncated"], "kl_coef": 0.01},
    "keep_policies": "all",
}
COMMAND = ["run", "recipe.yaml"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[[str], Path]:
    """The run that nobody killed, by its generator."""

    @cache
    def made(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        worlds.make_recipe(folder, **recipe(kind))
        finish(folder)
        return folder / "outputs" / "tiny"

    return made


def recipe(kind: str) -> dict[str, Any]:
    return {**RECIPE, "generator": {**RECIPE["generator"], "kind": kind}}  # type: ignore[dict-item]


def state(run: Path) -> frozenset[tuple[str, int]]:
    """Every artifact of a run and its size, finished or not: it changes whenever the run gets on."""
    found = set()
    for place, _, names in os.walk(run):
        for name in names:
            if name.endswith((".log", ".lock", "resolved.yaml", "resolved.yaml.tmp", "progress.json")):
                continue  # every launch writes these before it gets on
            try:
                found.add((os.path.join(place, name), os.stat(os.path.join(place, name)).st_size))  # noqa: PTH116, PTH118
            except FileNotFoundError:
                continue
    return frozenset(found)


def killed(folder: Path, chance: random.Random) -> bool:
    """Runs the command and kills it a random moment after it got on; whether it was killed before its end."""
    run = folder / "outputs" / "tiny"
    before, steps = state(run), chance.randint(1, 20)  # a policy takes about ten: it must get done some time
    process = worlds.Command(folder, *COMMAND)
    deadline = time.monotonic() + 300
    while process.poll() is None and steps:
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.001)
        now = state(run)
        steps -= now != before
        before = now
    time.sleep(chance.choice([0, 0, 0.05, 0.5]) * chance.random())
    process.kill()
    _, error = process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0), error
    return process.returncode != 0


def finish(folder: Path) -> None:
    done = worlds.raft(folder, *COMMAND)
    assert done.returncode == 0, done.stderr


def assert_same(run: Path, undisturbed: Path) -> None:
    found, wanted = worlds.fingerprint(run), worlds.fingerprint(undisturbed)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert len([name for name in wanted if name.endswith("model.safetensors")]) == 2
    assert not list(run.rglob("*.partial")) and not list(run.rglob(".*.tmp"))


@pytest.mark.parametrize(
    "kind", ["transformers", pytest.param("vllm", marks=[pytest.mark.engine, pytest.mark.nightly])]
)
def test_a_run_killed_three_times_ends_as_if_it_had_not_been(kind, undisturbed, tmp_path):
    worlds.make_recipe(tmp_path, **recipe(kind))
    chance = random.Random(3)
    assert [killed(tmp_path, chance) for _ in range(3)] == [True] * 3
    finish(tmp_path)
    assert_same(tmp_path / "outputs" / "tiny", undisturbed(kind))


@pytest.mark.nightly
@pytest.mark.engine
def test_a_run_killed_in_the_middle_of_generation_keeps_what_was_finished(undisturbed, tmp_path):
    worlds.make_recipe(tmp_path, **recipe("vllm"))
    partial = tmp_path / "outputs" / "tiny" / "iterations" / "001" / "responses.jsonl.partial"
    process = worlds.Command(tmp_path, *COMMAND)
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 1):
        time.sleep(0.001)
        assert process.poll() is None
    process.kill()
    process.wait()
    kept = partial.read_bytes()
    assert kept.count(b"\n") > 1
    finish(tmp_path)
    assert_same(tmp_path / "outputs" / "tiny", undisturbed("vllm"))


@pytest.mark.faults
@pytest.mark.engine
@pytest.mark.parametrize("kind", ["vllm", "transformers"])
def test_runs_killed_many_times_over_all_stages_end_as_if_they_had_not_been(kind, tmp_path):
    wanted = math.ceil(int(os.environ.get("KILLS", "25")) / 2)
    (tmp_path / "undisturbed").mkdir()
    worlds.make_recipe(tmp_path / "undisturbed", **recipe(kind))
    finish(tmp_path / "undisturbed")
    chance, kills, places, attempt, began = random.Random(25), 0, set(), 0, time.monotonic()
    while kills < wanted:
        folder = tmp_path / str(attempt)
        folder.mkdir()
        worlds.make_recipe(folder, **recipe(kind))
        while killed(folder, chance):
            kills += 1
            places.add(len(list(folder.rglob("*.stamp.json"))))
        finish(folder)
        assert_same(folder / "outputs" / "tiny", tmp_path / "undisturbed" / "outputs" / "tiny")
        attempt += 1
    seconds = time.monotonic() - began
    print(f"{kind}: {kills} kills in {attempt} runs and {seconds:.0f} s, after {sorted(places)} finished artifacts")
    assert len(places) >= 10
