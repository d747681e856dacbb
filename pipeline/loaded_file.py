# SPDX-License-Identifier: MIT
"""Notices when a file that is mapped into memory changes on disk.

A file that was replaced by another under its name does no harm: what is mapped is the old one.
A file that was written into changes what is mapped, and nothing computed from it can be
trusted any more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Change = Literal["unchanged", "replaced", "overwritten"]


class LoadedFile:
    """A file as it was when this object was made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        status = path.stat()
        self._identity = (status.st_dev, status.st_ino)
        self._content = (status.st_size, status.st_mtime_ns)

    def change(self) -> Change:
        """What has happened to the file since."""
        try:
            status = self.path.stat()
        except OSError:  # moved or deleted: the mapping stays
            return "replaced"
        if (status.st_dev, status.st_ino) != self._identity:
            return "replaced"
        if (status.st_size, status.st_mtime_ns) != self._content:
            return "overwritten"
        return "unchanged"
