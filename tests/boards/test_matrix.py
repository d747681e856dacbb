# SPDX-License-Identifier: MIT
"""Every kind of board in one fleet: what check mode says, what a run does, and a second one.

Boards are looked at from outside, through the container engine, never by Ansible.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.boards.engine import Engine
from tests.boards.fleet import Fleet, Run, plain
from tests.boards.simulated import Board

pytestmark = pytest.mark.boards

GOOD = (
    Board("super-8gb", sku="0005"),
    Board("super-8gb-jp7", sku="0003", l4t="39.2.1"),
    Board("super-4gb", sku="0004"),
    Board("super-4gb-jp7", sku="0004", l4t="39.2.0"),
    Board(
        "original-8gb-wanted",
        is_super=False,
        l4t="36.4.3",
        mode=1,
        variables={"super_mode_original_power_mode": "15W", "super_mode_reboot_allowed": False},
    ),
    Board("half-done", disk="ours", is_half_done=True),
    Board("asks-for-reboot", l4t="39.2.1", asks_for_reboot=True),
    Board("reboots-as-allowed", l4t="39.2.1", asks_for_reboot=True, variables={
        "super_mode_reboot_allowed": True}),
    Board("nvme-absent-allowed", disk="absent", variables={
        "nvme_swap_required": False, "container_runtime_data_root": "/var/lib/docker"}),
    Board("nvme-is-root", disk="root"),
    Board("clocks-locked", variables={
        "super_mode_power_mode": "MAXN_SUPER", "super_mode_lock_clocks": True}),
)  # fmt: skip
REFUSED = {
    "original-8gb": (Board("original-8gb", is_super=False), "super_mode", "flash it from a host"),
    "name-only-super": (
        Board("name-only-super", has_device_tree_only=True), "super_mode", "unclear whether",
    ),
    "unknown-mode": (
        Board("unknown-mode", sku="0004", variables={"super_mode_power_mode": "15W"}),
        "super_mode", "no power mode 15W. Its modes: 10W, 25W, MAXN_SUPER",
    ),
    "not-a-jetson": (Board("not-a-jetson", is_jetson=False), "board_facts", "Raspberry Pi"),
    "broken-release": (Board("broken-release", l4t="36.4.7"), "jetpack_packages", "36.5.0"),
    "unknown-release": (Board("unknown-release", l4t="38.4.0"), "board_facts", "not supported"),
    "nvme-absent": (Board("nvme-absent", disk="absent"), "nvme_swap", "no NVMe disk"),
    "nvme-foreign": (Board("nvme-foreign", disk="foreign"), "nvme_swap", "holiday-photos"),
    "nvme-blank": (
        Board("nvme-blank", variables={"nvme_swap_format_allowed": False}),
        "nvme_swap", "nvme_swap_format_allowed",
    ),
    "read-only-root": (
        Board("read-only-root", root_is_read_only=True), "board_facts", "mounted read-only",
    ),
}  # fmt: skip
DROPS = Board("drops-connection", drops_connection=True)
ALL_AT_ONCE = {"provision_batches": ["100%"]}
# A board that is good but waits for its reboot is in the state that policy asks for.
WAITING = {"asks-for-reboot", "original-8gb-wanted"}
# check.yml goes on after a refusal, which takes time, so not every board is asked.
TABLED = ("super-8gb", "super-4gb-jp7", "half-done", "original-8gb", "not-a-jetson", "nvme-foreign")


@dataclass
class Story:
    """What happened to the fleet."""

    fleet: Fleet
    checked: Run
    checked_table: Run
    converged: Run
    again: Run
    untouched: dict[str, bool]


@pytest.fixture(scope="module")
def story(engine: Engine) -> Iterator[Story]:
    boards = [*GOOD, *(board for board, _, _ in REFUSED.values()), DROPS]
    stays = [board.name for board in boards if board is not DROPS]
    with Fleet(engine, boards) as fleet:
        before = {name: fleet.files(name) for name in stays}
        table = fleet.play("check.yml", limit=TABLED, tag="check")
        checked = fleet.play(
            "provision.yml", "--check", variables=ALL_AT_ONCE, limit=stays, tag="check-mode"
        )
        untouched = {name: fleet.files(name) == before[name] for name in stays}
        converged = fleet.play("provision.yml", variables=ALL_AT_ONCE, tag="converge")
        # Somebody goes there and turns ssh on again.
        fleet.run_in(DROPS.name, "systemctl start ssh.service")
        again = fleet.play("provision.yml", variables=ALL_AT_ONCE, tag="again")
        yield Story(fleet, checked, table, converged, again, untouched)


@pytest.fixture(params=[board.name for board in GOOD])
def good(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(REFUSED))
def refused(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def board_named(name: str) -> Board:
    return next(board for board in GOOD if board.name == name)


def test_check_mode_changes_nothing(story: Story) -> None:
    assert [name for name, same in story.untouched.items() if not same] == []


# What apt and pip install cannot be tried without installing it, so a task that only speaks
# foretells these tasks.
FORETOLD = {
    "super_mode: Reboot": "super_mode: Set the power mode by name",
    "nvme_swap: Take zram out of use": "nvme_swap: Say that zram would be taken out of use",
    "jetpack_packages: Finish what is half installed": "jetpack_packages: Say what would be finished",
    "jetpack_packages: Install the libraries": "jetpack_packages: Say what would be installed",
    "container_runtime: Install": "container_runtime: Say what would be installed",
    "container_runtime: Hold them": "container_runtime: Say what would be installed",
    **dict.fromkeys(
        (
            "telemetry: Create the directories",
            "telemetry: Build the wheels as a user without rights",
            "telemetry: Remove an environment of another version, or one that was cut off",
            "telemetry: Install them into an environment of their own",
            "telemetry: Remove the wheels",
            "telemetry: Note the version",
        ),
        "telemetry: Say what would be installed",
    ),
    "hardening: Prepare to take them back": "hardening: Load the rules",
    "hardening: Keep the rules, this connection has come through": "hardening: Load the rules",
}


def test_check_mode_predicts_what_a_run_changes(story: Story, good: str) -> None:
    changed = {FORETOLD.get(change, change) for change in story.converged.changed(good)}
    assert set(story.checked.changed(good)) == changed
    assert not story.checked.reason(good)


@pytest.mark.parametrize("name", [name for name in TABLED if name not in REFUSED])
def test_check_playbook_says_what_is_missing(story: Story, name: str) -> None:
    assert set(story.checked_table.changed(name)) == set(story.checked.changed(name))
    assert not story.checked_table.reason(name)
    assert f"\n{name} would change:" in story.checked_table.output
    assert story.checked_table.code == 0


def test_check_playbook_names_every_reason_at_once(story: Story) -> None:
    # This board has the original boot chain and lacks everything else as well.
    roles = story.checked_table.boards["original-8gb"]["roles"]
    assert roles[-1] == "hardening"
    assert len(story.checked_table.changed("original-8gb")) > 10
    # Of this one nothing is known.
    assert story.checked_table.boards["not-a-jetson"]["roles"] == ["board_facts"]
    assert len(story.checked_table.boards["not-a-jetson"]["failed"]) == 1


def test_a_good_board_converges(story: Story, good: str) -> None:
    assert not story.converged.reason(good), story.converged.reason(good)
    assert not story.converged.boards[good]["unreachable"]
    assert story.converged.changed(good)


def test_a_second_run_changes_nothing(story: Story, good: str) -> None:
    assert story.again.changed(good) == []
    assert not story.again.reason(good)


def test_a_refused_board_is_named_with_its_reason(story: Story, refused: str) -> None:
    _, role, words = REFUSED[refused]
    runs = [story.checked, story.converged, story.again]
    for run in [*runs, *[story.checked_table] * (refused in TABLED)]:
        failures = run.boards[refused]["failed"]
        assert failures[0]["role"] == role
        assert words in plain(failures[0]["reason"])
    assert f"{refused}: {role}:" in story.converged.output
    assert story.converged.code != 0


# The mode's number on that board, and the limit that it sets to the clock of the GPU.
MODES = {
    "super-8gb": (1, 918000000),
    "super-8gb-jp7": (1, 918000000),
    "super-4gb": (1, 1020000000),
    "super-4gb-jp7": (1, 1020000000),
    "clocks-locked": (2, 1020000000),
    "reboots-as-allowed": (1, 918000000),
}


@pytest.mark.parametrize("name", MODES)
def test_mode_is_in_force_by_name_and_clock(story: Story, name: str) -> None:
    state = json.loads(story.fleet.run_in(name, "cat /fake/nvpmodel.json"))
    limit = story.fleet.run_in(name, "cat /fake/sys/class/devfreq/17000000.gpu/max_freq")
    assert (state["mode"], int(limit)) == MODES[name]
    assert state["locked"] == (name == "clocks-locked")


@pytest.mark.parametrize("name", sorted(WAITING))
def test_a_mode_that_needs_a_reboot_is_stored_and_told(story: Story, name: str) -> None:
    fleet = story.fleet
    assert story.converged.boards[name]["notes"]
    wanted = {"asks-for-reboot": 1, "original-8gb-wanted": 0}[name]
    assert fleet.run_in(name, "cat /var/lib/nvpmodel/status").strip() == f"pmode:{wanted:04d}"
    assert json.loads(fleet.run_in(name, "cat /fake/nvpmodel.json"))["mode"] != wanted


def test_a_board_reboots_only_where_that_is_allowed(story: Story, good: str) -> None:
    assert not story.fleet.succeeds(good, "test -e /fake/rebooted_by_nvpmodel")
    calls = [line for line in story.fleet.dangers(good) if not line.startswith("mkfs.ext4 ")]
    if good == "reboots-as-allowed":
        assert calls[0].startswith("shutdown -r ")
        # systemd is asked by shutdown.
        assert set(calls[1:]) <= {"systemctl reboot"}
    else:
        assert calls == []


def test_swap_is_on_the_disk_and_zram_off(story: Story, good: str) -> None:
    board = board_named(good)
    swaps = story.fleet.run_in(good, "cat /fake/proc/swaps")
    if board.disk == "absent":
        assert "/dev/zram0" in swaps
        return
    assert "/mnt/nvme/swapfile file" in swaps
    assert "zram" not in swaps
    assert story.fleet.run_in(good, "stat -c %a /mnt/nvme/swapfile").strip() == "600"
    size_mib = int(swaps.split("/mnt/nvme/swapfile file ")[1].split()[0]) // 1024
    assert size_mib == {"8gb": 6144, "4gb": 2048}[board.size]
    assert story.fleet.run_in(good, "cat /fake/proc/sys/vm/swappiness").strip() == "10"
    assert not story.fleet.succeeds(good, "systemctl is-enabled nvzramconfig.service")
    if board.disk in ("blank", "ours"):
        fstab = story.fleet.run_in(good, "cat /etc/fstab")
        uuid = story.fleet.run_in(good, "blkid -p -s UUID -o value /dev/nvme0n1").strip()
        assert f"UUID={uuid} /mnt/nvme ext4 defaults,noatime,nofail" in fstab
        assert story.fleet.succeeds(good, "mountpoint -q /mnt/nvme")


def test_packages_have_the_pinned_versions_and_are_held(story: Story, good: str) -> None:
    is_7 = board_named(good).l4t.startswith("39")
    listed = story.fleet.run_in(good, "dpkg-query -W -f '${Package}=${Version} ${Status}\\n'")
    tensorrt = "10.16.2.10-1+cuda13.2" if is_7 else "10.3.0.30-1+cuda12.5"
    ubuntu = "24.04~noble" if is_7 else "22.04~jammy"
    for package in (
        f"libnvinfer10={tensorrt}",
        f"libnvinfer-plugin10={tensorrt}",
        f"libnvonnxparsers10={tensorrt}",
        f"docker-ce=5:27.5.1-1~ubuntu.{ubuntu}",
        f"nvidia-container-toolkit={'1.19.1-1' if is_7 else '1.16.2-1'}",
        f"nvidia-l4t-core={board_named(good).l4t}-20260115194252",
    ):
        assert f"{package} hold ok installed" in listed


def test_apt_would_upgrade_nothing_of_the_set(story: Story, good: str) -> None:
    plan = story.fleet.run_in(good, "apt-get --simulate dist-upgrade")
    assert "Inst" not in plan
    offered = story.fleet.run_in(good, "apt-cache policy nvidia-l4t-core")
    assert f"Candidate: {board_named(good).l4t}-" in offered


def test_docker_runs_with_its_configuration(story: Story, good: str) -> None:
    running = json.loads(story.fleet.run_in(good, "cat /run/dockerd.json"))
    on_disk = board_named(good).disk != "absent"
    assert running["data-root"] == ("/mnt/nvme/docker" if on_disk else "/var/lib/docker")
    assert running["default-runtime"] == "nvidia"
    assert story.fleet.succeeds(good, "systemctl is-active docker mamba-orin-cdi")
    assert story.fleet.succeeds(good, "test -s /etc/cdi/nvidia.yaml")


def test_telemetry_answers_from_outside(story: Story, good: str) -> None:
    answer = story.fleet.scrape(good)
    assert 'mamba_orin_power_watts{rail="VDD_IN"} 4.54' in answer
    assert 'mamba_orin_temperature_celsius{zone="cpu"} 47.75' in answer
    assert story.fleet.run_in(good, "stat -c '%U %G %a' /run/jtop.sock").split() == [
        "root", "jtop", "660",
    ]  # fmt: skip
    assert not story.fleet.succeeds(good, "test -e /fake/setup_script_ran_as_root")


def test_firewall_lets_ssh_in_and_else_nothing(story: Story, good: str) -> None:
    story.fleet.run_in(good, "systemd-run --collect python3 -m http.server 8099; sleep 1")
    assert story.fleet.port_is_open(good, 22)
    assert not story.fleet.port_is_open(good, 8099)


def test_ssh_takes_keys_only(story: Story, good: str) -> None:
    says = story.fleet.run_in(good, "sshd -T")
    assert "\npasswordauthentication no\n" in says
    assert "\nkbdinteractiveauthentication no\n" in says


def test_security_updates_leave_the_set_alone(story: Story, good: str) -> None:
    says = story.fleet.run_in(good, "apt-config dump")
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in says
    assert 'Unattended-Upgrade::Package-Blacklist:: "^nvidia-";' in says
    origins = [line for line in says.splitlines() if "Allowed-Origins::" in line]
    assert origins == [
        'Unattended-Upgrade::Allowed-Origins:: "${distro_id}:${distro_codename}-security";'
    ]
    assert "Origins-Pattern::" not in says


def test_local_fact_says_what_the_board_is(story: Story, good: str) -> None:
    facts = json.loads(story.fleet.run_in(good, "/etc/ansible/facts.d/board.fact"))
    board = board_named(good)
    assert facts["module"] == f"orin-nano-{board.size}"
    assert facts["l4t"] == board.l4t
    assert all(facts["super_witnesses"].values()) == board.is_super


def test_somebodys_data_is_still_there(story: Story) -> None:
    fleet = story.fleet
    assert fleet.run_in("nvme-foreign", "cat /fake/nvme/photo.jpg").strip() == "precious"
    label = fleet.run_in("nvme-foreign", "blkid -p -s LABEL -o value /dev/nvme0n1")
    assert label.strip() == "holiday-photos"


def test_a_blank_disk_stays_blank_unless_allowed(story: Story) -> None:
    assert not story.fleet.run_in("nvme-blank", "wipefs --no-act /dev/nvme0n1").strip()


def test_a_board_that_drops_the_connection_is_told_and_finished_later(story: Story) -> None:
    assert story.converged.boards[DROPS.name]["unreachable"]
    assert f"{DROPS.name}: connection lost at" in story.converged.output
    assert not story.again.boards[DROPS.name]["unreachable"]
    assert not story.again.reason(DROPS.name)
    assert story.fleet.snapshot(DROPS.name)["mode"] == story.fleet.snapshot("super-8gb")["mode"]


def test_a_half_done_board_ends_like_a_fresh_one(story: Story) -> None:
    half, fresh = story.fleet.snapshot("half-done"), story.fleet.snapshot("super-8gb")
    more = {
        key: sorted(set(half[key].splitlines()) ^ set(fresh[key].splitlines()))
        for key in fresh
        if half[key] != fresh[key]
    }
    # What another program left unfinished beside its file is not ours to remove, but the package
    # that was only unpacked is installed now.
    unfinished = "/etc/docker/.daemon.json.a1b2"
    assert more.pop("packages") == ["lost-power 1 install ok installed"]
    assert more.pop("leftovers") == [unfinished]
    assert [line.split()[-1] for line in more.pop("files")] == [unfinished]
    assert more == {}


def test_all_is_still_so_after_a_reboot(story: Story) -> None:
    fleet = story.fleet
    fleet.reboot("asks-for-reboot")
    state = json.loads(fleet.run_in("asks-for-reboot", "cat /fake/nvpmodel.json"))
    assert state["mode"] == 1
    run = fleet.play("provision.yml", limit=["asks-for-reboot"], tag="after-reboot")
    assert run.code == 0
    assert run.changed("asks-for-reboot") == []
    assert run.boards["asks-for-reboot"]["notes"] == []


def test_held_clocks_follow_the_power_mode_and_survive_a_reboot(story: Story) -> None:
    fleet, name = story.fleet, "clocks-locked"

    def provision(**variables: object) -> Run:
        run = fleet.play(
            "provision.yml", "--tags", "super_mode", limit=[name], variables=variables, tag="clocks"
        )
        assert run.code == 0, run.output[-2000:]
        return run

    def clocks() -> list[str]:
        gpu = "/fake/sys/class/devfreq/17000000.gpu"
        return fleet.run_in(name, f"cat {gpu}/min_freq {gpu}/max_freq").split()

    assert clocks() == ["1020000000", "1020000000"]
    assert provision(super_mode_power_mode="25W").changed(name)
    assert clocks() == ["918000000", "918000000"]
    assert provision(super_mode_power_mode="25W").changed(name) == []
    fleet.reboot(name)
    assert fleet.succeeds(name, "systemctl is-system-running --wait")
    assert clocks() == ["918000000", "918000000"]
    provision(super_mode_power_mode="25W", super_mode_lock_clocks=False)
    assert clocks() == ["306000000", "918000000"]
    assert not fleet.succeeds(name, "test -e /etc/systemd/system/mamba-orin-clocks.service")


def test_reset_needs_the_confirmation_and_takes_back_what_was_set(story: Story) -> None:
    fleet = story.fleet
    refusal = fleet.play("reset.yml", limit=["super-4gb"], tag="reset-refused")
    assert "reset_confirm=true" in refusal.reason("super-4gb")
    assert refusal.changed("super-4gb") == []
    done = fleet.play(
        "reset.yml", limit=["super-4gb"], variables={"reset_confirm": True}, tag="reset"
    )
    assert done.code == 0, done.output[-2000:]
    assert "swapfile" not in fleet.run_in("super-4gb", "cat /fake/proc/swaps /etc/fstab")
    assert not fleet.succeeds("super-4gb", "nft list table inet mamba_orin")
    assert not fleet.succeeds("super-4gb", "ls /etc/systemd/system/mamba-orin-*")
    assert not fleet.succeeds("super-4gb", "test -e /opt/mamba-orin")
    assert "hold" not in fleet.run_in("super-4gb", "dpkg-query -W -f '${Status}\\n'")
    label = fleet.run_in("super-4gb", "blkid -p -s LABEL -o value /dev/nvme0n1")
    assert label.strip() == "mamba-orin"
    again = fleet.play(
        "provision.yml", limit=["super-4gb"], variables=ALL_AT_ONCE, tag="after-reset"
    )
    assert again.code == 0, again.output[-2000:]
