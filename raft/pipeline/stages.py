"""The stage functions: each reads immutable artifacts and writes one new one, so it can run anywhere.

`stage(section, output, **inputs)`: the section is the part of the recipe that does the work, the inputs
are artifacts of earlier stages, and what it writes goes through `output` (see artifact_writer.ArtifactWriter).
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raft.config import preflight
from raft.config.jobs import HELD_OUT as HELD_OUT_COUNT
from raft.config.jobs import Evaluation
from raft.core import protocols, records, signals
from raft.core.errors import UserError
from raft.core.protocols import Dropped
from raft.core.records import Drop, Example, Group, Pair, Policy, Prompt, Score
from raft.core.seeds import derive
from raft.core.terminal import complain, rounded
from raft.core.user_code import guarded, is_own, name_of
from raft.data import prompts as prompt_sources
from raft.store.artifact_writer import ArtifactWriter
from raft.store.keys import Artifact
from raft.store.measuring import MaxFailed, ranks_of, refuse_other_prompts, rewards_of

HELD_OUT = "held out for evaluation"
MOST_REASONS = 3  # for which a selection picked nothing, in a message


def link_model(start: Any, output: ArtifactWriter, probed: bool) -> None:
    """A model as a folder like those that training makes: links to its files, and, if it is to be probed, its probe."""
    from raft.models import checkpoint, hub, model_folder, weight_check

    model = hub.locate_model(start.model, start.revision)
    model_folder.check(model)
    output.path.mkdir()
    for file in sorted(model.iterdir()):
        if file.is_file() and file.name not in ("README.md", "probe.json") and not checkpoint.unread(model, file):
            (output.path / file.name).symlink_to(file.resolve())
    if not probed:
        return
    try:
        weight_check.make(output.path, weight_check.first_texts(output.path), output.path / "probe.json")
    except UserError as fault:  # name the recipe's folder: this folder of links is temporary
        raise UserError(str(fault).replace(str(output.path), start.model)) from fault


def init_model(start: Any, output: ArtifactWriter, examples: Any) -> None:
    """A new model with seeded random weights, and a tokenizer made from the job's own texts."""
    from raft.data.examples import texts
    from raft.models import from_scratch

    template = None if start.chat_template is None else Path(start.chat_template).read_text(encoding="utf-8")
    from_scratch.make(
        output.path, texts(examples), start.config, start.vocab_size, derive(output.seed, "weights"), template
    )


def load_examples(examples: Any, output: ArtifactWriter, start: Artifact | None = None, held_out: bool = False) -> None:
    """The rows of a supervised job as records, but for those set aside (or, with `held_out`, only those).

    `start` is the model whose tokens examples become; pairs stay texts.
    """
    from raft.data.examples import read

    tokenizer = None if start is None else _tokenizer(start)
    rows_in = 0

    def kept() -> Iterator[dict[str, Any]]:
        nonlocal rows_in
        for record in read(examples, tokenizer, output.seed, held_out):
            rows_in += 1
            if isinstance(record, Drop):
                output.drop(record.prompt_id, None, record.reason)
            else:
                yield record.row()

    output.write(kept())
    output.rows_in = rows_in
    if output.rows == 0 and start is not None and (examples.held_out or not held_out):
        raise UserError(f"examples: {_none_left(rows_in, output.drops)}")


def evaluate_reward_model(trainer: Any, output: ArtifactWriter, made: Artifact, pairs: Artifact) -> None:
    """metrics.json of a reward model: how it fares on the pairs set aside."""
    measured = dict(made.stamp["measured"])
    if pairs.rows and hasattr(trainer, "evaluate"):
        measured.update(trainer.evaluate(made.path, (Pair.of(row) for row in pairs.read())))
    output.measured = measured
    output.path.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def sample_eval_prompts(
    source: Any, output: ArtifactWriter, policy: Artifact, count: int | None, own: bool = False
) -> None:
    """The evaluation prompts: a seeded choice of `count` different ones, or of as many as fit (jobs.Evaluation).

    `own`: the source is not that of the pool, so that its drops are listed here and not there.
    """
    chosen: dict[str, Prompt] = {}
    drops: list[Drop] = []
    rows = 0
    for read in prompt_sources.read(source, _tokenizer(policy)):
        rows += 1
        if isinstance(read, Drop):
            drops.append(read)
        else:
            chosen.setdefault(prompt_sources.held_out_key(read), read)
    if not chosen or (count is not None and len(chosen) < count):
        raise UserError(_too_few_eval_prompts(count, len(chosen), rows, drops))
    order = np.random.default_rng(derive(output.seed, "held out")).permutation(len(chosen))
    kept = list(chosen.values())
    taken = count or Evaluation.fitting(len(chosen), own)
    output.write(kept[index].row() for index in sorted(order[:taken]))
    for drop in drops if own else ():
        output.drop(drop.prompt_id, None, drop.reason)


def _too_few_eval_prompts(count: int | None, usable: int, rows: int, drops: Sequence[Drop]) -> str:
    if not usable:
        return f"no prompt can be held out: {_none_left(rows, drops)}"
    same = rows - len(drops) - usable
    parts = [f"{rows} rows", *([f"of which {same} say the same as one before"] if same else [])]
    dropped = f"; {prompt_sources.dropped(drops)}" if drops else ""
    return (
        f"evaluation.count is {count}, but there are only {usable} different prompts to hold out in {', '.join(parts)}"
        f"{dropped}; lower it, or give more prompts{' or fix those rows' if drops else ''}"
    )


def _none_left(rows: int, drops: Sequence[Drop]) -> str:
    """That no row can be used, and why; a lower number of them would be none too."""
    if not rows:
        return "the source is empty; give at least one row"
    done = prompt_sources.ADVICE
    if any(drop.reason == HELD_OUT for drop in drops):
        done = "lower evaluation.count, or give more prompts"
    return f"none of {rows} rows can be used: {prompt_sources.reasons(drops)}; {done}"


def load_eval_pairs(examples: Any, output: ArtifactWriter, start: Artifact, held_out: bool) -> None:
    """The pairs that a reward model is evaluated on: those set aside, or all of a section of their own."""
    load_examples(examples, output, start, held_out)


def diagnose(
    rewards: Mapping[str, Any],
    output: ArtifactWriter,
    prompts: Artifact,
    policy: Artifact | None = None,
    max_tokens: int | None = None,
) -> None:
    """doctor.jsonl: the findings of the quick checks of each reward model. UserError for a fault.

    `max_tokens` is how long the answers of `policy` can become.
    """
    from raft.rewards import doctor

    few = [Prompt.of(row) for row in itertools.islice(prompts.read(), 8)]
    answers = None if policy is None or max_tokens is None else doctor.Answers(_tokenizer(policy), max_tokens)
    findings = []
    for name, section in rewards.items():
        reward = section if policy is not None else deepcopy(section)  # rewards to compare are many: none stays loaded
        findings += output.launch.call(reward, doctor.findings, few, name, answers)
    faults = [
        f"{finding.reward}: {finding.check}: {finding.message}" for finding in findings if finding.level == "fault"
    ]
    if faults:
        raise UserError("the reward cannot be trusted:\n  " + "\n  ".join(faults))
    output.requests = {key: judge.requests(2) for key, judge in protocols.judges(rewards) if judge.remote}
    output.write(finding.row() for finding in findings)


def collect(source: Any, output: ArtifactWriter, policy: Artifact, held_out: Artifact | None = None) -> None:
    """The pool of training prompts: every row of the source, but for those held out, empty or too long."""
    aside = [] if held_out is None else held_out.read()
    keys = {prompt_sources.held_out_key(Prompt.of(row)) for row in aside}
    rows_in = 0

    def kept() -> Iterator[dict[str, Any]]:
        nonlocal rows_in
        for read in prompt_sources.read(source, _tokenizer(policy)):
            rows_in += 1
            if isinstance(read, Drop):
                output.drop(read.prompt_id, None, read.reason)
            elif prompt_sources.held_out_key(read) in keys:
                output.drop(read.id, None, HELD_OUT)
            else:
                output.measured[str(read.source or 0)] = output.measured.get(str(read.source or 0), 0) + 1
                yield read.row()

    output.write(kept())
    output.rows_in = rows_in
    if output.rows == 0:
        raise UserError(f"prompts: {_none_left(rows_in, output.drops)}")


def drops_of(artifact: Artifact, stage: str) -> Iterator[Drop]:
    """What a stage dropped when it made an artifact."""
    listed = artifact.path.with_name("dropped.jsonl")
    if artifact.stamp["dropped"] and listed.exists():
        yield from (Drop.of(row) for row in records.read(listed) if row["stage"] == stage)


def tell_drops(observer: Any, artifact: Artifact, stage: str) -> None:
    """Notices the rows that a stage dropped, and why; those held out do not count."""
    drops = [drop for drop in drops_of(artifact, stage) if drop.reason != HELD_OUT]
    if drops:
        observer.on_notice(f"{artifact.path.name}: {prompt_sources.dropped(drops, artifact.stamp['rows_in'])}")


def draw(source: Any, output: ArtifactWriter, pool: Artifact) -> None:
    """This iteration's prompts: without replacement, each once before any comes twice.

    A job without iterations draws those of a first one.
    """
    parts = _sizes(source, pool)
    count = prompt_sources.drawn_at_once(parts, source.per_iteration)
    try:
        drawn = prompt_sources.draw(parts, count, output.seed, output.iteration or 1)
    except UserError as fault:
        drops = list(drops_of(pool, "collect"))
        raise UserError(f"{fault}. {prompt_sources.dropped(drops)}" if drops else str(fault)) from None
    starts: list[list[int]] = [[] for _ in parts]
    with open(pool.path, "rb") as lines:
        offset = 0
        for line in lines:
            starts[records.parse(line).get("source") or 0].append(offset)
            offset += len(line)
        places = [np.array(start, dtype=np.int64) for start in starts]

        def chosen() -> Iterator[dict[str, Any]]:
            for part, index in drawn:
                lines.seek(places[part][index])
                yield records.parse(lines.readline())

        output.write(chosen())


def _sizes(source: Any, pool: Artifact) -> list[tuple[float, int]]:
    """The weight of each part of the prompts, and how many of them are in the pool."""
    counts = pool.stamp["measured"]
    return [(weight, counts.get(str(part), 0)) for part, (weight, _) in enumerate(source.parts())]


def tell_sizes(observer: Any, recipe: Any, pool: Artifact, begun: bool, held_out: Artifact | None = None) -> None:
    """Notices numbers of prompts that a recipe leaves open and that are smaller than usual, unless the run has `begun`.

    Before anything is generated, UserError if the pool cannot fill an iteration, or a judge would be asked too often.
    """
    source = recipe.prompts
    drawn = prompt_sources.drawn_at_once(_sizes(source, pool), source.per_iteration)
    prompt_sources.draw(_sizes(source, pool), drawn, 0, 1)
    preflight.refuse_excess(recipe, pool.place.parent, drawn, None if held_out is None else held_out.rows)
    if begun:
        return
    aside = sum(drop.reason == HELD_OUT for drop in drops_of(pool, "collect"))
    own = held_out is not None and recipe.evaluation.prompts is None
    if held_out is not None and (more := aside - (held_out.rows if own else 0)) > 0:
        same = "row says the same as a held-out prompt" if more == 1 else "rows say the same as held-out prompts"
        observer.on_notice(f"{more} {'more ' if own else ''}{same}, and {'is' if more == 1 else 'are'} not trained on")
    if held_out is not None and recipe.evaluation.count is None and held_out.rows < HELD_OUT_COUNT:
        observer.on_notice(
            f"evaluation.count is not set: {held_out.rows} prompts are held out (with more prompts, {HELD_OUT_COUNT})"
        )
    if source.per_iteration is None and drawn < prompt_sources.PER_ITERATION:
        observer.on_notice(
            f"prompts.per_iteration is not set: {'the job' if held_out is None else 'an iteration'} draws {drawn} "
            f"prompts (with more, {prompt_sources.PER_ITERATION})"
        )


def generate(
    generator: Any, output: ArtifactWriter, policy: Artifact, prompts: Artifact, stream: str | None = None
) -> None:
    """K responses to each prompt; groups that an earlier attempt finished are not made again."""
    if done := output.resume():
        complain(f"{output.progress.artifact}: {len(done)} of {prompts.rows} prompts were already answered")
    wanted = (Prompt.of(row) for row in prompts.read())
    missing = _missing_blocks(wanted, done, protocols.batch_size(generator))
    withheld: list[Group] = []  # kept back until there is a response: without any, nothing is made
    for group in output.launch.answers(generator, policy_of(policy), missing, _stream_seed(output, stream)):
        if group.prompt.id in done:
            continue
        withheld.append(group)
        if done or group.prompt.drawn or not all(response.withheld for response in group.responses):
            for early in withheld:
                output.append(early.row())
            withheld.clear()
        output.advance(len(output.offsets), prompts.rows)
    if withheld:
        first = withheld[0]
        raise UserError(
            f"none of {len(withheld)} prompts has a response; the first, prompt {first.prompt.id}: "
            f"{first.responses[0].finish_reason}. Change that at the server, and run the same command again"
        )
    output.measured, output.rows_in = output.launch.proof(generator), prompts.rows
    output.gather(row["id"] for row in prompts.read())


def _stream_seed(output: ArtifactWriter, stream: str | None) -> int:
    """The seed of responses: that of their iteration, or of a named stream which every iteration shares."""
    return derive(output.seed, stream if stream is not None else f"iteration {output.iteration}")


def score(
    reward: Any, output: ArtifactWriter, prompts: Artifact, responses: Artifact, limit: MaxFailed | None = None
) -> None:
    """One score for each response. UserError if more than `limit` have none; those that have one are kept for later."""
    score_groups(reward, output, records.groups(prompts.path, responses.path), [row["id"] for row in prompts.read()])
    if limit is not None:
        limit.require(output.path)


def score_groups(reward: Any, output: ArtifactWriter, groups: Iterable[Group], ids: Sequence[str]) -> None:
    """One score for each response, in fixed blocks of groups; a judge is not asked again about a finished group.

    `ids` are those of the groups' prompts, in order.
    """
    output.resume()
    for done in score_missing(reward, output, _counted(reward, groups, output.requests)):
        output.advance(done, len(ids))
    output.rows_in = len(ids)
    output.gather(ids)


def _counted(reward: Any, groups: Iterable[Group], counts: dict[str, int]) -> Iterator[Group]:
    """The groups; adds to `counts` the requests that a judge needs for each, those of an earlier attempt too."""
    judges = list(protocols.judges({"": reward}))
    for group in groups:
        for key, judge in judges:
            counts[key] = counts.get(key, 0) + judge.needed(_answered(group))
        yield group


def score_missing(reward: Any, output: ArtifactWriter, groups: Iterable[Group]) -> Iterator[int]:
    """Scores those of `groups` that the partial file lacks; after each it has this many."""
    missing = itertools.chain.from_iterable(_missing_blocks(groups, output.offsets, protocols.batch_size(reward)))
    for group, scores in _scored(output.launch, reward, missing):
        if group.prompt.id not in output.offsets:
            output.append({"prompt_id": group.prompt.id, "scores": [score.row() for score in scores]})
        yield len(output.offsets)


def logprobs(first: Artifact, output: ArtifactWriter, prompts: Artifact, responses: Artifact, policy: Artifact) -> None:
    """Log-probability of each response under the first policy and under the policy that wrote it."""
    of_first, of_policy = (
        _logprobs(output, policy_of(model).path, records.groups(prompts.path, responses.path))
        for model in (first, policy)
    )
    output.write(
        {"prompt_id": row["id"], "first": of_first[row["id"]], "policy": of_policy[row["id"]]} for row in prompts.read()
    )
    output.rows_in = responses.rows


def _logprobs(output: ArtifactWriter, folder: Path, groups: Iterable[Group]) -> dict[str, list[float]]:
    """The log-probability of each response under a policy, by the id of its prompt."""
    from raft.models.logprobs import BLOCK, Likelihood

    blocks = iter(lambda: list(itertools.islice(groups, BLOCK)), [])
    found = output.launch.likelihoods(Likelihood(folder=folder), blocks)
    return {group.prompt.id: [score.reward for score in scores] for group, scores in found}


def reference_logprobs(section: None, output: ArtifactWriter, policy: Artifact, references: Artifact) -> None:
    """Log-probability of each reference response under a policy, and its number of predicted tokens."""
    from raft.models.chat_templates import encode_prompt

    tokenizer = _tokenizer(policy)
    examples = [Example.of(row) for row in references.read()]
    named = (replace(example.prompt, id=str(place)) for place, example in enumerate(examples))  # ids may repeat
    groups = (Group(prompt, [example.response]) for prompt, example in zip(named, examples, strict=True))
    logprobs = _logprobs(output, policy_of(policy).path, groups)
    output.write(
        {
            "prompt_id": example.prompt_id,
            "logprob": logprobs[str(place)][0],
            "tokens": len(example.response.token_ids) - (not encode_prompt(tokenizer, example.prompt)),
        }
        for place, example in enumerate(examples)
    )
    output.rows_in = references.rows


def select(
    selection: Any,
    output: ArtifactWriter,
    prompts: Artifact,
    responses: Artifact,
    scores: Artifact,
    reference: Artifact | None = None,
) -> None:
    """What is trained on. Groups in = groups picked from + groups dropped, each with its reason."""
    made = (prompts, responses, scores, reference)
    rewards, picks = choose(selection, *made, output.seed, output.iteration, output.drop)
    output.write(_picked(picks, records.groups(prompts.path, responses.path), rewards, output))
    if output.rows == 0:
        raise UserError(_nothing_kept(picks.reasons.values(), output.drops, int((~np.isnan(rewards)).sum())))


def _nothing_kept(reasons: Iterable[str], drops: Iterable[Drop], scored: int) -> str:
    """That a selection picked nothing, why of how many prompts, what left out how many responses, and what to do."""
    from raft.pipeline.selection import FILTERS

    prompts, responses = Counter(reasons), Counter(drop.reason for drop in drops if drop.index is not None)
    filtered = {name: count for name, count in responses.most_common() if name in FILTERS}
    why = "; ".join(f"{reason}: {count}" for reason, count in prompts.most_common(MOST_REASONS))
    took = ", ".join(f"{name} took out {count}" for name, count in filtered.items())
    said = f". Of {scored} responses that have a reward, {took}" if took else ""
    ways = ["raise generator.max_tokens"] if "truncated" in filtered else []
    ways += [f"remove {' and '.join(filtered)} from selection.filters"] if filtered else []
    ways += ["loosen the selection itself"] if sum(filtered.values()) < scored else []
    done = ", or ".join(ways) or "correct the reward, which scored no response"
    return f"selection kept nothing of {prompts.total()} prompts ({why}){said}; {done}"


def choose(
    selection: Any,
    prompts: Artifact,
    responses: Artifact,
    scores: Artifact,
    reference: Artifact | None,
    seed: int,
    iteration: int,
    drop: Dropped,
) -> tuple[np.ndarray, Any]:
    """The rewards [N, K], NaN where there is none, and what a selection picks by them (a `selection.Picks`).

    Responses that are left out before the pick are named through `drop`.
    """
    from raft.pipeline import selection as selections

    refuse_other_prompts(prompts, scores, *([] if reference is None else [reference]))
    rewards = rewards_of(scores)[0]
    valued = selection.valued(rewards) if hasattr(selection, "valued") else rewards
    eligible = np.array(valued if reference is None else _shaped(selection, valued, reference))
    whole = not selection.filters and not np.isnan(rewards).any()  # nothing to look for in the responses
    for row, group in enumerate(() if whole else records.groups(prompts.path, responses.path)):
        scored = np.flatnonzero(~np.isnan(rewards[row]))
        for index in np.flatnonzero(np.isnan(rewards[row][: len(group.responses)])):
            response = group.responses[index]
            drop(group.prompt.id, int(index), response.finish_reason if response.withheld else "no reward")
        for index, reason in zip(
            scored, selections.filtered([group.responses[index] for index in scored], selection.filters), strict=True
        ):
            if reason is not None:
                drop(group.prompt.id, int(index), reason)
                eligible[row, index] = np.nan
    ranks = ranks_of(scores) if reference is None else None
    if getattr(selection, "length_control", False):
        eligible = selections.length_controlled(eligible, _lengths(responses, eligible.shape))
    rng = np.random.default_rng(derive(seed, "select", iteration))
    with guarded(selection):
        picks = selection.pick(eligible, rng, ranks)
    if is_own(selection) and (why := selections.broken(picks, eligible)):
        raise UserError(f"{name_of(selection)}: {why}")
    return rewards, picks


def train(trainer: Any, output: ArtifactWriter, start: Artifact, selected: Artifact) -> None:
    """The next policy: a model folder that transformers and vLLM load, with its probe and a card."""
    kind = Pair if protocols.takes_pairs(trainer) else Example
    examples = (kind.of(row) for row in selected.read())
    seed = derive(output.seed, "train", output.iteration)
    before = policy_of(start).path

    def advance(done: int, total: int) -> None:
        output.advance(done, total)
        if done < total:  # else the policy is only to be written
            signals.check()

    output.tell_restart()
    output.measured = output.launch.train(
        trainer, before, examples, output.path, seed, advance, output.drop, output.checkpoints
    )
    if is_own(trainer):
        _look_at_trained(trainer, output)
    write_card(output, before, selected.rows)


def _look_at_trained(trainer: Any, output: ArtifactWriter) -> None:
    """UserError if a trainer of the user's own left no model folder, or measured anything but numbers; probes it."""
    from raft.models import weight_check

    measured = output.measured
    if not (output.path / "config.json").is_file():
        raise UserError(f"{name_of(trainer)} wrote no model into `out` (no config.json); use save_pretrained(out)")
    numbers = isinstance(measured, dict) and all(
        isinstance(name, str) and isinstance(value, int | float) and np.isfinite(value)
        for name, value in measured.items()
    )
    if not numbers:
        raise UserError(f"{name_of(trainer)}: train returns a dict of finite numbers, not {repr(measured)[:200]}")
    if protocols.makes(trainer) == "policy" and not (output.path / "probe.json").exists():
        weight_check.make(output.path, weight_check.first_texts(output.path), output.path / "probe.json")


def policy_of(artifact: Artifact) -> Policy:
    """A policy's folder; UserError if it has been pruned, or is damaged."""
    if artifact.stamp.get("pruned"):
        raise UserError(
            f"{artifact.place} was deleted to save room (keep_policies:); a new run with keep_policies: all keeps "
            "every policy"
        )
    return Policy(artifact.path, artifact.path / "probe.json")


def write_card(output: ArtifactWriter, start: Path, examples: int) -> None:
    """The model card of a policy inside a run, which `raft export` replaces by a full one."""
    origin = f"policy {int(start.parent.name)}" if output.iteration else "the model that the run began with"
    made = f"Policy {output.iteration}, trained" if output.iteration else "Trained"
    known = ((name, value) for name, value in output.measured.items() if value or name != "train/padding")
    measured = "".join(f"| {name} | {rounded(value)} |\n" for name, value in known)
    (output.path / "README.md").write_text(
        f"---\nlibrary_name: transformers\ntags: [raft]\n---\n\n"
        f"{made} with raft, from {origin}, on {examples} rows. `raft export` writes this folder with a full card.\n\n"
        f"| measured | |\n|---|---|\n{measured}",
        encoding="utf-8",
    )


def _tokenizer(policy: Artifact) -> Any:
    from raft.models.chat_templates import load_tokenizer

    return load_tokenizer(str(policy.path))


def _missing_blocks(items: Iterable[Any], done: Any, size: int) -> Iterator[list[Any]]:
    """The blocks of which at least one group is missing, whole: the rows of a block share their floats.

    None begins after a signal that stops the run.
    """
    iterator = iter(items)
    while not signals.asked() and (block := list(itertools.islice(iterator, size))):
        if any((item.id if isinstance(item, Prompt) else item.prompt.id) not in done for item in block):
            yield block


def _scored(launch: Any, reward: Any, groups: Iterable[Group]) -> Iterator[tuple[Group, list[Score]]]:
    """The groups with their scores, in any order."""
    iterator = iter(groups)
    asked: dict[str, Group] = {}

    def blocks() -> Iterator[list[Group]]:
        while block := list(itertools.islice(iterator, protocols.BATCH_SIZE)):
            asked.update((group.prompt.id, group) for group in block)
            yield [part for part in map(_answered, block) if part.responses]

    for part, scores in launch.scored(reward, blocks()):
        group = asked.pop(part.prompt.id)
        yield group, scores if part is group else _with_unanswered(group, scores)
    for group in asked.values():
        yield group, _with_unanswered(group, [])


def _answered(group: Group) -> Group:
    """The group without the responses that are nothing but a thought, of which no reward is asked."""
    some = [response for response in group.responses if response.unanswered is None]
    return group if len(some) == len(group.responses) else replace(group, responses=some)


def _with_unanswered(group: Group, scores: Sequence[Score]) -> list[Score]:
    rest = iter(scores)
    return [
        next(rest) if response.unanswered is None else Score(None, error=response.unanswered)
        for response in group.responses
    ]


def _shaped(selection: Any, rewards: np.ndarray, reference: Artifact) -> np.ndarray:
    from raft.pipeline.selection import shaped

    rows = list(reference.read())
    return shaped(
        rewards, np.array([row["policy"] for row in rows]), np.array([row["first"] for row in rows]), selection.kl_coef
    )


def _lengths(responses: Artifact, shape: tuple[int, ...]) -> np.ndarray:
    """The number of tokens of each response [N, K]; 0 where a group has fewer. UserError for a text without tokens."""
    lengths = np.zeros(shape)
    for row, answered in enumerate(responses.read()):
        for index, one in enumerate(answered["responses"]):
            lengths[row, index] = len(one["token_ids"])
            if one["text"] and not one["token_ids"]:
                raise UserError(
                    f"selection.length_control counts tokens, and response {index} to prompt {answered['prompt_id']} "
                    "has none; turn it off, or give responses with their token_ids"
                )
    return lengths


def _picked(
    picks: Any, groups: Iterable[Group], rewards: np.ndarray, output: ArtifactWriter
) -> Iterator[dict[str, Any]]:
    """The picked rows in the order of the prompts, and a drop for each group of which nothing was picked."""
    order = np.lexsort((picks.responses, picks.prompts))
    pointer = 0
    for row, group in enumerate(groups):
        if row in picks.reasons:
            output.drop(group.prompt.id, None, picks.reasons[row])
        while pointer < len(order) and picks.prompts[order[pointer]] == row:
            yield _row(picks, int(order[pointer]), group, rewards[row])
            pointer += 1


def _row(picks: Any, pick: int, group: Group, rewards: np.ndarray) -> dict[str, Any]:
    prompt, index = group.prompt, int(picks.responses[pick])
    best = group.responses[index]
    if picks.rejected is not None:
        worst = int(picks.rejected[pick])
        return Pair(prompt.id, best, group.responses[worst], index=index, rejected_index=worst, **prompt.asked).row()
    weight = float(picks.weights[pick])
    return Example(prompt.id, best, index, float(rewards[index]), weight, **prompt.asked).row()
