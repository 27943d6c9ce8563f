"""The pages of the documentation: their links, commands and copies of code are right."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from raft.cli.main import parse
from raft.core.errors import install_extra

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def on_the_site(file: Path) -> bool:
    """Whether `make docs` has the file among its pages."""
    copied = re.findall(r"git ls-files (.*?) \|", (ROOT / "Makefile").read_text())[0].split()
    name = file.relative_to(ROOT).as_posix()
    return file.suffix == ".md" or any(name == one or name.startswith(f"{one}/") for one in copied)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path):
    text = re.sub(r"`[^`]*`", "", FENCE.sub("", page.read_text()))
    for target in LINK.findall(text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert on_the_site(file.resolve()), f"{target}: `make docs` does not copy it; write its name without a link"
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one_that_raft_takes(page: Path, capsys):
    for language, block in FENCE.findall(page.read_text()):
        for line in block.splitlines() if language in ("", "sh", "bash") else ():
            if line.startswith("raft ") and "[" not in line:
                words = shlex.split(line.split("  #")[0].split("    (")[0].removesuffix("&"), comments=True)
                command = words[: words.index("|")] if "|" in words else words
                try:
                    parse(command[1:])
                except SystemExit as end:
                    assert end.code == 0, f"{line}: {capsys.readouterr().err}"


def test_the_loop_of_the_readme_is_that_of_loop_py():
    """But for the optional stages, which it says that it leaves out."""
    (shown,) = [block for language, block in FENCE.findall((ROOT / "README.md").read_text()) if language == "python"]
    shown = shown.replace("recipe.selection, **made, scores=sampled.scores)", "recipe.selection, **rated)")
    shown = shown.replace("selected=selected)", "selected=learned)", 1)
    shown = shown.replace("prompts, limit)", "prompts, others, limit)")
    code = iter(line.strip() for line in (ROOT / "raft/pipeline/loop.py").read_text().splitlines())
    assert [line for line in shown.splitlines() if line.strip() not in code] == []


def test_the_recipe_of_the_readme_is_the_one_that_comes_with_raft():
    (shown,) = [block for language, block in FENCE.findall((ROOT / "README.md").read_text()) if language == "yaml"]
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "recipes/qwen3-1.7b-skywork.yaml").read_text())


def test_the_index_and_the_site_have_every_page_in_the_same_order():
    index = [Path(link).name for link in LINK.findall((ROOT / "docs/README.md").read_text())]
    site = [Path(page).name for page in re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)]
    assert index == [name for name in site if name != "README.md"]
    assert {page.name for page in PAGES} == set(site)


def test_the_packages_of_the_design_have_every_module():
    page = (ROOT / "docs/design.md").read_text()
    tree = next(block for _, block in FENCE.findall(page) if block.startswith("raft/\n  core/"))
    told = {
        part.split("/", 1)[0].strip(): set(re.findall(r"\w+", part)) for part in re.split(r"\n  (?=\w+/)", tree)[1:]
    }
    modules = [file.relative_to(ROOT / "raft") for file in (ROOT / "raft").glob("*/*.py") if file.stem[0] != "_"]
    assert [str(module) for module in modules if module.stem not in told[module.parts[0]]] == []


def test_the_table_of_extras_has_each_of_the_package_and_messages_lead_to_it():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys() - {"dev"}
    page = (ROOT / "docs" / "install.md").read_text()
    table = page.partition("\n## Extras\n")[2].partition("\n## ")[0]
    named = {
        name for first in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", first)
    }
    assert named == wanted
    assert install_extra("cuda", "cpu") == "install raft's extra cuda or cpu (docs/install.md#extras)"
    assert "extras" in anchors(ROOT / "docs" / "install.md")
    used = {
        name
        for file in (ROOT / "raft").rglob("*.py")
        for name in re.findall(r"install_extra\('(\w+)'", file.read_text())
    }
    assert used and used <= wanted
