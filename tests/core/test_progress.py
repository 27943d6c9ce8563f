"""What is shown while a stage works: its file, its words, its line, and what a pseudo-terminal really gets."""

import io
import json
import os
import re
import time
from pathlib import Path

import pytest
from terminals import on_terminal

from raft.core import progress, terminal
from raft.core.progress import Line, Progress, Screen, State
from raft.core.timing import words
from raft.store.artifact_writer import ArtifactWriter


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def at_work(clock: Clock, file: Path | None = None, rest: float | None = None, after: float = 0.0) -> Progress:
    told = Progress(
        "iterations/002/responses.jsonl", "prompts", file, "generating responses", 2, 5, rest, after, clock
    )  # fmt: skip
    clock.now += 25
    for done in range(1, 41):
        told.advance(done, 100)
        clock.now += 1
    return told


def test_durations_are_told_as_a_person_says_them():
    spoken = {0.44: "0.4 s", 3: "3 s", 9.97: "10 s", 45.2: "45 s", 119.8: "2 min", 150: "2 min 30 s", 1581: "26 min"}
    spoken |= {3599: "1 h", 6000: "1 h 40 min", 36000: "10 h"}
    spoken |= {200_000: "2 days 8 h", 172_800: "2 days"}
    assert {seconds: words(seconds) for seconds in spoken} == spoken


def test_the_state_of_a_stage_can_be_read_by_others(tmp_path: Path):
    clock, file = Clock(), tmp_path / "progress.json"
    told = Progress("iterations/001/responses.jsonl", "prompts", file, "generating responses", 1, 3, clock=clock)
    first = progress.read(file)
    assert first is not None and (first.done, first.total, first.share) == (0, 0, "starting")
    size = file.stat().st_size
    clock.now += 1
    told.advance(3, 12)
    state = progress.read(file)
    assert state is not None and file.stat().st_size == size
    assert (state.artifact, state.done, state.total) == ("iterations/001/responses.jsonl", 3, 12)
    assert (state.where, state.stage, state.share) == ("iteration 1 of 3", "generating responses", "25 %")
    assert progress.read(tmp_path / "none.json") is None


@pytest.mark.parametrize("value", ["null", "1e400", "-1", '"x"', "[]", "9" * 30])
@pytest.mark.parametrize("name", ["done", "left", "stage", "at", "iteration"])
def test_a_damaged_state_is_no_state(tmp_path: Path, name: str, value: str):
    file = tmp_path / "progress.json"
    Progress("a", "prompts", file)
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole))
    assert progress.read(file) is not None
    file.write_text(json.dumps({**whole, name: None}).replace(f'"{name}": null', f'"{name}": {value}'))
    state = progress.read(file)
    fits = (name, value) in {("left", "null"), ("stage", '"x"')}
    assert (state is not None) == fits


def test_a_run_that_goes_on_counts_from_where_it_goes_on(tmp_path: Path):
    file, partial, clock = tmp_path / "progress.json", tmp_path / "partial", Clock()
    for done in (2, 3):
        clock.now += 1
        told = Progress("a", "prompts", file, clock=clock)
        output = ArtifactWriter(tmp_path / "a", partial, "h", 0, 0, told)
        output.resume()
        output.append({"prompt_id": f"{done}"})
        clock.now += 1
        output.advance(len(output.offsets), 9)
        output.close()
    state = progress.read(file)
    assert state is not None and (state.before, state.done) == (1, 2)


def test_the_time_left_is_measured_from_the_first_unit_and_told_in_words():
    clock = Clock()
    told = at_work(clock)
    said = "iteration 2 of 5, generating responses, 40 %, 40 of 100 prompts, 1 a second, about 59 s left"
    assert told.state().sentence() == said


def test_what_starts_before_the_first_unit_is_in_no_rate_also_where_others_were_there():
    for before in (0, 102):
        clock = Clock()
        told = Progress("a", "prompts", None, "generating responses", clock=clock)
        told.before = before
        told.advance(before, 256)
        clock.now += 40  # the engine starts
        for unit in range(1, 61):
            clock.now += 1 / 24
            told.advance(before + unit, 256)
        state = told.state()
        assert state.rate == pytest.approx(24, rel=0.05), (before, state.rate)
        assert state.left == pytest.approx((256 - before - 60) / 24, abs=0.2)


def test_the_time_of_the_whole_run_is_at_least_this_stage_and_the_iterations_after_it():
    clock = Clock()
    assert at_work(clock, rest=400.0, after=300.0).state().run_left == pytest.approx(359.0, abs=1.1)
    assert at_work(clock, rest=400.0, after=3000.0).state().run_left == pytest.approx(3060.0, abs=1.1)
    assert at_work(clock).state().run_left is None


def test_an_estimate_of_the_run_that_is_used_up_before_a_stage_has_a_pace_is_no_longer_said():
    clock = Clock()
    told = Progress("iterations/002/responses.jsonl", "prompts", iterations=2, rest=8.0, clock=clock)
    clock.now += 3
    state = told.state()
    assert state.run_left == pytest.approx(5.0) and state.aged(state.at + 6).run_left is None
    clock.now += 6
    assert told.state().run_left is None and "whole run" not in told.state().sentence()


def test_a_state_ages_when_it_is_read_later():
    state = at_work(Clock(), rest=400.0).state()
    later = state.aged(state.at + 20)
    assert state.left is not None and later.left == pytest.approx(state.left - 20)
    assert later.seconds == state.seconds + 20 and state.aged(state.at - 99).seconds == state.seconds


@pytest.mark.parametrize("width", [200, 100, 79, 60, 40, 20, 3])
def test_a_line_is_never_wider_than_the_terminal_and_drops_what_matters_least(width: int):
    clock = Clock()
    line = Line(io.StringIO(), "starting", clock)
    line.begin(at_work(clock, rest=1600.0, after=1500.0))
    text = line.line(width, clock.now).plain
    assert len(text) <= width
    assert ("generating responses" in text) == (width >= 60) and ("40 %" in text) == (width >= 60)
    assert ("1 a second" in text) == (width == 200) and ("59 s left" in text) == (width >= 79)


def test_without_a_terminal_the_same_words_come_once_a_stage_takes_time():
    clock, stream = Clock(), io.StringIO()
    plain = Screen(stream, "starting", clock)
    told = Progress("a", "prompts", None, "generating responses", 1, 2, clock=clock)
    plain.begin(told)
    for _ in range(4):
        plain.look()
        clock.now += 1
    assert stream.getvalue() == ""
    clock.now += 1
    plain.look()
    plain.look()
    assert stream.getvalue() == "iteration 1 of 2, generating responses, starting\n"
    clock.now += 15
    plain.look()
    told.advance(3, 4)
    clock.now += 15
    plain.look()
    assert stream.getvalue().splitlines()[1:] == [
        "iteration 1 of 2, generating responses, starting (for 15 s)",
        "iteration 1 of 2, generating responses, 75 %, 3 of 4 prompts",
    ]


def test_what_the_work_waits_for_is_said_where_the_stage_is(monkeypatch):
    clock, stream = Clock(), io.StringIO()
    plain, line = Screen(stream, "starting", clock), Line(io.StringIO(), "between stages", clock)
    monkeypatch.setattr(progress, "_screen", plain)
    plain.begin(Progress("a", "prompts", None, "generating responses", 1, 2, clock=clock))
    clock.now += 5
    with progress.waiting("vLLM is starting"):
        plain.look()
    clock.now += 15
    plain.look()
    where = "iteration 1 of 2, generating responses"
    assert stream.getvalue().splitlines() == [f"{where}: vLLM is starting", f"{where}, starting"]
    monkeypatch.setattr(progress, "_screen", line)
    with progress.waiting("vLLM is starting"):
        assert line.line(200, clock.now).plain.endswith(" between stages: vLLM is starting")
        line.begin(Progress("a", "prompts", None, "generating responses", 1, 2, clock=clock))
        assert line.line(200, clock.now).plain.endswith("1 of 2, generating responses: vLLM is starting")
    assert line.line(200, clock.now).plain.endswith("1 of 2, generating responses: starting")


def test_a_fast_stage_hardly_pays_for_being_shown(tmp_path: Path):
    told = Progress("a", "prompts", tmp_path / "progress.json")
    began = time.perf_counter()
    for done in range(1000):
        told.advance(done, 1000)
    assert time.perf_counter() - began < 0.5  # half a millisecond each; it is some microseconds


def test_a_busy_machine_is_told_of_once(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (5.1, 0.0, 0.0))
    plain = Screen(io.StringIO(), "starting", clock)
    for _ in range(90):
        plain.look()
        clock.now += 1
    said = capsys.readouterr().err
    assert said.count("slow? other work uses these cores (load 5.1 on 2)") == 1 and "OMP_NUM_THREADS=1" in said
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "OMP" not in str(progress.other_work()), "what is done already is no advice"
    monkeypatch.setattr(os, "getloadavg", lambda: (3.4, 0.0, 0.0))
    assert progress.other_work() is None


def test_what_a_stage_is_called_cannot_act_on_the_terminal():
    state = State("a", "\x1b[31mred\nline", "", 0, 0, 0, 0, 0, 1.0, None, None, None, 0.0)
    assert "\x1b" not in state.sentence() and "\n" not in state.sentence()


def printed(code: str) -> bytes:
    """What a program writes to a pseudo-terminal."""
    return on_terminal(["-c", code])[1]


def screen_of(written: bytes) -> list[str]:
    """The lines that stay on the screen, for what progress writes: carriage returns, line ends, erasing."""
    lines = []
    for row in re.sub(r"\x1b\[[0-9;]*m", "", written.decode()).split("\n"):
        shown, column = "", 0
        for part in re.findall(r"\r|\x1b\[K|[^\r\x1b]+", row):
            if part == "\r":
                column = 0
            elif part == "\x1b[K":
                shown = shown[:column]
            else:
                shown = shown[:column] + part + shown[column + len(part) :]
                column += len(part)
        lines.append(shown)
    return lines


SHOWN = """
import sys, time
from raft.core import progress
from raft.core.terminal import say, complain
with progress.screen("starting"):
    time.sleep(0.5)
    with progress.Progress("a", "prompts", None, "generating responses", 1, 5) as told:
        time.sleep(0.5)
        say("a message")
        complain("another")
        told.advance(1, 4)
        time.sleep(0.3)
        {then}
say("the end")
"""


def test_a_spinner_turns_before_the_first_unit_is_done_and_messages_stay_whole():
    written = printed(SHOWN.format(then=""))
    text = written.decode()
    assert text.index("starting") < text.index("iteration 1 of 5, generating responses: starting")
    assert text.index("generating responses: starting") < text.index("1 of 4 prompts")
    assert len(set(re.findall("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", text))) >= 3
    assert screen_of(written) == ["a message", "another", "the end", ""]


def test_an_error_leaves_no_bar_behind():
    lines = screen_of(printed(SHOWN.format(then="raise SystemExit('it broke')")))
    assert lines == ["a message", "another", "it broke", ""]


def test_what_other_code_prints_stays_on_the_screen():
    lines = screen_of(printed(SHOWN.format(then="print('of a reward'); time.sleep(0.5)")))
    assert any(line.endswith("of a reward") for line in lines) and lines[-2] == "the end"


def test_words_of_libraries_sent_into_a_log_take_no_frame_with_them(tmp_path: Path):
    """vLLM starts with the error stream sent elsewhere; the line is drawn on the terminal all the same."""
    log = tmp_path / "log"
    sent = (
        f"import os; os.dup2(os.open({str(log)!r}, os.O_CREAT | os.O_WRONLY), 2); told.advance(2, 4); time.sleep(0.5)"
    )
    assert "2 of 4 prompts" in printed(SHOWN.format(then=sent)).decode() and log.read_bytes() == b""


def test_messages_are_written_as_ever_where_nothing_is_shown(capsys):
    terminal.say("x")
    assert capsys.readouterr().out == "x\n"
