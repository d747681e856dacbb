# SPDX-License-Identifier: MIT
"""What this machine is, read from files; nothing is guessed and nothing is changed.

Every reader takes the root of a file tree, so that the recorded tree of another machine can be
read as well as this one. A fact that cannot be read is None, with the reason beside it.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.facts import Facts
from pipeline.records import Board, Gpu, Jetson

_THIS_MACHINE = Path("/")

# Part numbers of the Orin modules that fit this carrier: p3767-<SKU>.
_MODULES = {
    "0000": "orin-nx-16gb",
    "0001": "orin-nx-8gb",
    "0003": "orin-nano-8gb",
    "0004": "orin-nano-4gb",
    "0005": "orin-nano-8gb",  # the developer kit's module, with a microSD slot
}
_MODULE_TITLES = {
    "orin-nx-16gb": "Jetson Orin NX 16 GB",
    "orin-nx-8gb": "Jetson Orin NX 8 GB",
    "orin-nano-8gb": "Jetson Orin Nano 8 GB",
    "orin-nano-4gb": "Jetson Orin Nano 4 GB",
}
# No Orin but the 4 GB Nano shows less than this, and no 8 GB module less than 7.3 GiB.
_SMALL_MODULE_BYTES = 5 * 2**30

# What the clocks can reach tells a Super boot chain from the original one, whatever nvpmodel
# prints: its Super modes can be selected on an original boot chain and then change nothing.
_SUPER_GPU_HZ = 1_020_000_000
_SUPER_CPU_KHZ = 1_728_000

# Jetson Linux to JetPack, for boards without the nvidia-jetpack package (release notes).
JETPACK_OF_L4T = {
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "35.6.1": "5.1.5",
    "35.6.2": "5.1.5",
    "35.6.4": "5.1.6",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "36.5.2": "6.2.3",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
}

# /proc/cpuinfo on Arm has numbers instead of a name (Arm's MIDR_EL1 part numbers).
_ARM_CORES = {
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse N1",
    "0xd40": "Neoverse V1",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse N2",
    "0xd4f": "Neoverse V2",
}
_MAXIMUM_LINKS = 40

_Value = TypeVar("_Value")


def read_board(root: Path = _THIS_MACHINE) -> Board:
    """Says what a machine is.

    Args:
        root: Root of the machine's file tree; another one than "/" reads files only.

    Returns:
        What could be read; unknown facts are None with the reason.
    """
    tree = _Tree(root)
    missing: dict[str, str] = {}

    def known(field: str, value: _Value | None, reason: str) -> _Value | None:
        if value is None:
            missing[field] = reason
        return value

    jetson = known("jetson", _read_jetson(tree), "the device tree names no Tegra")
    cpu = known("cpu", _cpu_name(tree), "/proc/cpuinfo does not name it")
    is_here = root == _THIS_MACHINE
    unread = "this file tree does not say"
    instruction_set = platform.machine() if is_here else None
    return Board(
        name=_display_name(jetson, cpu, instruction_set),
        hostname=known("hostname", _hostname(tree, is_here), unread),
        instruction_set=known("instruction_set", instruction_set, unread),
        operating_system=known("operating_system", _operating_system(tree, is_here), unread),
        kernel=known("kernel", _kernel(tree, is_here), unread),
        python=platform.python_version(),
        cpu=cpu,
        cores=known("cores", _online_cores(tree, is_here), unread),
        usable_cores=known(
            "usable_cores", usable_cores() if is_here else None, "only the machine itself knows"
        ),
        memory_bytes=known(
            "memory_bytes", _meminfo_bytes(tree, "MemTotal"), "/proc/meminfo has no MemTotal"
        ),
        swap_bytes=known(
            "swap_bytes", _meminfo_bytes(tree, "SwapTotal"), "/proc/meminfo has no SwapTotal"
        ),
        cuda=known("cuda", _cuda_version(tree), "no CUDA toolkit or runtime is installed"),
        tensorrt=known(
            "tensorrt",
            _package_version(tree, r"libnvinfer\d+"),
            "no libnvinfer package is installed",
        ),
        cudnn=known(
            "cudnn",
            _package_version(tree, r"libcudnn\d+(-cuda-\d+)?"),
            "no libcudnn package is installed",
        ),
        gpus=_read_gpus() if is_here else (),
        jetson=jetson,
        missing=missing,
    )


def power_mode_ids(root: Path = _THIS_MACHINE) -> dict[str, int]:
    """Numbers of the power modes by name; they differ between modules and releases."""
    return {name: number for number, name in _power_modes(_Tree(root)).items()}


def describe(board: Board) -> str:
    """A machine as text for a terminal, one fact a line; unknown ones with the reason."""
    lines = [board.name, ""]
    lines += _fact_lines(board, skip={"name", "gpus", "jetson"})
    if board.jetson is not None:
        lines += ["", *_fact_lines(board.jetson, skip=set())]
    for gpu in board.gpus:
        lines += ["", *_fact_lines(gpu, skip=set())]
    return "\n".join(lines) + "\n"


def _fact_lines(facts: Facts, skip: set[str]) -> Iterator[str]:
    for field in type(facts).model_fields:
        if field in skip or field == "missing":
            continue
        title, unit = field, ""
        for suffix, symbol in (("_bytes", " GB"), ("_mhz", " MHz")):
            if field.endswith(suffix):
                title, unit = field.removesuffix(suffix), symbol
        value = getattr(facts, field)
        if value is None:
            text = f"unknown: {facts.missing[field]}"
        elif unit == " GB":
            text = f"{value / 1e9:.2f} GB"
        elif isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, tuple):
            text = ", ".join(value) or "none found"
        elif isinstance(value, dict):
            text = ", ".join(f"{name} {'yes' if is_so else 'no'}" for name, is_so in value.items())
        else:
            text = f"{value:g}{unit}" if unit else str(value)
        yield f"{title.replace('_', ' '):<22}{text}"


def usable_cores() -> int:
    """Logical processors that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@dataclass(frozen=True)
class Activity:
    """Counters of what the whole machine and this process have done so far.

    Attributes:
        busy_s: Processor seconds that all processes together have used; None if unknown.
        own_s: Processor seconds of this process and its children.
        swapped_pages: Pages moved to or from swap since boot; None if unknown.
        swap_used_bytes: Swap in use at this moment; None if unknown.
    """

    busy_s: float | None
    own_s: float
    swapped_pages: int | None
    swap_used_bytes: int | None


def read_activity(root: Path = _THIS_MACHINE) -> Activity:
    """Reads the counters; the difference of two readings is what happened in between."""
    tree = _Tree(root)
    busy = None
    first_line = (tree.text("proc/stat") or "").partition("\n")[0].split()
    if len(first_line) > 8 and first_line[0] == "cpu":
        # user, nice, system, idle, iowait, irq, softirq, steal (proc(5)); time that a
        # hypervisor gave to other guests is not this machine's work but is taken from us.
        ticks = [int(value) for value in first_line[1:9]]
        busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    counters = dict(
        pair for line in (tree.text("proc/vmstat") or "").splitlines()
        if len(pair := line.split()) == 2
    )  # fmt: skip
    swapped = None
    if {"pswpin", "pswpout"} <= counters.keys():
        swapped = int(counters["pswpin"]) + int(counters["pswpout"])
    total, free = _meminfo_bytes(tree, "SwapTotal"), _meminfo_bytes(tree, "SwapFree")
    own = os.times()
    return Activity(
        busy_s=busy,
        own_s=own.user + own.system + own.children_user + own.children_system,
        swapped_pages=swapped,
        swap_used_bytes=total - free if total is not None and free is not None else None,
    )


def peak_memory_bytes() -> int | None:
    """The highest resident size this process has had; None where the system does not say."""
    high_water = re.search(
        r"VmHWM:\s+(\d+) kB", _Tree(_THIS_MACHINE).text("proc/self/status") or ""
    )
    return int(high_water[1]) * 1024 if high_water else None


class _Tree:
    """The files below a root; whatever cannot be read is None."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def text(self, path: str) -> str | None:
        """Content of a text file; the strings of a device tree end in NUL, so those go."""
        try:
            data = self.locate(path).read_bytes()
        except OSError:
            # Thermal zones, clocks and debug files may refuse a read; that is unknown, too.
            return None
        return data.decode("utf-8", errors="replace").rstrip("\0\n ")

    def strings(self, path: str) -> tuple[str, ...]:
        """The NUL-separated strings of a device tree property."""
        text = self.text(path)
        return tuple(part for part in text.split("\0") if part) if text else ()

    def number(self, path: str) -> int | None:
        """A file that holds one integer."""
        text = self.text(path)
        return int(text) if text and re.fullmatch(r"-?\d+", text) else None

    def glob(self, pattern: str) -> Iterator[str]:
        """Paths of files that match, sorted."""
        for found in sorted(self.root.glob(pattern)):
            yield str(found.relative_to(self.root))

    def locate(self, path: str) -> Path:
        """Follows links inside this tree, the absolute ones too."""
        place = Path(path)
        for _ in range(_MAXIMUM_LINKS):
            link = self._first_link(place)
            if link is None:
                return self.root / place
            rest = place.relative_to(link)
            target = (self.root / link).readlink()
            start = target.relative_to("/") if target.is_absolute() else link.parent / target
            place = Path(os.path.normpath(start)) / rest
        return self.root / place

    def _first_link(self, place: Path) -> Path | None:
        for step in (*reversed(place.parents), place):
            if (self.root / step).is_symlink() and step != Path():
                return step
        return None


def _display_name(jetson: Jetson | None, cpu: str | None, instruction_set: str | None) -> str:
    if jetson is None:
        return cpu or instruction_set or "unknown machine"
    name = _MODULE_TITLES.get(jetson.module or "") or jetson.model or "unknown Jetson"
    return f"{name} Super" if jetson.module and jetson.is_super else name


def _read_jetson(tree: _Tree) -> Jetson | None:
    compatible = tree.strings("proc/device-tree/compatible")
    if not any(entry.startswith("nvidia,tegra") for entry in compatible):
        return None
    missing: dict[str, str] = {}

    def known(field: str, value: _Value | None, reason: str) -> _Value | None:
        if value is None:
            missing[field] = reason
        return value

    model = tree.text("proc/device-tree/model") or None
    module, evidence, part = _identify_module(tree, compatible, model)
    l4t = _l4t_version(tree)
    witnesses = _super_witnesses(tree, compatible, module)
    gpu = _gpu_devfreq(tree)
    no_gpu = "the GPU's devfreq files are not there"
    cpu = "sys/devices/system/cpu/cpu0/cpufreq"
    no_cpu = f"/{cpu} is not there"
    cap = tree.number("sys/kernel/nvpmodel_clk_cap/emc") or None
    lowest, highest = (tree.number(f"{gpu}/{name}_freq") for name in ("min", "max"))
    steps = (tree.text(f"{gpu}/available_frequencies") or "").split()
    return Jetson(
        module=known("module", module, "neither SKU digits nor memory size tell the module"),
        module_evidence=known("module_evidence", evidence, "the module is unknown"),
        part=known("part", part, "no SKU digits in TNSPEC or the device tree"),
        model=known("model", model, "the device tree has no model"),
        is_super=known(
            "is_super", all(witnesses.values()) if witnesses else None, "no witness could be read"
        ),
        super_witnesses=witnesses,
        l4t=known("l4t", l4t, "neither /etc/nv_tegra_release nor nvidia-l4t-core is there"),
        jetpack=known("jetpack", _jetpack_version(tree, l4t), "no known release has this L4T"),
        power_mode=known("power_mode", _power_mode(tree), "nvpmodel has stored no active mode"),
        power_modes=tuple(_power_modes(tree).values()),
        gpu_clock_mhz=known("gpu_clock_mhz", _mhz(tree.number(f"{gpu}/cur_freq"), 1e6), no_gpu),
        gpu_clock_limit_mhz=known("gpu_clock_limit_mhz", _mhz(highest, 1e6), no_gpu),
        gpu_clock_ceiling_mhz=known(
            "gpu_clock_ceiling_mhz", _mhz(max(map(int, steps), default=None), 1e6), no_gpu
        ),
        cpu_clock_limit_mhz=known(
            "cpu_clock_limit_mhz", _mhz(tree.number(f"{cpu}/scaling_max_freq"), 1e3), no_cpu
        ),
        cpu_clock_ceiling_mhz=known(
            "cpu_clock_ceiling_mhz", _mhz(tree.number(f"{cpu}/cpuinfo_max_freq"), 1e3), no_cpu
        ),
        memory_clock_cap_mhz=known(
            "memory_clock_cap_mhz", _mhz(cap, 1e6), "uncapped, or the file is not there"
        ),
        clocks_locked=known(
            "clocks_locked", lowest == highest if lowest and highest else None, no_gpu
        ),
        missing=missing,
    )


def _identify_module(
    tree: _Tree, compatible: tuple[str, ...], model: str | None
) -> tuple[str | None, str | None, str | None]:
    """Module, what told it, and its part number, by the firmest witness there is."""
    boot = tree.text("etc/nv_boot_control.conf") or ""
    if found := re.search(r"^TNSPEC\s+3767-\w*-(\d{4})\b", boot, re.MULTILINE):
        return _MODULES.get(found[1]), "TNSPEC", f"p3767-{found[1]}"
    for entry in compatible:
        if found := re.search(r"p3767-(\d{4})", entry):
            return _MODULES.get(found[1]), "compatible", f"p3767-{found[1]}"
    # Size alone does not tell an 8 GB Nano from an 8 GB NX, so there the name must help.
    total = _meminfo_bytes(tree, "MemTotal")
    if total is not None and "nvidia,tegra234" in compatible:
        if total < _SMALL_MODULE_BYTES:
            return "orin-nano-4gb", "memory size", None
        if total < 2 * _SMALL_MODULE_BYTES and "Orin Nano" in (model or ""):
            return "orin-nano-8gb", "memory size", None
    return None, None, None


def _super_witnesses(
    tree: _Tree, compatible: tuple[str, ...], module: str | None
) -> dict[str, bool]:
    """What each readable witness says; only Orin Nano has the limits below."""
    witnesses: dict[str, bool] = {}
    if compatible:
        witnesses["device tree"] = any(entry.endswith("-super") for entry in compatible)
    if module is None or not module.startswith("orin-nano"):
        return witnesses
    steps = (tree.text(f"{_gpu_devfreq(tree)}/available_frequencies") or "").split()
    if steps:
        witnesses["GPU clock"] = max(map(int, steps)) >= _SUPER_GPU_HZ
    cpu_khz = tree.number("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if cpu_khz is not None:
        witnesses["CPU clock"] = cpu_khz >= _SUPER_CPU_KHZ
    return witnesses


def _gpu_devfreq(tree: _Tree) -> str:
    default = "sys/class/devfreq/17000000.gpu"
    return next(
        (path for path in tree.glob("sys/class/devfreq/*") if path.endswith((".gpu", ".ga10b"))),
        default,
    )


def _l4t_version(tree: _Tree) -> str | None:
    release = tree.text("etc/nv_tegra_release") or ""
    if found := re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release):
        return f"{found[1]}.{found[2]}"
    # Yocto, NixOS and balena images have no such file.
    package = _package_version(tree, "nvidia-l4t-core")
    return package.partition("-")[0] if package else None


def _jetpack_version(tree: _Tree, l4t: str | None) -> str | None:
    # The package is absent when only the board support package is installed.
    package = _package_version(tree, "nvidia-jetpack")
    if package:
        return re.split(r"[-+]", package)[0]
    return JETPACK_OF_L4T.get(l4t or "")


def _power_modes(tree: _Tree) -> dict[int, str]:
    conf = tree.text("etc/nvpmodel.conf") or ""
    pattern = r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>"
    return {int(found[1]): found[2] for found in re.finditer(pattern, conf, re.MULTILINE)}


def _power_mode(tree: _Tree) -> str | None:
    # Numbers differ between modules and releases, names do not; so a number whose name is not
    # in the active file stays unknown.
    stored = re.search(r"pmode:(\d+)", tree.text("var/lib/nvpmodel/status") or "")
    return _power_modes(tree).get(int(stored[1])) if stored else None


def _mhz(value: int | None, per_mhz: float) -> float | None:
    return None if value is None else value / per_mhz


def _meminfo_bytes(tree: _Tree, field: str) -> int | None:
    found = re.search(rf"^{field}:\s+(\d+) kB", tree.text("proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _cpu_name(tree: _Tree) -> str | None:
    text = tree.text("proc/cpuinfo") or ""
    if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
        return re.sub(r"\s+", " ", found[1]).strip()
    if found := re.search(r"^CPU part\s*:\s*(0x[0-9a-f]+)$", text, re.MULTILINE):
        return _ARM_CORES.get(found[1])
    return None


def _online_cores(tree: _Tree, is_here: bool) -> int | None:
    text = tree.text("sys/devices/system/cpu/online")
    if not text or not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        return os.cpu_count() if is_here else None
    count = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def _hostname(tree: _Tree, is_here: bool) -> str | None:
    return (platform.node() if is_here else tree.text("etc/hostname")) or None


def _operating_system(tree: _Tree, is_here: bool) -> str | None:
    text = tree.text("etc/os-release") or ""
    if found := re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', text, re.MULTILINE):
        return found[1]
    return platform.system() or None if is_here else None


def _kernel(tree: _Tree, is_here: bool) -> str | None:
    return tree.text("proc/sys/kernel/osrelease") or (platform.release() if is_here else None)


def _package_version(tree: _Tree, name_pattern: str) -> str | None:
    """Version of an installed Debian package, without the packaging's own revision.

    dpkg's list is read as a file, because that also works for another machine's tree.
    """
    packages = tree.text("var/lib/dpkg/status") or ""
    pattern = rf"^Package: {name_pattern}\n(?:(?!\n\n)[\s\S])*?^Version: (?P<version>\S+)$"
    for found in re.finditer(pattern, packages, re.MULTILINE):
        if "\nStatus: install ok installed" in found[0]:
            return re.sub(r"-1(\+.*)?$", "", found["version"])
    return None


def _cuda_version(tree: _Tree) -> str | None:
    version_file = tree.text("usr/local/cuda/version.json") or ""
    if found := re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', version_file):
        return found[1]
    package = _package_version(tree, r"cuda-cudart-\d+-\d+")
    return package.partition("-")[0] if package else None


def _read_gpus() -> tuple[Gpu, ...]:
    """Desktop and server GPUs, by the tool that comes with their driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version"]
    try:
        answer = subprocess.run(
            [*query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    gpus = []
    for line in answer.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 3:
            continue
        missing: dict[str, str] = {}
        memory = int(fields[1]) * 2**20 if fields[1].isdigit() else None
        if memory is None:
            missing["memory_bytes"] = f"the driver says {fields[1]!r}"
        driver = fields[2] if fields[2][:1].isdigit() else None
        if driver is None:
            missing["driver"] = f"the driver says {fields[2]!r}"
        gpus.append(Gpu(name=fields[0], memory_bytes=memory, driver=driver, missing=missing))
    return tuple(gpus)
