# SPDX-License-Identifier: MIT
"""Ansible module: put a board into a power mode chosen by its name."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.board_reader import gpu_devfreq, read_power_modes, stored_power_mode

DOCUMENTATION = """
module: nvpmodel_mode
short_description: Set the power mode of a Jetson board by name
description:
  - Looks up the number of the mode in the board's own file, because numbers differ between
    modules, boot chains and releases.
  - Never waits at nvpmodel's question whether to reboot, and never says yes to it.
  - Reads the mode, the clock limits and the gated GPU clusters again afterwards; what nvpmodel
    prints is no proof.
  - When the mode needs a reboot, it is stored for the next boot. The module never reboots.
options:
  name:
    description: Name of the mode.
    type: str
    required: true
  root:
    description: Prefix of /proc and /sys, for a simulated board.
    type: str
    default: ""
  conf:
    description: nvpmodel's active file.
    type: path
    default: /etc/nvpmodel.conf
  status:
    description: Where nvpmodel stores the mode that it applies at boot.
    type: path
    default: /var/lib/nvpmodel/status
  note:
    description: Where it is noted, until the next boot, that the mode waits for that boot.
    type: path
    default: /run/mamba-orin/power_mode_after_reboot
"""

# A mode is set within a second or two; nvpmodel that takes longer hangs.
TIMEOUT_S = 60
# After a boot the GPU's clock files may come late (seen with L4T 39.2).
CLOCKS_APPEAR_S = 20


class NvpmodelError(Exception):
    """nvpmodel did not do what it was asked."""


def run(*arguments):
    """Runs nvpmodel and answers no to whatever it asks."""
    try:
        done = subprocess.run(
            ["nvpmodel", *arguments],
            input="no\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise NvpmodelError("nvpmodel is not installed (package nvidia-l4t-nvpmodel)") from error
    except subprocess.TimeoutExpired as error:
        raise NvpmodelError(
            f"nvpmodel {' '.join(arguments)} gave no answer in {TIMEOUT_S} s"
        ) from error
    return done.returncode, done.stdout


def active_mode():
    """Name of the mode that nvpmodel says is active; None before the first one is set."""
    code, text = run("-q")
    found = re.search(r"^NV Power Mode:\s*(\S+)", text, re.MULTILINE)
    if not found and code != 0:
        raise NvpmodelError(f"nvpmodel -q failed: {text.strip()}")
    return found[1] if found else None


def problems_of(mode, system, conf):
    """What the kernel says against the mode being in force."""
    deadline = time.monotonic() + CLOCKS_APPEAR_S
    limit_file = gpu_devfreq(system) / "max_freq"
    while not limit_file.exists() and time.monotonic() < deadline:
        time.sleep(1)
        limit_file = gpu_devfreq(system) / "max_freq"
    problems = []
    limit = _number(limit_file)
    if limit is None:
        problems.append(f"the GPU's clock limit cannot be read ({limit_file})")
    elif mode["gpu_max_hz"] is not None and limit != mode["gpu_max_hz"]:
        problems.append(
            f"the GPU's limit is {limit / 1e6:g} MHz, the mode says {mode['gpu_max_hz'] / 1e6:g}"
        )
    # The file itself says where the mask of its modes is read.
    place = re.search(r"^TPC_PG_MASK\s+/(\S+)", Path(conf).read_text(), re.MULTILINE)
    mask = _number(system / place[1]) if place else None
    if mode["tpc_mask"] is not None and mask is not None and mask != mode["tpc_mask"]:
        problems.append(f"the GPU's cluster mask is {mask}, the mode says {mode['tpc_mask']}")
    cap = _number(system / "sys/kernel/nvpmodel_clk_cap/emc")
    if mode["emc_max_hz"] is not None and cap is not None and cap != mode["emc_max_hz"]:
        problems.append(
            f"the memory clock's cap is {cap / 1e6:g} MHz, "
            f"the mode says {mode['emc_max_hz'] / 1e6:g}"
        )
    return problems


def _number(path):
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.lstrip("-").isdigit() else None


def is_noted(note, mode):
    """Whether an earlier run since the last boot has stored the mode for the next one.

    The stored number alone does not say so: nvpmodel itself stores the active mode there.
    """
    try:
        return Path(note).read_text().strip() == mode["name"]
    except OSError:
        return False


def unfinished(place):
    """Where a file is written before it takes its place."""
    return f"{place}.new"


def store(status, note, mode):
    """Makes the next boot apply a mode, when no GPU context is in the way yet."""
    number = f"pmode:{mode['id']:04d}"
    # nvpmodel keeps other lines in this file as well.
    old = Path(status).read_text() if Path(status).exists() else ""
    new, count = re.subn(r"^pmode:\d+", number, old, count=1, flags=re.MULTILINE)
    # The note comes first: a mode that is stored without one looks as if it were in force.
    for path, content in (
        (note, mode["name"] + "\n"),
        (status, new if count else f"{number}\n{old}"),
    ):
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(unfinished(place))
        fresh.write_text(content)
        fresh.replace(place)


def ensure(name, system, conf, status, note, check_mode):
    """Does the work; returns what the module answers."""
    modes, default = read_power_modes(conf)
    wanted = next((mode for mode in modes if mode["name"] == name), None)
    if wanted is None:
        known = ", ".join(mode["name"] for mode in modes) or f"none, {conf} cannot be read"
        raise NvpmodelError(f"this board has no power mode {name}; its modes: {known}")
    before = active_mode()
    answer = {"changed": False, "before": before, "mode": name, "reboot_required": False}
    # A board that has never set a mode boots the default one.
    boots = (stored_power_mode(status, modes) if Path(status).exists() else default) == name
    if boots and before == name and not problems_of(wanted, system, conf):
        return answer
    if boots and is_noted(note, wanted):
        return {**answer, "reboot_required": True}
    answer["changed"] = True
    if check_mode:
        return answer
    _, text = run("-m", str(wanted["id"]))
    if re.search(r"[Rr]eboot required|bad input", text):
        store(status, note, wanted)
        return {**answer, "reboot_required": True}
    if active_mode() != name:
        raise NvpmodelError(f"nvpmodel -m {wanted['id']} ({name}): {text.strip()}")
    # Nothing waits for a boot any more, nor does what an earlier run was about to store for one.
    for place in (note, unfinished(note), unfinished(status)):
        Path(place).unlink(missing_ok=True)
    problems = problems_of(wanted, system, conf)
    if problems:
        raise NvpmodelError(
            f"nvpmodel says {name}, but {'; '.join(problems)}. "
            "Does something else set clocks, or is the boot chain not what it claims?"
        )
    return answer


def main():
    """Entry point."""
    module = AnsibleModule(
        {
            "name": {"type": "str", "required": True},
            "root": {"type": "str", "default": ""},
            "conf": {"type": "path", "default": "/etc/nvpmodel.conf"},
            "status": {"type": "path", "default": "/var/lib/nvpmodel/status"},
            "note": {"type": "path", "default": "/run/mamba-orin/power_mode_after_reboot"},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        answer = ensure(
            given["name"],
            Path(given["root"] or "/"),
            given["conf"],
            given["status"],
            given["note"],
            module.check_mode,
        )
    except NvpmodelError as error:
        module.fail_json(msg=str(error))
    else:
        module.exit_json(**answer)


if __name__ == "__main__":
    main()
