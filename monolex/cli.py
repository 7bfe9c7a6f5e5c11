"""The command line: runs a verb; what users can mend becomes one line on stderr and exit code 2.

Importing this module, and ``--help``, need no torch.
"""

import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import tyro

from monolex import __version__
from monolex.errors import UserError
from monolex.interrupt import stoppable
from monolex.ranks import here
from monolex.runtime import setup_logging
from monolex.said import say
from monolex.stages import STAGES
from monolex.verbs import verbs

OVER_RANKS = ("run", "demo", "toy", *(stage.verb for stage in STAGES))
"""Verbs that all ranks of torchrun's do together."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 0, what the verb gives, 2 for a user's mistake, 130 after Ctrl-C.

    After another signal that stops a program it is 128 and the signal's number.
    """
    # Spinning threads cost 25 times the work where a core is shared (docs/log.md); read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        say(__version__)
        return 0
    for stream in (sys.stdout, sys.stderr):
        # a redirected stream of Windows, or one of an old locale, holds no letter but its own
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    setup_logging()
    with stoppable():
        return _run(list(arguments))


def _run(arguments: Sequence[str]) -> int:
    try:
        _require_once(arguments)
        if here.rank() > 0 and arguments and arguments[0] not in OVER_RANKS:
            return 0  # rank 0 does it
        code = tyro.extras.subcommand_cli_from_dict(
            verbs(),
            prog="monolex",
            description=f"Learn the monosemantic lexicon of a language model. `--version` prints {__version__}.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    except UserError as error:
        which = f"rank {here.rank()}: " if here.rank() > 0 else ""
        sys.stderr.write(f"monolex: {which}{error}\n")
        return 2
    except BrokenPipeError:
        # Whoever read our output has had enough; Python must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        sys.stderr.write(f"monolex: {_refused(error)}\n")
        return 2
    except KeyboardInterrupt as stop:
        # nobody reads it where the terminal was closed
        with suppress(OSError):
            sys.stderr.write("monolex: stopped; the same command goes on from here\n")
        return 128 + stop.args[0] if stop.args else 130
    return code or 0


def _require_once(arguments: Sequence[str]) -> None:
    """Refuse an option that is given twice, of which the parser would take the last without a word."""
    options = [argument.partition("=")[0] for argument in arguments if argument.startswith("--") and argument != "--"]
    for option in options:
        if options.count(option) > 1:
            raise UserError(f"{option} is given twice; give it once (a list is written {option} A B)")


def _refused(error: OSError) -> str:
    """What the system, or a library in its name, has against a file, and what to do, in one sentence."""
    if error.strerror is None:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, PermissionError):
        fix = "change its permissions or choose another path"
    elif error.errno == errno.ENOSPC:
        fix = "free some space or choose another folder"
    else:
        fix = "check the path or choose another one"
    return f"{error.filename or 'a file'}: {error.strerror}; {fix}"
