"""Write docs/verbs.md: every verb's help, from the code. Run after changing a config: ``python docs/verbs.py``."""

import contextlib
import io
import os
import re
from pathlib import Path

os.environ["COLUMNS"] = "100"

from monolex.cli import VERBS, main


def text() -> str:
    """The page."""
    parts = ["# Verbs\n\nThe help texts, written by `python docs/verbs.py`; a test keeps them true.\n"]
    for verb in VERBS:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([verb, "--help"])
        plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).strip()
        lines = "\n".join(line.rstrip() for line in plain.splitlines())
        parts.append(f"## monolex {verb}\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("verbs.md").write_text(text(), encoding="utf-8")
