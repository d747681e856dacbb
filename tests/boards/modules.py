# SPDX-License-Identifier: MIT
"""Ansible modules of this repository as Python modules, as Ansible itself would load them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"


def load(name: str) -> ModuleType:
    """A module of playbooks/library, with playbooks/module_utils where it looks for it."""
    for path in (PLAYBOOKS / "module_utils").glob("*.py"):
        _load(f"ansible.module_utils.{path.stem}", path)
    return _load(f"library_{name}", PLAYBOOKS / "library" / f"{name}.py")


def _load(name: str, path: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # Ansible replaces sys.intern, and torch refuses to be imported beside that later on.
    with patch.object(sys, "intern", sys.intern):
        spec.loader.exec_module(module)
    return module
