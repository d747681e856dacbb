#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a Jetson board is, read from its files; nothing is changed and nothing is guessed.

The module board_info imports it, and the role board_facts installs it on the board, where the
local fact runs it. So it needs nothing but Python, and knows nothing of versions: which
releases are good is said by versions.json.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

# Part numbers of the modules that fit this carrier: p3767-<SKU>.
MODULES = {
    "0000": "orin-nx-16gb",
    "0001": "orin-nx-8gb",
    "0003": "orin-nano-8gb",
    "0004": "orin-nano-4gb",
    "0005": "orin-nano-8gb",  # the developer kit's module, with a microSD slot
}
# No Orin but the 4 GB Nano shows less than this, and no 8 GB module less than 7.3 GiB.
SMALL_MODULE_MIB = 5 * 1024

# What the hardware can reach tells a Super boot chain from the original one. The name of the
# power mode does not: on an original boot chain nvpmodel prints MAXN_SUPER and changes nothing.
SUPER_GPU_HZ = 1_020_000_000
SUPER_CPU_KHZ = 1_728_000
SUPER_EMC_HZ = 3_199_000_000

EMC_CLOCK = "sys/kernel/debug/bpmp/debug/clk/emc"


def read_board(root="", etc="/etc", state="/var/lib"):
    """Reads the board.

    Args:
        root: Prefix of /proc and /sys; not empty only for a recorded or simulated board.
        etc: Where the configuration files are.
        state: Where nvpmodel and dpkg keep their state.

    Returns:
        A dictionary of facts. What could not be read is None.
    """
    system, etc, state = Path(root or "/"), Path(etc), Path(state)
    tree = system / "proc/device-tree"
    compatible = _strings(tree / "compatible")
    module, evidence, part = _module(system, etc, compatible)
    modes, default_mode = read_power_modes(etc / "nvpmodel.conf")
    gpu = gpu_devfreq(system)
    steps = (_text(gpu / "available_frequencies") or "").split()
    return {
        "is_jetson": any(entry.startswith("nvidia,tegra") for entry in compatible),
        "model": _text(tree / "model") or None,
        "module": module,
        "module_evidence": evidence,
        "part": part,
        "memory_mib": memory_mib(system),
        "l4t": _l4t(etc, state),
        "super_witnesses": _super_witnesses(system, compatible, module),
        "power_modes": modes,
        "default_power_mode": default_mode,
        "stored_power_mode": stored_power_mode(state / "nvpmodel/status", modes),
        "gpu_clock_limit_hz": _number(gpu / "max_freq"),
        "gpu_clock_ceiling_hz": max(map(int, steps), default=None),
        "emc_clock_cap_hz": _number(system / "sys/kernel/nvpmodel_clk_cap/emc"),
        "emc_clock_ceiling_hz": _number(system / EMC_CLOCK / "max_rate"),
        "kernel": _text(system / "proc/sys/kernel/osrelease"),
        "boot_storage": _match(r"^TEGRA_BOOT_STORAGE\s+(\S+)", etc / "nv_boot_control.conf"),
        "root_is_read_only": bool(os.statvfs(etc).f_flag & os.ST_RDONLY),
        "swaps": read_swaps(system),
    }


def gpu_devfreq(system):
    """Directory of the GPU's clock; its name differs between releases."""
    known = sorted((Path(system) / "sys/class/devfreq").glob("*"))
    found = [path for path in known if path.name.endswith((".gpu", ".ga10b"))]
    return found[0] if found else Path(system) / "sys/class/devfreq/17000000.gpu"


def read_power_modes(conf):
    """The power modes that nvpmodel's active file defines.

    Returns:
        Modes in the order of the file, each with id, name and the limits that can be compared
        with what the kernel says; and the name of the default mode.
    """
    modes = []
    default = None
    current = None
    for line in (_text(Path(conf)) or "").splitlines():
        head = re.match(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", line)
        default_head = re.match(r"<\s*PM_CONFIG\s+DEFAULT=(\S+?)\s*>", line)
        if head:
            current = {
                "id": int(head[1]),
                "name": head[2],
                "tpc_mask": None,
                "gpu_max_hz": None,
                "emc_max_hz": None,
            }
            modes.append(current)
        elif default_head:
            number = re.search(r"\d+", default_head[1])
            default = int(number[0]) if number else None
            current = None
        elif line.startswith("<"):
            current = None
        elif current is not None:
            words = line.split()
            if len(words) == 3 and words[2].lstrip("-").isdigit():
                value = int(words[2])
                # -1 and 0 mean "no cap of its own".
                capped = value if value > 0 else None
                if words[:2] == ["GPU", "MAX_FREQ"]:
                    current["gpu_max_hz"] = capped
                elif words[:2] == ["EMC", "MAX_FREQ"]:
                    current["emc_max_hz"] = capped
                elif words[1] == "TPC_PG_MASK":
                    current["tpc_mask"] = value
    names = {mode["id"]: mode["name"] for mode in modes}
    return modes, names.get(default)


def stored_power_mode(status, modes):
    """Name of the mode that nvpmodel applies at boot; None where the number is not known."""
    number = _match(r"pmode:(\d+)", status)
    names = {mode["id"]: mode["name"] for mode in modes}
    return names.get(int(number)) if number else None


def read_swaps(system):
    """Active swap areas as the kernel lists them."""
    lines = (_text(Path(system) / "proc/swaps") or "").splitlines()[1:]
    rows = [line.split() for line in lines]
    return [
        {"path": row[0], "kind": row[1], "size_mib": int(row[2]) // 1024}
        for row in rows
        if len(row) >= 3
    ]


def memory_mib(system):
    """Memory that the kernel manages."""
    total = _match(r"^MemTotal:\s+(\d+) kB", Path(system) / "proc/meminfo")
    return int(total) // 1024 if total else None


def _module(system, etc, compatible):
    """Module, what told it, and its part number, by the firmest witness there is."""
    sku = _match(r"^TNSPEC\s+3767-\w*-(\d{4})\b", etc / "nv_boot_control.conf")
    if sku:
        return MODULES.get(sku), "TNSPEC", f"p3767-{sku}"
    for entry in compatible:
        found = re.search(r"p3767-(\d{4})", entry)
        if found:
            return MODULES.get(found[1]), "compatible", f"p3767-{found[1]}"
    # Size alone does not tell an 8 GB Nano from an 8 GB NX, so there the name must help.
    model = _text(system / "proc/device-tree/model") or ""
    total = memory_mib(system)
    if total is not None and "nvidia,tegra234" in compatible:
        if total < SMALL_MODULE_MIB:
            return "orin-nano-4gb", "memory size", None
        if total < 2 * SMALL_MODULE_MIB and "Orin Nano" in model:
            return "orin-nano-8gb", "memory size", None
    return None, None, None


def _super_witnesses(system, compatible, module):
    """What each witness that can be read says; only an Orin Nano has the limits below."""
    witnesses = {}
    if not (module or "").startswith("orin-nano"):
        return witnesses
    if compatible:
        witnesses["device tree"] = any(entry.endswith("-super") for entry in compatible)
    steps = (_text(gpu_devfreq(system) / "available_frequencies") or "").split()
    if steps:
        witnesses["GPU clock table"] = max(map(int, steps)) >= SUPER_GPU_HZ
    cpu = _number(system / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if cpu is not None:
        witnesses["CPU clock table"] = cpu >= SUPER_CPU_KHZ
    emc = _number(system / EMC_CLOCK / "max_rate")
    if emc is not None:
        witnesses["memory clock"] = emc >= SUPER_EMC_HZ
    return witnesses


def _l4t(etc, state):
    text = _text(etc / "nv_tegra_release") or ""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    if found:
        return f"{found[1]}.{found[2]}"
    # Yocto, NixOS and balena images have no such file.
    package = re.search(
        r"^Package: nvidia-l4t-core\n(?:.+\n)*?Version: ([\d.]+)",
        _text(state / "dpkg/status") or "",
        re.MULTILINE,
    )
    return package[1] if package else None


def _text(path):
    """Content of a text file, without the NUL that ends the strings of a device tree."""
    try:
        data = Path(path).read_bytes()
    except OSError:
        # Clocks and debug files may refuse a read; that is unknown, too.
        return None
    return data.decode("utf-8", errors="replace").rstrip("\0\n ")


def _strings(path):
    return [part for part in (_text(path) or "").split("\0") if part]


def _number(path):
    text = _text(path)
    return int(text) if text and re.fullmatch(r"-?\d+", text) else None


def _match(pattern, path):
    found = re.search(pattern, _text(path) or "", re.MULTILINE)
    return found[1] if found else None


if __name__ == "__main__":
    json.dump(read_board(*sys.argv[1:2]), sys.stdout, indent=1, sort_keys=True)
