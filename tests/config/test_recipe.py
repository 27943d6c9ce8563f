"""A recipe is checked whole before anything heavy is loaded; every fault names its key, its place and a way out."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raft.config.recipe import RecipeError, find, load
from raft.core.errors import UserError
from raft.core.options import Fault
from raft.core.registry import component
from raft.data.prompts import drawn_at_once
from raft.store.stamps import differences

ROOT = Path(__file__).parents[2]

GOOD = """
name: tiny
policy: {model: some/model}
prompts: {kind: list, items: [one, two], per_iteration: 2}
generator: {kind: transformers, k: 2}
reward: {kind: rule, function: length}
evaluation: {count: 1}
"""


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def faults(folder: Path, text: str, *overrides: str) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        load(write(folder, text), overrides)
    return {fault.key: fault.message for fault in caught.value.faults}


def test_the_defaults_are_those_of_the_reference_experiment(tmp_path):
    recipe = load(write(tmp_path, GOOD.replace(", per_iteration: 2", "").replace(", k: 2", ""))).recipe
    assert (drawn_at_once([(1.0, 10**6)], recipe.prompts.per_iteration), recipe.generator.k) == (2048, 8)
    assert recipe.train_from == "previous"
    assert (recipe.trainer.learning_rate, recipe.trainer.num_train_epochs, recipe.trainer.batch_size) == (2e-5, 2, 32)
    assert type(recipe.selection).__name__ == "BestOfK"


def test_every_fault_is_reported_at_once_with_its_line(tmp_path):
    text = (
        GOOD.replace("k: 2", "k: 0, temprature: 1").replace("kind: rule", "kind: rul")
        + "iteration: 3\nkeep_policies: some\n"
    )
    found = faults(tmp_path, text)
    assert set(found) == {"generator.temprature", "reward.kind", "iteration", "keep_policies"}
    assert "did you mean temperature?" in found["generator.temprature"]
    assert "did you mean rule?" in found["reward.kind"]
    assert "did you mean iterations?" in found["iteration"]
    with pytest.raises(RecipeError, match=r"recipe\.yaml:5: generator\.temprature"):
        load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("generator.k=0", "generator.k", "at least 1|between 1"),
        ("iterations=0", "iterations", "at least 1"),
        ("generator.top_p=0", "generator.top_p", "above 0"),
        ("generator.k=many", "generator.k", "a whole number"),
        ("trainer.learning_rate=fast", "trainer.learning_rate", "a number"),
        ("policy.config.model_type=llama", "policy.model", "exactly one"),
        ("selection.kind=best-vs-worst", "selection.kind", "pairs"),
        ("trainer.kind=reward-model", "trainer.kind", "reward model"),
        ("best_by=gold", "best_by", "evaluation.gold"),
        ("trainer.lr=1", "trainer.lr", r"did you mean learning_rate\?"),
        ("generator.num_return_sequences=2", "generator.num_return_sequences", r"did you mean k\?"),
        ("prompts.per_iteration=all", "prompts.per_iteration", "a whole number or null, found 'all'"),
        ("seeds=[0,1]", "seeds", "raft run RECIPE --seeds 0,1"),
        ("reward.function=my.rewards.names", "reward.function", r"did you mean my\.rewards:names\?"),
        ("reward.kind=rewards.Mine", "reward.kind", r"did you mean rewards:Mine\?"),
        ("trainer.args.learning_rate=1", "trainer.args.learning_rate", "raft sets this itself"),
        ("trainer.args.max_grad_nrm=1", "trainer.args.max_grad_nrm", "did you mean max_grad_norm"),
        ("name=../x", "name", "folder name"),
        ("reward.function=lenght", "reward.function", "did you mean length"),
        (
            "evaluation.references={kind: list, items: [{prompt: a, response: b}], held_out: 1}",
            "evaluation.references.held_out", "all its rows are used; remove it",
        ),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_key_and_what_is_allowed(tmp_path, override, key, words):
    import re

    found = faults(tmp_path, GOOD, override)
    assert key in found and re.search(words, found[key]), found


def test_a_fault_of_an_override_is_placed_on_the_command_line(tmp_path):
    with pytest.raises(RecipeError, match=r"command line: generatr: unknown key; did you mean generator"):
        load(write(tmp_path, GOOD), ["generatr.k=3"])
    with pytest.raises(RecipeError, match=r"command line: generator\.k: 0"):
        load(write(tmp_path, GOOD), ["generator.k=0"])


def test_a_section_that_the_command_line_gives_whole_replaces_that_of_the_recipe(tmp_path):
    text = GOOD + "selection: {kind: best-of-k, minimum: 0.5, filters: [tied]}\n"
    loaded = load(write(tmp_path, text), ["selection={kind: random}", "evaluation.gold={kind: rule, function: length}"])
    assert loaded.config["selection"] == {"kind": "random"}
    assert loaded.config["evaluation"] == {"count": 1, "gold": {"kind": "rule", "function": "length"}}
    assert load(write(tmp_path, text), ["selection={minimum: 1}"]).config["selection"] == {
        "kind": "best-of-k", "minimum": 1, "filters": ["tied"],
    }  # fmt: skip
    with pytest.raises(RecipeError, match=r"command line: selection\.kind: unknown kind 'randon'"):
        load(write(tmp_path, text), ["selection={kind: randon}"])


@pytest.mark.parametrize(
    ("section", "over", "leaves_out", "kept"),
    [
        (
            "selection: {kind: best-of-k, minimum: 0.5, filters: [tied]}",
            "selection.kind=random",
            ["minimum"],
            "filters",
        ),
        ("trainer: {kind: distillation, teacher: x, batch_size: 4}", "trainer.kind=sft", ["teacher"], "batch_size"),
        ("sampling: {kind: expected-gain, budget: 2, first: 1}", "sampling.kind=fixed", ["budget", "first"], None),
        ("launch: {kind: ray, workers: 2}", "launch.kind=local", ["workers"], None),
    ],
)
def test_another_kind_from_the_command_line_keeps_what_it_knows_and_names_the_way_out_of_the_rest(
    tmp_path, section, over, leaves_out, kept
):
    name = section.partition(":")[0]
    found = faults(tmp_path, f"{GOOD}{section}\n", over)
    assert found.keys() == {f"{name}.{key}" for key in leaves_out}
    assert all(message.endswith(f"'~{key}' leaves it out") for key, message in found.items())
    loaded = load(tmp_path / "recipe.yaml", [over, *(f"~{key}" for key in found)])
    assert loaded.config[name].keys() == {"kind", kept} - {None}
    typo = faults(tmp_path, f"{GOOD}{section}\n", over, f"{name}.nix=1")[f"{name}.nix"]
    assert "leaves it out" not in typo and "unknown key" in typo
    assert "leaves it out" not in faults(tmp_path, GOOD.replace("k: 2", "l: 2"))["generator.l"]


def test_an_override_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="write key=value"):
        load(write(tmp_path, GOOD), ["generator.k"])


def test_a_base_is_merged_deeply_and_a_section_of_another_kind_replaces_it(tmp_path):
    write(tmp_path, GOOD, "base.yaml")
    loaded = load(
        write(tmp_path, "base: base.yaml\nname: other\ngenerator: {k: 4}\nreward: {kind: rule, function: repetition}\n")
    )
    assert (loaded.recipe.name, loaded.recipe.generator.k, loaded.recipe.reward.function) == ("other", 4, "repetition")
    assert loaded.config["generator"]["kind"] == "transformers"
    loaded = load(write(tmp_path, "base: base.yaml\nprompts: {kind: file, path: x.jsonl}\n"))
    assert "items" not in loaded.config["prompts"]


def test_where_a_model_comes_from_replaces_what_the_base_says_of_it(tmp_path):
    write(tmp_path, GOOD, "base.yaml")
    (tmp_path / "taught.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    taught = "examples: {kind: file, path: taught.jsonl}\ntrainer: {kind: sft}\n"
    write(tmp_path, f"job: sft\nname: first\npolicy: {{model: base}}\n{taught}", "first.yaml")
    over = write(tmp_path, "base: base.yaml\nname: other\npolicy: {recipe: first.yaml}\n")
    assert load(over).recipe.policy.model.endswith("first/policy")
    beside = write(tmp_path, "base: base.yaml\nname: other\npolicy: {recipe: first.yaml, model: null}\n")
    assert load(beside).recipe.policy.model.endswith("first/policy")


def test_a_recipe_and_a_model_are_one_too_many_and_either_can_be_taken_out(tmp_path):
    (tmp_path / "taught.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    taught = "examples: {kind: file, path: taught.jsonl}\ntrainer: {kind: sft}\n"
    write(tmp_path, f"job: sft\nname: first\npolicy: {{model: base}}\n{taught}", "first.yaml")
    given = ["policy.recipe=first.yaml", "policy.model=other"]
    ways = faults(tmp_path, GOOD, *given)["policy.recipe"].rpartition(": ")[2].split(" or ")
    assert ways == ["policy.recipe=null", "policy.model=null"]
    models = [load(tmp_path / "recipe.yaml", [*given, way]).recipe.policy.model for way in ways]
    assert models[0] == "other" and models[1].endswith("first/policy")


@pytest.mark.parametrize(
    ("job", "override", "key", "words"),
    [
        ("sft", "examples.held_out=3", "examples.held_out", "no effect.*reward-model"),
        ("sft", "examples.pairs=columns", "examples.pairs", r"docs/dpo\.md"),
        ("sft", "trainer.kind=dpo", "trainer.kind", r"job: align.*best-vs-worst.*docs/dpo\.md.*TRL"),
        ("reward-model", "trainer.kind=kto", "trainer.kind", r"job: align.*best-vs-worst.*docs/dpo\.md.*TRL"),
    ],
)
def test_what_a_supervised_job_cannot_do_is_refused_with_the_way_to_what_can(tmp_path, job, override, key, words):
    import re

    examples = "items: [{prompt: a, response: b, chosen: c, rejected: d}]" + (
        "" if job == "sft" else ", pairs: columns"
    )
    text = f"job: {job}\nname: x\npolicy: {{model: base}}\nexamples: {{kind: list, {examples}}}\n"
    found = faults(tmp_path, f"{text}trainer: {{kind: {job}}}\n", override)
    assert re.search(words, found[key]), found


def test_a_base_of_a_base_is_refused(tmp_path):
    write(tmp_path, GOOD, "one.yaml")
    write(tmp_path, "base: one.yaml\n", "two.yaml")
    with pytest.raises(UserError, match="one level"):
        load(write(tmp_path, "base: two.yaml\n"))


def test_interpolation_resolves_and_an_unknown_name_is_refused(tmp_path):
    assert load(write(tmp_path, GOOD + "seed: ${iterations}\niterations: 3\n")).recipe.seed == 3
    with pytest.raises(UserError, match="nothing"):
        load(write(tmp_path, GOOD + "seed: ${nothing}\n"))


FIRST = """
job: sft
name: first
policy: {config: {model_type: llama}}
examples: {kind: list, items: [{prompt: a, response: b}]}
trainer: {kind: sft}
"""


def test_a_needed_recipe_becomes_the_model_that_it_makes_and_gets_the_variables(tmp_path):
    write(
        tmp_path,
        "job: sft\nname: first\nvariables: {size: 1}\n"
        "policy: {config: {model_type: llama}, vocab_size: '${variables.size}'}\n"
        "examples: {kind: list, items: [{prompt: a, response: b}]}\ntrainer: {kind: sft}\n",
        "sft.yaml",
    )
    text = GOOD.replace("{model: some/model}", "{recipe: sft.yaml}") + "variables: {size: 300}\n"
    loaded = load(write(tmp_path, text))
    assert loaded.recipe.policy.model == "outputs/first/policy"
    assert [need.recipe.name for need in loaded.needs] == ["first"]
    assert loaded.needs[0].recipe.policy.vocab_size == 300


def test_a_needed_recipe_without_a_launch_has_that_of_the_recipe_that_needs_it(tmp_path):
    ray = {"kind": "ray", "workers": 2}
    own = {"kind": "ray", "workers": 3}
    write(tmp_path, FIRST, "first.yaml")
    second = FIRST.replace("first", "second").replace("{config: {model_type: llama}}", "{recipe: first.yaml}")
    write(tmp_path, second, "second.yaml")
    recipe = write(tmp_path, GOOD.replace("{model: some/model}", "{recipe: second.yaml}"))
    loaded = load(recipe, ["launch.kind=ray", "launch.workers=2"])
    assert [one.config["launch"] for one in (loaded, *loaded.needs)] == [ray] * 3
    assert [one.recipe.launch.workers for one in loaded.needs] == [2, 2]
    assert all("launch" not in one.config for one in load(recipe).needs)
    write(tmp_path, second + yaml.safe_dump({"launch": own}), "second.yaml")
    loaded = load(recipe, ["launch.kind=ray", "launch.workers=2"])
    assert [one.recipe.launch.workers for one in (loaded, *loaded.needs)] == [2, 3, 3]


def chain(folder: Path, variables: str) -> list[dict[str, Any]]:
    """The variables of a recipe, and of the two that it needs, one through the other."""
    write(folder, FIRST + "variables: {given: {one: 1}, more: '${variables.given}'}\n", "first.yaml")
    needs_it = FIRST.replace("first", "second").replace("{config: {model_type: llama}}", "{recipe: first.yaml}")
    write(folder, needs_it, "second.yaml")
    loaded = load(write(folder, GOOD.replace("{model: some/model}", "{recipe: second.yaml}") + variables))
    assert [need.recipe.name for need in loaded.needs] == ["first", "second"]
    return [one.recipe.variables for one in (loaded, *loaded.needs)]


VALUES = {
    "digits": "007", "null": None, "true": True, "the word true": "true", "a colon": "a: b #c", "quotes": "it's \"so\"",
    "lines": "a\n- b\n", "a list": ["007", 1, None, {"k": "a: b"}], "a mapping": {"two": "2"}, "empty": "",
    "a float": 0.5, "an emoji": "\U0001f600", "control characters": "\x85\x7f\t", "equals": "a=b",
    "a date": "2026-01-01",
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_a_variable_comes_to_a_needed_recipe_with_exactly_its_value_and_type(tmp_path, name):
    found = chain(tmp_path, yaml.safe_dump({"variables": {"given": VALUES[name]}}))
    assert [repr(one["given"]) for one in found] == [repr(VALUES[name])] * 3
    assert found[1]["more"] == VALUES[name]


def test_a_variable_that_looks_like_an_interpolation_comes_to_a_needed_recipe_as_it_is(tmp_path):
    found = chain(tmp_path, r"variables: {given: '\${x} \\\${y} \z', more: '${variables.given}'}")
    assert found[0]["given"] == r"${x} \${y} \z"
    assert [one[name] for one in found for name in ("given", "more")] == [found[0]["given"]] * 6


def test_variables_that_are_no_mapping_are_a_fault(tmp_path):
    assert "expected a mapping" in faults(tmp_path, GOOD + "variables: [1]\n")["variables"]
    write(tmp_path, FIRST + "variables: [1]\n", "first.yaml")
    with pytest.raises(RecipeError, match=r"first\.yaml: 1 fault"):
        text = GOOD.replace("{model: some/model}", "{recipe: first.yaml}")
        load(write(tmp_path, text + "variables: {a: 1}\n"))


def test_a_missing_file_and_a_broken_one_are_named(tmp_path):
    with pytest.raises(UserError, match="no recipe at"):
        find(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=r"recipe\.yaml: not a YAML file"):
        load(write(tmp_path, "a: [1,\n"))
    with pytest.raises(UserError, match="mapping"):
        load(write(tmp_path, "- 1\n"))


def test_differences_name_the_keys():
    assert list(differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2, "d": 4})) == [
        "a.b: was 1, is 3",
        "d: was not given, is 4",
    ]


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_that_we_ship_is_one(file):
    loaded = load(file)
    header = file.read_text().split("\n\n")[0]
    assert loaded.recipe.name and header.startswith("#") and "Run:" in header and "Needs:" in header


@pytest.mark.parametrize("arguments", [["--help"], ["check", "bad.yaml"]])
def test_help_and_the_check_of_a_bad_recipe_import_no_torch(tmp_path, arguments):
    write(tmp_path, GOOD.replace("k: 2", "k: 0"), "bad.yaml")
    script = (
        "import sys\nfrom raft.cli.main import main\nimport os\nos._exit = sys.exit\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    status = end.code or 0\n"
        "heavy = [name for name in ('torch', 'transformers', 'vllm', 'datasets') if name in sys.modules]\n"
        "assert not heavy, heavy\nsys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == (0 if arguments == ["--help"] else 2), done.stderr


@pytest.mark.parametrize(
    ("section", "kind", "old", "new"),
    [
        ("generator", "vllm", "context", "max_model_len"),
        ("generator", "vllm", "engine", "engine_args"),
        ("generator", "transformers", "block", "batch_size"),
        ("reward", "model", "max_tokens", "max_length"),
        ("prompts", "file", "max_tokens", "max_prompt_length"),
        ("prompts", "file", "field", "prompt_column"),
        ("examples", "file", "max_failed", "max_bad_rows_fraction"),
        ("selection", "best-of-k", "max_failed", "max_failed_fraction"),
        ("selection", "best-of-k", "kl", "kl_coef"),
        ("selection", "best-of-k", "drop", "filters"),
        ("trainer", "sft", "schedule", "lr_scheduler_type"),
        ("trainer", "sft", "epochs", "num_train_epochs"),
        ("trainer", "sft", "tokens_per_forward", "max_tokens_per_microbatch"),
    ],
)
def test_an_option_by_its_old_name_is_told_the_new_one(section: str, kind: str, old: str, new: str):
    faults: list[Fault] = []
    component(section, {"kind": kind, old: 1}, section, faults)
    assert any(f.key == f"{section}.{old}" and f"did you mean {new}? allowed: " in f.message for f in faults)


def test_a_refused_run_names_no_command_but_that_which_was_given():
    """It may be `raft resume RUN`, or that with `--from-iteration`, and nothing may be missing."""
    fault = RecipeError(Path("resolved.yaml"), [Fault("generator.k", "0 is out of range")], {}, resumed=Path("run"))
    *_, last = str(fault).splitlines()
    assert last == "repeat the command with KEY=VALUE for each of these, or bring what is missing to its place"
