# SPDX-License-Identifier: MIT
"""Ansible module: have some keys in a JSON file that others write as well."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: json_merged
short_description: Merge keys into a JSON file and leave the others as they are
description:
  - Reads, merges, validates and replaces the file in one step, so that no half of it is ever
    seen. A file that is not JSON is refused, not overwritten.
options:
  path:
    description: The file; created if absent.
    type: path
    required: true
  values:
    description: Keys and values to have; dictionaries are merged, anything else is replaced.
    type: dict
    default: {}
  absent:
    description: Top-level keys, or keys joined by a slash, to remove.
    type: list
    elements: str
    default: []
  validate:
    description: Command that must accept the new content; %s is its path.
    type: str
"""


def merge(old, new):
    """New values over old ones, dictionaries key by key."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}


def without(content, route):
    """Removes a key, and the dictionaries that this leaves empty."""
    key, _, rest = route.partition("/")
    if key not in content:
        return content
    if rest and isinstance(content[key], dict):
        inner = without(content[key], rest)
        return {**content, key: inner} if inner else without(content, key)
    return {name: value for name, value in content.items() if name != key}


def main():
    """Entry point."""
    module = AnsibleModule(
        {
            "path": {"type": "path", "required": True},
            "values": {"type": "dict", "default": {}},
            "absent": {"type": "list", "elements": "str", "default": []},
            "validate": {"type": "str"},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    text = path.read_text() if path.exists() else ""
    try:
        old = json.loads(text) if text.strip() else {}
    except ValueError as error:
        module.fail_json(msg=f"{path} is not JSON ({error}); repair or remove it")
    if not isinstance(old, dict):
        module.fail_json(msg=f"{path} holds no JSON object; repair or remove it")
    new = merge(old, module.params["values"])
    for route in module.params["absent"]:
        new = without(new, route)
    if new == old:
        module.exit_json(changed=False)
    shown = {
        "before": json.dumps(old, indent=2, sort_keys=True) + "\n",
        "after": json.dumps(new, indent=2, sort_keys=True) + "\n",
    }
    if not module.check_mode:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w") as stream:
            stream.write(json.dumps(new, indent=2) + "\n")
        validate = module.params["validate"]
        if validate:
            code, out, error = module.run_command(validate.replace("%s", fresh))
            if code != 0:
                Path(fresh).unlink()
                module.fail_json(
                    msg=f"{path} stays as it was, the new content is refused: {error or out}"
                )
        Path(fresh).chmod(0o644)
        module.atomic_move(fresh, str(path))
    module.exit_json(changed=True, diff=shown)


if __name__ == "__main__":
    main()
