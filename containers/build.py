# SPDX-License-Identifier: MIT
"""Builds the images that docker-bake.json describes, with any Docker from 20.10 on.

    python containers/build.py                      the default group
    python containers/build.py cpu --platform linux/arm64
    python containers/build.py boards -- --secret id=jetson_apt_key,src=jetson-ota-public.asc
    python containers/build.py --print              what would be built

Where buildx is installed, `docker buildx bake -f versions.json -f containers/docker-bake.json`
builds the same; a test compares what both make of the file. Words after -- go to `docker build`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILES = ("versions.json", "containers/docker-bake.json")
_MAPS = ("args", "labels")

Target = dict[str, Any]


class BakeError(Exception):
    """The description cannot be understood; the message says where."""


def read_targets(wanted: Iterable[str], environment: dict[str, str]) -> dict[str, Target]:
    """What to build: targets by name, with inheritance and references resolved.

    Args:
        wanted: Names of targets and groups.
        environment: Values of variables that differ from their defaults.

    Raises:
        BakeError: A name is unknown, or a reference leads nowhere.
    """
    facts: dict[str, Any] = {}
    for name in FILES:
        facts |= json.loads((ROOT / name).read_text(encoding="utf-8"))
    groups, targets = facts.pop("group"), facts.pop("target")
    for name, variable in facts.pop("variable").items():
        facts[name] = environment.get(name, variable["default"])
    names: dict[str, None] = {}
    for name in wanted:
        if name not in groups and name not in targets:
            raise BakeError(f"there is no target '{name}'; there are {', '.join(targets)}")
        names |= dict.fromkeys(groups[name]["targets"] if name in groups else [name])
    return {name: _resolve(_inherit(targets, name), facts) for name in names}


def docker_command(target: Target, extra: Iterable[str] = ()) -> list[str]:
    """The words of `docker build` for a target."""
    words = ["docker", "build", "--file", target["dockerfile"], "--target", target["target"]]
    words += [word for tag in target.get("tags", ()) for word in ("--tag", tag)]
    for key, option in (("args", "--build-arg"), ("labels", "--label")):
        for name, value in target.get(key, {}).items():
            words += [option, f"{name}={value}"]
    words += [word for name in target.get("platforms", ()) for word in ("--platform", name)]
    return [*words, *extra, target["context"]]


def _inherit(targets: dict[str, Target], name: str) -> Target:
    whole: Target = {}
    for parent in targets[name].get("inherits", ()):
        _lay_over(whole, _inherit(targets, parent))
    _lay_over(whole, targets[name])
    whole.pop("inherits", None)
    return whole


def _lay_over(whole: Target, part: Target) -> None:
    for key, value in part.items():
        whole[key] = {**whole.get(key, {}), **value} if key in _MAPS else value


def _resolve(value: Any, facts: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(each, facts) for key, each in value.items()}
    if isinstance(value, list):
        return [_resolve(each, facts) for each in value]
    return re.sub(r"\$\{(.+?)\}", lambda found: _evaluate(found[1], facts), value)


def _evaluate(expression: str, facts: dict[str, Any]) -> str:
    """A reference like a.b["c"][0], or join("separator", reference)."""
    joined = re.fullmatch(r'join\("(.*)", (.+)\)', expression)
    found: Any = facts
    try:
        for dotted, quoted, index in re.findall(
            r'(?:^|\.)([A-Za-z_]\w*)|\["(.+?)"\]|\[(\d+)\]', joined[2] if joined else expression
        ):
            found = found[int(index) if index else dotted or quoted]
    except (KeyError, IndexError, TypeError) as error:
        raise BakeError(f"${{{expression}}} leads nowhere: {error}") from error
    return joined[1].join(found) if joined else str(found)


def _describe_source() -> dict[str, str]:
    """Version and revision of this checkout."""
    text = (ROOT / "pipeline" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = {"VERSION": version[1]} if version else {}
    return found | ({"REVISION": done.stdout.strip()} if done.returncode == 0 else {})


def main(arguments: list[str] | None = None) -> int:
    """Builds; returns the exit code of the first build that fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="TARGET_OR_GROUP")
    parser.add_argument("--platform", help="instead of the file's or this machine's")
    parser.add_argument("--print", action="store_true", help="print the targets and build nothing")
    own, _, extra = _split(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(own)
    try:
        targets = read_targets(args.names or ["default"], {**_describe_source(), **os.environ})
    except BakeError as error:
        parser.error(str(error))
    if args.platform:
        for target in targets.values():
            target["platforms"] = [args.platform]
    if args.print:
        print(json.dumps(targets, indent=2))
        return 0
    for target in targets.values():
        done = subprocess.run(
            docker_command(target, extra), cwd=ROOT, check=False,
            env={"DOCKER_BUILDKIT": "1", **os.environ},
        )  # fmt: skip
        if done.returncode:
            return done.returncode
    return 0


def _split(words: list[str]) -> tuple[list[str], str, list[str]]:
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], "--", words[cut + 1 :]


if __name__ == "__main__":
    sys.exit(main())
