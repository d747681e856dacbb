# SPDX-License-Identifier: MIT
"""Ansible module: keep a systemd unit running with the files that are on disk now."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: unit_current
short_description: Keep a systemd unit enabled, active and started after its files last changed
description:
  - A handler is forgotten when a run ends between the change of a file and the handler; the
    next run finds the file in place and never restarts the unit. This module looks at the
    state instead, so a run that was cut off anywhere is finished by the next one.
options:
  name:
    description: Name of the unit, with its suffix.
    type: str
    required: true
  files:
    description: Files whose later change asks for a restart. Absent ones are left out.
    type: list
    elements: path
    default: []
  stale:
    description: State files to remove before a restart.
    type: list
    elements: path
    default: []
  pending:
    description: >-
      Whether this run has changed such a file, or would in check mode, where the old one is
      still on disk. A board without a clock of its own may also date a new file too early.
    type: bool
    default: false
"""

PROPERTIES = ("LoadState", "ActiveState", "UnitFileState", "NeedDaemonReload", "TriggeredBy",
              "ActiveEnterTimestampMonotonic", "FragmentPath", "DropInPaths")  # fmt: skip


def properties(module, name):
    """What systemd says of a unit."""
    _, out, _ = module.run_command(
        ["systemctl", "show", name, "--property", ",".join(PROPERTIES)], check_rc=True
    )
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def started_at(facts):
    """Wall-clock time at which the unit became active, 0 if it is not."""
    monotonic = int(facts.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
    if facts["ActiveState"] != "active" or not monotonic:
        return 0.0
    # Boards have no battery behind their clock: it may jump after the unit has started, and
    # the monotonic clock does not.
    return time.time() - time.clock_gettime(time.CLOCK_MONOTONIC) + monotonic


def must_enable(facts):
    """Whether the unit would not start at boot; one that a socket or timer starts is left so."""
    state = facts["UnitFileState"]
    return state == "masked" or (state == "disabled" and not facts.get("TriggeredBy"))


def reasons(facts, files):
    """Why the unit must be touched; empty if it is current."""
    found = []
    if facts["LoadState"] != "loaded":
        return [f"it is {facts['LoadState']}"]
    if facts["NeedDaemonReload"] == "yes":
        found.append("its definition changed")
    if must_enable(facts):
        found.append(f"it is {facts['UnitFileState']}")
    if facts["ActiveState"] != "active":
        found.append(f"it is {facts['ActiveState']}")
        return found
    start = started_at(facts)
    own = [facts.get("FragmentPath", ""), *facts.get("DropInPaths", "").split()]
    for path in {*files, *filter(None, own)}:
        if Path(path).exists() and _changed_at(path) > start:
            found.append(f"{path} is newer")
    return sorted(found)


def _changed_at(path):
    status = os.stat(path)
    # A package brings old modification times, so the time of the last change counts as well
    # where the file is not a link into a package.
    return max(status.st_mtime, os.lstat(path).st_ctime)


def main():
    """Entry point."""
    module = AnsibleModule(
        {
            "name": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "path", "default": []},
            "stale": {"type": "list", "elements": "path", "default": []},
            "pending": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    name = module.params["name"]
    facts = properties(module, name)
    if facts["LoadState"] == "not-found" and not module.check_mode:
        # The file may be newer than what systemd has read.
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
        facts = properties(module, name)
    why = reasons(facts, module.params["files"])
    if module.params["pending"] and not why:
        why = ["what it runs with has changed"]
    if not why or module.check_mode:
        module.exit_json(changed=bool(why), why=why)
    module.run_command(["systemctl", "daemon-reload"], check_rc=True)
    if facts["UnitFileState"] == "masked":
        module.run_command(["systemctl", "unmask", name], check_rc=True)
    if must_enable(facts):
        module.run_command(["systemctl", "enable", name], check_rc=True)
    for path in module.params["stale"]:
        Path(path).unlink(missing_ok=True)
    code, _, error = module.run_command(["systemctl", "restart", name])
    after = properties(module, name)
    if code != 0 or after["ActiveState"] != "active":
        _, journal, _ = module.run_command(
            ["journalctl", "--unit", name, "--lines", "20", "--no-pager", "--output", "cat"]
        )
        module.fail_json(msg=f"{name} does not start: {error.strip()}\n{journal.strip()}", why=why)
    module.exit_json(changed=True, why=why)


if __name__ == "__main__":
    main()
