"""`raft export`: a policy as a folder that stands alone: real files, a model card, the recipe and the curve.

Or what it answered to the held-out prompts, as AlpacaEval takes it.
"""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

from raft.config.recipe import read_resolved
from raft.core import records, signals
from raft.core.atomic import commit, files_of, make_readable, remove, write_text
from raft.core.errors import UserError
from raft.core.records import Prompt
from raft.core.run_paths import RunPaths, run_of
from raft.models import hub, model_folder
from raft.pipeline import policies
from raft.pipeline.policies import Found, Which
from raft.report import model_card
from raft.report.figures import picture
from raft.store import branch, runs, stamps
from raft.store.keys import Artifact

OURS = "probe.json"  # the check of an engine; nobody else reads it
NAMES = ("_name_or_path", "name_or_path", "base_model_name_or_path")  # where a config may name a folder of this machine


def write(folder: Path, out: Path | None = None, which: Which = "best") -> tuple[Path, Found]:
    """Writes a policy of a run into a folder, whole or not at all; returns the folder, and which policy it holds.

    UserError if the folder holds anything, or if the policy cannot be used.
    """
    folder = branch.existing(folder)
    out = RunPaths(folder).exported if out is None else out
    _refuse(out)
    found = policies.find(folder, which)
    _require_rows(folder)
    temporary = out.with_name(f".{out.name}.tmp")
    remove(temporary)
    temporary.mkdir()
    try:
        _copy_model(found.path, temporary)
        recipe = model_card.portable(read_resolved(folder), folder)
        RunPaths(temporary).recipe.write_text(model_card.as_yaml(recipe), encoding="utf-8")
        curve = RunPaths(temporary).curve
        if found.number is not None and runs.metrics_rows(folder):
            picture.plot("reward", [folder], curve)
        card = model_card.card(folder, found, recipe, curve.name if curve.exists() else None)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        commit(temporary, out)
    finally:
        remove(temporary)
    return out, found


def push(folder: Path, name: str, out: Path | None = None, which: Which = "best") -> tuple[Path, Found, str]:
    """The same, then uploaded as OWNER/NAME; also returns its address. UserError before anything is written if nobody
    is logged in."""
    hub.require_upload(name)
    written, found = write(folder, out, which)
    return written, found, hub.upload(written, name)


def alpaca_eval(folder: Path, out: Path, which: Which = "best") -> tuple[int, list[dict[str, str]]]:
    """Writes what a policy answered to the held-out prompts as a file of outputs for AlpacaEval.

    Of the k answers to a prompt the first is taken, which no reward has chosen. Returns the number of the policy, and
    the rows. UserError if the file is there, or if the policy was not evaluated; its weights may be gone.
    """
    folder = branch.existing(folder)
    _refuse_place(out)
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists, and nothing is overwritten; move it away, or name another file")
    if (job := runs.about(folder)["job"]) != "align":
        raise UserError(f"{folder} is a run of job: {job}, which has no held-out answers; name a run of job: align")
    run, number = RunPaths(folder), policies.number_of(folder, which)
    answered = [it.number for it in run.iterations() if stamps.stamp_path(it.evaluation.responses).exists()]
    if number not in answered:
        some = ", ".join(map(str, answered)) or "none"
        raise UserError(f"policy {number} has no held-out answers (evaluation.every); policies that have: {some}")
    files = run.evaluation, run.iteration(number).evaluation.responses
    rows = [
        {
            "instruction": _instruction(prompt := Prompt.of(asked)),
            "output": records.answers(row)[0].text,
            "generator": f"{folder.absolute().name}-policy-{number}",
            **({"dataset": name} if isinstance(name := prompt.meta.get("dataset"), str) else {}),
        }
        for asked, row in records.in_step(*(Artifact.finished(file).path for file in files))
    ]
    write_text(out, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return number, rows


def _instruction(prompt: Prompt) -> str:
    """A prompt as one text: of a chat its only turn, or all turns behind their roles; a system message is left out."""
    if prompt.messages is None:
        return prompt.content
    turns = [message for message in prompt.messages if message["role"] != "system"] or prompt.messages
    if len(turns) == 1:
        return records.said(turns[0])
    return "\n\n".join(f"{message['role']}: {records.said(message)}" for message in turns)


def _require_rows(folder: Path) -> None:
    """UserError if a file that the card and the curve are made of is damaged; other policies may be."""
    for path, stamp in stamps.stamped(folder):
        if "" in stamp.get("content", {}):
            stamps.require(path, stamp)


def _refuse(out: Path) -> None:
    """UserError if nothing may be written there."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} is not a folder; name one that is empty, or not there yet")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty, and nothing is overwritten; move it away, or name another folder")
    _refuse_place(out)


def _refuse_place(out: Path) -> None:
    """UserError if the folder that it would lie in is not there, or belongs to a run."""
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out.parent}: there is no such folder; make it first")
    if (run := run_of(out.absolute())) is not None:
        raise UserError(f"{out} lies inside the run {run}, which holds only its own files; name a place outside")


def _copy_model(policy: Path, out: Path) -> None:
    """The files of a model that its loaders read, each a copy; configurations without the folders of this machine."""
    patterns = hub.FILES if any(policy.glob("*.safetensors")) else [*hub.FILES, hub.OLD_WEIGHTS]
    for name in files_of(policy):
        if name == OURS or not any(fnmatch(name, pattern) for pattern in patterns):
            continue
        signals.check()
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(policy / name, out / name)
        if name.endswith("config.json"):
            _without_folders(out / name)
    make_readable(out)


def _without_folders(file: Path) -> None:
    """Cuts the folders of this machine that a configuration names to their own names."""
    content = model_folder.read(file)
    named = [name for name in NAMES if isinstance(content.get(name), str) and Path(content[name]).is_absolute()]
    if named:
        content |= {name: Path(content[name]).name for name in named}
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
