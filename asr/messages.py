"""How a mistake reaches the user: a hint at what was meant, one message without a traceback, an exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from asr.errors import AsrError, ConfigError

STATUS_ERROR = 1
STATUS_USAGE = 2  # a wrong command line or configuration, as argparse has it
STATUS_INTERRUPTED = 128 + 2  # as shells report SIGINT


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Give `; did you mean X?`, X being the nearest of the known words, or nothing if none is near."""
    close = get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def positive(text: str) -> int:
    """A whole number of 1 or more, as argparse's `type`."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected 1 or more")
    return value


@contextmanager
def user_errors_exit(program: str) -> Iterator[None]:
    """Turn an error that the user can mend into its message on stderr and an exit status; bugs keep their traceback.

    Raises:
        SystemExit: 2 for a ConfigError, 1 for any other AsrError, 130 for Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(STATUS_INTERRUPTED) from None
    except AsrError as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(STATUS_USAGE if isinstance(error, ConfigError) else STATUS_ERROR) from None
