# SPDX-License-Identifier: MIT
"""Boards: recorded file trees of the modules, boot chains and releases that exist."""

import os
from pathlib import Path

import pytest

from pipeline.board import describe, read_activity, read_board
from pipeline.records import Board

SUPER_MODES = """\
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""
PACKAGES = """\
Package: libnvinfer8
Status: deinstall ok config-files
Version: 8.6.2.3-1+cuda12.2

Package: bash
Status: install ok installed
Version: 5.1-6ubuntu1.1

Package: libnvinfer10
Status: install ok installed
Priority: optional
Version: 10.3.0.30-1+cuda12.5

Package: libcudnn9-cuda-12
Status: install ok installed
Version: 9.3.0.75-1
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def strings(*values: str) -> str:
    """A device tree property: every string ends in NUL."""
    return "".join(value + "\0" for value in values)


def super_8gb(root: Path) -> Path:
    write(
        root,
        {
            "proc/device-tree/compatible": strings(
                "nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"
            ),
            "proc/device-tree/model": strings(
                "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
            ),
            "proc/meminfo": "MemTotal:        7789952 kB\nSwapTotal:       3894976 kB\n",
            "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
            "proc/sys/kernel/osrelease": "5.15.148-tegra\n",
            "etc/hostname": "orin-07\n",
            "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, "
            "BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n",
            "etc/nv_boot_control.conf": "TNSPEC 3767-300-0005-S.1-1-1-jetson-orin-nano-devkit-"
            "super-\nCOMPATIBLE_SPEC 3767--0005--1--jetson-orin-nano-devkit-super-\n",
            "etc/nvpmodel/nvpmodel_p3767_0003_super.conf": SUPER_MODES,
            "var/lib/nvpmodel/status": "pmode:0002\n",
            "var/lib/dpkg/status": PACKAGES,
            "usr/local/cuda-12.6/version.json": '{"cuda" : {"name" : "CUDA SDK", '
            '"version" : "12.6.68"}}',
            "sys/class/devfreq/17000000.gpu/available_frequencies": "306000000 1020000000\n",
            "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
            "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
            "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
            "sys/devices/system/cpu/online": "0-5\n",
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1728000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1344000\n",
            "sys/kernel/nvpmodel_clk_cap/emc": "3199000000\n",
        },
    )
    # As on a board, both are absolute links; they must stay inside the tree.
    (root / "etc/nvpmodel.conf").symlink_to("/etc/nvpmodel/nvpmodel_p3767_0003_super.conf")
    (root / "usr/local/cuda").symlink_to("/usr/local/cuda-12.6")
    return root


def original_8gb(root: Path) -> Path:
    """The same module with the original boot chain, its nvpmodel link bent to Super."""
    super_8gb(root)
    return write(
        root,
        {
            "proc/device-tree/compatible": strings(
                "nvidia,p3768-0000+p3767-0003", "nvidia,p3767-0003", "nvidia,tegra234"
            ),
            "proc/device-tree/model": strings("NVIDIA Jetson Orin Nano Developer Kit"),
            "etc/nv_boot_control.conf": "TNSPEC 3767-300-0003-S.1-1-1-jetson-orin-nano-devkit-\n",
            "sys/class/devfreq/17000000.gpu/available_frequencies": "306000000 624750000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1510400\n",
        },
    )


def test_a_super_board_of_8_gb(tmp_path: Path) -> None:
    board = read_board(super_8gb(tmp_path))
    jetson = board.jetson
    assert jetson is not None
    assert board.name == "Jetson Orin Nano 8 GB Super"
    assert (jetson.module, jetson.module_evidence) == ("orin-nano-8gb", "TNSPEC")
    assert jetson.part == "p3767-0005"
    assert jetson.model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert jetson.is_super is True
    assert jetson.super_witnesses == {"device tree": True, "GPU clock": True, "CPU clock": True}
    assert (jetson.l4t, jetson.jetpack) == ("36.4.3", "6.2")
    assert jetson.power_mode == "MAXN_SUPER"
    assert jetson.power_modes == ("15W", "25W", "MAXN_SUPER")
    assert jetson.gpu_clock_mhz == 306
    assert jetson.gpu_clock_ceiling_mhz == 1020
    assert (jetson.cpu_clock_limit_mhz, jetson.cpu_clock_ceiling_mhz) == (1344, 1728)
    assert jetson.memory_clock_cap_mhz == 3199
    assert jetson.clocks_locked is False
    assert (board.cuda, board.tensorrt, board.cudnn) == ("12.6.68", "10.3.0.30", "9.3.0.75")
    assert (board.cpu, board.cores) == ("Cortex-A78AE", 6)
    assert (board.memory_bytes, board.swap_bytes) == (7_976_910_848, 3_988_455_424)
    assert (board.hostname, board.kernel) == ("orin-07", "5.15.148-tegra")


def test_the_text_names_every_fact_or_why_it_is_unknown(tmp_path: Path) -> None:
    text = describe(read_board(super_8gb(tmp_path)))
    assert text.startswith("Jetson Orin Nano 8 GB Super\n")
    for line in (
        "memory                7.98 GB",
        "power mode            MAXN_SUPER",
        "power modes           15W, 25W, MAXN_SUPER",
        "gpu clock limit       1020 MHz",
        "is super              yes",
        "super witnesses       device tree yes, GPU clock yes, CPU clock yes",
        "clocks locked         no",
        "usable cores          unknown: only the machine itself knows",
    ):
        assert f"\n{line}\n" in text
    assert "jetson" not in describe(read_board(tmp_path / "absent")).splitlines()[2:]


def test_a_super_mode_on_an_original_boot_chain_is_not_super(tmp_path: Path) -> None:
    """nvpmodel prints MAXN_SUPER there and changes nothing."""
    jetson = read_board(original_8gb(tmp_path)).jetson
    assert jetson is not None
    assert jetson.power_mode == "MAXN_SUPER"
    assert jetson.is_super is False
    assert jetson.module == "orin-nano-8gb"
    assert jetson.gpu_clock_ceiling_mhz == 624.75


def test_one_witness_against_super_is_enough(tmp_path: Path) -> None:
    super_8gb(tmp_path)
    write(tmp_path, {"sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1510400\n"})
    jetson = read_board(tmp_path).jetson
    assert jetson is not None
    assert jetson.is_super is False
    assert jetson.super_witnesses["device tree"] is True


def test_a_4_gb_module_by_the_device_tree(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/device-tree/compatible": strings(
                "nvidia,p3768-0000+p3767-0004", "nvidia,p3767-0004", "nvidia,tegra234"
            ),
            "proc/device-tree/model": strings("NVIDIA Jetson Orin NX"),
            "proc/meminfo": "MemTotal:        3550000 kB\n",
        },
    )
    jetson = read_board(tmp_path).jetson
    assert jetson is not None
    assert (jetson.module, jetson.module_evidence) == ("orin-nano-4gb", "compatible")
    assert jetson.power_mode is None
    assert jetson.missing["power_mode"] == "nvpmodel has stored no active mode"


@pytest.mark.parametrize(
    ("memory_kb", "model", "module"),
    [
        (3_550_000, "carrier of somebody else", "orin-nano-4gb"),
        (7_789_952, "NVIDIA Jetson Orin Nano Developer Kit", "orin-nano-8gb"),
        (7_789_952, "NVIDIA Jetson Orin NX", None),
        (30_000_000, "NVIDIA Jetson Orin Nano Developer Kit", None),
    ],
)
def test_memory_size_tells_the_module_only_where_it_can(
    tmp_path: Path, memory_kb: int, model: str, module: str | None
) -> None:
    write(
        tmp_path,
        {
            "proc/device-tree/compatible": strings("someone,carrier", "nvidia,tegra234"),
            "proc/device-tree/model": strings(model),
            "proc/meminfo": f"MemTotal:  {memory_kb} kB\n",
        },
    )
    jetson = read_board(tmp_path).jetson
    assert jetson is not None
    assert jetson.module == module
    assert jetson.module_evidence == ("memory size" if module else None)


def test_boot_control_outweighs_the_device_tree(tmp_path: Path) -> None:
    super_8gb(tmp_path)
    write(
        tmp_path,
        {"etc/nv_boot_control.conf": "TNSPEC 3767-300-0004-S.1-1-1-jetson-orin-nano-devkit-\n"},
    )
    jetson = read_board(tmp_path).jetson
    assert jetson is not None
    assert jetson.module == "orin-nano-4gb"


def test_jetpack_7(tmp_path: Path) -> None:
    super_8gb(tmp_path)
    write(
        tmp_path,
        {
            "etc/nv_tegra_release": "# R39 (release), REVISION: 2.1, GCID: 46758480, BOARD: "
            "generic, EABI: aarch64, DATE: Fri Aug  7 05:54:22 AM UTC 2026\n",
            "var/lib/dpkg/status": "Package: nvidia-jetpack\nStatus: install ok installed\n"
            "Version: 7.2.1-b49\n\nPackage: libnvinfer10\nStatus: install ok installed\n"
            "Version: 10.16.2.10-1+cuda13.2\n\nPackage: cuda-cudart-13-2\n"
            "Status: install ok installed\nVersion: 13.2.75-1\n",
        },
    )
    (tmp_path / "usr/local/cuda").unlink()
    board = read_board(tmp_path)
    assert board.jetson is not None
    assert (board.jetson.l4t, board.jetson.jetpack) == ("39.2.1", "7.2.1")
    assert (board.tensorrt, board.cuda) == ("10.16.2.10", "13.2.75")


def test_l4t_by_its_package_where_there_is_no_release_file(tmp_path: Path) -> None:
    super_8gb(tmp_path)
    (tmp_path / "etc/nv_tegra_release").unlink()
    write(
        tmp_path,
        {
            "var/lib/dpkg/status": "Package: nvidia-l4t-core\nStatus: install ok installed\n"
            "Version: 36.5.0-20260115194252\n"
        },
    )
    jetson = read_board(tmp_path).jetson
    assert jetson is not None
    assert (jetson.l4t, jetson.jetpack) == ("36.5.0", "6.2.2")


def test_a_mode_without_a_name_stays_unknown(tmp_path: Path) -> None:
    super_8gb(tmp_path)
    write(tmp_path, {"var/lib/nvpmodel/status": "pmode:0007\n"})
    jetson = read_board(tmp_path).jetson
    assert jetson is not None
    assert jetson.power_mode is None


def test_a_board_whose_gpu_files_are_late_after_boot(tmp_path: Path) -> None:
    super_8gb(tmp_path)
    for file in (tmp_path / "sys/class/devfreq/17000000.gpu").iterdir():
        file.unlink()
    jetson = read_board(tmp_path).jetson
    assert jetson is not None
    assert jetson.gpu_clock_mhz is None
    assert jetson.is_super is True
    assert "GPU clock" not in jetson.super_witnesses


def test_not_a_jetson(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/cpuinfo": "processor : 0\nmodel name\t: Intel(R)  Core(TM) i7\n",
            "sys/devices/system/cpu/online": "0-3,6\n",
        },
    )
    board = read_board(tmp_path)
    assert board.jetson is None
    assert board.missing["jetson"] == "the device tree names no Tegra"
    assert (board.name, board.cores) == ("Intel(R) Core(TM) i7", 5)
    assert board.memory_bytes is None
    assert board.tensorrt is None


def test_an_empty_tree_is_all_unknown(tmp_path: Path) -> None:
    board = read_board(tmp_path)
    assert board.name == "unknown machine"
    assert {"cpu", "memory_bytes", "kernel", "cuda", "hostname"} <= board.missing.keys()


def test_a_link_that_leads_nowhere_or_round_is_unknown(tmp_path: Path) -> None:
    super_8gb(tmp_path)
    (tmp_path / "etc/nvpmodel.conf").unlink()
    (tmp_path / "etc/nvpmodel.conf").symlink_to("/etc/nvpmodel.conf")
    jetson = read_board(tmp_path).jetson
    assert jetson is not None
    assert jetson.power_modes == ()


def test_this_machine_can_be_read() -> None:
    board = read_board()
    assert board.usable_cores == len(os.sched_getaffinity(0))
    assert Board.model_validate_json(board.model_dump_json()) == board


def test_activity_counts_processors_and_swapping(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    write(
        tmp_path,
        {
            # user nice system idle iowait irq softirq steal guest guest_nice
            "proc/stat": f"cpu  {3 * ticks} 0 {ticks} {50 * ticks} {9 * ticks} 0 0 {ticks} 0 0\n",
            "proc/vmstat": "nr_free_pages 5\npswpin 3\npswpout 4\n",
            "proc/meminfo": "SwapTotal: 100 kB\nSwapFree: 60 kB\n",
        },
    )
    activity = read_activity(tmp_path)
    assert activity.busy_s == pytest.approx(5)
    assert activity.swapped_pages == 7
    assert activity.swap_used_bytes == 40 * 1024


def test_activity_of_a_system_that_tells_nothing(tmp_path: Path) -> None:
    activity = read_activity(tmp_path)
    assert (activity.busy_s, activity.swapped_pages, activity.swap_used_bytes) == (None,) * 3
