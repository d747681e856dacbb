# SPDX-License-Identifier: MIT
"""Ansible callback of the tests: kills the whole run, without a warning, at a task."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: killed_at_task
type: aggregate
short_description: Kills the run at the task that the environment names
description:
  - KILL_AT holds role and task, KILL_AFTER_S the seconds after its start, KILL_NOTE a file to
    write when the task was reached. The run must lead a process group of its own.
"""


class CallbackModule(CallbackBase):
    """Waits for one task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "killed_at_task"
    CALLBACK_NEEDS_ENABLED = True

    def v2_runner_on_start(self, host, task):
        """Sets the timer when the task begins."""
        del host
        role = task._role.get_name() if task._role else None
        if f"{role}: {task.name}" != os.environ["KILL_AT"]:
            return
        Path(os.environ["KILL_NOTE"]).write_text("reached\n")
        kill = threading.Timer(float(os.environ["KILL_AFTER_S"]), os.killpg, (0, signal.SIGKILL))
        kill.daemon = True
        kill.start()
