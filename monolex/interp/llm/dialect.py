"""Which parameters an endpoint accepts, found out by its refusals, and what of a server's sentence may be repeated.

Models that think before they answer refuse `max_tokens`, which is `max_completion_tokens` there, and every temperature
but their own. What helped once is done for all later calls of the run. A reply is still kept by what was wanted, so
that the same command finds it; its choice says in :data:`SENT` what was sent instead.
"""

import re
import threading
from collections.abc import Mapping
from typing import Any, final

SENT = "sent"
"""In a reply's choice, where its request was sent in another way: which of the ways below."""
RENAMED, OWN_TEMPERATURE = "max_completion_tokens", "no temperature"
_REFUSES = re.compile(r"support|unrecogni|not permitted|unknown|unexpected|deprecated|extra|instead|not allowed", re.I)

Ways = frozenset[str]
"""Some of :data:`RENAMED` and :data:`OWN_TEMPERATURE`."""


@final
class Dialect:
    """The ways in which requests are sent to one endpoint; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock, self._ways = threading.Lock(), Ways()

    @property
    def ways(self) -> Ways:
        """Those that helped so far."""
        return self._ways

    def learned(self, ways: Ways) -> Ways:
        """Keep ``ways``, since a request was answered that was sent so; those of them that are new."""
        with self._lock:
            new = ways - self._ways
            self._ways |= ways
        return new


def sent(params: Mapping[str, Any], ways: Ways) -> dict[str, Any]:
    """The parameters of a chat in an endpoint's own way."""
    accepted = dict(params)
    if RENAMED in ways and "max_tokens" in accepted:
        accepted[RENAMED] = accepted.pop("max_tokens")
    if OWN_TEMPERATURE in ways:
        accepted.pop("temperature", None)
    return accepted


def other_way(params: Mapping[str, Any], param: str, said: str) -> str | None:
    """How else to send a chat that was refused for the parameter ``param`` or with the sentence ``said``, if at all."""

    def about(name: str) -> bool:
        return name in params and (param == name or name in said)

    if about("temperature"):
        return OWN_TEMPERATURE
    if about("max_tokens") and _REFUSES.search(said):
        return RENAMED
    return None


def masked(said: str, key: str) -> str:
    """A server's sentence without what it repeats of a key, whole or in parts, on one line of at most 300 characters.

    >>> masked("Incorrect key: sk-ab***yz, see\\nsk-abcdefgh.", "sk-abcdefgh")
    'Incorrect key: *** see ***'
    """
    parts = {key[at : at + 6] for at in range(max(1, len(key) - 5))}
    words = ("***" if "**" in word or any(part in word for part in parts) else word for word in said.split())
    return " ".join(words)[:300]
