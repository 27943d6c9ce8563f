"""What `raft check` sees of a run's data before anything is loaded: rows, rules, templates, all faults at once."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import reward_models
import worlds
import yaml
from tokenizers import Tokenizer

import raft
from raft.config import preflight, recipe
from raft.config.recipe import RecipeError
from raft.core.errors import UserError
from raft.core.run_paths import RunPaths, stamp_path
from raft.pipeline import loop
from raft.pipeline.observer import Observer
from raft.rewards.judge import prompts


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A recipe with 60 prompts."""
    folder = tmp_path_factory.mktemp("made")
    worlds.make_recipe(folder)
    (folder / "rules.py").write_text(
        "import json, time\n"
        "def lacks(prompt, response):\n    return float(prompt.meta['answer'] in response)\n"
        "def parses(prompt, response):\n    return float(json.loads(response)['grade'])\n"
        "def noisy(prompt, response):\n    print('loud')\n    return 1.0 if response else 1 / 0\n"
        "def ends(prompt, response):\n    raise SystemExit(3)\n"
    )
    return folder


def faults(folder: Path, monkeypatch, *overrides: str) -> list[str]:
    """The faults of the recipe with overrides, as key and message."""
    monkeypatch.chdir(folder)
    try:
        with preflight.all_faults():
            preflight.check(recipe.load(folder / "recipe.yaml", overrides))
    except RecipeError as error:
        return [f"{fault.key}: {fault.message}" for fault in error.faults]
    return []


def requests(path: Path, overrides: Sequence[str] = ()) -> list[preflight.Requests]:
    """What the judges of a recipe are asked that has no run yet."""
    return list(preflight.requests(recipe.load(path, overrides).recipe, None))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluation.count=61"], "evaluation.count: 61 prompts are to be held out of 60"),
        (
            ["prompts.per_iteration=53"],
            "prompts.per_iteration: 53 takes 53 different prompts in one iteration",
        ),
        (
            ["reward.function=rules:lacks"],
            "reward.function: raises KeyError: 'answer' (rules.py, line 3)",
        ),
        (["evaluation.gold.function=rules:lacks"], "evaluation.gold.function: raises KeyError: 'answer'"),
    ],
)
def test_what_the_data_say_against_a_recipe_is_a_fault_before_anything_runs(made, monkeypatch, overrides, said):
    found = faults(made, monkeypatch, *overrides)
    assert len(found) == 1 and said in found[0], found


@pytest.mark.parametrize(
    "overrides",
    [
        ["evaluation.count=44"],  # 44 + 16 are all 60
        ["prompts.per_iteration=52"],
        ["evaluation.count=null", "prompts.per_iteration=null"],
        ["reward.function=rules:noisy"],
        ["reward.function=rules:ends"],  # what a rule raises for these responses it may not raise for others
    ],
)
def test_what_may_be_right_is_no_fault(made, monkeypatch, overrides):
    assert faults(made, monkeypatch, *overrides) == []


def test_a_rule_that_refuses_every_tried_response_is_a_warning_for_it_may_like_others(made, monkeypatch):
    monkeypatch.chdir(made)
    (warning,) = preflight.check(recipe.load(made / "recipe.yaml", ["reward.function=rules:parses"]))
    assert warning.startswith("reward.function: raises JSONDecodeError") and "return a number" in warning


def test_best_of_one_warns(made, monkeypatch):
    monkeypatch.chdir(made)
    (warning,) = preflight.foreseen(recipe.load(made / "recipe.yaml", ["generator.k=1"]))
    assert warning.startswith("generator.k: 1: the best of one")


def test_faults_of_options_and_of_files_come_in_one_message(made, monkeypatch):
    found = faults(made, monkeypatch, "generator.kk=2", "policy.model=nosuch", "prompts.prompt_column=promt")
    assert [line.split(":")[0] for line in found] == ["generator.kk", "policy.model", "prompts"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer={learning_rate: -1}"], "command line: trainer.learning_rate: "),
        (["~prompts.path"], "command line: prompts.path: "),
        (["prompts.prompt_column=question"], "recipe.yaml:5, command line: prompts: "),
        (["generator.max_tokens=999"], "recipe.yaml:9, command line: prompts.max_prompt_length: "),
        (["evaluation.k=2", "prompts.path=none.jsonl"], "command line: prompts.path: "),
    ],
)
def test_a_fault_in_which_an_override_has_a_part_is_of_the_command_line(made, monkeypatch, overrides, said):
    monkeypatch.chdir(made)
    with pytest.raises(RecipeError) as refused:
        preflight.check(recipe.load(Path("recipe.yaml"), overrides))
    assert f"\n  {said}" in str(refused.value)


def test_an_override_replaces_the_lines_of_a_list_and_leaves_other_faults_theirs(made, monkeypatch):
    monkeypatch.chdir(made)
    text = (made / "recipe.yaml").read_text()
    Path("tracked.yaml").write_text(f"{text}report_to: [nosuch]\n")
    last = len(text.splitlines()) + 1
    for override, place in (("report_to=none", "command line"), ("generator.k=2", f"tracked.yaml:{last}")):
        with pytest.raises(RecipeError, match=rf"\n  {place}: report_to\[0\]: "):
            recipe.load(Path("tracked.yaml"), [override])


def test_a_conversation_that_the_policys_template_refuses_is_named_with_its_reason(made, monkeypatch, tmp_path):
    worlds.make_recipe(tmp_path)
    template = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('say first who you are') }}{% endif %}x"
    (tmp_path / "base" / "chat_template.jinja").write_text(template)
    (found,) = faults(tmp_path, monkeypatch, "prompts.format=chat")
    assert found.startswith("prompts: prompt p000, a conversation of user,") and "say first who you are" in found
    assert faults(tmp_path, monkeypatch, "prompts.format=chat", "prompts.system=You are a fox.") == []


def test_a_reward_model_whose_template_writes_other_prompts_is_a_fault(made, monkeypatch, tmp_path):
    folder = worlds.make_recipe(tmp_path).parent
    model = "reward={kind: model, model: base, head: token, template: %s}"
    recipe_file = folder / "recipe.yaml"
    recipe_file.write_text(recipe_file.read_text().replace("  function: letters:share\n", ""))
    texts = "reward.template: the prompts are plain text, and chat writes chat messages; use template: plain"
    assert faults(folder, monkeypatch, model % "chat") == [texts]  # the model has no chat template either
    (folder / "base" / "chat_template.jinja").write_text("{{ messages }}")
    assert faults(folder, monkeypatch, model % "chat") == [texts]
    (found,) = faults(folder, monkeypatch, model % "plain", "prompts.format=chat")
    assert found == "reward.template: the prompts are chats, which plain does not write; use template: chat"


def test_numbers_that_are_left_out_fit_the_prompts_and_the_run_says_so(tmp_path):
    worlds.make_recipe(tmp_path, iterations=1, generator={"k": 2}, evaluation={"gold": None, "kl": False})
    done = worlds.raft(tmp_path, "run", "recipe.yaml", "evaluation.count=null", "prompts.per_iteration=null")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs/tiny"
    rows = [len((run / name).read_text().splitlines()) for name in ("evaluation.jsonl", "iterations/001/prompts.jsonl")]
    assert rows == [60 // 4, 60 - 60 // 4]
    assert "15 prompts are held out" in done.stdout + done.stderr
    assert "an iteration draws 45 prompts" in done.stdout + done.stderr
    again = worlds.raft(tmp_path, "run", "recipe.yaml", "evaluation.count=null", "prompts.per_iteration=null")
    assert "nothing to do" in again.stdout and "is not set" not in again.stdout + again.stderr
    ids = [json.loads(line)["id"] for line in (run / "iterations/001/prompts.jsonl").read_text().splitlines()]
    assert len(set(ids)) == 45


def test_a_mixture_that_leaves_its_number_out_draws_as_many_as_the_scarcest_part_allows():
    from raft.data.prompts import draw, drawn_at_once

    parts = [(3.0, 30), (1.0, 5)]
    assert drawn_at_once(parts, None) == 20 and drawn_at_once(parts, 7) == 7
    drawn = draw(parts, 20, seed=0, iteration=1)
    assert [sum(part == at for part, _ in drawn) for at in (0, 1)] == [15, 5]
    assert drawn_at_once([(1.0, 10**6)], None) == 2048


def test_the_requests_of_a_judge_of_given_responses_are_those_of_each_group(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt_id": str(n), "text": "why?", "responses": [{"text": "so"}] * n} for n in (2, 3, 5)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "label.yaml").write_text(
        "job: label\nname: l\nresponses: {path: in.jsonl}\nselection: {kind: all-pairs}\n"
        "reward: {kind: judge, url: 'http://127.0.0.1:1/v1', model: m}\n"
    )
    (asked,) = requests(tmp_path / "label.yaml")
    assert asked.total == 2 * 1 + 3 * 2 + 5 * 4


@pytest.mark.parametrize(
    ("options", "training", "held_out"),
    [
        ({"mode": "pairwise"}, 2 * 16 * (4 * 3), 0),  # every pair in both orders; it says nothing between prompts
        ({"ranking": "challenger"}, 2 * 16 * 2 * 3, 0),
        ({"mode": "grade"}, 2 * 16 * 4, 3 * 8 * 2),  # policies 0, 1 and 2
    ],
)
def test_the_requests_of_a_judge_are_counted_before_the_run_and_a_limit_refuses_more(
    tmp_path, monkeypatch, options, training, held_out
):
    judge = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m", **options}
    gold = {"kind": "rule", "function": "length"}
    worlds.make_recipe(tmp_path, reward=judge, evaluation={"gold": gold})
    monkeypatch.chdir(tmp_path)
    (asked,) = requests(tmp_path / "recipe.yaml")
    # whether it answers: two short responses
    assert asked.left == {"for training": training, "for held-out prompts": held_out, "as a check": 2}
    assert (asked.sent, asked.excess) == (0, "")
    assert asked.read == 64 + 12 * (1 if options.get("mode") == "grade" else 2)  # a prompt, and a response or two
    tokenizer = Tokenizer.from_file(str(tmp_path / "base" / "tokenizer.json"))
    template = prompts.GRADE if options.get("mode") == "grade" else prompts.PAIRWISE
    counted = len(tokenizer.encode(template, add_special_tokens=False).ids)
    assert f"about {counted:,} of its template (by the policy's tokenizer): " in str(asked)
    assert f"about {asked.total * (asked.read + counted):,} in all at most" in str(asked)
    total = training + held_out + 2
    assert faults(tmp_path, monkeypatch, f"reward.max_requests={total}") == []
    (found,) = faults(tmp_path, monkeypatch, f"reward.max_requests={total - 1}")
    assert found.startswith(f"reward.max_requests: {total - 1} requests are allowed") and f"up to {total} (" in found
    assert f"{training} for training, " in found and ("evaluation.count, evaluation.k" in found) == (held_out > 0)


def same_again(folder: Path) -> None:
    """Makes six of the sixty prompts say what six others say."""
    rows = worlds.prompts(60)
    for row, other in zip(rows[54:], rows, strict=False):
        row["prompt"] = other["prompt"].upper()
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_sends_no_more_requests_than_were_counted_where_prompts_say_the_same(tmp_path, monkeypatch):
    worlds.make_recipe(tmp_path, iterations=1, generator={"k": 2}, evaluation={"gold": None, "kl": False})
    same_again(tmp_path)
    left_open = ["seed=6", "evaluation.count=null", "prompts.per_iteration=null"]
    done = worlds.raft(tmp_path, "run", "recipe.yaml", *left_open)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs/tiny"
    held_out, drawn = (
        len((run / name).read_text().splitlines()) for name in ("evaluation.jsonl", "iterations/001/prompts.jsonl")
    )
    assert (held_out, drawn) == (54 // 4, 60 - 54 // 4 - 1)  # one of the thirteen is there twice
    monkeypatch.chdir(tmp_path)
    judge = "reward={kind: judge, url: 'http://127.0.0.1:1/v1', model: m, mode: grade}"
    (tmp_path / "recipe.yaml").write_text(
        (tmp_path / "recipe.yaml").read_text().replace("  function: letters:share\n", "")
    )
    (asked,) = requests(tmp_path / "recipe.yaml", [*left_open, judge])
    assert asked.left["for held-out prompts"] == 2 * 2 * held_out  # policies 0 and 1, two answers to each prompt
    assert 2 * drawn <= asked.left["for training"] == 2 * (60 - 54 // 4)


def test_the_prompts_of_a_label_job_are_counted_for_its_judge(tmp_path, monkeypatch):
    worlds.make_recipe(tmp_path)
    text = (
        "job: label\nname: l\npolicy: {model: base}\nprompts: {kind: file, path: prompts.jsonl}\n"
        "generator: {kind: transformers, k: 4, max_tokens: 4}\n"
        "reward: {kind: judge, url: 'http://127.0.0.1:1/v1', model: m, mode: grade}\n"
    )
    (tmp_path / "label.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    (asked,) = requests(tmp_path / "label.yaml")
    assert asked.total == 60 * 4
    text = text.replace("mode: grade", f"mode: grade, max_requests: {60 * 4 - 1}")
    (tmp_path / "label.yaml").write_text(text)
    (asked,) = requests(tmp_path / "label.yaml")
    assert asked.excess.endswith("raise it, or lower prompts.per_iteration or generator.k")


def test_no_more_prompts_can_be_held_out_than_there_are_different_ones(tmp_path, monkeypatch):
    worlds.make_recipe(tmp_path, prompts={"per_iteration": 2})
    same_again(tmp_path)
    assert faults(tmp_path, monkeypatch, "evaluation.count=54") == []
    (found,) = faults(tmp_path, monkeypatch, "evaluation.count=55")
    assert found.startswith("evaluation.count: 55 prompts are to be held out of 54 different ones")


def test_the_template_of_a_judge_is_estimated_by_its_characters_where_no_tokenizer_is_here(tmp_path, monkeypatch):
    (tmp_path / "question.jinja").write_text("{{ response }} or {{ prompt }}?!")  # 32 characters
    judge = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m", "mode": "grade"}
    worlds.make_recipe(tmp_path, reward={**judge, "template": "question.jinja"}, evaluation={"gold": None})
    (tmp_path / "base" / "tokenizer.json").unlink()
    monkeypatch.chdir(tmp_path)
    (asked,) = requests(tmp_path / "recipe.yaml")
    assert "about 8 of its template (by 4 characters to a token)" in str(asked)


def test_a_run_compares_its_own_numbers_with_the_limit_before_the_first_request(tmp_path, monkeypatch):
    judge = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m", "mode": "grade", "max_requests": 60 * 4}
    worlds.make_recipe(tmp_path, iterations=1, reward=judge, evaluation={"gold": None, "count": None})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        loop.run(recipe.load(tmp_path / "recipe.yaml", ["prompts.per_iteration=null"]), Observer())
    # 45 prompts with 4 responses each, 15 held out with 2 answers of 2 policies each, and 2 requests as a check
    assert str(refused.value).startswith(
        "reward.max_requests: 240 requests are allowed, and the run would send up to 242"
    )
    assert not (tmp_path / "outputs/tiny/doctor.jsonl").exists()


def test_a_limit_counts_what_is_finished_but_refuses_no_run_that_has_nothing_left_to_ask(tmp_path, monkeypatch):
    judge = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m", "mode": "grade"}
    worlds.make_recipe(tmp_path, reward=judge, evaluation={"gold": None})
    whole = 2 + 2 * 16 * 4 + 3 * 8 * 2  # the check, two iterations, policies 0, 1 and 2
    run = RunPaths(tmp_path / "outputs" / "tiny")
    first, second = run.iteration(0), run.iteration(1)
    for file in (run.doctor, first.evaluation.scores, second.scores, first.evaluation.responses):
        file.parent.mkdir(parents=True, exist_ok=True)
        stamp_path(file).write_text("{}")
    stamp_path(run.doctor).write_text(json.dumps({"key": {"section": {"reward": {}}}}))
    finished = 2 + 16 * 4 + 8 * 2
    (found,) = faults(tmp_path, monkeypatch, f"reward.max_requests={whole - 1}")
    left = f"would send up to {whole - finished} more, after {finished} for what is finished ("
    assert left in found and faults(tmp_path, monkeypatch, f"reward.max_requests={whole}") == []
    for file in (second.evaluation.scores, run.iteration(2).scores, run.iteration(2).evaluation.scores):
        file.parent.mkdir(parents=True, exist_ok=True)
        stamp_path(file).write_text("{}")
    assert faults(tmp_path, monkeypatch, "reward.max_requests=1") == []
    (found,) = faults(tmp_path, monkeypatch, f"reward.max_requests={whole}", "iterations=3")
    assert f"up to {16 * 4 + 8 * 2} more, after {whole} for what is finished" in found
    (found,) = faults(tmp_path, monkeypatch, "reward.max_requests=1", "evaluation.every=3", "iterations=4")
    assert f"up to {2 * 16 * 4 + 2 * 8 * 2} more, after {whole} for what is finished" in found  # 1 and 2 stay
    for it in (first, second):  # a branch has not sent what its run did
        it.folder.rename(tmp_path / f"parent-{it.number}")
        it.folder.symlink_to(tmp_path / f"parent-{it.number}")
    run.about.write_text(json.dumps({"shared": ["iterations/000", "iterations/001"]}))
    assert faults(tmp_path, monkeypatch, "reward.max_requests=1") == []
    (found,) = faults(tmp_path, monkeypatch, "reward.max_requests=1", "iterations=3")
    own = 2 + 16 * 4 + 8 * 2
    assert f"would send up to {16 * 4 + 8 * 2} more, after {own} for what is finished" in found


def test_what_a_round_has_sent_is_not_counted_again_for_the_rest_of_its_iteration(tmp_path, monkeypatch):
    judge = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m", "mode": "grade"}
    rounds = {"kind": "until-success", "rounds": [1, 3], "success": 8.0}
    worlds.make_recipe(tmp_path, iterations=1, reward=judge, evaluation={"gold": None}, sampling=rounds)
    monkeypatch.chdir(tmp_path)
    loaded = recipe.load(tmp_path / "recipe.yaml")
    (before,) = preflight.requests(loaded.recipe, loaded.folder)
    first = RunPaths(loaded.folder).iteration(1).round(1).scores
    first.parent.mkdir(parents=True)
    stamp_path(first).write_text(json.dumps({"requests": {"": 16}}))
    (after,) = preflight.requests(loaded.recipe, loaded.folder)
    assert before.left["for training"] == 16 * 4 and after.left["for training"] == 16 * 3
    assert (after.sent, after.total, after.certain) == (16, before.total, True)


@pytest.mark.parametrize(
    ("section", "repeats", "said"),
    [
        ({"response": "text"}, 60, "the response begins with the prompt"),
        ({"response": "text"}, 30, ""),
        ({"response": "text", "prefix": "Tell me: "}, 60, "the response begins with the prompt"),
        ({"response": "text", "format": "chat", "system": "Be brief."}, 60, "the response begins with the prompt"),
        ({"response": "text", "prompt_column": None}, 60, ""),
        ({"pairs": "columns", "chosen": "text", "rejected": "other"}, 60, "the two answers begin with the prompt"),
    ],
)
def test_answers_that_begin_with_their_prompt_are_warned_of(tmp_path, monkeypatch, section, repeats, said):
    worlds.make_recipe(tmp_path)
    rows = [(f"the fox {n} ", "ran away." if n >= repeats else f"the fox {n} ran away.") for n in range(60)]
    lines = [json.dumps({"prompt": prompt, "text": text, "other": f"{text} no"}) for prompt, text in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    job = "reward-model" if "pairs" in section else "sft"
    content = {"job": job, "name": "s", "policy": {"model": "base"}}
    content["examples"] = {"kind": "file", "path": "rows.jsonl", "format": "text", **section}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**content, "trainer": {"kind": job}}))
    monkeypatch.chdir(tmp_path)
    warnings = preflight.at_start(recipe.load(tmp_path / "s.yaml"))
    assert [one for one in warnings if one.startswith("examples: ")] == (
        [f"examples: in 60 of the first 60 rows {said}, so the prompt would appear twice; remove it from there"
         + (", or set examples.prompt_column: null, which learns from whole texts" if job == "sft" else "")]
        if said else []
    )  # fmt: skip


@pytest.mark.parametrize("place", ["candidates.other", "evaluation.references"])
def test_given_responses_that_begin_with_their_prompt_are_warned_of_too(tmp_path, monkeypatch, place):
    rows = {"kind": "file", "path": "rows.jsonl", "format": "text", "response": "text"}
    section = {"candidates": {"other": rows}} if "other" in place else {"evaluation": {"references": rows}}
    worlds.make_recipe(tmp_path, **section)
    lines = [json.dumps({"prompt": f"the fox {n} ", "text": f"the fox {n} ran away."}) for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    warnings = preflight.at_start(recipe.load(tmp_path / "recipe.yaml"))
    assert [one for one in warnings if one.startswith(place)] == [
        f"{place}: in 60 of the first 60 rows the response begins with the prompt, so the prompt would "
        "appear twice; remove it from there"
    ]


def test_what_the_hub_does_not_answer_for_is_a_warning_from_python_too(tmp_path, monkeypatch):
    made = worlds.make_recipe(tmp_path, policy={"model": "owner/name"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert "policy.model: model owner/name was not checked: the hub did not answer" in raft.check(made)


DIALOGUE = {"chosen": "\n\nHuman: hello\n\nAssistant: hi", "rejected": "\n\nHuman: hello\n\nAssistant: no"}
JOBS_OF_EXAMPLES = {
    "plain": ({"job": "reward-model"}, "plain", False, "trainer.template: the pairs are chats, .*template: chat"),
    "plain, and no template": (
        {"job": "reward-model"}, "plain", True, r"trainer.template: the pairs are chats, .*template: hh, ultrarm, or",
    ),
    "no template": (
        {"job": "reward-model"}, "chat", True, r"trainer.template: chat, but bare has no .*template: hh, ultrarm, or",
    ),
    "hh": ({"job": "reward-model"}, "hh", True, ""),
    "its own": ({"job": "reward-model"}, "chat", False, ""),
    "sft": ({"job": "sft"}, None, True, "examples: its rows are chat messages, but bare has no chat template; give"),
    "sft, its own": ({"job": "sft"}, None, False, ""),
}  # fmt: skip


@pytest.mark.parametrize(("job", "template", "bare", "said"), JOBS_OF_EXAMPLES.values(), ids=JOBS_OF_EXAMPLES)
def test_examples_that_no_template_can_write_are_a_fault_before_the_run(
    tmp_path, monkeypatch, job, template, bare, said
):
    worlds.make_policy(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    columns = {"pairs": "hh-rlhf"} if template else {"format": "chat"}
    row = DIALOGUE if template else {"prompt": "hello", "response": "hi"}
    examples = {"kind": "list", "items": [row] * 4, **columns}
    trainer = {"kind": job["job"], **({"template": template} if template else {})}
    content = {**job, "name": "x", "policy": {"model": "bare" if bare else "base"}, "examples": examples}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**content, "trainer": trainer}))
    found = faults(tmp_path, monkeypatch)
    assert len(found) == bool(said) and all(re.match(said, one) for one in found), found


def test_rewards_that_no_template_can_write_for_are_a_fault_of_their_job_too(tmp_path, monkeypatch):
    reward_models.save(tmp_path / "rm", "LlamaForSequenceClassification", **reward_models.SIZE)
    rewards = {"one": {"kind": "model", "model": "rm", "template": "plain"}}
    sets = {"hh": {"kind": "list", "items": [DIALOGUE] * 4, "pairs": "hh-rlhf"}}
    content = {"job": "evaluate-reward", "name": "x", "rewards": rewards, "sets": sets}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    (found,) = faults(tmp_path, monkeypatch)
    assert found.startswith("rewards.one.template: the pairs are chats, which plain does not write; use template: ")
    texts = {"kind": "list", "items": [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 4, "pairs": "columns"}
    for template, wrong in (("pair", False), ("plain", False), ("hh", False), ("ultrarm", True)):
        rewards["one"]["template"] = template
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**content, "rewards": rewards, "sets": {"t": texts}}))
        assert bool(faults(tmp_path, monkeypatch)) == wrong, template
    rewards["one"]["template"] = "plain"
    worlds.make_policy(tmp_path / "base")
    prompts = {"kind": "list", "items": ["hello"], "format": "chat"}
    generator = {"kind": "transformers", "k": 2, "max_tokens": 4}
    content = {"job": "label", "name": "l", "policy": {"model": "base"}, "prompts": prompts, "generator": generator}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**content, "reward": rewards["one"]}))
    (found,) = faults(tmp_path, monkeypatch)
    assert found.startswith("reward.template: the prompts are chats, which plain does not write; use template: ")
