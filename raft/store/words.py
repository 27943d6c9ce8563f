"""What a person calls a stage while it is at work, and what it counts."""

from pathlib import Path

from raft.core.run_paths import CANDIDATES, ROUNDS, IterationPaths

STAGES = {
    "link_model": "preparing the model",
    "init_model": "making a model with new weights",
    "load_examples": "reading examples",
    "load_candidates": "reading candidates",
    "join": "adding candidates",
    "load_eval_pairs": "reading held-out pairs",
    "sample_eval_prompts": "choosing held-out prompts",
    "diagnose": "examining the rewards",
    "collect": "reading prompts",
    "draw": "drawing prompts",
    "generate": "generating responses",
    "score": "scoring responses",
    "ask_again": "choosing prompts for another round",
    "merge_responses": "merging the rounds",
    "merge_scores": "merging the rounds",
    "logprobs": "computing likelihoods",
    "reference_logprobs": "computing likelihoods of the references",
    "select": "selecting responses",
    "replay": "adding earlier winners",
    "train": "training",
    "measure": "measuring",
    "evaluate_reward_model": "evaluating the reward model",
    "pair_prompts": "reading the prompts of pairs",
    "pair_responses": "reading the responses of pairs",
    "accuracies": "comparing rewards",
    "tabulate": "writing the table",
    "given_prompts": "reading prompts",
    "given_responses": "reading responses",
    "publish": "writing pairs",
}
HELD_OUT = {"generate": "answering held-out prompts", "score": "scoring held-out answers"}
UNITS = {"generate": "prompts", "score": "prompts", "train": "steps"}


def of(stage: str, path: Path) -> str:
    """The words for a stage that makes the artifact at `path`."""
    if path.parent.parent.name == ROUNDS and stage in UNITS:
        return f"{STAGES[stage]}, round {int(path.parent.name)}"
    if path.parent.name == CANDIDATES and stage in UNITS:
        return f"{STAGES[stage]}, candidates"
    place = IterationPaths(path.parent.parent).evaluation
    if path.parent != place.folder or stage not in HELD_OUT:
        return STAGES.get(stage, stage.replace("_", " "))
    return f"{HELD_OUT[stage]} by the gold reward" if path == place.gold else HELD_OUT[stage]


def unit(stage: str) -> str:
    """What the stage counts while it is at work; nothing for one that is told only when it ends."""
    return UNITS.get(stage, "")
