# SPDX-License-Identifier: MIT
"""Ansible module: hold packages, or let them go, all in one step."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: package_holds
short_description: Hold Debian packages at their version, or let them go
description:
  - As dpkg_selections, for many packages at once; Jetson Linux alone is some thirty. Packages
    that are not installed are left out.
options:
  names:
    description: The packages.
    type: list
    elements: str
    required: true
  held:
    description: Whether they shall be held.
    type: bool
    default: true
"""


def main():
    """Entry point."""
    module = AnsibleModule(
        {
            "names": {"type": "list", "elements": "str", "required": True},
            "held": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    wanted = "hold" if module.params["held"] else "install"
    # Names of foreign architectures have a suffix; the boards have none of those.
    _, out, _ = module.run_command(["dpkg", "--get-selections"], check_rc=True)
    have = dict(line.split() for line in out.splitlines() if line.strip())
    have = {name.partition(":")[0]: selection for name, selection in have.items()}
    names = sorted(
        name for name in set(module.params["names"])
        if have.get(name) in ("hold", "install") and have[name] != wanted
    )  # fmt: skip
    if names and not module.check_mode:
        lines = "".join(f"{name} {wanted}\n" for name in names)
        module.run_command(["dpkg", "--set-selections"], data=lines, check_rc=True)
    module.exit_json(changed=bool(names), packages=names)


if __name__ == "__main__":
    main()
