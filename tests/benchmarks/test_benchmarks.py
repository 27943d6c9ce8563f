"""The benchmark for GPUs runs whole on a CPU, so that time on a GPU is not spent on its faults."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
@pytest.mark.engine
def test_the_gpu_benchmark_runs_whole_counts_every_token_and_starts_one_engine(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    table = re.findall(r"^\| (\d) \| generate \| ([\d,]+) \|", (tmp_path / "gpu.md").read_text(), re.MULTILINE)
    run = tmp_path / "outputs" / "gpu"
    for iteration, tokens in table:
        rows = (run / "iterations" / f"00{iteration}" / "responses.jsonl").read_text().splitlines()
        counted = sum(len(one["token_ids"]) for row in rows for one in json.loads(row)["responses"])
        assert int(tokens.replace(",", "")) == counted > 0
    assert [iteration for iteration, _ in table] == ["1", "2"]
    assert (run / "logs" / "latest.log").read_text().count("Initializing a V1 LLM engine") == 1
