"""Laws of models.templates: a chat template is written as transformers writes it, on a fixed day, under a limit."""

import json
import time
from datetime import date

import pytest

from raft.core.errors import RowError, UserError
from raft.models import jinja

HUNGRY = {
    "long": ("{{ 'a' * 20000000000 }}", "1 GB of memory"),
    "doubling": (
        "{% set n = namespace(a='ab') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
        "1 GB",
    ),
    "joined": ("{{ ((messages | string) * 3000000) }}", "1 GB of memory|33 million"),
    "wide": ("{{ 'x'.ljust(40000000) }}", "33 million characters"),
    "loop": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "5 seconds"),
}


@pytest.mark.parametrize("name", HUNGRY)
def test_a_template_that_would_take_all_there_is_is_one_sentence(name: str):
    template, said = HUNGRY[name]
    began = time.process_time()
    with pytest.raises(UserError, match=f"the template of m takes .*({said})"):
        jinja.write(template, "the template of m", {"messages": [{"role": "user", "content": "Hi"}]})
    assert time.process_time() - began < 2  # of this process
    assert jinja.write("{{ a }}", "it", {"a": "still there"}) == "still there"


def test_what_a_template_refuses_is_of_the_row_and_what_it_is_not_is_of_the_template():
    with pytest.raises(RowError, match="no system"):
        jinja.write("{{ raise_exception('no system') }}", "it", {})
    with pytest.raises(RowError, match="half a character"):
        jinja.write("{{ '\ud800' }}", "it", {})
    for broken in ("{% for %}", "{{ a", "{% unknown %}"):
        with pytest.raises(UserError, match=r"it is not a readable template \(line 1") as caught:
            jinja.write(broken, "it", {})
        assert not isinstance(caught.value, RowError)
    for reach in ("{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{% include '/etc/passwd' %}"):
        with pytest.raises(RowError):
            jinja.write(reach, "it", {})


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | tojson }} {{ messages | tojson(indent=2) }} {{ tools }} {{ documents }}{{ add_generation_prompt }}",  # noqa: E501
        "{%- for m in messages -%}\n  {% if loop.first %}{% continue %}{% endif %}\n{{ m.content|trim }}\n{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% break %}{% endfor %}!",
        "{% macro say(m) %}{{ m.role | upper }}: {{ m.content[::-1] }}{% endmacro %}{{ say(messages[1]) }}{{ none }}",
        "{{ bos_token }}{{ undefined_name }}{{ messages[0].nothing }}{{ 'x' if missing is defined else 'y' }}",
        "{% set n = namespace(c=0) %}{% for m in messages %}{% set n.c = n.c + 1 %}{% endfor %}{{ n.c }}{{ '<a&b>' }}",
    ],
)
def test_a_template_is_written_as_transformers_writes_it(template: str):
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": " été <b> 日本 "}, {"role": "assistant", "content": "a\n"}]
    (theirs,), _ = render_jinja_template([messages], chat_template=template, bos_token="<s>")
    values = {
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": False,
        "bos_token": "<s>",
    }
    assert jinja.write(template, "it", values) == theirs


def test_the_day_that_a_template_writes_is_the_one_that_was_set():
    clock = "{{ strftime_now('%d %b %Y, %H:%M:%S') }}"
    with jinja.dated("2024-02-29"):
        assert jinja.write(clock, "it", {}) == "29 Feb 2024, 00:00:00"
        with jinja.dated("2031-01-01"):
            assert jinja.write(clock, "it", {}).startswith("01 Jan 2031")
        assert jinja.today() == "2024-02-29"
    assert jinja.today() == date.today().isoformat()
    assert [jinja.is_day(one) for one in ("2024-02-29", "2023-02-29", "20240229", "today")] == [True, *[False] * 3]


def test_a_process_that_ended_is_started_again():
    assert jinja.write("{{ 1 }}", "it", {}) == "1"
    jinja._worker.process.kill()
    jinja._worker.process.wait()
    assert jinja.write("{{ 2 }}", "it", {}) == "2"


def test_only_a_template_with_a_clock_puts_the_day_into_the_key(tmp_path):
    from raft.rewards.model import RewardModel
    from raft.store.keys import describe

    def folder(name: str, template: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "llama"}))
        (tmp_path / name / "model.safetensors").write_bytes(b"")
        (tmp_path / name / "chat_template.jinja").write_text(template)
        return str(tmp_path / name)

    timeless, dated = folder("a", "{{ messages }}"), folder("b", "{{ strftime_now('%Y') }}{{ messages }}")
    keys = []
    for day in ("2024-02-29", "2024-03-01"):
        with jinja.dated(day):
            keys.append([describe(RewardModel(model=one))["model"] for one in (timeless, dated)])
    assert keys[0][0] == keys[1][0] and keys[0][1] != keys[1][1]
    assert keys[0][1]["day"] == "2024-02-29"
