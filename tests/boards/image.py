# SPDX-License-Identifier: MIT
"""The image of the simulated boards: a Debian with real systemd and sshd, and stand-ins.

Stand-ins take the place of NVIDIA's tools and of what reaches through a container to the machine
around it: disks, swap, kernel settings, power.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from tests.boards.engine import SUITE, Engine, NoEngineError, install_packages, run
from tests.boards.package_repository import write_package_repository, write_python_packages

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INCLUDE = (
    "systemd,systemd-sysv,dbus,openssh-server,sudo,python3,python3-apt,python3-venv,python3-pip,"
    "nftables,unattended-upgrades,iproute2,procps,e2fsprogs,fdisk,ca-certificates"
)
# Stand-ins of NVIDIA's tools lie where NVIDIA's lie, those of the system's before them.
PLACES = {
    "nvpmodel": "usr/sbin",
    "nvbootctrl": "usr/sbin",
    "jetson_clocks": "usr/bin",
    "tegrastats": "usr/bin",
}
# What "guarded" stands before, and where a caller finds it: Ansible takes these four by their path.
GUARDED = {
    **dict.fromkeys(("reboot", "poweroff", "halt", "shutdown"), "usr/sbin"),
    **dict.fromkeys(
        ("systemctl", "mkfs", "mke2fs", "mkfs.ext2", "mkfs.ext3", "mkfs.ext4", "mkfs.fat", "mkfs.vfat",
         "mkfs.xfs", "mkfs.btrfs", "wipefs", "dd", "shred", "parted", "fdisk", "sfdisk", "sgdisk",
         "cfdisk", "blkdiscard", "nvme", "kexec", "fw_setenv", "efibootmgr", "flash.sh",
         "nv_update_engine", "dpkg-reconfigure"),
        "usr/local/bin",
    ),
}  # fmt: skip


def work_directory() -> Path:
    """Where everything lies; kept between runs, as the base system takes a minute to make."""
    default = Path.home() / ".cache/mamba-orin/boards"
    return Path(os.environ.get("MAMBA_ORIN_BOARDS_DIRECTORY", default))


def board_image(engine: Engine) -> str:
    """Builds the image of the boards, if its ingredients have changed; returns its name."""
    ingredients = [*sorted((HERE / "stand_ins").iterdir()), Path(__file__),
                   HERE / "package_repository.py", ROOT / "versions.json"]  # fmt: skip
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in ingredients)).hexdigest()[:12]
    name = f"board:{digest}"
    have = engine.images()
    base = f"base:{SUITE}"
    if base not in have:
        install_packages({"debootstrap": "debootstrap"})
        root = engine.work / "base"
        shutil.rmtree(root, ignore_errors=True)
        mirror = os.environ.get("MAMBA_ORIN_DEBIAN_MIRROR", "")
        try:
            run("debootstrap", "--variant=minbase", f"--include={INCLUDE}", SUITE, str(root),
                *[mirror] * bool(mirror), timeout=1200)  # fmt: skip
        except RuntimeError as error:
            raise NoEngineError(f"no base system: {error}") from error
        packed = engine.work / "base.tar"
        run("tar", "-C", str(root), "-cf", str(packed), ".")
        engine.docker("import", str(packed), base)
        packed.unlink()
        shutil.rmtree(root)
    if name not in have:
        install_packages({"apt-ftparchive": "apt-utils", "ssh-keygen": "openssh-client"})
        build = engine.work / "build"
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir()
        _write_context(build, engine.work)
        engine.docker("build", "--quiet", "--tag", name, str(build))
    return name


def key_file(work: Path) -> Path:
    """The key that logs in to the boards."""
    key = work / "id_ed25519"
    if not key.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    return key


def _write_context(build: Path, work: Path) -> None:
    overlay = build / "overlay"
    local = overlay / "usr/local/bin"
    local.mkdir(parents=True)
    for tool in (HERE / "stand_ins").iterdir():
        place = overlay / PLACES.get(tool.name, "usr/local/bin")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy2(tool, place / tool.name)
    (local / "swapoff").symlink_to("swapon")
    for tool_name, folder in GUARDED.items():
        (overlay / folder).mkdir(parents=True, exist_ok=True)
        (overlay / folder / tool_name).symlink_to("/usr/local/bin/guarded")
    write_package_repository(overlay / "srv/apt")
    write_python_packages(overlay / "srv/pypi")
    for path, text in _SYSTEM_FILES.items():
        place = overlay / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(0o755 if text.startswith("#!") else 0o644)
    (overlay / "etc/sudoers.d/nvidia").chmod(0o440)
    key = key_file(work).with_suffix(".pub").read_text()
    keys = overlay / "home/nvidia/.ssh/authorized_keys"
    keys.parent.mkdir(parents=True)
    keys.write_text(key)
    (build / "Dockerfile").write_text(_DOCKERFILE)
    run("tar", "-C", str(overlay), "--owner=0", "--group=0", "-cf", f"{build}/overlay.tar", ".")
    shutil.rmtree(overlay)


_DOCKERFILE = f"""\
FROM base:{SUITE}
RUN groupadd --system render || true
RUN useradd --create-home --shell /bin/bash --groups sudo,video nvidia
ADD overlay.tar /
RUN chown -R nvidia:nvidia /home/nvidia && chmod 700 /home/nvidia/.ssh \\
 && mkdir -p /mnt /fake/nvme && rm -f /etc/machine-id \\
 && rm -rf /etc/apt/sources.list /var/lib/apt/lists/* \\
 && for name in core kernel kernel-dtbs bootloader nvpmodel initrd init; do \\
    touch /var/lib/dpkg/info/nvidia-l4t-$name.list; done \\
 && systemctl enable ssh.service nvpmodel.service nvfancontrol.service nvzramconfig.service \\
 && systemctl mask systemd-udevd.service systemd-logind.service getty.target \\
    systemd-networkd.service systemd-firstboot.service \\
 && apt-get -qq update
CMD ["/lib/systemd/systemd"]
"""

_SYSTEM_FILES = {
    "etc/sudoers.d/nvidia": "nvidia ALL=(ALL) NOPASSWD: ALL\n",
    "etc/fstab": "# <file system> <mount point> <type> <options> <dump> <pass>\n",
    "etc/pip.conf": "[global]\nno-index = true\nfind-links = /srv/pypi\n",
    # The repository of the simulation is not signed, as its files are not the real ones.
    "etc/apt/apt.conf.d/99simulated": 'APT::Get::AllowUnauthenticated "true";\n'
    'Acquire::AllowInsecureRepositories "true";\nAPT::Sandbox::User "root";\n',
    "etc/apt/sources.list.d/nvidia-l4t-apt-source.list": (
        "deb file:/srv/apt/jetson/common r36.4 main\ndeb file:/srv/apt/jetson/t234 r36.4 main\n"
    ),
    "etc/systemd/system/nvpmodel.service": (
        "[Unit]\nDescription=nvpmodel\nBefore=ssh.service\n[Service]\nType=oneshot\n"
        "ExecStart=/bin/sh -c 'test ! -e /etc/nvpmodel.conf || nvpmodel --boot'\n"
        # What a boot does with the disk and its swap, where the real mount cannot.
        "ExecStartPost=/usr/local/bin/after_boot\n"
        "[Install]\nWantedBy=multi-user.target\n"
    ),
    "usr/local/bin/after_boot": (
        "#!/bin/sh\n"
        # A container has the kernel's number of the boot of the machine around it.
        "cat /proc/sys/kernel/random/uuid >/run/boot_id\n"
        "/usr/bin/mount --bind /run/boot_id /proc/sys/kernel/random/boot_id\n"
        # /dev is empty after every start of a container.
        "test ! -e /fake/disk || ln -sf /fake/disk /dev/nvme0n1\n"
        "awk '$1 ~ /^UUID=/ && $2 == \"/mnt/nvme\" {print $2}' /etc/fstab |\n"
        "while read -r place; do mountpoint -q $place || /usr/local/bin/mount $place; done\n"
        "test -e /fake/proc/swaps.boot && cp /fake/proc/swaps.boot /fake/proc/swaps\n"
        "awk '$3 == \"swap\" {print $1}' /etc/fstab |\n"
        "while read -r area; do /usr/local/bin/swapon $area; done\nexit 0\n"
    ),
    # In a container the timer would not start; nothing must be trimmed by it either.
    "etc/systemd/system/fstrim.timer.d/simulated.conf": "[Unit]\nConditionVirtualization=\n",
    **{
        f"etc/systemd/system/{unit}.service.d/simulated.conf": (
            "[Unit]\nConditionVirtualization=\n[Service]\nExecStartPre=\nExecStart=\n"
            "ExecStart=/bin/true\n"
        )
        for unit in ("fstrim", "apt-daily", "apt-daily-upgrade")
    },
    "etc/systemd/system/nvfancontrol.service": (
        "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
    ),
    "etc/systemd/system/nvzramconfig.service": (
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
        "[Install]\nWantedBy=multi-user.target\n"
    ),
}
