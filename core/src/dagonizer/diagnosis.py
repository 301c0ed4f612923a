"""What an examination of a store finds: what can hurt its users later, and how to mend it."""

from __future__ import annotations

from typing import Literal

import msgspec

Verdict = Literal["good", "note", "warning", "bad"]
"""How a finding is to be taken, from best to worst.

``good``: as it should be. ``note``: worth knowing, nothing to do. ``warning``: checkpoints may be lost, or saves may
fail, some day. ``bad``: the store does not work, or loses checkpoints as it is.
"""

CONNECTION = "connection"
"""The check that is bad when the store cannot be reached."""

DURABILITY = "durability"
"""The check that every examination has: which failures an acknowledged save outlives there."""

LIMIT = 35.0
"""Seconds that one check may take: a little more than our stores, by default, need to say what does not answer."""


class Finding(msgspec.Struct, frozen=True):
    """What one check of a store found.

    ``check`` names the check in lower case with hyphens, such as ``eviction``. ``message`` is a sentence that says what
    is so there, with the setting's name and value; ``remedy``, for what is not good, says what to do about it. Neither
    holds a password.
    """

    check: str
    verdict: Verdict
    message: str
    remedy: str | None = None
