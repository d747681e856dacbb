# SPDX-License-Identifier: MIT
from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

# Tests of the server need the extra `serve`.
_SERVE_TESTS = [
    *("test_chat_template.py", "test_http_server.py", "test_prefix_cache.py", "test_scheduler.py"),
    *("test_serve.py", "test_serve_limits.py", "test_serve_states.py", "test_server_settings.py"),
    *(
        "test_batch_rows.py",
        "test_metrics.py",
        "test_self_check.py",
        "test_server_load.py",
        "test_states.py",
        "test_text_assembly.py",
    ),
]
collect_ignore = [] if importlib.util.find_spec("fastapi") else _SERVE_TESTS

DEMO = Path(__file__).parents[2] / "models" / "demo"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n"
    "{% endfor %}assistant:"
)


def _build(checkpoint: Path, folder: Path) -> Path:
    from pipeline.bundle import convert
    from pipeline.engine import build

    convert(checkpoint, folder / "bundle")
    build(folder / "bundle", folder / "engine")
    return folder / "engine"


@pytest.fixture(scope="session")
def demo_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the demo model; read it, never write into it."""
    return _build(DEMO, tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def chat_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as if it had been trained to chat."""
    folder = tmp_path_factory.mktemp("chat")
    shutil.copytree(DEMO, folder / "demo")
    path = folder / "demo" / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"chat_template": CHAT_TEMPLATE}
    path.write_text(json.dumps(config))
    return _build(folder / "demo", folder)
