"""What it saves that a judge elsewhere scores while responses are still generated.

    python benchmarks/judging.py --latency 0.5 recipes/tinystories.yaml variables.data=FOLDER iterations=2

Runs the recipe twice in this process with a judge in the place of its reward: a server in a process of its own that
takes `--latency` seconds for each grade, 32 at a time. First raft waits with the judge for the last response, then it
does not. Prints the seconds of each iteration from its first response to its last score, and whether the scores are
the same. The runs stay in outputs/judging-benchmark-*.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from raft.cli.console import Console
from raft.config import recipe
from raft.config.recipe import Loaded
from raft.pipeline import loop
from raft.rewards.judge.judge import Judge
from raft.store.runs import stamp_path


class Here(Judge):
    """The same judge, taken for one that needs this machine."""

    remote = False  # type: ignore[assignment]


def main() -> None:
    """Both runs, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    os.environ["OPENAI_API_KEY"] = ""
    command = [sys.executable, __file__, str(asked.latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        judge = Judge(url=f"http://127.0.0.1:{server.stdout.readline().strip()}/v1", model="judge", mode="grade")
        found = {}
        for name, remote in (("start", False), ("after", False), ("meanwhile", True)):
            few = ("iterations=1", "prompts.per_iteration=8") if name == "start" else ()  # for the engine to be warm
            overrides = [*asked.overrides, f"name=judging-benchmark-{name}", *few]
            found[name] = run(recipe.load(Path(asked.recipe), overrides), judge, remote)
        server.terminate()
    for number in range(1, len(found["after"]) + 1):
        same = len({folder_scores(found[name][number - 1][0]) for name in ("after", "meanwhile")}) == 1
        after, meanwhile = found["after"][number - 1][1:], found["meanwhile"][number - 1][1:]
        print(
            f"iteration {number}: generation {after[0]:.1f} s and scores {after[1] - after[0]:.1f} s, together "
            f"{after[1]:.1f} s; meanwhile: generation {meanwhile[0]:.1f} s, together {meanwhile[1]:.1f} s; "
            f"{after[1] / meanwhile[1]:.2f} times as fast; the same scores: {same}"
        )


def run(loaded: Loaded, judge: Judge, remote: bool) -> list[tuple[Path, float, float]]:
    """Of each iteration its folder, the seconds of its responses, and those until its last score."""
    shutil.rmtree(loaded.folder, ignore_errors=True)
    reward = replace(judge) if remote else Here(**vars(judge))
    loop.run(replace(loaded, recipe=replace(loaded.recipe, reward=reward)), Console())
    found = []
    for number in range(1, loaded.recipe.iterations + 1):
        folder = loaded.folder / "iterations" / f"{number:03d}"
        responses, scores = (
            json.loads(stamp_path(folder / name).read_text()) for name in ("responses.jsonl", "scores.jsonl")
        )
        found.append((folder, responses["seconds"], scores["began"] + scores["seconds"] - responses["began"]))
    return found


def folder_scores(folder: Path) -> bytes:
    """The scores of an iteration."""
    return (folder / "scores.jsonl").read_bytes()


async def head_of(reader: asyncio.StreamReader) -> bytes:
    """The next request up to its body, nothing if there is none."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


async def serve(latency: float) -> None:
    """A judge that grades a text by its length after so many seconds."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await head_of(reader):
            length = re.search(rb"(?i)content-length: (\d+)", head)
            asked = await reader.readexactly(int(length[1]) if length else 0)
            said: dict[str, object] = {"data": [{"id": "judge", "owned_by": "benchmark"}]}
            if asked:
                await asyncio.sleep(latency)
                grade = {"role": "assistant", "content": f"[[{1 + len(asked) % 10}]]"}
                said = {"choices": [{"message": grade, "finish_reason": "stop"}]}
            content = json.dumps(said).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        asyncio.run(serve(float(sys.argv[1])))
    else:
        began = time.time()
        main()
        print(f"{time.time() - began:.0f} s in all")
