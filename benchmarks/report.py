"""How large is the page of a large run, what does writing it take, and how soon can one use it?

    python benchmarks/report.py                  # 2048 prompts x 8 responses x 20 iterations
    python benchmarks/report.py 256 8 5

Makes a run's folder without running anything: texts of 200 to 1,600 letters out of words as frequent as words are,
with tokens and their log-probabilities as a generator writes them. The page is written in a process of its own, whose
largest resident size is told. A browser is asked if Chromium is there.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from chromium import FOUND, browser
from folders import write_run

HELD_OUT = 256


class Language:
    """Texts of made-up words, drawn as Zipf's law has it, so that they pack about as well as real ones."""

    def __init__(self, words: int = 20000):
        rng = np.random.default_rng(0)
        letters = list("etaoinshrdlucmfwypvbgkjqxz")
        frequency = np.linspace(1, 0.05, len(letters))
        lengths = rng.integers(2, 11, size=words)
        shares = frequency / frequency.sum()
        self.words = np.array(["".join(rng.choice(letters, size=length, p=shares)) for length in lengths])
        self.drawn = rng.choice(words, size=4_000_000, p=(weights := 1 / np.arange(1, words + 1)) / weights.sum())

    def text(self, policy: int, prompt: int, index: int) -> str:
        """The response with these numbers."""
        rng = np.random.default_rng([policy, prompt, index])
        start = int(rng.integers(len(self.drawn) - 300))
        return " ".join(self.words[self.drawn[start : start + int(rng.integers(35, 280))]])


def reward(policy: int, prompt: int, index: int) -> float:
    """One that rises from policy to policy."""
    return float(np.random.default_rng([policy, prompt, index, 1]).normal(policy / 10))


def usable(page: Path, groups: int) -> dict[str, float]:
    """Seconds from opening the page until its figures stand, until a response does, and for a search in all of them."""
    with browser() as tab:
        tab.shape(1366, 800)
        began = time.perf_counter()
        tab.call("Page.navigate", url=page.absolute().as_uri())
        tab.until("document.querySelector('figure svg path')")
        figures = time.perf_counter() - began
        tab.js("location.hash = '#prompts?in=t1'")
        tab.until("document.querySelector('article .prose')")
        response = time.perf_counter() - began
        tab.until("document.readyState === 'complete'", seconds=120)
        whole = time.perf_counter() - began
        tab.js("document.getElementById('scope').value = 'training'")
        tab.js("document.getElementById('scope').dispatchEvent(new Event('change'))")
        tab.until(f"items.length === {groups}")
        began = time.perf_counter()
        tab.js("shown.q = 'nowhere at all'; search().then(() => { window.searched = true }); 0")
        tab.until("window.searched", seconds=300)
        searched = time.perf_counter() - began
        heap = tab.js("performance.memory.usedJSHeapSize") / 1e6
    return {"figures s": figures, "a response s": response, "all read s": whole, "search s": searched, "heap MB": heap}


def main() -> None:
    """One table for one size."""
    prompts, k, iterations = map(int, sys.argv[1:] or (2048, 8, 20))
    language = Language()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "large"
        write_run(run, prompts, k, iterations, language.text, reward, HELD_OUT, logprobs=True)
        files = sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) / 1e6
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "raft", "report", str(run)], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        page = run / "report.html"
        found = {"files MB": files, "page MB": page.stat().st_size / 1e6, "to write s": seconds, "peak MB": peak}
        print(f"{prompts} prompts x {k} responses x {iterations} iterations, {HELD_OUT} x 2 held-out ones a policy")
        print(json.dumps({name: round(value, 1) for name, value in found.items()}), flush=True)
        if FOUND is not None:
            print(json.dumps({name: round(value, 2) for name, value in usable(page, prompts * iterations).items()}))


if __name__ == "__main__":
    main()
