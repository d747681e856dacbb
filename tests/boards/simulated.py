# SPDX-License-Identifier: MIT
"""Files of simulated boards: one per module, release and boot chain, as real ones have them."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass, field

ZRAM = "/dev/zram0 partition 635000 0 5"
UBUNTU = {"6": ("22.04", "jammy"), "7": ("24.04", "noble")}

# Power was lost between unpacking and configuring it.
HALF_INSTALLED = """
Package: lost-power
Status: install ok unpacked
Priority: optional
Section: libs
Maintainer: nobody
Architecture: all
Version: 1
Description: A package
"""


@dataclass(frozen=True)
class Mode:
    """A power mode of nvpmodel's file; -1 and 0 mean no cap, as there."""

    name: str
    tpc_mask: int
    gpu_hz: int
    emc_hz: int


# The tables of NVIDIA's files: numbers are the positions.
MODES = {
    ("8gb", False): (Mode("15W", 240, 624750000, 0), Mode("7W", 252, 408000000, 2133000000)),
    ("4gb", False): (
        Mode("10W", 252, -1, 2133000000),
        Mode("7W_AI", 252, 408000000, 2133000000),
        Mode("7W_CPU", 252, 306000000, 2133000000),
    ),
    ("8gb", True): (
        Mode("15W", 240, 612000000, 2133000000),
        Mode("25W", 240, 918000000, 3199000000),
        Mode("MAXN_SUPER", 240, -1, 0),
        Mode("7W", 252, 408000000, 2133000000),
    ),
    ("4gb", True): (
        Mode("10W", 252, 612000000, 2133000000),
        Mode("25W", 252, 1020000000, 3199000000),
        Mode("MAXN_SUPER", 252, -1, 0),
    ),
}
CONF_NAMES = {
    ("8gb", False): "nvpmodel_p3767_0003.conf",
    ("4gb", False): "nvpmodel_p3767_0004.conf",
    ("8gb", True): "nvpmodel_p3767_0003_super.conf",
    ("4gb", True): "nvpmodel_p3767_0004_super.conf",
}
FAN_CONF = """\
POLLING_INTERVAL 2
<FAN 1>
\tTMARGIN ENABLED
\tFAN_GOVERNOR cont {
\t}
\tFAN_PROFILE quiet {
\t\t0 0 255 6000
\t}
\tFAN_PROFILE cool {
\t\t0 0 255 6000
\t}
\tTHERMAL_GROUP 0 {
\t}
\tFAN_DEFAULT_CONTROL close_loop
\tFAN_DEFAULT_PROFILE quiet
\tFAN_DEFAULT_GOVERNOR cont
"""


@dataclass(frozen=True)
class Board:
    """A board to simulate.

    Attributes:
        name: Its name in the inventory.
        sku: Module: 0003 and 0005 have 8 GB, 0004 has 4 GB.
        is_super: Which boot chain it booted.
        l4t: Release of Jetson Linux.
        disk: What is on the NVMe disk: blank, ours, foreign, root or absent.
        variables: What its inventory says beside the group's.
        is_jetson: Whether it is a Jetson at all.
        mode: Number of the active power mode.
        asks_for_reboot: Whether nvpmodel asks even without another TPC mask, as seen on R39.
        is_half_done: Whether an earlier run was cut off.
        has_device_tree_only: A device tree changed in place: Super by name, not by clocks.
        root_is_read_only: Whether the root file system is mounted read-only.
        drops_connection: Whether it goes off the network when nvpmodel is asked.
    """

    name: str
    sku: str = "0005"
    is_super: bool = True
    l4t: str = "36.5.0"
    disk: str = "blank"
    variables: dict[str, object] = field(default_factory=dict)
    is_jetson: bool = True
    mode: int = 0
    asks_for_reboot: bool = False
    is_half_done: bool = False
    has_device_tree_only: bool = False
    root_is_read_only: bool = False
    drops_connection: bool = False

    @property
    def size(self) -> str:
        """Memory of the module."""
        return "4gb" if self.sku == "0004" else "8gb"

    @property
    def group(self) -> str:
        """Group of the inventory."""
        return f"orin_nano_{self.size}"

    @property
    def ubuntu(self) -> tuple[str, str]:
        """Release and code name of the system."""
        return UBUNTU["7" if self.l4t.startswith("39") else "6"]

    @property
    def has_super_clocks(self) -> bool:
        """What the clocks say."""
        return self.is_super and not self.has_device_tree_only


def conf(modes: tuple[Mode, ...], default: int) -> str:
    """nvpmodel's file in its own format."""
    lines = [
        "< PARAM TYPE=FILE NAME=TPC_POWER_GATING >",
        "TPC_PG_MASK /sys/devices/platform/gpu.0/tpc_pg_mask",
        "< PARAM TYPE=CLOCK NAME=GPU >",
        "FREQ_TABLE /sys/devices/platform/17000000.gpu/devfreq/17000000.gpu/available_frequencies",
        "< PARAM TYPE=CLOCK NAME=EMC >",
        "MAX_FREQ /sys/kernel/nvpmodel_clk_cap/emc",
    ]
    for number, mode in enumerate(modes):
        lines += [
            f"< POWER_MODEL ID={number} NAME={mode.name} >",
            "CPU_ONLINE CORE_0 1",
            f"TPC_POWER_GATING TPC_PG_MASK {mode.tpc_mask}",
            "GPU MIN_FREQ 0",
            f"GPU MAX_FREQ {mode.gpu_hz}",
            f"EMC MAX_FREQ {mode.emc_hz}",
        ]
    return "\n".join([*lines, f"< PM_CONFIG DEFAULT={default} >"]) + "\n"


def files(board: Board) -> dict[str, str]:
    """All files in which this board differs from the image, by path."""
    suffix = "-super" if board.is_super else ""
    size, release, codename = board.size, *board.ubuntu
    clocks_are_super = board.has_super_clocks
    gpu = 1020000000 if clocks_are_super else 624750000
    memory_kb = 7789952 if size == "8gb" else 3520000
    found = {
        "etc/os-release": f'NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID="{release}"\n'
        f'VERSION_CODENAME={codename}\nPRETTY_NAME="Ubuntu {release} LTS"\n',
        "etc/hostname": f"{board.name}\n",
        "fake/proc/meminfo": f"MemTotal: {memory_kb} kB\nMemAvailable: {memory_kb - 900000} kB\n"
        "SwapTotal: 3894976 kB\nSwapFree: 3894976 kB\n",
        "fake/proc/swaps": f"Filename Type Size Used Priority\n{ZRAM}\n",
        "fake/proc/sys/vm/swappiness": "60\n",
        "fake/proc/sys/kernel/osrelease": "5.15.185-tegra\n",
        "fake/disks.json": json.dumps(disks(board)),
        "fake/dpkg-status": packages(board.l4t) + HALF_INSTALLED * board.is_half_done,
        "fake/sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "fake/sys/class/thermal/thermal_zone0/temp": "47750\n",
        "fake/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600\n",
    }
    hwmon = "fake/sys/class/hwmon/hwmon3"
    found[f"{hwmon}/name"] = "ina3221\n"
    for channel, (rail, millivolts, milliamperes) in enumerate(
        (("VDD_IN", 5000, 908), ("VDD_CPU_GPU_CV", 5000, 104), ("VDD_SOC", 5000, 289)), 1
    ):
        found[f"{hwmon}/in{channel}_label"] = f"{rail}\n"
        found[f"{hwmon}/in{channel}_input"] = f"{millivolts}\n"
        found[f"{hwmon}/curr{channel}_input"] = f"{milliamperes}\n"
    if not board.is_jetson:
        found["fake/proc/device-tree/model"] = "Raspberry Pi 5 Model B Rev 1.0\0"
        found["fake/proc/device-tree/compatible"] = "raspberrypi,5-model-b\0brcm,bcm2712\0"
        return found
    major, _, revision = board.l4t.partition(".")
    active = MODES[size, board.is_super][board.mode]
    found |= {
        "etc/nv_tegra_release": f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: "
        "generic, EABI: aarch64, DATE: Thu Jan 15 19:42:52 UTC 2026\n# KERNEL_VARIANT: oot\n",
        "etc/nv_boot_control.conf": f"TNSPEC 3767-300-{board.sku}-S.1-1-1-jetson-orin-nano-"
        f"devkit{suffix}-\nCOMPATIBLE_SPEC 3767--{board.sku}--1--jetson-orin-nano-devkit{suffix}-\n"
        "TEGRA_BOOT_STORAGE mmcblk0\n",
        "fake/proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer "
        f"Kit{' Super' if board.is_super else ''}\0",
        "fake/proc/device-tree/compatible": f"nvidia,p3768-0000+p3767-{board.sku}{suffix}\0"
        f"nvidia,p3767-{board.sku}\0nvidia,tegra234\0",
        "fake/sys/class/devfreq/17000000.gpu/available_frequencies": f"306000000 {gpu}\n",
        "fake/sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
        "fake/sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
        "fake/sys/class/devfreq/17000000.gpu/max_freq": f"{_limit(active.gpu_hz, gpu)}\n",
        "fake/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": (
            "1728000\n" if clocks_are_super else "1510400\n"
        ),
        "fake/sys/kernel/debug/bpmp/debug/clk/emc/max_rate": (
            "3199000000\n" if clocks_are_super else "2133000000\n"
        ),
        "fake/sys/kernel/nvpmodel_clk_cap/emc": f"{active.emc_hz}\n",
        "fake/sys/devices/platform/gpu.0/tpc_pg_mask": f"{active.tpc_mask}\n",
        "fake/nvpmodel.json": json.dumps(
            {
                "mode": board.mode,
                "mask": active.tpc_mask,
                "gpu_was_used": True,
                "locked": False,
                "ask": board.asks_for_reboot,
                # Whether -q answers with the stored mode or with the active one is not
                # documented, so there are boards of both kinds.
                "tells_stored": major == "39",
            }
        ),
        "var/lib/nvpmodel/status": f"pmode:{board.mode:04d}\n",
        "etc/nvpower/nvfancontrol/nvfancontrol_p3767_0000.conf": FAN_CONF,
    }
    for (kind, chain), name in CONF_NAMES.items():
        default = 1 if chain else 0
        found[f"etc/nvpmodel/{name}"] = conf(MODES[kind, chain], default)
    if board.drops_connection:
        found["fake/drop_connection"] = ""
    if board.is_half_done:
        # Cut off while it installed jetson-stats and wrote its files: directories without
        # content, a swap file that is too short, an environment without programs.
        found |= {
            "opt/mamba-orin/jetson-stats/pyvenv.cfg": "home = /usr/bin\n",
            "opt/mamba-orin/wheels/jetson_stats-0-py3-none-any.whl": "half",
            "fake/nvme/swapfile": "half",
            "var/lib/nvpmodel/status.new": "",
            "etc/docker/.daemon.json.a1b2": "{",
            "var/lib/dpkg/info/lost-power.list": "/.\n",
        }
    return found


def links(board: Board) -> dict[str, str]:
    """Links, by path."""
    if not board.is_jetson:
        return {}
    return {
        "etc/nvpmodel.conf": f"/etc/nvpmodel/{CONF_NAMES[board.size, board.is_super]}",
        "etc/nvfancontrol.conf": "/etc/nvpower/nvfancontrol/nvfancontrol_p3767_0000.conf",
    }


def disks(board: Board) -> dict[str, object]:
    """What the stand-in for lsblk lists."""
    card = {
        "size": 64 * 10**9,
        "children": [
            {"name": "mmcblk0p1", "path": "/dev/mmcblk0p1", "type": "part", "size": 64 * 10**9,
             "fstype": "ext4", "label": None, "uuid": "c0ffee", "mountpoint": "/"},
        ],
    }  # fmt: skip
    nvme = {"size": 500 * 10**9}
    if board.disk == "absent":
        return {"/dev/mmcblk0": card}
    if board.disk == "root":
        return {"/dev/nvme0n1": card}
    return {"/dev/mmcblk0": card, "/dev/nvme0n1": nvme}


def packages(l4t: str) -> str:
    """Board support packages, as dpkg has them."""
    names = ("core", "kernel", "kernel-dtbs", "bootloader", "nvpmodel", "initrd", "init")
    entries = [
        f"Package: nvidia-l4t-{name}\nStatus: install ok installed\nPriority: optional\n"
        "Section: metapackages\nMaintainer: NVIDIA\nArchitecture: all\n"
        f"Version: {l4t}-20260115194252\nDescription: Jetson Linux\n"
        for name in names
    ]
    return "\n".join(entries) + "\n"


def archive(board: Board) -> bytes:
    """The files and links as a tar, to be laid over the image."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path, text in files(board).items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text.encode()), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
        for path, target in links(board).items():
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return stream.getvalue()


def _limit(cap: int, ceiling: int) -> int:
    return ceiling if cap <= 0 else min(cap, ceiling)
