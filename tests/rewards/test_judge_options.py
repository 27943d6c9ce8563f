"""The options of kind: judge, without an engine_args: faults, and what of them is in a run's key."""

from pathlib import Path

import pytest
import yaml
from judges import BIASED, FAIR

from raft.core.errors import UserError
from raft.core.registry import build, component
from raft.pipeline.score_file import score_file
from raft.rewards.judge.judge import Judge
from raft.store.keys import describe

WRONG = {
    "url": ({"url": "host:1"}, "not an address"),
    "engine_args": ({"url": "http://h/v1", "engine_args": {"dtype": "auto"}}, "serves itself"),
    "revision": ({"url": "http://h/v1", "revision": "main"}, "serves itself"),
    "engine_args.trust_remote_code": ({"engine_args": {"trust_remote_code": True}}, "decided by the run"),
    "ranking": ({"mode": "grade", "ranking": "challenger"}, "is for mode: pairwise"),
    "lowest": ({"lowest": 0.0}, "is for mode: grade"),
    "highest": ({"mode": "grade", "lowest": 5.0, "highest": 5.0}, "not above lowest"),
    "verdict": ({"mode": "grade", "verdict": r"\d+"}, "takes nothing"),
    "system": ({"format": "text", "system": "x"}, "write it into the template"),
    "stop": ({"stop": [""]}, "match everywhere"),
    "max_tokens": ({"max_tokens": 0}, "at least 1"),
    "max_concurrency": ({"max_concurrency": 0}, "out of range"),
    "format": ({"format": "json"}, "allowed: chat, text"),
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_options_are_told(key):
    options, words = WRONG[key]
    faults = []
    assert build(Judge, {"model": "m", **options}, "reward", faults) is None
    assert [fault.key for fault in faults] == [f"reward.{key}"] and words in faults[0].message


def test_more_faults_of_options(tmp_path):
    faults = []
    build(Judge, {"model": "m", "mode": "grade", "verdict": r"(\d)(\d)"}, "reward", faults)
    assert [fault.message for fault in faults] == ["has 2 groups, but the verdict is one; write the others as (?:...)"]
    (tmp_path / "t.jinja").write_text("{{ a }}")
    faults.clear()
    build(Judge, {"model": "m", "template": str(tmp_path / "t.jinja")}, "reward", faults)
    assert "does not use b" in faults[0].message


NO_TEMPLATE = {"gone.jinja": "no file at .*gone.jinja", "latin.jinja": "latin.jinja: not UTF-8 .*; save the file as"}


@pytest.mark.parametrize("file", NO_TEMPLATE)
def test_a_template_that_cannot_be_read_is_told_with_its_key_and_file(tmp_path: Path, file: str):
    """raft score looks at no files beforehand, so the judge does it by itself."""
    (tmp_path / "latin.jinja").write_bytes("{{ a }} oder {{ b }}, schön".encode("latin-1"))
    (tmp_path / "responses.jsonl").write_text('{"prompt_id": "p", "text": "x", "responses": [{"text": "y"}]}\n')
    judge = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m", "template": str(tmp_path / file)}
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(judge))
    with pytest.raises(UserError, match=rf"reward\.template: .*{NO_TEMPLATE[file]}"):
        score_file(str(tmp_path / "judge.yaml"), tmp_path / "responses.jsonl", tmp_path / "scores.jsonl", None)
    faults = []
    build(Judge, judge, "evaluation.gold", faults, chosen=True)
    assert [fault.key for fault in faults] == ["evaluation.gold.template"]


def test_a_recipe_names_it_and_only_grades_compare_prompts():
    faults = []
    judge = component("reward", {"kind": "judge", "url": "http://h/v1", "model": "m"}, "reward", faults)
    assert isinstance(judge, Judge) and not faults and judge.comparable is False
    assert Judge(url="http://h/v1", model="m", mode="grade").comparable is True


def test_the_key_of_a_run_holds_the_question_and_the_weights_not_where_they_are(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"1")
        (tmp_path / f"{name}.jinja").write_text(FAIR)

    def content(**options) -> dict:
        return describe(Judge(**{"model": str(tmp_path / "one"), "template": str(tmp_path / "one.jinja"), **options}))

    first = content()
    assert content(max_concurrency=1, timeout=1.0, max_retries=0, engine_args={"max_num_seqs": 3}) == first
    assert content(template=str(tmp_path / "two.jinja")) == first
    assert content(model=str(tmp_path / "two"))["content"] == first["content"]
    assert content(template=None)["content"] != first["content"] and content(seed=1) != first
    far = content(model="m", url="http://h/v1")
    assert far == content(model="m", url=["https://other/v1", "http://h/v1"]) and "model" not in far["content"]
    (tmp_path / "one" / "model.safetensors").write_bytes(b"22")
    (tmp_path / "two.jinja").write_text(BIASED)
    assert content()["content"]["model"] != first["content"]["model"]
    assert content(template=str(tmp_path / "two.jinja"))["content"]["template"] != first["content"]["template"]


def test_nothing_is_started_for_no_groups(tmp_path):
    assert list(Judge(model=str(tmp_path / "nowhere")).score([])) == []
