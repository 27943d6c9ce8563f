"""raft ls, cp, options and env: what there is, without looking into the code."""

import dataclasses
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import worlds
import yaml

from raft.cli import catalog, options
from raft.config import recipe
from raft.config.jobs import JOBS
from raft.core import registry
from raft.core.errors import UserError
from raft.core.options import Fault


def test_ls_names_every_recipe_with_its_first_comment_and_every_run_with_its_state(tmp_path: Path):
    worlds.make_recipe(tmp_path, iterations=1)
    assert worlds.raft(tmp_path, "run", "recipe.yaml").returncode == 0
    (tmp_path / "outputs" / "broken").mkdir()
    (tmp_path / "outputs" / "broken" / "run.json").write_text("[")
    done = worlds.raft(tmp_path, "ls")
    assert done.returncode == 0, done.stderr
    for name in recipe.shipped():
        assert re.search(rf"^  {re.escape(name)} +\w", done.stdout, re.MULTILINE), name
    assert "The whole loop on a toy task" in done.stdout
    assert re.search(r"outputs/tiny +align +iteration 1  reward/eval -?[0-9.]+  best: iterations/00", done.stdout)
    assert re.search(r"outputs/broken +damaged: ", done.stdout)


@pytest.mark.parametrize("name", ["quickstart", "arithmetic", "tinystories"])  # each with Python beside it
def test_a_copied_recipe_is_whole_where_it_was_copied_to(name: str, tmp_path: Path):
    copied = catalog.copy(name, tmp_path)
    assert tmp_path / f"{name}.yaml" in copied and all(file.parent == tmp_path for file in copied)
    script = f"from raft.config import recipe; from pathlib import Path; recipe.load(Path('{name}.yaml'))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0 or "variables.data" in done.stderr, done.stderr  # data that the user brings
    assert catalog.copy(name, tmp_path) == copied  # nothing there was changed
    copied[-1].write_text("mine\n")
    with pytest.raises(UserError, match=f"{copied[-1].name} already exists and is not overwritten"):
        catalog.copy(name, tmp_path)
    assert copied[-1].read_text() == "mine\n"


def test_only_files_beside_a_recipe_are_copied_with_it(tmp_path: Path):
    (tmp_path / "data.jsonl").write_text("{}")
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "here" / "below" / "b.py").write_text("")
    words = f"{tmp_path}/data.jsonl ../data.jsonl below/b.py rules:f page.jinja"
    (tmp_path / "here" / "r.yaml").write_text(f"# {words}\nname: r\n")
    for name in ("rules.py", "page.jinja", "other.py"):
        (tmp_path / "here" / name).write_text("")
    (tmp_path / "to").mkdir()
    copied = catalog.copy(str(tmp_path / "here" / "r.yaml"), tmp_path / "to")
    assert {file.name for file in copied} == {"r.yaml", "rules.py", "page.jinja"}


def test_every_recipe_can_be_copied(tmp_path: Path):
    for name in recipe.shipped():
        (tmp_path / name).mkdir()
        assert catalog.copy(name, tmp_path / name)[0].exists()


def test_a_recipe_is_copied_to_a_file_of_another_name_with_what_it_needs_beside_it(tmp_path: Path):
    names = {file.name for file in catalog.copy("quickstart", tmp_path / "my.yaml")}
    assert names == {"my.yaml", "quickstart-policy.yaml", "quickstart-reward.yaml", "acorn_cafe.py"}
    with pytest.raises(UserError, match="there is no such folder"):
        catalog.copy("quickstart", tmp_path / "nowhere" / "my.yaml")


def test_options_lists_every_option_of_every_kind_and_job():
    classes = dict(JOBS)
    for section, kinds in registry.TABLE.items():
        classes |= {f"{section}.{kind}": registry.find(section, kind) for kind in kinds}
        assert [line.split(":")[0] for line in options.listed(section)] == [f"{section}.{kind}" for kind in kinds]
    for name, cls in classes.items():
        lines = list(options.listed(name))
        for item in dataclasses.fields(cls):
            assert any(line.startswith(f"  {item.name} ") for line in lines) == item.init, (name, item.name)
    head = next(line for line in options.listed("reward.model") if line.startswith("  head "))
    assert "auto, quantile" in head and "(default: auto)" in head
    assert set(options.listed(None)) >= {"jobs: " + ", ".join(JOBS)}
    with pytest.raises(UserError, match=r"did you mean reward\.judge\?"):
        list(options.listed("reward.juge"))


def test_options_says_of_a_key_what_it_takes_in_each_class_that_has_it():
    for section in registry.TABLE:
        assert list(options.listed(f"{section}.kind")) == list(options.listed(section))
    (gold,) = options.listed("evaluation.gold")
    assert gold.startswith("evaluation.gold: a section with kind: model,") and gold.endswith("(default: null)")
    rates = dict(line.split(": ", 1) for line in options.listed("trainer.learning_rate"))
    assert rates["trainer.dpo.learning_rate"] == "a number  (default: 1e-06)"
    assert rates.keys() == {f"trainer.{kind}.learning_rate" for kind in registry.TABLE["trainer"]}
    assert list(options.listed("reward.model.max_length")) == [
        "reward.model.max_length: a whole number  (default: 2048)"
    ]
    assert len(list(options.listed("seed"))) == len(JOBS)
    for wrong, meant in (
        ("sampling.bugdet", "sampling.budget"),
        ("iteration", "iterations"),
        ("trainer.dpo.bta", "trainer.dpo.beta"),
    ):
        with pytest.raises(UserError, match=rf"did you mean {meant}\?"):
            list(options.listed(wrong))


def test_options_list_of_a_job_only_the_kinds_that_its_check_takes():
    rule, examples = (
        {"kind": "rule", "function": "length"},
        {"kind": "list", "items": [{"prompt": "a", "response": "b"}]},
    )
    align = {"prompts": {"kind": "list", "items": ["a"]}, "generator": {"kind": "vllm"}, "reward": rule}
    pairs = {**examples, "pairs": "columns"}
    needs = {
        "distillation": {"teacher": "t"},
        "top-fraction": {"fraction": 0.5},
        "threshold": {"minimum": 1.0},
        "expected-best": {"n": 2},
    }
    jobs: dict[str, tuple[str, dict[str, object]]] = {
        "align": ("trainer", {**align, "selection": {"kind": "best-of-k"}}),
        "sft": ("trainer", {"examples": examples}),
        "reward-model": ("trainer", {"examples": pairs}),
        "label": ("selection", align),
    }
    refused = {}
    for job, (section, rest) in jobs.items():
        line = next(line for line in options.listed(job) if line.startswith(f"  {section} "))
        taken = line.partition("kind: ")[2].partition("  (")[0].split(", ")
        refused[job] = set(registry.TABLE[section]) - set(taken)
        for kind in registry.TABLE[section]:
            faults: list[Fault] = []
            recipe = {"name": "x", "policy": {"model": "m"}, **rest, section: {"kind": kind, **needs.get(kind, {})}}
            registry.build(JOBS[job], recipe, "", faults)
            allowed = f"allowed: {', '.join(sorted(taken))}"
            said = any(fault.key == f"{section}.kind" and fault.message.endswith(allowed) for fault in faults)
            assert said == (kind in refused[job]), faults
    assert refused["align"] == {"reward-model"} and refused["sft"] == {"policy-gradient", "reward-model", "dpo", "kto"}
    assert refused["reward-model"] == set(registry.TABLE["trainer"]) - {"reward-model"}
    assert refused["label"] == set(registry.TABLE["selection"]) - {"best-vs-worst", "all-pairs"}


def test_a_selection_of_ones_own_that_says_nothing_of_pairs_is_refused_by_a_job_that_labels(tmp_path, monkeypatch):
    (tmp_path / "only_picks.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Mine:\n    pick = print\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = {"name": "x", "responses": {"path": "r.jsonl"}, "reward": {"kind": "rule", "function": "length"}}
    faults: list[Fault] = []
    registry.build(JOBS["label"], {**recipe, "selection": {"kind": "only_picks:Mine"}}, "", faults)
    assert faults == [Fault("selection.kind", "makes no pairs; allowed: all-pairs, best-vs-worst")]


def test_env_names_what_a_report_of_a_fault_needs(tmp_path: Path):
    done = worlds.raft(tmp_path, "env")
    assert done.returncode == 0, done.stderr
    found = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert found["torch"] == version("torch") and found["raft"] and found["device"] in ("cpu", "cuda")
    assert "cores" in found["processor"] and found["python"].startswith("3.")


def test_the_page_of_options_is_what_the_classes_say():
    """`raft options --markdown > docs/options.md` writes it."""
    page = (Path(__file__).parents[2] / "docs" / "options.md").read_text()
    assert page == "\n".join(options.tables()) + "\n"


def test_the_schema_takes_every_recipe_that_comes_with_raft_and_refuses_unknown_keys_and_kinds():
    validator = jsonschema.Draft202012Validator(options.schema())
    recipes = {name: yaml.safe_load(file.read_text()) for name, file in recipe.shipped().items()}
    assert {name: next(validator.iter_errors(one), None) for name, one in recipes.items()} == dict.fromkeys(recipes)
    good = {"name": "a", "policy": {"model": "m"}, "generator": {"kind": "vllm", "k": 8}}
    assert validator.is_valid(good)
    for bad in (
        {"kind": "vllm", "temprature": 1},
        {"kind": "vlm"},
        {"kind": "vllm", "k": "eight"},
        {"kind": "transformers", "engine_args": {}},  # an option of another kind
    ):
        assert not validator.is_valid({**good, "generator": bad}), bad
    assert not validator.is_valid({**good, "iteratons": 3}) and not validator.is_valid({**good, "job": "aline"})
