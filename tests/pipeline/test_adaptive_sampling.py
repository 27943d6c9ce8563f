"""Laws of sampling in rounds: what is spent, what is selected, and that figures stay unbiased."""

import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds

from raft.config import preflight, recipe
from raft.core import records
from raft.core.errors import UserError
from raft.core.records import Prompt, read
from raft.core.run_paths import RunPaths
from raft.metrics import reward_metrics
from raft.metrics.diagnostics import Responses, Training, figures
from raft.pipeline.sampling import ExpectedGain, UntilSuccess, _c4, expected_gains, sample
from raft.pipeline.selection import BestOfK
from raft.store import stamps
from raft.store.keys import Artifact, describe
from raft.store.measuring import MaxFailed, rewards_of
from raft.store.runs import Run

A, B = 0.4, 0.6  # of the Beta distribution of pass rates
RULES = """
def has(prompt, response):
    return float(prompt.meta["letter"] in response.split(" ")[0])
"""
GENERATOR = {"kind": "transformers", "k": 8, "max_tokens": 12, "batch_size": 8}
ADAPTIVE = {
    "generator": GENERATOR,
    "reward": {"kind": "rule", "function": "rules:has"},
    "sampling": {"kind": "until-success", "rounds": [2, 2, 4]},
    "keep_policies": "all",
}
OWN = """
from dataclasses import dataclass
from raft.core.records import Group, Response, Score
@dataclass(frozen=True)
class Elsewhere:
    remote: bool = True
    batch_size: int = 1
    def score(self, groups):
        for group in groups:
            yield [Score(float(group.prompt.meta["letter"] in one.text.split(" ")[0])) for one in group.responses]
@dataclass(frozen=True)
class Numbers:  # which withholds every answer to p003
    k: int = 8
    batch_size: int = 1
    can_continue = True
    def generate(self, policy, prompts, seed):
        for prompt in prompts:
            numbers = range(prompt.drawn or 0, (prompt.drawn or 0) + self.k)
            made = [Response(f"{number}", [number], None, "stop") for number in numbers]
            yield Group(prompt, [Response.missing("no") for _ in numbers] if prompt.id == "p003" else made)
@dataclass(frozen=True)
class Right:  # but what it cannot say of the first two answers to p004
    def score(self, groups):
        for group in groups:
            yield [
                Score(None, error="?") if group.prompt.id == "p004" and int(one.text) < 2 else Score(1.0)
                for one in group.responses
            ]
@dataclass(frozen=True)
class Same:
    k: int = 8
    def generate(self, policy, prompts, seed):
        raise AssertionError
"""


def simulated(sampling: Any, rewards: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The rewards that a sampling sees, NaN where it draws no response, and how many it draws of each prompt."""
    drawn = np.zeros(len(rewards), dtype=int)
    rows, number = np.arange(len(rewards)), 1
    while len(rows) and (each := sampling.each(number, k)):
        drawn[rows] += each
        seen = np.where(np.arange(rewards.shape[1]) < drawn[:, None], rewards, np.nan)
        rows, number = sampling.asked(seen, drawn), number + 1
    return seen, drawn


def test_until_success_spends_the_samples_of_the_closed_form_and_selects_what_k_samples_do():
    """E[sum over j < 8 of (1 - p)^j] for pass rates p ~ Beta(0.4, 0.6), integrated over u with p = u^(1/A)."""
    u = (np.arange(200_000) + 0.5) / 200_000
    beta = math.gamma(A) * math.gamma(B) / math.gamma(A + B)
    failed = [1.0, *(np.mean((1 - u ** (1 / A)) ** (B - 1 + j)) / A / beta for j in range(1, 8))]
    rng = np.random.default_rng(0)
    p = rng.beta(A, B, size=40_000)
    rewards = (rng.random((len(p), 8)) < p[:, None]).astype(float)
    seen, drawn = simulated(UntilSuccess(rounds=[1] * 8), rewards, 8)
    error = drawn.std() / math.sqrt(len(drawn))
    assert abs(drawn.mean() - sum(failed)) < 4 * error
    assert sum(failed) < 0.65 * 8  # what it is for
    for rounds in ([1] * 8, [2, 2, 4], [8]):
        seen, _ = simulated(UntilSuccess(rounds=rounds), rewards, 8)
        picks, whole = (BestOfK().pick(one, np.random.default_rng(0)) for one in (seen, rewards))
        assert np.array_equal(picks.prompts, whole.prompts) and np.array_equal(picks.responses, whole.responses)
    found = UntilSuccess().measured(seen, drawn)
    assert found == {"sampling/responses": drawn.mean(), "sampling/success": rewards.max(axis=1).mean()}


def normal_rewards(seed: int, prompts: int = 512) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(prompts, 1)) + rng.normal(size=(prompts, 32))


@pytest.mark.parametrize("deviations", [0.0, 1.0])
def test_expected_gain_spends_its_budget_and_finds_better_winners_than_as_many_samples_of_each(deviations):
    rng = np.random.default_rng(1)
    scale = rng.lognormal(0.0, deviations, size=(512, 1))
    rewards = rng.normal(size=(512, 1)) + scale * rng.normal(size=(512, 32))
    sampling = ExpectedGain(first=4, budget=8.0, most=24)
    seen, drawn = simulated(sampling, rewards, 24)
    assert drawn.sum() == 8 * 512 and drawn.min() >= 4 and drawn.max() <= 24
    gained = reward_metrics.prompt_best(seen) - rewards[:, :8].max(axis=1)
    assert gained.mean() > 2 * reward_metrics.standard_error(gained)


def test_a_budget_is_the_decimal_that_was_written_and_the_most_binds():
    rewards = normal_rewards(2, prompts=50)
    for budget, most, spent in ((4.7, 32, 235), (6.0, 6, 300), (4.0, 4, 200)):
        _, drawn = simulated(ExpectedGain(first=4, budget=budget, most=most), rewards, most)
        assert drawn.sum() == spent and drawn.max() <= most


def test_the_best_of_eight_is_reached_with_fewer_samples():
    """With as much spread within prompts as between them, 6.8 a prompt are enough (docs/measured.md)."""
    gained = []
    for seed in range(4):
        rewards = normal_rewards(seed)
        seen, _ = simulated(ExpectedGain(first=4, budget=6.8, most=32), rewards, 32)
        gained.append(reward_metrics.best_of_k(seen) - rewards[:, :8].max(axis=1).mean())
    assert np.mean(gained) > 0


def test_the_expected_gain_is_the_integral_over_the_normal_density():
    """Of prompts with so many rewards that nothing is shrunk, and of different spread; by the trapezoidal rule."""
    rng = np.random.default_rng(3)
    rewards = rng.normal([[0.0], [3.0], [1.0]], [[1.0], [0.5], [2.0]], size=(3, 4000))
    x = np.linspace(-15, 15, 300_001)
    for row, gain in zip(rewards, expected_gains(rewards, 4000), strict=True):
        density = np.exp(-(((x - row.mean()) / row.std()) ** 2) / 2) / (row.std() * math.sqrt(2 * math.pi))
        assert gain == pytest.approx(np.trapezoid(np.maximum(0, x - row.max()) * density, x), rel=0.02)


def test_c4_has_the_values_of_the_tables():
    assert _c4(np.array([10, 2, 5])) == pytest.approx([0.9727, 0.7979, 0.9400], abs=5e-5)


def test_shrinking_brings_estimates_nearer_to_the_planted_means():
    """A prompt with a lucky first round is expected to gain more than its own mean says, an unlucky one less."""
    rng = np.random.default_rng(4)
    rewards = rng.normal(size=(4000, 4))  # all prompts are alike: their own means say nothing
    gains, best = expected_gains(rewards, 4), rewards.max(axis=1)
    alike = [np.mean(np.maximum(0, rng.normal(size=100_000) - one)) for one in np.quantile(best, [0.1, 0.5, 0.9])]
    order = np.argsort(best)[[400, 2000, 3600]]
    assert gains[order] == pytest.approx(alike, rel=0.15)


def test_nothing_is_asked_where_nothing_can_be_gained():
    sampling, drawn = ExpectedGain(first=2, budget=4.0, most=8), np.full(3, 2)
    assert len(sampling.asked(np.ones((3, 2)), drawn)) == 0  # every reward is the same
    assert len(sampling.asked(np.full((3, 2), np.nan), drawn)) == 0
    rewards = np.array([[np.nan, np.nan], [0.0, 1.0], [0.5, 2.0]])
    assert not {0} & set(sampling.asked(rewards, drawn).tolist())  # no response of it has a reward


def responses(rewards: np.ndarray) -> Responses:
    none = np.zeros(rewards.shape, dtype=bool)
    texts = [["word"] * rewards.shape[1]] * len(rewards)
    return Responses(
        [str(row) for row in range(len(rewards))], texts, none + 3, none, none, none, none, none, none + 1.0
    )


def test_figures_of_a_policy_are_unbiased_although_groups_stop_at_a_success():
    """The planted pass rates have mean 0.4: the mean over all responses is not that, nor are prompts' means."""
    rng = np.random.default_rng(5)
    p = rng.beta(A, B, size=20_000)
    rewards = (rng.random((len(p), 8)) < p[:, None]).astype(float)
    seen, _ = simulated(UntilSuccess(rounds=[2, 2, 4]), rewards, 8)
    nothing = np.array([], dtype=int)
    known: dict[str, Any] = {"picks": (nothing, nothing), "control": nothing, "ranked": False, "dropped": 0}
    first = rewards[:, :2]
    found = figures(Training(rewards=first, responses=responses(first), whole=responses(rewards), **known))
    error = reward_metrics.standard_error(reward_metrics.prompt_means(seen))
    assert abs(found["reward/mean"] - A) < 4 * error
    assert abs(found["reward/best_of_k"] - np.mean(1 - (1 - p) ** 2)) < 4 * error
    naive = reward_metrics.mean_reward(seen)
    assert naive - A > 8 * error  # and so it is by a stopping rule
    assert "reward/tied" not in found  # two responses are often equal, and nothing is wrong with that


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The same recipe with a fixed K, with a first round alone, and in rounds."""
    folder = tmp_path_factory.mktemp("rounds")
    worlds.make_recipe(folder, **ADAPTIVE, iterations=2)
    (folder / "rules.py").write_text(RULES)
    fixed = ["~sampling", "iterations=1"]
    for words in ([], ["name=fixed", *fixed], ["name=two", "generator.k=2", *fixed]):
        done = worlds.raft(folder, "run", "recipe.yaml", *words)
        assert done.returncode == 0, done.stderr
    return folder / "outputs"


def test_groups_begin_like_those_of_a_fixed_k_and_the_same_responses_are_selected(finished):
    here, there = (RunPaths(finished / name).iteration(1) for name in ("tiny", "fixed"))
    sizes, scores = [], [row["scores"] for row in read(here.scores)]
    for own, whole in zip(read(here.responses), read(there.responses), strict=True):
        sizes.append(len(own["responses"]))
        assert own["prompt_id"] == whole["prompt_id"]
        texts = [[one["token_ids"] for one in row["responses"]] for row in (own, whole)]
        assert texts[0] == texts[1][: sizes[-1]]
    assert len(set(sizes)) > 1 and set(sizes) <= {2, 4, 8}
    best = [max(score["reward"] for score in row) for row in scores]
    assert {size for size, top in zip(sizes, best, strict=True) if top < 1} <= {8}
    picked = [[(row["prompt_id"], row["index"], row["reward"]) for row in read(it.selected)] for it in (here, there)]
    assert picked[0] == picked[1]


def test_figures_are_those_of_the_first_round(finished):
    """With the same seeds that is the run with K = 2."""
    rounds, two = (json.loads(RunPaths(finished / name).iteration(1).metrics.read_text()) for name in ("tiny", "two"))
    same = [name for name in two["previous"] if name.startswith(("reward/", "response/")) and name != "reward/tied"]
    assert len(same) > 8 and [name for name in same if rounds["previous"][name] != two["previous"][name]] == []
    sizes = [len(row["responses"]) for row in read(RunPaths(finished / "tiny").iteration(1).responses)]
    assert rounds["previous"]["sampling/responses"] == np.mean(sizes)
    curve = {}
    for name in ("tiny", "two"):
        done = worlds.raft(finished.parent, "plot", finished / name, "-o", f"{name}.png")
        assert done.returncode == 0, done.stderr
        rows = (finished.parent / f"{name}.csv").read_text().splitlines()
        curve[name] = [row.split(",")[2:] for row in rows if ",0,reward/mean," in row or ",0,reward/best_of_k," in row]
    assert curve["tiny"] == curve["two"] and len(curve["two"]) == 2


@pytest.mark.nightly
def test_all_that_reads_a_run_reads_groups_of_different_sizes(finished):
    folder = finished.parent
    some = next(row["id"] for row in read(RunPaths(finished / "tiny").iteration(1).prompts))
    for command in (
        ["report", "outputs/tiny"], ["show", "outputs/tiny", some], ["export", "outputs/tiny", "--policy", "2"],
        ["plot", "outputs/tiny", "--figure", "all", "-o", "outputs"],
    ):  # fmt: skip
        done = worlds.raft(folder, *command)
        assert done.returncode == 0, done.stderr
    each = json.loads(RunPaths(finished / "tiny").iteration(2).metrics.read_text())["previous"]["sampling/responses"]
    card = (folder / "outputs/tiny-export/README.md").read_text()
    assert f"{each:.4g} on average (sampling: `until-success`, rounds `[2, 2, 4]`, success `1.0`)" in card


@pytest.mark.nightly
def test_a_branch_may_have_another_sampling_than_the_iterations_that_it_shares(finished):
    """What was learned before is then still compared with all rounds, and the mean with the first."""
    done = worlds.raft(finished.parent, "resume", "outputs/tiny", "--from-iteration", "2", "~sampling", "name=branch")
    assert done.returncode == 0, done.stderr
    first, second = (RunPaths(finished / "branch").iteration(number) for number in (1, 2))
    before, now = (np.array(rewards_of(Artifact.finished(it.scores))[0]) for it in (first, second))
    start = reward_metrics.mean_reward(before[:, :2])
    absorbed = (now.mean() - start) / (reward_metrics.best_of_k(before) - start)
    assert json.loads(second.metrics.read_text())["previous"]["reward/absorbed"] == pytest.approx(absorbed)
    assert {len(row["responses"]) for row in read(second.responses)} == {8} and not second.round(1).folder.exists()


def test_a_run_that_is_killed_between_two_rounds_goes_on_to_the_same_bytes(finished, tmp_path):
    worlds.make_recipe(tmp_path, **ADAPTIVE, iterations=1)
    (tmp_path / "rules.py").write_text(RULES)
    it = RunPaths(tmp_path / "outputs" / "tiny").iteration(1)
    for made in (it.round(1).scores, it.round(2).prompts):
        command, until = worlds.Command(tmp_path, "run", "recipe.yaml"), time.monotonic() + 60
        while not stamps.stamp_path(made).exists() and command.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.001)
        command.kill()
        assert command.wait() == -signal.SIGKILL and not it.scores.exists()
    done = worlds.raft(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    here, there = (
        worlds.fingerprint(RunPaths(one / "tiny").iteration(1).folder) for one in (it.folder.parents[2], finished)
    )
    assert here == there and "rounds/003/scores.jsonl" in here


@pytest.mark.nightly
def test_a_reward_that_computes_elsewhere_scores_each_round_as_one_that_does_not(finished, tmp_path):
    worlds.make_recipe(tmp_path, **{**ADAPTIVE, "reward": {"kind": "own:Elsewhere"}}, iterations=1)
    (tmp_path / "own.py").write_text(OWN)
    done = worlds.raft(tmp_path, "run", "recipe.yaml", "evaluation.every=9")
    assert done.returncode == 0, done.stderr
    here, there = (RunPaths(one / "tiny").iteration(1) for one in (tmp_path / "outputs", finished))
    for ours, theirs in ((here.scores, there.scores), (here.round(3).scores, there.round(3).scores)):
        rewards = [[[one["reward"] for one in row["scores"]] for row in read(file)] for file in (ours, theirs)]
        assert rewards[0] == rewards[1]


@pytest.mark.nightly
def test_a_success_that_selection_filters_out_is_none(tmp_path):
    """Every reward is 1, so a prompt is asked again only if its first two answers were cut by the limit."""
    worlds.make_recipe(
        tmp_path, **ADAPTIVE, iterations=1, selection={"kind": "best-of-k", "filters": ["duplicate", "truncated"]}
    )
    (tmp_path / "rules.py").write_text("def has(prompt, response):\n    return 1.0\n")
    done = worlds.raft(tmp_path, "run", "recipe.yaml", "generator.max_tokens=2")
    it = RunPaths(tmp_path / "outputs" / "tiny").iteration(1)
    cut = [[one["finish_reason"] == "length" for one in row["responses"]] for row in read(it.responses)]
    assert [len(group) > 2 for group in cut] == [all(group[:2]) for group in cut] and any(map(all, cut)), done.stderr


def test_a_late_round_without_a_response_or_a_reward_stops_nothing_and_the_limit_is_of_all_rounds(
    tmp_path, monkeypatch
):
    """p003 is asked 2 + 2 + 4 times for nothing, p004 2 + 2 times: 8 + 2 of 14 * 2 + 8 + 4 responses have no reward."""
    monkeypatch.chdir(tmp_path)
    own = {"generator": {"kind": "own:Numbers", "k": 8}, "reward": {"kind": "own:Right"}}
    path = worlds.make_recipe(tmp_path, **{**ADAPTIVE, **own})
    (tmp_path / "own.py").write_text(OWN)
    loaded, it = recipe.load(path).recipe, Run(tmp_path / "run", 0).iteration(1)
    (it.folder / "policy").mkdir(parents=True)
    records.write(it.folder / "prompts.jsonl", (Prompt(f"p{n:03d}", text="x").row() for n in range(16)))
    prompts, policy = (Artifact(it.folder / name, {"hash": name, "rows": 16}) for name in ("prompts.jsonl", "policy"))
    with pytest.raises(UserError, match="10 of 40 responses have no reward"):
        sample(loaded, it, policy, prompts, None, MaxFailed(fraction=0.2))
    sampled = sample(loaded, it, policy, prompts, None, MaxFailed(fraction=0.25))
    asked = [[row["id"] for row in read(RunPaths(tmp_path / "run").iteration(1).round(n).prompts)] for n in (2, 3)]
    assert asked == [["p003", "p004"], ["p003"]]
    texts = {row["prompt_id"]: [one["text"] for one in row["responses"]] for row in sampled.responses.read()}
    assert texts == {f"p{n:03d}": ["0", "1"] for n in range(16)} | {"p003": [""] * 8, "p004": list("0123")}
    assert sampled.scores.stamp["measured"] == {"sampling/responses": 40 / 16, "sampling/success": 15 / 16}


def test_a_minimum_leaves_out_groups_whose_best_is_below_it():
    rewards = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, np.nan], [np.nan] * 3, [0.5, 0.2, np.nan]])
    picks = BestOfK(minimum=0.5).pick(rewards, np.random.default_rng(0))
    assert picks.prompts.tolist() == [0, 3] and picks.responses.tolist() == [1, 0]
    assert picks.reasons == {1: "the best reward is below the minimum", 2: "no eligible response"}
    assert "minimum" not in describe(BestOfK()) and describe(BestOfK(minimum=0.0))["minimum"] == 0.0


REFUSED = [
    ({"generator": {"kind": "transformers", "k": 9}}, "generator.k: 9, but sampling gives a prompt up to 8 responses"),
    ({"selection": {"kind": "threshold", "minimum": 1.0}}, "selection.kind: needs whole groups"),
    ({"selection": {"kind": "softmax"}}, "selection.kind: needs whole groups"),
    ({"selection": {"kind": "best-of-k", "filters": ["tied"]}}, "selection.filters: tied needs whole groups"),
    ({"selection": {"kind": "best-of-k", "kl_coef": 0.1}}, "selection.kl_coef: the distance is measured when"),
    ({"selection": {"kind": "best-of-k", "length_control": True}}, "selection.length_control: the trend in length is"),
    ({"generator": {"kind": "own:Same"}}, "sampling.kind: this generator might draw the same responses again"),
    ({"sampling": {"kind": "until-success", "rounds": []}}, "sampling.rounds: [] is out of range"),
    ({"sampling": {"kind": "until-success", "rounds": [8, 0]}}, "sampling.rounds: [8, 0] is out of range"),
    (
        {"sampling": {"kind": "expected-gain", "budget": 3.0}},
        "sampling.budget: 3.0 is out of range; it must be between",
    ),
    ({"sampling": {"kind": "expected-gain", "first": 1}}, "sampling.first: 1 is out of range"),
    ({"sampling": {"kind": "adaptive"}}, "sampling.kind: unknown kind 'adaptive'"),
]


@pytest.mark.parametrize(("changes", "says"), REFUSED, ids=lambda one: one if isinstance(one, str) else "")
def test_what_does_not_go_with_rounds_is_refused_with_the_reason(tmp_path, changes, says):
    path = worlds.make_recipe(tmp_path, **{**ADAPTIVE, **changes})
    for name, text in (("own.py", OWN), ("rules.py", RULES)):
        (tmp_path / name).write_text(text)
    with pytest.raises(recipe.RecipeError) as refused:
        recipe.load(path)
    assert says in str(refused.value)


def test_a_forecast_and_a_memory_plan_count_what_rounds_draw_at_most(tmp_path, monkeypatch):
    judge = {"kind": "judge", "model": "x", "url": "http://127.0.0.1:1/v1", "mode": "grade"}
    gain = {"kind": "expected-gain", "first": 4, "budget": 6.5, "most": 32}
    path = worlds.make_recipe(
        tmp_path, generator={"kind": "transformers", "k": 32}, sampling=gain, reward=judge, evaluation={"gold": None}
    )
    monkeypatch.chdir(tmp_path)
    (asked,) = preflight.requests(recipe.load(path).recipe, None)
    assert asked.left["for training"] == 2 * 16 * 6.5
    assert recipe.load(path).recipe.sampling.widest(32) == 4
    assert UntilSuccess(rounds=[2, 4, 2]).widest(8) == 4


@pytest.mark.engine
@pytest.mark.nightly
def test_with_vllm_the_selected_rows_are_those_of_the_fixed_run_to_the_byte(tmp_path):
    worlds.make_recipe(tmp_path, **{**ADAPTIVE, "generator": {**GENERATOR, "kind": "vllm"}}, iterations=1)
    recipe_text = (tmp_path / "recipe.yaml").read_text().replace("  batch_size: 8\n", "", 1)
    (tmp_path / "recipe.yaml").write_text(recipe_text)
    (tmp_path / "rules.py").write_text(RULES)
    for words in ([], ["name=fixed", "~sampling"]):
        done = worlds.raft(tmp_path, "run", "recipe.yaml", *words)
        assert done.returncode == 0, done.stderr
    here, there = (RunPaths(tmp_path / "outputs" / name).iteration(1) for name in ("tiny", "fixed"))
    assert here.selected.read_bytes() == there.selected.read_bytes()
    for own, whole in zip(read(here.responses), read(there.responses), strict=True):
        assert own["responses"] == whole["responses"][: len(own["responses"])]
