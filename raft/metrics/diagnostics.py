"""Diagnostics: every figure of metrics.jsonl, with its formula, its column in the report and its alert, in one list.

    Diagnostic("eval/tokens", HeldOut, lambda it: it.answers.tokens.mean(), Column(...), Rule(...))

A new diagnostic is one more object in `DIAGNOSTICS`: the stage `measure` computes it, the report shows its column, its
rule is asked after each evaluation and can be ignored by name, and a test demands its line in docs/diagnostics.md.
Formulas of more than a line are in `reward_metrics` and `text_metrics`. Arrays are [N, K]: N prompts, K responses each,
NaN where unknown.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from raft.core.options import choice, faults_of_range
from raft.metrics import alerts, reward_metrics, text_metrics
from raft.metrics.alerts import Alert, Rows, Rule

Figures = Mapping[str, Any]  # numbers by name; what was not measured is left out


@dataclass(frozen=True)
class Responses:
    """Responses to N prompts, K to each: their ids and texts, and arrays [N, K]: tokens generated, which are cut,
    empty, repeat an earlier response of their group, have the text of any other, are candidates from elsewhere; and
    minus the log-probability in nats (NaN if unknown)."""

    ids: list[str]
    texts: list[list[str]]
    tokens: np.ndarray
    truncated: np.ndarray
    empty: np.ndarray
    duplicate: np.ndarray
    twin: np.ndarray
    candidate: np.ndarray
    surprise: np.ndarray


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What is known of a policy: its training, and its answers to the held-out prompts. None: not measured.

    `rewards` and `gold` are [N, K]; `logprobs` are those of the answers [N] under the policy and under the first one;
    `references` are log-probabilities and tokens of given responses [M].
    """

    training: Figures = field(default_factory=dict)
    rewards: np.ndarray | None = None
    gold: np.ndarray | None = None
    answers: Responses | None = None
    first_texts: list[list[str]] | None = None
    logprobs: tuple[np.ndarray, np.ndarray] | None = None
    references: tuple[np.ndarray, np.ndarray] | None = None

    @cached_property
    def texts(self) -> list[str]:
        """All answers, everybody's first before everybody's second: neighbours answer different prompts."""
        return [] if self.answers is None else in_turn(self.answers.texts)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is known of the training responses of a policy, and of what selection took of them.

    `picks` are the winners: rows [M] and indices in their groups [M]; `control` is the index of a random response of
    each winner's group [M]. `ranked`: rewards are strengths within a prompt, whose mean is 0 whatever the policy.
    `verdicts` counts how comparisons by a judge came out, by `ranking.VERDICTS`; empty without them.
    `before` are the training rewards of the policy before [N, K], None where they are not known, and `learned` those
    that its winners were taken from, where these are more.

    Adaptive sampling gives a prompt more responses because of the rewards that it has, so its groups are no fair
    sample, and candidates are none at all. `rewards` and `responses` are then those of the first round, which every
    prompt has; `whole` has all responses, of which those are the first and in which the winners stand, and `sampling`
    its own figures.
    """

    rewards: np.ndarray
    responses: Responses
    picks: tuple[np.ndarray, np.ndarray]
    control: np.ndarray
    ranked: bool
    dropped: int
    before: np.ndarray | None = None
    learned: np.ndarray | None = None
    verdicts: Figures = field(default_factory=dict)
    whole: Responses | None = None
    sampling: Figures = field(default_factory=dict)

    @property
    def all_responses(self) -> Responses:
        """Those of all rounds, and candidates."""
        return self.whole or self.responses

    @cached_property
    def winners(self) -> list[str]:
        """The texts of the winners."""
        return self._texts(self.picks[1])

    @cached_property
    def others(self) -> list[str]:
        """The texts of a random response of each winner's group."""
        return self._texts(self.control)

    def _texts(self, places: np.ndarray) -> list[str]:
        return [self.all_responses.texts[row][place] for row, place in zip(self.picks[0], places, strict=True)]


@dataclass(frozen=True)
class Column:
    """How the report shows a figure: under which title and label, in which form, and what it means.

    The table of policies has the `main` figures; the table below it has all of them.
    """

    title: str
    label: str
    form: Literal["reward", "share", "number", "count", "phrases"]
    meaning: str
    key: str | None = None  # where it is not that of the diagnostic
    main: bool = False


@dataclass(frozen=True)
class Diagnostic:
    """A figure, or several that are computed together.

    `compute` takes what is known of a policy or of its training responses. It gives a number, for `key`; or several,
    by keys of their own; or None, where what it needs was not measured.
    """

    key: str
    of: type
    compute: Callable[[Any], Any]
    columns: Column | Sequence[Column] = ()
    rule: Rule | None = None


def figures(known: HeldOut | Training) -> dict[str, Any]:
    """All figures of what is known, by key, in the order of DIAGNOSTICS; what is not a number is left out."""
    found: dict[str, Any] = {}
    for diagnostic in DIAGNOSTICS:
        if isinstance(known, diagnostic.of) and (value := diagnostic.compute(known)) is not None:
            found |= value if isinstance(value, Mapping) else {diagnostic.key: value}
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in found.items()}
    return {key: value for key, value in plain.items() if not (isinstance(value, float) and math.isnan(value))}


def columns() -> dict[str, dict[str, Column]]:
    """How the report shows each figure, by title, then by key."""
    found: dict[str, dict[str, Column]] = {title: {} for title in TITLES}
    for diagnostic in DIAGNOSTICS:
        of_it = [diagnostic.columns] if isinstance(diagnostic.columns, Column) else diagnostic.columns
        for column in of_it:
            found[column.title][column.key or diagnostic.key] = column
    return found


def in_turn(groups: list[list[str]]) -> list[str]:
    """Everybody's first answer, then everybody's second."""
    return [text for column in zip(*groups, strict=True) for text in column]


def _evaluated(name: str, rewards: np.ndarray | None) -> Figures | None:
    return None if rewards is None else reward_metrics.evaluated(rewards, name)


def _missing(rewards: np.ndarray | None) -> float | None:
    return None if rewards is None else float(np.isnan(rewards).mean())


def _agreement(it: HeldOut) -> Figures | None:
    if it.rewards is None or it.gold is None:
        return None
    return reward_metrics.evaluated(text_metrics.within_prompts(it.rewards, it.gold)[:, None], "agreement/within")


def _agreement_of_prompts(it: HeldOut) -> float | None:
    if it.rewards is None or it.gold is None:
        return None
    return text_metrics.kendall(reward_metrics.prompt_means(it.rewards), reward_metrics.prompt_means(it.gold))


def _of_answers(compute: Callable[[Responses], Any]) -> Callable[[HeldOut], Any]:
    return lambda it: None if it.answers is None else compute(it.answers)


def _entropy(answers: Responses) -> Figures:
    entropy, error = text_metrics.ratio(answers.surprise, answers.tokens)
    return {"entropy/token": entropy, "entropy/token_se": error}


def _diversity(it: HeldOut) -> Figures:
    return {f"diversity/{name}": value for name, value in text_metrics.diversity(it.texts).items()}


def _distinct_kept(it: HeldOut) -> float | None:
    return None if it.first_texts is None else text_metrics.distinct_kept(it.texts, in_turn(it.first_texts))


def _rising(it: HeldOut) -> list[dict[str, Any]] | None:
    if it.answers is None or it.first_texts is None:
        return None
    rises = text_metrics.rising(it.texts, in_turn(it.first_texts), len(it.answers.ids))
    return [asdict(rise) for rise in rises]


def _rising_by_selection(it: Training) -> list[dict[str, Any]]:
    rises = text_metrics.rising(it.winners, it.others, len(set(it.picks[0].tolist())))
    return [asdict(rise) for rise in rises]


def _kl(it: HeldOut) -> Figures | None:
    return None if it.logprobs is None else reward_metrics.evaluated(text_metrics.log_ratios(*it.logprobs), "kl/first")


def _between_prompts(compute: Callable[[Training], float | None]) -> Callable[[Training], float | None]:
    """A figure of rewards that can be compared between prompts."""
    return lambda it: None if it.ranked else compute(it)


def _verdicts(kind: str) -> Callable[[Training], float | None]:
    """The share of a judge's comparisons that came out like this."""
    return lambda it: it.verdicts[kind] / sum(it.verdicts.values()) if any(it.verdicts.values()) else None


def _absorbed(it: Training) -> float | None:
    return None if it.before is None else text_metrics.absorbed(it.before, it.rewards, it.learned)


def _length_correlation(it: Training) -> Figures:
    lengths = it.responses.tokens.astype(float)
    return reward_metrics.evaluated(
        text_metrics.within_prompts(it.rewards, lengths)[:, None], "length/reward_correlation"
    )


def _longest(it: Training) -> Figures:
    longest = text_metrics.longest(it.all_responses.tokens, *it.picks)
    return {
        "length/winner_longest": longest.share,
        "length/winner_longest_chance": longest.chance,
        "length/winner_longest_z": longest.z,
    }


def _against_random(name: str, values: Callable[[Responses], np.ndarray]) -> Callable[[Training], Figures]:
    def compute(it: Training) -> Figures:
        chosen, random = text_metrics.against_random(values(it.all_responses), *it.picks, it.responses.tokens.shape[1])
        return {f"selection/{name}": chosen, f"selection/{name}_random": random}

    return compute


def _from_candidates(it: Training) -> float | None:
    of_candidates = it.all_responses.candidate
    return float(of_candidates[it.picks].mean()) if np.nansum(of_candidates) and len(it.picks[0]) else None


HELD_OUT, TRAINING, RESPONSES = "Held-out prompts", "Training prompts", "Responses"
POLICY, SELECTION, TRAINED = "What the policy has become", "Selection", "Training of this policy"
TITLES = (HELD_OUT, TRAINING, RESPONSES, POLICY, SELECTION, TRAINED)

DIAGNOSTICS = [
    Diagnostic(
        "train", HeldOut, lambda it: it.training,
        [
            Column(TRAINED, "first loss", "number", "loss of the first tenth of the first epoch", "train/loss_first"),
            Column(
                TRAINED, "loss", "number", "mean loss over the steps of the last epoch: sft in nats per token",
                "train/loss", main=True,
            ),
            Column(
                TRAINED, "accuracy", "share", "share of the pairs whose chosen response has the higher implicit reward",
                "train/accuracy",
            ),
            Column(
                TRAINED, "margin", "number", "implicit reward of chosen responses less that of rejected ones",
                "train/margin",
            ),
            Column(
                TRAINED, "chosen", "number", "implicit reward of chosen responses: beta times their log-probability "
                "less that under the reference", "train/reward_chosen",
            ),
            Column(TRAINED, "rejected", "number", "the same of rejected responses", "train/reward_rejected"),
            Column(TRAINED, "distance", "number", "KTO's estimate of that from the reference, in nats", "train/kl"),
            Column(TRAINED, "steps", "count", "steps of the optimiser", "train/steps"),
            Column(TRAINED, "examples", "count", "rows that were learned from", "train/examples"),
            Column(TRAINED, "tokens", "count", "tokens that were learned", "train/tokens"),
            Column(
                TRAINED, "clipped", "share", "share of tokens that the clip leaves no gradient", "train/clip_fraction"
            ),
            Column(
                TRAINED, "moved", "number", "KL of the policy that generated from this one, in nats per token",
                "train/approx_kl",
            ),
            Column(TRAINED, "padding", "share", "share of the tokens read that were padding", "train/padding"),
        ],
        Rule(
            name="steps", limits=(1, 0),
            look=alerts.value_of("train/steps", "the last training took {now:.0f} step of the optimiser"),
            then="lower trainer.batch_size, raise trainer.num_train_epochs, or train on more rows",
        ),
    ),
    Diagnostic(
        "reward/eval", HeldOut, lambda it: _evaluated("reward/eval", it.rewards),
        Column(
            HELD_OUT, "reward", "reward", "mean over held-out prompts of the mean reward of their responses", main=True
        ),
        Rule(
            name="gain", look=alerts.gain,
            then="it has stopped rising: stop here, or change the data or the reward",
        ),
    ),
    Diagnostic(
        "reward/eval_failed", HeldOut, lambda it: _missing(it.rewards),
        Column(HELD_OUT, "no reward", "share", "share of the responses to held-out prompts without a reward"),
        Rule(
            name="unscored", look=alerts.rewards_missing, limits=(0.01, 0.05),
            then="what is left may be another kind of answers: see the errors in scores.jsonl",
        ),
    ),
    Diagnostic(
        "gold/eval", HeldOut, lambda it: _evaluated("gold/eval", it.gold),
        Column(HELD_OUT, "gold", "reward", "the same of the gold reward, which selection never sees", main=True),
        Rule(
            name="gold", look=alerts.gold_falls,
            then="training now gains reward at the expense of what was meant: go back to that policy, and stop earlier",
        ),
    ),
    Diagnostic(
        "gold/eval_failed", HeldOut, lambda it: _missing(it.gold),
        Column(HELD_OUT, "no gold", "share", "share of the responses to held-out prompts without a gold reward"),
    ),
    Diagnostic(
        "agreement/within", HeldOut, _agreement,
        Column(POLICY, "agreement", "number", "Kendall's tau of reward and gold reward within prompts"),
        Rule(
            name="agreement", look=alerts.gold_disagrees, limits=(0.25, 0.1), softened=True,
            then="what the reward prefers is hardly what gold prefers: fix the reward first",
        ),
    ),
    Diagnostic(
        "agreement/prompts", HeldOut, _agreement_of_prompts,
        Column(POLICY, "agreement, prompts", "number", "Kendall's tau of reward and gold reward over the prompts"),
    ),
    Diagnostic(
        "eval/tokens", HeldOut, _of_answers(lambda answers: answers.tokens.mean()),
        Column(
            HELD_OUT, "tokens", "number", "mean length of the responses to held-out prompts, in tokens", main=True
        ),
        Rule(
            name="length", limits=(1.5, 2.0), softened=True,
            look=alerts.times_first(
                "eval/tokens", "held-out answers have {now:.0f} tokens, at first {first:.0f} ({times:.2f} times)"
            ),
            then="see whether the longer ones are better, or let the reward count less for length",
        ),
    ),
    Diagnostic(
        "eval/words", HeldOut,
        lambda it: None if it.answers is None else np.mean([len(text_metrics.words(text)) for text in it.texts]),
        Column(HELD_OUT, "words", "number", "mean length of the responses to held-out prompts, in words"),
    ),
    Diagnostic(
        "eval/truncated", HeldOut, _of_answers(lambda answers: answers.truncated.mean()),
        Column(HELD_OUT, "truncated", "share", "share of responses to held-out prompts cut by the limit", main=True),
        Rule(
            name="truncated", limits=(0.2, 0.5),
            look=alerts.value_of("eval/truncated", "{now:.0%} of the held-out answers are cut by the limit"),
            then="raise generator.max_tokens, or end them with generator.stop; filters: [truncated] leaves them out, "
            "where enough others remain",
        ),
    ),
    Diagnostic(
        "eval/empty", HeldOut, _of_answers(lambda answers: answers.empty.mean()),
        Column(HELD_OUT, "empty", "share", "share of responses to held-out prompts that are white space"),
        Rule(
            name="empty", limits=(0.05, 0.2),
            look=alerts.value_of("eval/empty", "{now:.0%} of the held-out answers are empty"),
            then="see what the reward gives to an empty answer, or use filters: [empty]",
        ),
    ),
    Diagnostic(
        "eval/duplicate", HeldOut, _of_answers(lambda answers: answers.duplicate.mean()),
        Column(HELD_OUT, "duplicate", "share", "share that repeats an earlier response to its prompt"),
    ),
    Diagnostic(
        "entropy/token", HeldOut, _of_answers(_entropy),
        Column(POLICY, "entropy", "number", "mean negative log-probability of a generated token, in nats", main=True),
        Rule(
            name="entropy", limits=(0.5, 0.2), softened=True,
            look=alerts.times_first(
                "entropy/token",
                "a token of an answer surprises by {now:.3f} nats, at first by {first:.3f} ({times:.2f} times)",
            ),
            then="the policy settles on one way to answer, and best of K finds little to choose from: stop, or learn "
            "slower",
        ),
    ),
    Diagnostic(
        "diversity/same_text", HeldOut, _of_answers(lambda answers: text_metrics.same_text(answers.texts)),
        Column(POLICY, "same answer twice", "share", "chance that two held-out answers to a prompt have the same text"),
        Rule(
            name="duplicates", limits=(0.25, 0.5), softened=True, look=alerts.answers_repeat,
            then="the policy collapses to one answer, and K responses say no more than one",
        ),
    ),
    Diagnostic(
        "diversity", HeldOut, _diversity,
        [
            Column(
                POLICY, "distinct-1", "share", "distinct words, as a share of all words of the held-out answers",
                "diversity/distinct_1",
            ),
            Column(
                POLICY, "distinct-2", "share", "distinct bigrams, as a share of all bigrams of the held-out answers",
                "diversity/distinct_2", main=True,
            ),
            Column(
                POLICY, "MSTTR-100", "share", "distinct words among 100, averaged over the held-out answers",
                "diversity/msttr_100",
            ),
            Column(
                POLICY, "unique words", "count", "words that occur once in all held-out answers",
                "diversity/unique_1",
            ),
            Column(
                POLICY, "unique bigrams", "count", "bigrams that occur once in all held-out answers",
                "diversity/unique_2",
            ),
        ],
    ),
    Diagnostic(
        "diversity/distinct_2_kept", HeldOut, _distinct_kept,
        Column(
            POLICY, "bigrams kept", "number", "distinct bigrams against those of the first policy, among equally many; "
            "1: as diverse as at the start",
        ),
        Rule(
            name="diversity", limits=(0.8, 0.6), softened=True,
            look=alerts.value_of(
                "diversity/distinct_2_kept",
                "held-out answers have {now:.2f} times as many distinct bigrams as at the start (same sample size)",
            ),
            then="answers become alike: look for a phrase that all have, raise the temperature, or stop earlier",
        ),
    ),
    Diagnostic(
        "ngrams/rising", HeldOut, _rising,
        Column(POLICY, "frequent phrases", "phrases", "share of held-out answers that contain them: at first → now"),
        Rule(
            name="n-grams", limits=(0.25, 0.5), softened=True, look=alerts.phrase_rises,
            then="the reward may favour the phrase itself: read some of them, and drop or penalise it",
        ),
    ),
    Diagnostic(
        "kl/first", HeldOut, _kl,
        Column(POLICY, "KL", "number", "KL from the first policy on held-out answers, in nats per answer", main=True),
    ),
    Diagnostic(
        "perplexity/references", HeldOut,
        lambda it: None if it.references is None else text_metrics.perplexity(*it.references),
        Column(POLICY, "perplexity", "number", "of the reference responses (evaluation.references)"),
    ),
    Diagnostic(
        "reward/mean", Training, _between_prompts(lambda it: reward_metrics.mean_reward(it.rewards)),
        Column(TRAINING, "mean", "reward", "mean over prompts of the mean of their K rewards", main=True),
    ),
    Diagnostic(
        "reward/best_of_k", Training, _between_prompts(lambda it: reward_metrics.best_of_k(it.rewards)),
        Column(TRAINING, "best of K", "reward", "mean over prompts of the best of their K rewards", main=True),
    ),
    Diagnostic(
        "reward/headroom", Training,
        _between_prompts(lambda it: reward_metrics.best_of_k(it.rewards) - reward_metrics.mean_reward(it.rewards)),
        Column(TRAINING, "headroom", "reward", "best of K less the mean: what learning the winners perfectly gains"),
    ),
    Diagnostic(
        "reward/std_within", Training, lambda it: reward_metrics.mean_spread(it.rewards),
        Column(
            TRAINING, "spread", "reward", "mean over prompts of the standard deviation of their K rewards", main=True
        ),
    ),
    Diagnostic(
        "reward/prompts", Training, lambda it: int((~np.isnan(reward_metrics.prompt_means(it.rewards))).sum()),
        Column(TRAINING, "prompts", "count", "training prompts with a reward"),
    ),
    Diagnostic(
        "reward/failed", Training, lambda it: np.isnan(it.rewards).mean(),
        Column(TRAINING, "no reward", "share", "share of responses that could not be scored"),
    ),
    Diagnostic(
        "reward/tied", Training, lambda it: reward_metrics.tied(it.rewards).mean() if it.whole is None else None,
        Column(TRAINING, "tied", "share", "share of prompts whose rewards are all equal"),
        Rule(
            name="ties", limits=(0.5, 0.8),
            look=alerts.value_of("reward/tied", "all rewards are equal for {now:.0%} of the training prompts"),
            then="such prompts teach nothing, and filters: [tied] leaves them out; a finer reward, a larger "
            "generator.k or other prompts help",
        ),
    ),
    Diagnostic(
        "judge/biased", Training, _verdicts("biased"),
        Column(
            TRAINING, "position bias", "share",
            "share of a judge's comparisons in which it preferred the same position in both orders",
        ),
        Rule(
            name="position", limits=(0.3, 0.6),
            look=alerts.value_of(
                "judge/biased", "the judge preferred the same position in both orders in {now:.0%} of its comparisons"
            ),
            then="those decide nothing: use another judge, or another reward.template",
        ),
    ),
    Diagnostic(
        "judge/no_verdict", Training, _verdicts("no_verdict"),
        Column(TRAINING, "no verdict", "share", "share of a judge's comparisons without a verdict that can be read"),
        Rule(
            name="verdicts", limits=(0.05, 0.2),
            look=alerts.value_of("judge/no_verdict", "{now:.0%} of the judge's comparisons have no readable verdict"),
            then="raise reward.max_tokens, or set reward.verdict to the form in which it answers",
        ),
    ),
    Diagnostic(
        "response/tokens", Training, lambda it: it.responses.tokens.mean(),
        Column(RESPONSES, "tokens", "number", "mean length in tokens"),
    ),
    Diagnostic(
        "response/truncated", Training, lambda it: it.responses.truncated.mean(),
        Column(RESPONSES, "truncated", "share", "share of responses cut by the limit"),
    ),
    Diagnostic(
        "response/empty", Training, lambda it: it.responses.empty.mean(),
        Column(RESPONSES, "empty", "share", "share of responses that are only white space"),
    ),
    Diagnostic(
        "response/duplicate", Training, lambda it: it.responses.duplicate.mean(),
        Column(RESPONSES, "duplicate", "share", "share of responses that repeat an earlier one to the same prompt"),
    ),
    Diagnostic(
        "reward/absorbed", Training, _between_prompts(_absorbed),
        Column(
            TRAINING, "absorbed", "number", "how far the mean rose towards the best of K that was learned from; "
            "1: all the way, 0: not at all",
        ),
    ),
    Diagnostic(
        "length/reward_correlation", Training, _length_correlation,
        Column(POLICY, "reward and length", "number", "Kendall's tau of reward and length within prompts"),
        Rule(
            name="length-reward", look=alerts.length_wins, limits=(0.3, 0.5), softened=True,
            then="the reward likes length: answers will grow, whether that is meant or not",
        ),
    ),
    Diagnostic(
        "length/winner_longest", Training, _longest,
        [
            Column(SELECTION, "winner is longest", "share", "share of winners that are the longest of their group"),
            Column(
                SELECTION, "winner is longest, by chance", "share", "the share that a random choice would have",
                "length/winner_longest_chance",
            ),
            Column(
                SELECTION, "winner is longest, z", "number", "distance of the share from chance, in standard errors",
                "length/winner_longest_z",
            ),
        ],
    ),
    Diagnostic(
        "selection/distinct_2_kept", Training, lambda it: text_metrics.distinct_kept(it.winners, it.others),
        Column(
            SELECTION, "bigrams kept", "number", "distinct bigrams of the winners against those of a random choice, "
            "among equally many",
        ),
    ),
    Diagnostic(
        "ngrams/selected", Training, _rising_by_selection,
        Column(SELECTION, "selected phrases", "phrases", "share that contains them: of random responses → of winners"),
    ),
    Diagnostic(
        "selection/tokens", Training, _against_random("tokens", lambda responses: responses.tokens),
        [
            Column(SELECTION, "tokens", "number", "mean length of the winners, in tokens"),
            Column(
                SELECTION, "tokens, random", "number", "mean length of a random response of the same groups, in tokens",
                "selection/tokens_random",
            ),
        ],
    ),
    Diagnostic(
        "selection/duplicate", Training, _against_random("duplicate", lambda responses: responses.twin),
        [
            Column(SELECTION, "duplicate", "share", "share of winners whose text another response of their group has"),
            Column(
                SELECTION, "duplicate, random", "share", "the same of a random response of the same groups",
                "selection/duplicate_random",
            ),
        ],
    ),
    Diagnostic(
        "sampling", Training, lambda it: it.sampling,
        [
            Column(
                SELECTION, "responses", "number", "responses to a prompt, mean of all rounds of adaptive sampling",
                "sampling/responses",
            ),
            Column(
                SELECTION, "success", "share", "share of prompts with a response that reaches sampling.success",
                "sampling/success",
            ),
        ],
    ),
    Diagnostic(
        "selection/candidates", Training, _from_candidates,
        Column(SELECTION, "candidates", "share", "share of winners that are candidates from elsewhere"),
    ),
    Diagnostic(
        "selection/examples", Training, lambda it: len(it.picks[0]),
        Column(SELECTION, "kept", "count", "rows that the next policy learned from", main=True),
    ),
    Diagnostic(
        "selection/dropped", Training, lambda it: it.dropped,
        Column(SELECTION, "dropped", "count", "responses and prompts that were left out"),
    ),
]  # fmt: skip
RULES = [diagnostic.rule for diagnostic in DIAGNOSTICS if diagnostic.rule is not None]


@dataclass(frozen=True, kw_only=True)
class Alerts:
    """What is done where the figures of a run give reason to worry (docs/diagnostics.md).

    `on_warning: stop` ends the run after the iteration that a rule warns of. `patience` is how many evaluations may
    pass without a gain of held-out reward. `ignore` names rules to skip, and `stop_on` those that may end a run, where
    not all of them may.
    """

    on_warning: Literal["warn", "stop"] = "warn"
    patience: int = 3
    ignore: list[str] = choice((rule.name for rule in RULES), default_factory=list)
    stop_on: list[str] = choice((rule.name for rule in RULES), default_factory=list)

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from faults_of_range(self, patience=(1, float("inf")))

    def judge(self, rows: Rows) -> list[Alert]:
        """What the rules that are not ignored say of the rows of metrics.jsonl, in ascending order."""
        return alerts.judge((rule for rule in RULES if rule.name not in self.ignore), rows, self.patience)

    def stopping(self, found: Sequence[Alert]) -> list[Alert]:
        """The alerts because of which the run is to end here."""
        if self.on_warning == "warn":
            return []
        return [alert for alert in alerts.warnings(found) if not self.stop_on or alert.name in self.stop_on]
