# SPDX-License-Identifier: MIT
"""Nothing formats, flashes, reboots or powers off without a variable that says so.

On these boards every program that could do so notes that it was called, and then does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from tests.boards.engine import Engine
from tests.boards.fleet import Fleet
from tests.boards.image import ROOT
from tests.boards.role_documents import role_names
from tests.boards.simulated import Board

pytestmark = pytest.mark.boards

# It has a blank disk, and nvpmodel asks for a reboot: all reasons that there are.
TEMPTED = Board("tempted", asks_for_reboot=True, variables={"nvme_swap_format_allowed": False})


@pytest.fixture(scope="module")
def fleet(engine: Engine) -> Iterator[Fleet]:
    with Fleet(engine, [TEMPTED]) as running:
        yield running


@pytest.fixture(scope="module")
def provisioning() -> list[str]:
    """The roles of provision.yml, in its order."""
    loop: list[str] = check_of_roles()["loop"]
    return loop


@pytest.fixture(scope="module")
def playbook_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], str]:
    """Makes a playbook that runs some roles, whatever the ones before say."""

    def make(roles: list[str]) -> str:
        check = yaml.safe_load((ROOT / "playbooks/check.yml").read_text())
        for key in ("check_mode", "vars"):
            del check[0][key]
        check[0]["tasks"][0] = {
            **check_of_roles(),
            "loop": roles,
            "ansible.builtin.include_tasks": str(ROOT / "playbooks/tasks/check_role.yml"),
        }
        path = tmp_path_factory.mktemp("playbook") / "roles.yml"
        path.write_text(yaml.safe_dump(check))
        return str(path)

    return make


def check_of_roles() -> dict[str, Any]:
    """The task of check.yml that goes through the roles."""
    task: dict[str, Any] = yaml.safe_load((ROOT / "playbooks/check.yml").read_text())[0]["tasks"][0]
    return task


def test_no_role_is_dangerous_unless_it_is_told(
    fleet: Fleet, provisioning: list[str], playbook_of: Callable[[list[str]], str]
) -> None:
    boot = fleet.boot("tempted")
    others = sorted(set(role_names()) - set(provisioning))
    run = fleet.play(playbook_of([*provisioning, *others]), tag="dangers-none")
    assert sorted(run.boards["tempted"]["roles"]) == role_names()
    # The disk is blank, so the roles below it have nowhere to put their data; they ran all the same.
    assert run.reason("tempted").startswith("/dev/nvme0n1 (465.7 GiB) is blank.")
    assert run.boards["tempted"]["notes"][0].startswith("reboot needed")
    assert fleet.dangers("tempted") == []
    assert fleet.boot("tempted") == boot
    assert not fleet.run_in("tempted", "wipefs --no-act /dev/nvme0n1").strip()


def test_a_disk_is_formatted_when_told(fleet: Fleet) -> None:
    told = {"nvme_swap_format_allowed": True}
    run = fleet.play("provision.yml", "--tags", "nvme_swap", variables=told, tag="dangers-format")
    assert run.code == 0, run.output[-2000:]
    assert [line.split()[0] for line in fleet.dangers("tempted")] == ["mkfs.ext4"]


def test_a_board_reboots_when_told(fleet: Fleet) -> None:
    boot, before = fleet.boot("tempted"), len(fleet.dangers("tempted"))
    told = {"super_mode_reboot_allowed": True}
    run = fleet.play("provision.yml", "--tags", "super_mode", variables=told, tag="dangers-reboot")
    assert run.code == 0, run.output[-2000:]
    assert fleet.dangers("tempted")[before].startswith("shutdown -r ")
    assert fleet.boot("tempted") != boot
    assert run.boards["tempted"]["notes"] == []


def test_what_is_done_is_not_done_again(
    fleet: Fleet, provisioning: list[str], playbook_of: Callable[[list[str]], str]
) -> None:
    boot, before = fleet.boot("tempted"), fleet.dangers("tempted")
    told = {"nvme_swap_format_allowed": True, "super_mode_reboot_allowed": True}
    run = fleet.play(playbook_of(provisioning), variables=told, tag="dangers-again")
    assert not run.reason("tempted"), run.reason("tempted")
    assert fleet.dangers("tempted") == before
    assert fleet.boot("tempted") == boot


def test_reset_is_not_dangerous(fleet: Fleet) -> None:
    boot, before = fleet.boot("tempted"), fleet.dangers("tempted")
    run = fleet.play("reset.yml", variables={"reset_confirm": True}, tag="dangers-reset")
    assert run.code == 0, run.output[-2000:]
    assert fleet.dangers("tempted") == before
    assert fleet.boot("tempted") == boot
    label = fleet.run_in("tempted", "blkid -p -s LABEL -o value /dev/nvme0n1")
    assert label.strip() == "mamba-orin"
