# SPDX-License-Identifier: MIT
from __future__ import annotations

import importlib.util

# Tests of the server need the extra `serve`.
_SERVE_TESTS = [
    *("test_chat_template.py", "test_http_server.py", "test_prefix_cache.py", "test_scheduler.py"),
    *("test_serve.py", "test_server_settings.py", "test_states.py", "test_text_assembly.py"),
]
collect_ignore = [] if importlib.util.find_spec("fastapi") else _SERVE_TESTS
