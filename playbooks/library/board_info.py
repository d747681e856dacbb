# SPDX-License-Identifier: MIT
"""Ansible module: read what a board is; never changes anything."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.board_reader import read_board

DOCUMENTATION = """
module: board_info
short_description: Read what a Jetson board is
description: Reads module, memory, release, boot chain and power modes. Never changes anything.
options:
  root:
    description: Prefix of /proc and /sys, for a simulated board.
    type: str
    default: ""
"""


def main():
    """Entry point."""
    module = AnsibleModule({"root": {"type": "str", "default": ""}}, supports_check_mode=True)
    module.exit_json(changed=False, board=read_board(module.params["root"]))


if __name__ == "__main__":
    main()
