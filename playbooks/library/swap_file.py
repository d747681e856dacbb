# SPDX-License-Identifier: MIT
"""Ansible module: have a swap file of a size, in use."""

from __future__ import annotations

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.board_reader import read_swaps

DOCUMENTATION = """
module: swap_file
short_description: Have a swap file of a given size in use, or have none
description:
  - Works from what is there, so a file that an earlier run left half made is made again.
options:
  path:
    description: The file, on a file system that supports swap files (ext4 does).
    type: path
    required: true
  size_mib:
    description: Its size. 0 takes the file out of use and removes it.
    type: int
    required: true
  root:
    description: Prefix of /proc, for a simulated board.
    type: str
    default: ""
"""

MIB = 2**20
# The space that must stay free on the file system beside the swap file.
RESERVE_MIB = 1024


def is_swap(module, path):
    """Whether the file holds a swap header."""
    code, out, _ = module.run_command(["blkid", "-p", "-s", "TYPE", "-o", "value", str(path)])
    return code == 0 and out.strip() == "swap"


def main():
    """Entry point."""
    module = AnsibleModule(
        {
            "path": {"type": "path", "required": True},
            "size_mib": {"type": "int", "required": True},
            "root": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    size = module.params["size_mib"] * MIB
    in_use = any(swap["path"] == str(path) for swap in read_swaps(module.params["root"] or "/"))
    have = path.stat().st_size if path.exists() else None
    if size == 0:
        steps = ["swapoff"] * in_use + ["remove"] * (have is not None)
    else:
        makes = have != size or (not in_use and not is_swap(module, path))
        is_open = have is not None and path.stat().st_mode & 0o777 != 0o600
        steps = ["swapoff"] * (in_use and makes) + ["make"] * makes
        steps += ["chmod"] * bool(is_open) + ["swapon"] * (makes or not in_use)
    if not steps or module.check_mode:
        module.exit_json(changed=bool(steps), steps=steps)
    if "make" in steps and path.parent.exists():
        space = os.statvfs(path.parent)
        free = space.f_bavail * space.f_frsize + (have or 0)
        if free < size + RESERVE_MIB * MIB:
            module.fail_json(
                msg=f"{path.parent} has {free // MIB} MiB left for a swap file of "
                f"{size // MIB} MiB and {RESERVE_MIB} MiB to spare"
            )
    if "swapoff" in steps:
        module.run_command(["swapoff", str(path)], check_rc=True)
    if "make" in steps or "remove" in steps:
        path.unlink(missing_ok=True)
    if "make" in steps:
        # Memory that others may not read must not be readable on disk either.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        command = ["fallocate", "--length", f"{size // MIB}MiB", str(path)]
        module.run_command(command, check_rc=True)
        module.run_command(["mkswap", str(path)], check_rc=True)
    if "chmod" in steps:
        path.chmod(0o600)
    if "swapon" in steps:
        module.run_command(["swapon", str(path)], check_rc=True)
    module.exit_json(changed=True, steps=steps)


if __name__ == "__main__":
    main()
