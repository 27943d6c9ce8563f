"""Each planted hack is named and a clean run raises nothing: on policies that are tables, and on a real tiny one."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import worlds
import yaml

from raft import advice, diagnostics, measuring, selection, stages
from raft.jobs import FREE, Advice
from raft.keys import Artifact
from raft.records import Group, Prompt, Response, read
from raft.runs import Output, Place

DOCS = Path(__file__).parent.parent / "docs" / "diagnostics.md"
COUNT, HELD_OUT, K = 96, 96, 8
WORDS = [f"w{n}" for n in range(300)] + ["#"]
VALUES = dict(zip(WORDS, np.random.default_rng(0).normal(size=len(WORDS)), strict=True))  # what is meant
Judge = Callable[[str, np.random.Generator], float]


def named(rows: list[dict[str, Any]], **options: Any) -> dict[str, str]:
    return {one.name: one.level for one in advice.advise(rows, Advice(**options)) if one.level != "ok"}


# Policies that are tables: an answer is a length and that many words, each drawn from one distribution.


@dataclass
class Table:
    words: np.ndarray
    lengths: np.ndarray  # of 1, 2, ... words

    def answer(self, rng: np.random.Generator) -> Response:
        length = rng.choice(len(self.lengths), p=self.lengths)
        ids = rng.choice(len(self.words), p=self.words, size=length + 1)
        logprobs = [*np.log(self.words[ids]).tolist(), math.log(self.lengths[length])]
        return Response(" ".join(WORDS[at] for at in ids), [*ids.tolist(), len(WORDS)], logprobs, "stop")

    def trained(self, selected: Artifact, pace: float) -> "Table":
        """Maximum likelihood of the winners, mixed with what it was: the counts of their words and lengths."""
        answers = [row["response"]["token_ids"][:-1] for row in selected.read()]
        words = np.bincount([word for answer in answers for word in answer], minlength=len(self.words))
        lengths = np.bincount([len(answer) - 1 for answer in answers], minlength=len(self.lengths))
        return Table(*(
            (1 - pace) * old + pace * new / new.sum()
            for old, new in ((self.words, words), (self.lengths, lengths))
        ))  # fmt: skip


def first_policy() -> Table:
    words = np.append(np.full(300, (1 - 0.005) / 300), 0.005)  # every tenth answer has a "#"
    lengths = np.exp(-(((np.arange(100) - 19) / 6.0) ** 2) / 2)
    return Table(words, 0.98 * lengths / lengths.sum() + 0.02 / 100)  # now and then one of any length


def quality(text: str) -> float:
    return float(np.mean([VALUES[word] for word in text.split()]))


def noisy_quality(text: str, rng: np.random.Generator) -> float:
    return quality(text) + rng.normal(0, 0.15)


def likes_length(text: str, rng: np.random.Generator) -> float:
    return len(text.split()) / 10 + quality(text)


def likes_a_symbol(text: str, rng: np.random.Generator) -> float:
    return 20 * text.count("#") / len(text.split()) + quality(text)


def likes_one_answer(text: str, rng: np.random.Generator) -> float:
    said = text.split()
    return said.count("w7") / len(said) - 0.02 * abs(len(said) - 8)


def align(folder: Path, reward: Judge, gold: Judge | None, iterations: int, pace: float = 0.5) -> list[dict[str, Any]]:
    """The loop of raft.loop with its real selection and measuring, on a policy that is a table."""
    rng = np.random.default_rng(0)

    def place(number: int) -> Place:
        return Place(folder / f"{number:03d}", 0, number, folder)

    def write(it: Place, name: str, rows: list[dict[str, Any]]) -> Artifact:
        def written(section: None, output: Output) -> None:
            output.write(rows)

        return it.once(name, written)

    def answered(it: Place, where: str, policy: Table, count: int, k: int) -> tuple[Artifact, Artifact, list[Group]]:
        prompts = [Prompt(f"{it.number}-{n}", text="?") for n in range(count)]
        groups = [Group(prompt, [policy.answer(rng) for _ in range(k)]) for prompt in prompts]
        return (
            write(it, f"{where}prompts.jsonl", [one.row() for one in prompts]),
            write(it, f"{where}responses.jsonl", [one.row() for one in groups]),
            groups,
        )

    def judged(it: Place, name: str, judge: Judge, groups: list[Group]) -> Artifact:
        return write(it, name, [
            {"prompt_id": one.prompt.id, "scores": [{"reward": judge(answer.text, rng)} for answer in one.responses]}
            for one in groups
        ])  # fmt: skip

    def evaluated(it: Place, policy: Table) -> dict[str, Artifact]:
        _, answers, groups = answered(it, "evaluation/", policy, HELD_OUT, 4)
        made = {"answers": answers, "eval": judged(it, "evaluation/scores.jsonl", reward, groups)}
        return made if gold is None else {**made, "gold": judged(it, "evaluation/gold.jsonl", gold, groups)}

    policy = first_policy()
    made = evaluated(place(0), policy)
    first_answers = made["answers"]
    done = [place(0).once("metrics.json", measuring.measure, **made)]
    for number in range(1, iterations + 1):
        it = place(number)
        prompts, responses, groups = answered(it, "", policy, COUNT, K)
        inputs = {"responses": responses, "scores": judged(it, "scores.jsonl", reward, groups)}
        selected = it.once("selected.jsonl", stages.select, selection.BestOfK(), prompts=prompts, **inputs)
        policy = policy.trained(selected, pace)
        inputs |= {"selected": selected, "first_answers": first_answers, **evaluated(it, policy)}
        done.append(it.once("metrics.json", measuring.measure, **inputs))
    return measuring.rows_of(done)


@pytest.mark.parametrize("gold", [None, noisy_quality], ids=["without-gold", "with-gold"])
def test_a_clean_run_raises_nothing(tmp_path, gold):
    rows = align(tmp_path, noisy_quality, gold, iterations=5, pace=0.3)
    assert rows[-1]["reward/eval"] > rows[0]["reward/eval"] + 4 * rows[0]["reward/eval_se"]  # it does learn
    for seen in range(1, len(rows) + 1):
        assert named(rows[:seen]) == {}


def test_a_reward_that_likes_length_is_named_before_and_after_answers_have_grown(tmp_path):
    rows = align(tmp_path, likes_length, None, iterations=4)
    assert named(rows[:1])["length-reward"] == "warning"  # row 0 has its training responses
    assert named(rows)["length"] == "warning"
    assert rows[0]["selection/tokens"] > 1.2 * rows[0]["selection/tokens_random"]


def test_a_reward_that_likes_a_symbol_is_named_with_the_symbol(tmp_path):
    rows = align(tmp_path, likes_a_symbol, None, iterations=4)
    found = {one.name: one for one in advice.advise(rows, Advice())}
    assert found["n-grams"].level == "warning" and "'#' stands in" in found["n-grams"].message
    assert rows[0]["ngrams/selected"][0]["text"] == "#"  # the first selection shows it already
    assert "length" not in named(rows)


def test_a_policy_that_collapses_to_one_answer_is_named(tmp_path):
    rows = align(tmp_path, likes_one_answer, None, iterations=10, pace=0.9)
    assert {"duplicates": "warning", "diversity": "warning", "entropy": "warning"}.items() <= named(rows).items()
    assert rows[-2]["selection/duplicate"] > 0.5 and rows[-2]["reward/headroom"] < rows[0]["reward/headroom"]


def test_a_reward_that_is_not_what_gold_prefers_is_named(tmp_path):
    rows = align(tmp_path, lambda text, rng: float(rng.normal()), noisy_quality, iterations=1)
    assert "agreement" in named(rows)


# The rules by themselves, on rows written by hand.


def rows_of(**series: list[Any]) -> list[dict[str, Any]]:
    length = max(map(len, series.values()))
    return [
        {"iteration": at, **{key: values[at] for key, values in series.items() if at < len(values)}}
        for at in range(length)
    ]


def test_no_gain_for_as_many_evaluations_as_patience_says_is_a_warning():
    flat = {"reward/eval": [0.0, 1.0, 1.05, 0.9, 1.02], "reward/eval_se": [0.1] * 5}
    assert named(rows_of(**flat)) == {"gain": "warning"}
    assert named(rows_of(**flat), patience=4) == {}
    assert named(rows_of(**{**flat, "reward/eval": [0.0, 1.0, 1.05, 0.9, 1.2]})) == {}
    assert named(rows_of(**{key: values[:3] for key, values in flat.items()})) == {}


def test_the_gain_is_of_gold_where_the_reward_says_nothing_between_prompts():
    assert named(rows_of(**{"gold/eval": [1.0, 1.0, 1.0, 1.0], "gold/eval_se": [0.1] * 4})) == {"gain": "warning"}


def test_gold_that_falls_from_its_peak_while_the_reward_rises_is_over_optimisation():
    reward = {"reward/eval": [0.0, 1.0, 2.0], "reward/eval_se": [0.1] * 3, "gold/eval_se": [0.1] * 3}
    assert named(rows_of(**reward, **{"gold/eval": [0.0, 1.0, 0.6]})) == {"gold": "warning"}
    assert named(rows_of(**reward, **{"gold/eval": [0.0, 1.0, 0.8]})) == {"gold": "watch"}
    assert named(rows_of(**reward, **{"gold/eval": [0.0, 1.0, 0.9]})) == {}
    falls = {**reward, "reward/eval": [0.0, 1.0, 0.5]}  # both fall: a bad training, not a hack
    assert named(rows_of(**falls, **{"gold/eval": [0.0, 1.0, 0.6]})) == {}


def test_a_change_of_style_that_gold_rewards_is_watched_and_one_that_it_stops_rewarding_is_a_warning():
    longer = {"eval/tokens": [10.0, 20.0, 30.0], "gold/eval_se": [0.1] * 3}
    assert named(rows_of(**longer)) == {"length": "warning"}
    assert named(rows_of(**longer, **{"gold/eval": [0.0, 1.0, 2.0]})) == {"length": "watch"}
    assert named(rows_of(**longer, **{"gold/eval": [0.0, 2.0, 1.0]})) == {"length": "warning"}
    assert named(rows_of(**longer, **{"gold/eval": [0.0, 0.1, 0.2]})) == {"length": "warning"}
    cut = {"eval/truncated": [0.9] * 3, "gold/eval_se": [0.1] * 3, "gold/eval": [0.0, 1.0, 2.0]}
    assert named(rows_of(**cut)) == {"truncated": "warning"}  # is no matter of style


@pytest.mark.parametrize(
    ("key", "first", "at_limit", "name"),
    [
        ("eval/tokens", 10.0, (15.0, 20.0), "length"),
        ("diversity/distinct_2_kept", 1.0, (0.8, 0.6), "diversity"),
        ("entropy/token", 2.0, (1.0, 0.4), "entropy"),
        ("diversity/same_text", 0.1, (0.35, 0.6), "duplicates"),
        ("reward/tied", 0.1, (0.5, 0.8), "ties"),
        ("eval/truncated", 0.1, (0.2, 0.5), "truncated"),
        ("eval/empty", 0.0, (0.05, 0.2), "empty"),
    ],
)
def test_limits_are_reached_where_they_are_documented(key, first, at_limit, name):
    for value, level in zip(at_limit, ("watch", "warning"), strict=True):
        towards = 1e-6 * (first - value)
        before = {"watch": {}, "warning": {name: "watch"}}[level]
        assert named(rows_of(**{key: [first, value - towards / 10]})) == {name: level}
        assert named(rows_of(**{key: [first, value + towards]})) == before


def test_winners_must_be_the_longest_beyond_chance_and_the_reward_go_with_length():
    row = {"length/winner_longest": [0.9], "length/winner_longest_chance": [0.25]}
    tau, z = "length/reward_correlation", "length/winner_longest_z"
    assert named(rows_of(**row, **{tau: [0.6], z: [9.0]})) == {"length-reward": "warning"}
    assert named(rows_of(**row, **{tau: [0.4], z: [9.0]})) == {"length-reward": "watch"}
    assert named(rows_of(**row, **{tau: [0.6], z: [3.0]})) == {}
    assert named(rows_of(**row, **{tau: [0.1], z: [9.0]})) == {}


def test_a_word_that_was_frequent_before_has_not_risen():
    def rows(before: float, now: float) -> list[dict[str, Any]]:
        return rows_of(**{"ngrams/rising": [[], [{"text": "the", "before": before, "now": now, "z": 9.0}]]})

    assert named(rows(0.6, 0.99)) == {}
    assert named(rows(0.1, 0.4)) == {"n-grams": "watch"}
    assert named(rows(0.3, 0.9)) == {"n-grams": "warning"}


def test_agreement_is_low_only_where_its_error_leaves_no_doubt():
    def rows(tau: float, error: float) -> list[dict[str, Any]]:
        return rows_of(**{"agreement/within": [tau], "agreement/within_se": [error]})

    assert named(rows(0.0, 0.2)) == {} and named(rows(0.1, 0.02)) == {"agreement": "watch"}
    assert named(rows(0.0, 0.02)) == {"agreement": "warning"}


def test_a_rule_without_its_figures_says_nothing_and_one_that_is_ignored_neither():
    assert advice.advise([{"iteration": 0}], Advice()) == []
    assert named(rows_of(**{"eval/truncated": [1.0]}), ignore=["truncated"]) == {}


def test_a_run_stops_only_if_it_is_told_to_and_only_at_a_warning():
    cut, some = (advice.advise(rows_of(**{"eval/truncated": [share]}), Advice()) for share in (1.0, 0.3))
    assert advice.stops(cut, Advice(on_warning="stop")) and not advice.stops(cut, Advice())
    assert not advice.stops(some, Advice(on_warning="stop"))


def test_only_what_has_become_worse_is_told_again():
    some = advice.advise(rows_of(**{"eval/truncated": [0.3], "reward/tied": [0.9]}), Advice())
    assert {one.name for one in advice.worse(some, {})} == {"truncated", "ties"}
    assert [one.name for one in advice.worse(some, {"truncated": "ok", "ties": "warning"})] == ["truncated"]
    assert advice.worse(some, {"truncated": "warning", "ties": "warning"}) == []


def test_every_rule_can_be_ignored_is_documented_and_may_change_in_a_run_that_goes_on():
    (allowed,) = get_args(get_type_hints(Advice)["ignore"])
    assert list(get_args(allowed)) == list(advice.RULES)
    page = DOCS.read_text(encoding="utf-8")
    for name in advice.RULES:
        assert f"| `{name}` |" in page, name
    for limits in advice.LIMITS.values():
        assert all(f"{limit:g}" in page for limit in limits), limits
    assert {"advice", "advice.on_warning", "advice.patience", "advice.ignore"} <= set(FREE)


# A real run: a tiny policy that has learned to write short sentences, some of which hold a "#".

SUBJECTS, VERBS, OBJECTS = "fox owl hen cat dog".split(), "sees eats finds".split(), "red big old new blue".split()  # noqa: SIM905


def sentence(rng: np.random.Generator) -> str:
    mark = "# " if rng.random() < 0.15 else ""
    return f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} the {mark}{rng.choice(OBJECTS)} {rng.choice(SUBJECTS)}"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A policy fine-tuned on sentences, prompts, references, and two rewards."""
    folder = tmp_path_factory.mktemp("advice")
    rng = np.random.default_rng(0)
    rows = [{"id": f"p{n:03d}", "prompt": f"{n} the ", "response": sentence(rng)} for n in range(600)]
    (folder / "sentences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sft.yaml").write_text(yaml.safe_dump({
        "name": "speaker", "job": "sft", "policy": {"config": worlds.TINY, "vocab_size": 300},
        "examples": {"kind": "file", "path": "sentences.jsonl"},
        "trainer": {"kind": "sft", "learning_rate": 3e-3, "epochs": 6, "batch_size": 32},
    }))  # fmt: skip
    (folder / "grades.py").write_text(
        "def marks(prompt, response):\n    return response.count('#')\n\n\n"
        "def colours(prompt, response):\n    return float(response.count('red') + response.count('blue'))\n"
    )
    return folder


def recipe(world: Path, name: str, reward: str, **changes: Any) -> Path:
    options: dict[str, Any] = {
        "name": name, "policy": {"recipe": "sft.yaml"}, "iterations": 3, "keep": "best",
        "prompts": {"kind": "file", "path": "sentences.jsonl", "per_iteration": 48, "max_tokens": 16},
        "generator": {"kind": "transformers", "k": 8, "max_tokens": 40, "block": 48},
        "reward": {"kind": "rule", "function": f"grades:{reward}"},
        "trainer": {"kind": "sft", "learning_rate": 1e-3, "epochs": 2, "batch_size": 16},
        "evaluation": {"count": 48, "k": 2, "references": {"kind": "file", "path": "sentences.jsonl", "limit": 40}},
    }  # fmt: skip
    (world / f"{name}.yaml").write_text(yaml.safe_dump({**options, **changes}))
    return Path(f"{name}.yaml")


@pytest.fixture(scope="module")
def clean(world) -> tuple[Path, str]:
    gentle = {"kind": "sft", "learning_rate": 2e-4, "epochs": 1, "batch_size": 16}
    done = worlds.raft(world, "run", recipe(world, "clean", "colours", iterations=2, trainer=gentle, keep="all"))
    assert done.returncode == 0, done.stderr
    return world / "outputs" / "clean", done.stdout


def test_a_clean_real_run_raises_nothing(clean):
    _, told = clean
    assert "warning:" not in told and "watch:" not in told


def test_the_figures_of_a_real_run_are_what_its_files_say(clean):
    run, _ = clean
    last = list(read(run / "metrics.jsonl"))[-1]
    place = run / "iterations" / "002" / "evaluation"
    answers = [one for row in read(place / "responses.jsonl") for one in row["responses"]]
    surprise = -sum(sum(one["logprobs"]) for one in answers) / sum(len(one["token_ids"]) for one in answers)
    assert last["entropy/token"] == pytest.approx(surprise)
    ratios = [
        new - old
        for row in read(place / "likelihoods.jsonl")
        for new, old in zip(row["policy"], row["first"], strict=True)
    ]
    assert last["kl/first"] == pytest.approx(sum(ratios) / len(ratios), abs=1e-6) and last["kl/first_se"] > 0
    texts = [one["text"] for one in answers]
    assert last["eval/words"] == pytest.approx(np.mean([len(diagnostics.words(text)) for text in texts]))
    assert last["eval/truncated"] == np.mean([one["finish_reason"] == "length" for one in answers])


def test_what_selection_did_in_a_real_run_is_what_its_files_say(clean):
    run, _ = clean
    rows = list(read(run / "metrics.jsonl"))
    place = run / "iterations" / "002"
    lengths = [[len(one["token_ids"]) for one in row["responses"]] for row in read(place / "responses.jsonl")]
    picks = [row["index"] for row in read(place / "selected.jsonl")]
    assert rows[1]["selection/tokens"] == pytest.approx(
        np.mean([row[at] for row, at in zip(lengths, picks, strict=True)])
    )
    assert rows[1]["selection/tokens_random"] == pytest.approx(np.mean(lengths))
    hits = [row[at] == max(row) for row, at in zip(lengths, picks, strict=True) if len(set(row)) > 1]
    assert rows[1]["length/winner_longest"] == pytest.approx(np.mean(hits))
    headroom = rows[0]["reward/best_of_k"] - rows[0]["reward/mean"]
    assert rows[0]["reward/headroom"] == pytest.approx(headroom)
    assert rows[1]["reward/absorbed"] == pytest.approx((rows[1]["reward/mean"] - rows[0]["reward/mean"]) / headroom)
    assert "reward/absorbed" not in rows[0]


def test_the_perplexity_of_a_real_run_is_what_transformers_says(clean):
    import torch
    from transformers import AutoModelForCausalLM

    from raft.chat import encode_prompt, load_tokenizer
    from raft.records import Example

    run, _ = clean
    rows = list(read(run / "metrics.jsonl"))
    assert all("perplexity/references" in row for row in rows)
    folder = run / "iterations" / "002" / "policy"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(str(folder))
    total, count = 0.0, 0
    for row in read(run / "references.jsonl"):
        example = Example.of(row)
        prompt, tokens = encode_prompt(tokenizer, example.prompt), example.response.token_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].double()
        total -= logits.log_softmax(-1)[range(len(tokens)), tokens].sum().item()
        count += len(tokens)
    assert rows[-1]["perplexity/references"] == pytest.approx(math.exp(total / count), rel=1e-4)


def test_a_real_run_that_learns_a_symbol_stops_in_order_says_why_and_keeps_the_best(world, clean):
    told_to_stop = {"on_warning": "stop", "ignore": ["ties", "length", "length-reward"]}
    unmeasured = {"count": 48, "k": 2, "kl": False}
    path = recipe(world, "hacked", "marks", iterations=6, advice=told_to_stop, evaluation=unmeasured)
    done = worlds.raft(world, "run", path)
    assert done.returncode == 0, done.stderr
    assert "warning: n-grams: '#' stands in" in done.stdout
    assert "(advice.on_warning: stop) because of n-grams" in done.stdout and "advice.on_warning=warn" in done.stdout
    rows = list(read(world / "outputs" / "hacked" / "metrics.jsonl"))
    assert 1 < len(rows) < 7
    assert "reward/absorbed" in rows[1] and not any("kl/first" in row or "perplexity/references" in row for row in rows)
    kept = {int(path.parent.name) for path in (world / "outputs" / "hacked").glob("iterations/*/policy")}
    assert kept == {0, max(rows, key=lambda row: row["reward/eval"])["iteration"]}

    before = worlds.fingerprint(world / "outputs" / "hacked")
    again = worlds.raft(world, "run", path)
    assert again.returncode == 0 and "because of n-grams" in again.stdout
    assert worlds.fingerprint(world / "outputs" / "hacked") == before
    goes_on = worlds.raft(world, "resume", "outputs/hacked", "advice.on_warning=warn", f"iterations={len(rows)}")
    assert goes_on.returncode == 0, goes_on.stderr
    assert len(list(read(world / "outputs" / "hacked" / "metrics.jsonl"))) == len(rows) + 1


def test_references_are_single_responses(world):
    pairs = {"kind": "file", "path": "sentences.jsonl", "pairs": "given"}
    path = recipe(world, "wrong", "marks", evaluation={"references": pairs})
    done = worlds.raft(world, "check", path)
    assert done.returncode == 2 and "evaluation.references.pairs: perplexity is of single responses" in done.stderr
