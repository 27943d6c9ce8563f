"""The page docs/python.md and the notebook are programs that run as they stand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import worlds

import raft

NAMES = ("red", "red-from-1", "blue", "watched")
DOCS = Path(__file__).parent.parent / "docs"
PAGE, NOTEBOOK = DOCS / "python.md", DOCS / "first-run.ipynb"
# What a notebook brings and the tests have not: it shows a picture.
SHOWS = """import sys, types
sys.modules["IPython.display"] = types.SimpleNamespace(Image=lambda path, width: open(path, "rb"))
"""


def program(folder: Path, blocks: list[str]) -> str:
    """What these blocks print, one after the other, in a folder."""
    (folder / "page.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=folder, text=True, capture_output=True, check=False,
        env={**worlds.ENVIRONMENT, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.nightly
def test_the_blocks_of_the_page_run_from_top_to_bottom_as_they_stand(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    said = program(tmp_path, blocks)
    promised = re.findall(r"print\(.*\)  # (<raft\.Run.*>)$", "\n".join(blocks), re.MULTILINE)
    assert len(promised) == 3 and all(f"{line}\n" in said for line in promised), said
    assert "reward.function: the source of reddish changed" in said and "argument: generator.k: 0 is out" in said
    assert [raft.open_run(tmp_path / "outputs" / name).iterations for name in NAMES] == [2, 2, 1, 1]
    assert (tmp_path / "length.svg").exists() and (tmp_path / "outputs/red/report.html").exists()


@pytest.mark.nightly
def test_the_cells_of_the_notebook_run_and_say_what_is_shown_in_it(tmp_path):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    said = program(tmp_path, [SHOWS, *("".join(cell["source"]) for cell in cells)])
    run = raft.open_run(tmp_path / "outputs/red")
    first, *_, last = (row["reward/eval"] for row in run.metrics)
    assert run.iterations == 4 and last > first
    assert re.search(r"from policy 0 to 4 \(\+0\.\d+ ± 0\.\d+\): a clear gain", said)
    assert all(f"{number} {round(row['reward/eval'], 3)} ± " in said for number, row in enumerate(run.metrics))
    shown = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert any("a clear gain" in "".join(output.get("text", "")) for output in shown)
