"""Laws on inputs that nobody thought of: whatever is read is understood, or refused with a UserError, and soon."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from raft.config import recipe
from raft.core.errors import UserError
from raft.data.sources import FileRows
from raft.models import packing
from raft.pipeline import selection

FEW = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
GOOD: dict[str, Any] = {
    "name": "x", "policy": {"model": "some/model"},
    "prompts": {"kind": "list", "items": ["a", "b"], "per_iteration": 2},
    "generator": {"kind": "transformers", "k": 2}, "reward": {"kind": "rule", "function": "length"},
    "evaluation": {"count": 1},
}  # fmt: skip
SCALARS = some.one_of(
    some.none(), some.booleans(), some.integers(), some.floats(), some.text(max_size=8),
    some.sampled_from(["${", "${name}", "${.}", "${..x}", "???", "rule", "~", "\ud800", "\0", "a:b", "os:getcwd"]),
)  # fmt: skip
VALUES = some.recursive(
    SCALARS, lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=5), inner, max_size=3)
)
KEYS = some.sampled_from(
    ["name", "seed", "job", "base", "policy", "prompts", "generator", "reward", "selection", "trainer", "evaluation",
     "iterations", "variables", "report_to", "keep_policies", "prompts.items", "generator.k", "generator.stop",
     "reward.args", "trainer.lora", "trainer.args", "evaluation.gold", "policy.recipe"]
)  # fmt: skip


def understood(path: Path, *overrides: str) -> None:
    began = time.monotonic()
    try:
        loaded = recipe.load(path, overrides)
        assert recipe.load(path, overrides).config == loaded.config
    except UserError as fault:
        assert str(fault)
    assert time.monotonic() - began < 10


@FEW
@given(key=KEYS, value=VALUES)
def test_a_recipe_with_any_value_anywhere_is_loaded_or_refused(key: str, value: Any, tmp_path: Path):
    content = json.loads(json.dumps(GOOD))
    *above, last = key.split(".")
    (content[above[0]] if above and above[0] in content else content)[last] = value
    path = tmp_path / "r.yaml"
    path.write_bytes(yaml.safe_dump(content, allow_unicode=True).encode(errors="surrogatepass"))
    understood(path)


@FEW
@given(text=some.one_of(some.text(max_size=60), some.text(alphabet="ab:{}[]&*!?-\n \"'#|>%@`,0", max_size=60)))
def test_any_text_is_a_recipe_or_refused(text: str, tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    understood(path)


@FEW
@given(override=some.one_of(some.text(max_size=20), some.tuples(KEYS, some.text(max_size=12)).map("=".join)))
def test_any_override_is_understood_or_refused(override: str, tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    understood(path, override)


@FEW
@given(
    content=some.one_of(
        some.binary(max_size=80),
        some.lists(some.one_of(VALUES.map(lambda one: json.dumps(one)), some.text(max_size=9)), max_size=4).map(
            lambda lines: "\n".join(lines).encode(errors="surrogatepass")
        ),
    ),
    ending=some.sampled_from(["jsonl", "json", "csv", "tsv", "txt", "jsonl.gz", "jsonl.zst", "parquet"]),
)
def test_any_file_of_rows_is_read_or_refused(content: bytes, ending: str, tmp_path: Path):
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(content)
    try:
        assert all(isinstance(row, dict) for _, row in FileRows(path=str(path)).rows())
    except UserError as fault:
        assert str(fault)


REWARDS = some.integers(1, 5).flatmap(
    lambda k: some.lists(
        some.lists(some.sampled_from([0.0, 0.5, 1.0, -1.0, float("nan")]), min_size=k, max_size=k),
        min_size=1,
        max_size=5,
    )
)


@FEW
@given(rewards=REWARDS, seed=some.integers(0, 99))
@pytest.mark.parametrize(
    "kind",
    [selection.BestOfK(), selection.TopFraction(fraction=0.3), selection.Threshold(minimum=0.5), selection.Softmax(),
     selection.RandomPick(), selection.BestVsWorst(), selection.AllPairs()],
    ids=lambda one: type(one).__name__,
)  # fmt: skip
def test_picks_are_eligible_and_every_group_is_picked_from_or_has_a_reason(kind: Any, rewards: Any, seed: int):
    batch = np.array(rewards)
    picks = kind.pick(batch, np.random.default_rng(seed))
    assert selection.broken(picks, batch) is None
    assert set(picks.prompts.tolist()) | set(picks.reasons) == set(range(len(batch)))
    assert not set(picks.prompts.tolist()) & set(picks.reasons)
    if isinstance(kind, selection.BestOfK):  # by hand
        for group, row in enumerate(rewards):
            known = [(-reward, index) for index, reward in enumerate(row) if reward == reward]
            found = picks.responses[picks.prompts == group].tolist()
            assert found == ([min(known)[1]] if known else [])


@FEW
@given(lengths=some.lists(some.integers(1, 20), min_size=1, max_size=12), capacity=some.integers(20, 40))
def test_packed_rows_hold_every_text_once_and_none_is_over_full(lengths: list[int], capacity: int):
    rows = packing.rows(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(len(row) * max(lengths[index] for index in row) <= capacity for row in rows)
