"""What `raft report -o` and `raft plot -o` may write: new files, and what they wrote before, and nothing else."""

import sys
from pathlib import Path

import folders
import pytest

from raft.core.errors import UserError
from raft.report.figures import picture
from raft.report.page import write as report


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim").write_text("precious")
    return folders.write_run(tmp_path / "outputs" / "x", 3, 2, 1, lambda *at: "words", lambda *at: float(sum(at)))


def carry_out(verb: str, run: str, *out: str) -> int:
    """As the command does it; 2 if it is refused, with the message on standard error."""
    output = Path(out[1]) if out else None
    try:
        if verb == "report":
            report.write(Path(run), output)
        else:
            output = output or Path(run) / "reward_curve.png"
            picture.refuse(output)
            picture.plot("reward", [Path(run)], output)
    except UserError as fault:
        print(fault, file=sys.stderr)
        return 2
    return 0


@pytest.mark.parametrize("command", [("report", "c.html"), ("plot", "c.png")])
def test_devices_links_folders_and_files_of_the_run_are_refused(run: Path, command, capsys):
    verb, name = command
    ending = Path(name).suffix
    Path(f"link{ending}").symlink_to("victim")
    Path(f"dangling{ending}").symlink_to("nothing")
    Path(f"folder{ending}").mkdir()
    own = run / f"metrics{ending}"
    own.write_text("precious")
    for out in (f"link{ending}", f"dangling{ending}", f"folder{ending}", str(own), f"nowhere/c{ending}"):
        assert carry_out(verb, str(run), "-o", out) == 2
        assert Path(out).name in capsys.readouterr().err
    assert Path("victim").read_text() == own.read_text() == "precious"
    assert not Path("nothing").exists()
    assert carry_out(verb, str(run), "-o", name) == carry_out(verb, str(run), "-o", name) == 0


def test_a_report_does_not_replace_a_device_or_an_artifact(run: Path, capsys):
    before = (run / "evaluation.jsonl").read_bytes()
    for out in ("/dev/null", str(run / "evaluation.jsonl")):
        assert carry_out("report", str(run), "-o", out) == 2
    assert Path("/dev/null").is_char_device() and (run / "evaluation.jsonl").read_bytes() == before
    assert carry_out("report", str(run)) == carry_out("report", str(run)) == 0


def test_a_table_of_somebody_else_is_not_replaced(run: Path, capsys):
    Path("c.csv").write_text("a,b\n1,2\n")
    assert carry_out("plot", str(run), "-o", "c.png") == 2
    assert "c.csv" in capsys.readouterr().err and Path("c.csv").read_text() == "a,b\n1,2\n"
    Path("d.csv").symlink_to("victim")
    assert carry_out("plot", str(run), "-o", "d.png") == 2
    assert Path("victim").read_text() == "precious" and not Path("c.png").exists()
    assert carry_out("plot", str(run)) == carry_out("plot", str(run)) == 0
