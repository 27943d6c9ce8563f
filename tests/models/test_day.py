"""A run has one day, on which it began or which its recipe gives: chat templates write it, whatever the clock says."""

import datetime
import json
from pathlib import Path

import pytest
import worlds

from raft.config import recipe
from raft.core.errors import UserError
from raft.models import jinja
from raft.pipeline import score_file
from raft.store.replay import continued

RULE = ["reward.function=length"]  # one of raft's own: a module of a recipe can have its name only once in a process


@pytest.fixture
def clock(monkeypatch):
    """Sets the day of the machine."""

    def set_to(day: str) -> None:
        class Fixed(datetime.date):
            @classmethod
            def today(cls):
                return datetime.date.fromisoformat(day)

        monkeypatch.setattr(jinja, "date", Fixed)

    return set_to


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A recipe."""
    return worlds.make_recipe(tmp_path)


def opened(loaded: recipe.Loaded):
    """The run of a recipe, in which nothing is made."""
    return continued(loaded, lambda run: None)


def written() -> str:
    return jinja.write("{{ strftime_now('%d %b %Y') }}", "it", {})


def test_a_run_that_goes_on_after_midnight_writes_the_day_on_which_it_began(tmp_path: Path, file, monkeypatch, clock):
    monkeypatch.chdir(tmp_path)
    loaded = recipe.load(file, RULE)
    clock("2024-02-29")
    with opened(loaded) as run:
        assert written() == "29 Feb 2024"
    clock("2024-03-01")
    with opened(loaded):
        assert written() == "29 Feb 2024"
    assert written() == "01 Mar 2024"
    assert json.loads((run.folder / "run.json").read_text())["date"] == "2024-02-29"


def test_a_recipe_can_give_the_day(tmp_path: Path, file, monkeypatch, clock):
    monkeypatch.chdir(tmp_path)
    clock("2024-03-01")
    with opened(recipe.load(file, [*RULE, "date=2020-01-02"])):
        assert written() == "02 Jan 2020"
    with pytest.raises(UserError, match=r"date: .* is no day; write it as 2026-01-31"):
        recipe.load(file, [*RULE, "date=yesterday"])


def test_scores_that_are_continued_have_the_day_of_the_first_call(tmp_path: Path, clock):
    scores = tmp_path / "out.jsonl"
    clock("2024-03-01")
    assert score_file._day(scores) == "2024-03-01"
    (tmp_path / "out.jsonl.partial").write_text('{"hash": "x", "key": {}, "day": "2024-02-29"}\n')
    assert score_file._day(scores) == "2024-02-29"
