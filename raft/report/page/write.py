"""One page of HTML on a run, that opens from the disk with nothing beside it: `raft report RUN`.

From files alone, so it works while a run is live. The page holds its data in blocks of gzip in base64, and unpacks a
block when something in it is to be shown; what models wrote reaches the page only as text (page.js).
What can run in it is one script, named by its hash in a Content-Security-Policy that forbids every connection.
"""

import base64
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

from raft.core.atomic import create
from raft.core.run_paths import RunPaths, refuse_output
from raft.report.page.facts import facts
from raft.report.page.figures import figures
from raft.report.page.groups import batches, encoded, pack
from raft.report.palette import variables

SCRIPTS = tuple(f"{name}.js" for name in ("page", "prompt", "browser", "views"))
POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


def write(folder: Path, out: Path | None = None) -> Path:
    """The report of a run, RUN/report.html or `out`, written whole or not at all; where it stands.

    Memory does not grow with the number of responses, but for their rewards as numbers.
    UserError if it cannot be written there, or if the files of the run are out of step.
    """
    out = RunPaths(folder).report if out is None else out
    refuse_output(out, out.name == RunPaths(folder).report.name)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        with create(temporary) as page:
            _write(folder, page)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return out


def _write(folder: Path, page: BinaryIO) -> None:
    """Facts and index stand before the chunks, though they are known last: a browser shows them while it reads on."""
    near = Path(page.name).parent
    with tempfile.TemporaryFile(dir=near) as chunks, tempfile.TemporaryFile(dir=near) as index:
        packed = [pack(batch, chunks, index) for batch in batches(folder)]
        told = facts(folder, packed)
        style, script = _asset("page.css").replace("/* palette */", variables()), "".join(map(_asset, SCRIPTS))
        head, tail = _asset("page.html").split("<!-- data -->\n")
        drawn = figures(folder)
        policy = POLICY.format(script=_hash(script), style=_hash(style))
        head = head.replace("<!-- policy -->", policy).replace("/* style */", style)
        page.write(head.replace("<!-- figures -->", drawn).encode())
        page.write(b'<script type="application/json" id="facts">' + _harmless(encoded(told)) + b"</script>\n")
        _append(index, page)
        page.write(f"<script>{script}</script>\n".encode())
        _append(chunks, page)
        page.write(tail.encode())


def _append(spooled: BinaryIO, page: BinaryIO) -> None:
    spooled.seek(0)
    shutil.copyfileobj(spooled, page, 1024 * 1024)


def _harmless(content: bytes) -> bytes:
    """JSON in which nothing can end, or begin, a tag or a comment."""
    return content.replace(b"<", b"\\u003c").replace(b">", b"\\u003e")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
