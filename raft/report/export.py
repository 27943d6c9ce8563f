"""`raft export`: a policy as a folder that stands alone: real files, a model card, the recipe and the curve."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

from raft.core import signals
from raft.core.atomic import commit, files_of, make_readable, remove
from raft.core.errors import UserError
from raft.core.run_paths import RunPaths, run_of
from raft.models import hub, model_folder
from raft.pipeline import policies
from raft.pipeline.policies import Found, Which
from raft.report import model_card
from raft.report.figures import picture
from raft.store import branch, runs, stamps

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
        recipe = model_card.portable(runs.read_resolved(folder), folder)
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
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out.parent}: there is no such folder; make it first")
    if (run := run_of(out.absolute())) is not None:
        raise UserError(f"{out} lies inside the run {run}, which holds only its own files; name a folder outside")


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
