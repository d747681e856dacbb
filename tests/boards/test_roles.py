# SPDX-License-Identifier: MIT
"""What can be said of the roles without running them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.boards.role_documents import ROLES, options, outdated, role_names

PLAYBOOKS = ROLES.parent / "playbooks"
# What formats, flashes or takes the power away, by module and by word of a command.
DANGEROUS_MODULES = {
    "reboot", "filesystem", "parted", "lvol", "lvg", "luks_device", "win_reboot", "ipmi_power",
}  # fmt: skip
DANGEROUS_WORDS = re.compile(
    r"\b(mkfs|mke2fs|wipefs|sgdisk|sfdisk|parted|blkdiscard|shred|reboot|poweroff|shutdown|halt|"
    r"kexec|nv_update_engine|fw_setenv|efibootmgr|nvbootctrl|dpkg-reconfigure|systemctl isolate)\b"
    r"|\bdd if=|\bflash\.sh"
)
ONLY_SPEAKS = {"assert", "debug", "fail"}


@pytest.mark.parametrize("role", role_names())
def test_specs_defaults_and_readme_say_the_same(role: str) -> None:
    names = [str(path.relative_to(ROLES)) for path in outdated(role)]
    assert names == [], "run: python -m tests.boards.role_documents --write"


@pytest.mark.parametrize("role", role_names())
def test_every_variable_has_the_name_of_its_role(role: str) -> None:
    assert [name for name in options(role) if not name.startswith(f"{role}_")] == []


@pytest.mark.parametrize("role", role_names())
def test_readme_says_what_changes_on_disk_and_when_it_reboots(role: str) -> None:
    text = (ROLES / role / "README.md").read_text()
    assert "\n## What it changes on disk\n" in text
    assert "\n## Reboots\n" in text


@pytest.mark.parametrize("role", role_names())
def test_a_task_can_be_told_by_role_and_name(role: str) -> None:
    # The summary names tasks so, and tests that kill a run at one. reset.yml is another run.
    names = [
        task["name"]
        for path in (ROLES / role).rglob("tasks/*.yml")
        if path.name != "reset.yml"
        for task, _ in _tasks(yaml.safe_load(path.read_text()) or [], [])
    ]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_sample_inventory_uses_variables_that_exist() -> None:
    known = {name for role in role_names() for name in options(role)}
    used: set[str] = set()
    for path in (ROLES.parent / "inventory").rglob("*.yml"):
        used |= set(_keys(yaml.safe_load(path.read_text())))
    prefixes = tuple(f"{role}_" for role in role_names())
    assert {name for name in used if name.startswith(prefixes)} - known == set()


@pytest.mark.parametrize("role", role_names())
def test_nothing_dangerous_without_a_variable_that_allows_it(role: str) -> None:
    found = []
    for path in sorted((ROLES / role).rglob("tasks/*.yml")):
        for task, conditions in _tasks(yaml.safe_load(path.read_text()) or [], []):
            if is_dangerous(task) and not any("_allowed" in str(text) for text in conditions):
                found.append(f"{path.relative_to(ROLES)}: {task.get('name')}")
    assert found == []


def test_the_search_for_dangers_finds_those_there_are() -> None:
    # Without this, a search that finds nothing would look like roles that do nothing.
    named = {
        task["name"]
        for path in ROLES.rglob("tasks/*.yml")
        for task, _ in _tasks(yaml.safe_load(path.read_text()) or [], [])
        if is_dangerous(task)
    }
    assert named >= {"Reboot", "Format the blank disk, as it is allowed"}


@pytest.mark.parametrize("playbook", ["provision", "check", "reset", "benchmark"])
def test_a_playbook_can_be_named_at_the_root_and_in_its_folder(playbook: str) -> None:
    root = yaml.safe_load((ROLES.parent / f"{playbook}.yml").read_text())
    assert root[0]["ansible.builtin.import_playbook"] == f"playbooks/{playbook}.yml"
    assert (PLAYBOOKS / f"{playbook}.yml").exists()


def is_dangerous(task: dict[str, Any]) -> bool:
    """Whether a task formats, flashes or takes the power away when it runs."""
    modules = {str(key).rpartition(".")[2] for key in task}
    if modules & DANGEROUS_MODULES:
        return True
    run = {key: value for key, value in task.items() if key not in ("name", "when")}
    return not modules & ONLY_SPEAKS and bool(DANGEROUS_WORDS.search(yaml.safe_dump(run)))


def _tasks(
    entries: list[dict[str, Any]], conditions: list[str]
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """All tasks of a file with the conditions that hold for them, those of blocks included."""
    for entry in entries:
        own = entry.get("when", [])
        every = [*conditions, *(own if isinstance(own, list) else [own])]
        blocks = [entry[key] for key in ("block", "rescue", "always") if key in entry]
        if blocks:
            for block in blocks:
                yield from _tasks(block, every)
        else:
            yield entry, every


def _keys(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key)
            yield from _keys(value)


def test_keys_are_found_at_any_depth() -> None:
    assert set(_keys({"a": {"b": {"c": 1}}})) == {"a", "b", "c"}


def test_roles_are_found() -> None:
    assert Path(ROLES / "super_mode").exists()
    assert len(role_names()) >= 7
