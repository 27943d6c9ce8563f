"""The page docs/python.md is a program that runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import worlds

import raft

PAGE = Path(__file__).parent.parent / "docs" / "python.md"


@pytest.mark.nightly
def test_the_blocks_of_the_page_run_from_top_to_bottom_as_they_stand(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, text=True, capture_output=True, check=False,
        env={**worlds.ENVIRONMENT, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"print\(.*\)  # (<raft\.Run.*>)$", "\n".join(blocks), re.MULTILINE)
    assert len(promised) == 2 and all(f"{line}\n" in done.stdout for line in promised), done.stdout
    assert "section.function.code: was " in done.stdout and "argument: generator.k: 0 is out" in done.stdout
    assert [raft.open_run(tmp_path / "outputs" / name).iterations for name in ("red", "blue", "watched")] == [2, 1, 1]
    assert (tmp_path / "length.svg").exists() and (tmp_path / "outputs/red/report.html").exists()
