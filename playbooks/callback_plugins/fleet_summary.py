# SPDX-License-Identifier: MIT
"""Ansible callback: what a run has changed on each board, and which boards failed and why."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: fleet_summary
type: aggregate
short_description: A table of boards at the end of a run
description:
  - For every board what each role changed or would change, why a role refused it, and which
    boards were not reached or not begun.
  - With the environment variable MAMBA_ORIN_SUMMARY the same goes to that file as JSON.
"""

ROLES = (
    "board_facts",
    "super_mode",
    "nvme_swap",
    "jetpack_packages",
    "container_runtime",
    "telemetry",
    "hardening",
    "inference",
    "balancer",
)


class CallbackModule(CallbackBase):
    """Collects results by board and prints them when all is done."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "fleet_summary"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self):
        super().__init__()
        self.boards = {}
        self.roles = set()
        self.only_looks = False

    def v2_playbook_on_play_start(self, play):
        """Learns which boards there are, so that none is missing from the table."""
        manager = play.get_variable_manager()
        # With "serial" the inventory is restricted to a batch.
        for host in manager._inventory.get_hosts(play.hosts, ignore_restrictions=True):
            self._board(host.get_name())
        self.only_looks = self.only_looks or bool(play.check_mode)

    def v2_runner_on_start(self, host, task):
        """A board that has begun."""
        board = self._board(host.get_name())
        board["begun"] = True
        role = _role(task)
        # With --tags the arguments of roles that do not run are validated all the same.
        if role and task.action != "ansible.builtin.validate_argument_spec":
            self.roles.add(role)
            if role not in board["roles"]:
                board["roles"].append(role)

    def v2_runner_on_ok(self, result):
        """Keeps what changed, and what the board says it is."""
        board = self._board(result._host.get_name())
        data = result._result
        if data.get("changed"):
            board["changed"].append({"role": _role(result._task), "task": result._task.name})
        facts = data.get("board")
        if isinstance(facts, dict) and facts.get("l4t"):
            board["l4t"], board["module"] = facts["l4t"], facts.get("module")
        note = data.get("msg")
        if isinstance(note, str) and note.startswith("reboot needed"):
            board["notes"].append(note)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        """Keeps the reason."""
        if not ignore_errors:
            self._board(result._host.get_name())["failed"].append(
                {
                    "role": _role(result._task),
                    "task": result._task.name,
                    "reason": _reason(result._result),
                }
            )

    def v2_runner_on_unreachable(self, result):
        """Keeps where the connection was lost."""
        self._board(result._host.get_name())["unreachable"] = {
            "task": result._task.name,
            "reason": str(result._result.get("msg", "")).strip(),
        }

    def v2_playbook_on_stats(self, stats):
        """Prints the table and the reasons."""
        del stats
        names = sorted(self.boards)
        if not names:
            return
        columns = [role for role in ROLES if role in self.roles]
        rows = [["board", "module", "L4T", *columns, "state"]]
        for name in names:
            board = self.boards[name]
            cells = [self._cell(board, role) for role in columns]
            rows.append([name, board["module"] or "?", board["l4t"] or "?", *cells, _state(board)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        self._display.banner("BOARDS")
        for row in rows:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self._display.display(line.rstrip())
        for name in names:
            self._explain(name, self.boards[name])
        target = os.environ.get("MAMBA_ORIN_SUMMARY")
        if target:
            Path(target).write_text(json.dumps(self.boards, indent=1) + "\n")

    def _explain(self, name, board):
        for failure in board["failed"]:
            where = failure["role"] or failure["task"]
            self._display.display(f"\n{name}: {where}: {failure['reason']}", color="red")
        if board["unreachable"]:
            lost = board["unreachable"]
            self._display.display(
                f"\n{name}: connection lost at “{lost['task']}”: {lost['reason']}", color="red"
            )
        for note in board["notes"]:
            self._display.display(f"\n{name}: {note}", color="yellow")
        if board["changed"]:
            verb = "would change" if self._is_check() else "changed"
            self._display.display(f"\n{name} {verb}:")
            for change in board["changed"]:
                self._display.display(f"    {change['role'] or '-'}: {change['task']}")

    def _is_check(self):
        from ansible import context

        return self.only_looks or bool(context.CLIARGS.get("check"))

    def _cell(self, board, role):
        if any(failure["role"] == role for failure in board["failed"]):
            return "refused"
        if role not in board["roles"]:
            return "-"
        count = sum(change["role"] == role for change in board["changed"])
        if not count:
            return "ok"
        return f"lacks {count}" if self._is_check() else f"changed {count}"

    def _board(self, name):
        return self.boards.setdefault(
            name,
            {
                "begun": False,
                "module": None,
                "l4t": None,
                "roles": [],
                "changed": [],
                "failed": [],
                "unreachable": None,
                "notes": [],
            },
        )


def _role(task):
    return task._role.get_name() if task._role else None


def _reason(data):
    for item in data.get("results") or []:
        if item.get("failed"):
            return _reason(item)
    text = str(data.get("msg") or "no reason given").strip()
    detail = str(data.get("stderr") or data.get("module_stderr") or "").strip()
    return text if detail in text else f"{text}: {detail[-600:]}"


def _state(board):
    if board["unreachable"]:
        return "UNREACHABLE"
    if board["failed"]:
        return "FAILED"
    if not board["begun"]:
        return "not begun"
    return "reboot needed" if board["notes"] else "ok"
