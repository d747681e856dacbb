# SPDX-License-Identifier: MIT
"""A conversation as the text that its model was trained on, by the tokenizer's own template.

The template is a program from the checkpoint, so it runs in jinja2's sandbox. Its surroundings
(two whitespace settings, loop controls, `raise_exception`, `strftime_now`, `tojson`) are those
that Hugging Face transformers gives it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.errors import CheckpointCorruptError, PromptError

_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTemplate:
    """A compiled template.

    Args:
        source: The template.
        special_tokens: Texts of the special tokens, by the names that templates know.

    Raises:
        CheckpointCorruptError: The template is not one.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now_as
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise CheckpointCorruptError(
                f"the tokenizer's chat template is damaged: {error}", fix="download it again"
            ) from error
        self._special_tokens = special_tokens

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt that an assistant's answer continues.

        Args:
            messages: Each with "role" and "content".

        Raises:
            PromptError: The template refuses the conversation.
        """
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=True, **self._special_tokens
            )
        except Exception as error:  # a template may do anything that Python can
            raise PromptError(
                f"the model's chat template refuses this conversation: {error}",
                fix="follow the order of roles that the model was trained on",
            ) from error


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template beside a tokenizer, or None when there is none.

    Raises:
        CheckpointCorruptError: The template is not one.
    """
    try:
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (FileNotFoundError, ValueError):  # the file is optional
        config = {}
    source = config.get("chat_template") if isinstance(config, dict) else None
    beside = folder / "chat_template.jinja"
    if source is None and beside.is_file():
        source = beside.read_text(encoding="utf-8")
    if isinstance(source, list):  # several templates for several purposes
        named = {entry.get("name"): entry.get("template") for entry in source}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    tokens = {}
    for name in _SPECIAL_TOKENS:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
    return ChatTemplate(source, tokens)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now_as(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
