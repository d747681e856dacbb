# SPDX-License-Identifier: MIT
"""The base of every value that may be unknown."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Facts(BaseModel):
    """Immutable values in which whatever is unknown is None and has a reason.

    Attributes:
        missing: Why a field is None, by its name; exactly the fields that are None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    missing: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_a_reason_for_every_none(self) -> Facts:
        absent = {name for name in type(self).model_fields if getattr(self, name) is None}
        if absent != set(self.missing):
            raise ValueError(
                f"fields without a value {sorted(absent)} and reasons "
                f"{sorted(self.missing)} do not match"
            )
        return self
