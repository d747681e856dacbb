# SPDX-License-Identifier: MIT
"""Ansible module: find the NVMe disk and say what is on it; never writes."""

from __future__ import annotations

import json

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: nvme_info
short_description: Find the NVMe disk of a board and say what is on it
description:
  - Never writes. Says one of absent, several, root (the system runs from it), ours, blank and
    foreign. A disk is blank only if neither lsblk nor wipefs finds anything on it.
options:
  device:
    description: The disk; empty to take the only NVMe disk there is.
    type: str
    default: ""
  label:
    description: Label of our own file system.
    type: str
    required: true
  adopt_uuid:
    description: UUID of an ext4 file system made by someone else that may be used as it is.
    type: str
    default: ""
"""


def descendants(entry):
    """The partitions, and what is on top of them."""
    for child in entry.get("children") or []:
        yield child
        yield from descendants(child)


def points(entry):
    """Mount points; the key depends on the age of lsblk."""
    return [point for point in entry.get("mountpoints") or [entry.get("mountpoint")] if point]


def signatures(module, path):
    """Kinds of anything that wipefs recognises; it looks and does not write."""
    _, out, _ = module.run_command(["wipefs", "--no-act", "--json", path], check_rc=True)
    found = json.loads(out)["signatures"] if out.strip() else []
    return sorted({entry["type"] for entry in found})


def describe(module, disk, label, adopt):
    """What is on one disk."""
    path = disk.get("path") or "/dev/" + disk["name"]
    every = [disk, *descendants(disk)]
    answer = {"device": path, "size_gib": round(int(disk["size"]) / 2**30, 1), "content": []}
    if any(point == "/" for entry in every for point in points(entry)):
        return {**answer, "status": "root"}
    answer["content"] = [
        " ".join(str(entry[key]) for key in ("name", "fstype", "label", "uuid") if entry.get(key))
        for entry in every
        if entry.get("fstype") or entry is not disk
    ]
    for entry in every:
        is_meant = entry.get("label") == label or (adopt and entry.get("uuid") == adopt)
        # Other file systems have conditions of their own for swap files.
        if is_meant and entry.get("fstype") == "ext4":
            place = entry.get("path") or "/dev/" + entry["name"]
            return {
                **answer, "status": "ours", "device": place,
                "uuid": entry["uuid"], "mounted_at": points(entry),
            }  # fmt: skip
    # lsblk asks udev's memory, which can be older than the disk's content.
    answer["content"] += [
        kind for kind in signatures(module, path) if not any(kind in c for c in answer["content"])
    ]
    return {**answer, "status": "foreign" if answer["content"] else "blank"}


def main():
    """Entry point."""
    module = AnsibleModule(
        {
            "device": {"type": "str", "default": ""},
            "label": {"type": "str", "required": True},
            "adopt_uuid": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    columns = "NAME,PATH,TYPE,SIZE,FSTYPE,LABEL,UUID,MOUNTPOINT"
    _, out, _ = module.run_command(
        ["lsblk", "--json", "--bytes", "--output", columns], check_rc=True
    )
    given = module.params["device"]
    disks = [
        entry
        for entry in json.loads(out)["blockdevices"]
        if entry["type"] == "disk"
        and (entry.get("path") == given if given else entry["name"].startswith("nvme"))
    ]
    if not disks:
        disk = {"status": "absent", "device": given, "content": []}
    elif len(disks) > 1:
        names = [entry["name"] for entry in disks]
        disk = {"status": "several", "device": "", "content": names}
    else:
        disk = describe(module, disks[0], module.params["label"], module.params["adopt_uuid"])
    module.exit_json(changed=False, disk=disk)


if __name__ == "__main__":
    main()
