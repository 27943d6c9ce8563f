"""What raft check says of the files that a recipe names, before anything is started."""

from pathlib import Path

import pytest
import worlds

from raft.config.preflight import check
from raft.config.recipe import RecipeError, load

DAMAGED = {
    "config.json": [
        (b'{"model_type": "llama", ', "is not JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[1]", "not a mapping but list"),
    ],
    "tokenizer_config.json": [(b"", "is not JSON"), (b'"x"', "not a mapping but str")],
}


@pytest.mark.parametrize(
    ("file", "content", "words"), [(file, *one) for file, several in DAMAGED.items() for one in several]
)
def test_a_damaged_file_of_a_model_is_named(tmp_path: Path, monkeypatch, file: str, content: bytes, words: str):
    recipe = worlds.make_recipe(tmp_path, prompts={"format": "chat"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base" / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "base" / file).write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        check(load(recipe))
    (fault,) = caught.value.faults
    assert fault.key == "policy.model" and words in fault.message and f"base/{file}" in fault.message
