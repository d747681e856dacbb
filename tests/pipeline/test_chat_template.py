# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.chat_template import ChatTemplate, read_chat_template
from pipeline.errors import CheckpointCorruptError, PromptError

# That of state-spaces/mamba-2.8b-zephyr's kind: roles in angle brackets, an end after each.
ZEPHYR = """\
{% for message in messages %}
{% if message['role'] not in ('system', 'user', 'assistant') %}
{{ raise_exception('unknown role ' + message['role']) }}
{% endif %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hé?"}]


def folder_with(tmp_path: Path, **config: Any) -> Path:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_conversation_becomes_what_transformers_makes_of_it(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    reference: Any = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), eos_token="<end>", bos_token="<begin>"
    )
    source = "{{ bos_token }}" + ZEPHYR + "{{ messages | tojson }}"
    expected = reference.apply_chat_template(
        MESSAGES, chat_template=source, tokenize=False, add_generation_prompt=True
    )
    folder = folder_with(
        tmp_path,
        chat_template=source,
        eos_token="<end>",
        bos_token={"content": "<begin>", "lstrip": False},
    )
    template = read_chat_template(folder)
    assert template is not None
    assert template.render(MESSAGES) == expected
    assert "Hé?<end>" in expected


def test_a_tokenizer_may_have_none(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    assert read_chat_template(folder_with(tmp_path, eos_token="<end>")) is None


def test_the_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    several = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "plain"},
    ]
    template = read_chat_template(folder_with(tmp_path, chat_template=several))
    assert template is not None
    assert template.render(MESSAGES) == "plain"


def test_a_template_may_lie_in_a_file_of_its_own(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, eos_token="<end>")
    (folder / "chat_template.jinja").write_text("{{ eos_token }}!")
    template = read_chat_template(folder)
    assert template is not None
    assert template.render(MESSAGES) == "<end>!"


def test_a_damaged_template_is_refused() -> None:
    with pytest.raises(CheckpointCorruptError, match="chat template is damaged"):
        ChatTemplate("{% for %}", {})


def test_a_conversation_that_the_template_refuses_is_explained() -> None:
    with pytest.raises(PromptError, match="unknown role wizard"):
        ChatTemplate(ZEPHYR, {"eos_token": ""}).render([{"role": "wizard", "content": "!"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(PromptError):
        ChatTemplate(source, {}).render(MESSAGES)
