# SPDX-License-Identifier: MIT
"""Writes what follows from a role's argument_specs: its defaults and the table in its README.

python -m tests.boards.role_documents          # says what is out of date
python -m tests.boards.role_documents --write  # brings it up to date
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).parents[2] / "roles"
BEGIN = "<!-- variables: written from meta/argument_specs.yml -->"
END = "<!-- end of variables -->"


def role_names() -> list[str]:
    """All roles, by name."""
    return sorted(path.parents[1].name for path in ROLES.glob("*/meta/argument_specs.yml"))


def options(role: str) -> dict[str, dict[str, Any]]:
    """Public variables of a role, as its argument_specs have them."""
    specs = yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())
    found: dict[str, dict[str, Any]] = specs["argument_specs"]["main"]["options"]
    return found


def defaults_file(role: str) -> str:
    """What defaults/main.yml must hold."""
    lines = [
        "# SPDX-License-Identifier: MIT",
        "# Written from meta/argument_specs.yml by tests/boards/role_documents.py.",
        "---",
    ]
    for name, option in options(role).items():
        lines += textwrap.wrap(_plain(option["description"]), 96, initial_indent="# ",
                               subsequent_indent="# ")  # fmt: skip
        lines.append(f"{name}: {_yaml(option['default'])}")
    return "\n".join(lines) + "\n"


def table(role: str) -> str:
    """What the README must have between the marks."""
    rows = ["| variable | type | default | what it does |", "|---|---|---|---|"]
    for name, option in options(role).items():
        kind = option["type"]
        if "elements" in option:
            kind += f" of {option['elements']}"
        if "choices" in option:
            kind += ": " + ", ".join(option["choices"])
        meaning = re.sub(r"C\((.*?)\)", r"`\1`", option["description"])
        rows.append(f"| `{name}` | {kind} | `{_yaml(option['default'])}` | {meaning} |")
    return "\n".join(rows)


def readme(role: str) -> str:
    """The README with the table it must have."""
    text = (ROLES / role / "README.md").read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(role)}\n{END}{after}"


def outdated(role: str) -> dict[Path, str]:
    """Files of a role that differ from what they must hold, with what that is."""
    wanted = {
        ROLES / role / "defaults/main.yml": defaults_file(role),
        ROLES / role / "README.md": readme(role),
    }
    return {
        path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text
    }


def _plain(text: str) -> str:
    return re.sub(r"C\((.*?)\)", r"\1", text)


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    return str(value)


def main() -> int:
    """Entry point."""
    stale = {path: text for role in role_names() for path, text in outdated(role).items()}
    for path, text in stale.items():
        if "--write" in sys.argv:
            path.write_text(text)
        sys.stdout.write(f"{path.relative_to(ROLES.parent)}\n")
    return 0 if "--write" in sys.argv else len(stale)


if __name__ == "__main__":
    sys.exit(main())
