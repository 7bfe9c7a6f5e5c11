"""What reading a corpus met: what cannot be read is counted and named, never fatal."""

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Any, Literal

log = logging.getLogger("monolex")
Fault = Literal["empty", "bad_lines", "undecodable"]
NAMED_PROBLEMS = 20


@dataclass
class Report:
    """What reading and packing a corpus met."""

    documents: int = 0
    """Documents read, train and held-out."""
    characters: int = 0
    """Characters of their text."""
    tokens: int = 0
    """Their tokens, separators included."""
    dropped_tokens: int = 0
    """Tokens after the last full row of either split."""
    empty: int = 0
    """Documents without text."""
    bad_lines: int = 0
    """Lines or records without usable text: no JSON, no text field, a malformed chat."""
    undecodable: int = 0
    """Files and folders that cannot be opened, and files that are not UTF-8."""
    problems: list[str] = field(default_factory=list)
    """The first of these by name, e.g. `file.jsonl:17: not JSON`."""
    fields: dict[str, int] = field(default_factory=dict)
    """Fields of the records that lack the text field, with their counts."""
    roles: dict[str, int] = field(default_factory=dict)
    """Messages with text by role (chats only)."""
    warnings: list[str] = field(default_factory=list)
    """What whoever looks at a result must know of its text, a sentence each."""

    def note(self, fault: Fault, what: str) -> None:
        """Count ``fault`` and keep its name if it is among the first."""
        setattr(self, fault, getattr(self, fault) + 1)
        if len(self.problems) < NAMED_PROBLEMS:
            self.problems.append(what)

    def warn(self, sentence: str) -> None:
        """Keep a warning, and log it."""
        log.warning("%s", sentence)
        self.warnings.append(sentence)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        parts = [f"{self.documents} documents", f"{self.tokens} tokens"]
        faults = {"empty": self.empty, "bad lines": self.bad_lines, "undecodable": self.undecodable}
        parts += [f"{count} {name}" for name, count in faults.items() if count]
        return ", ".join(parts) + (f" (first: {self.problems[0]})" if self.problems else "")
