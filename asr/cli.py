"""The command `asr COMMAND ...`. Each command's module is imported when it is called, so that help answers at once."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from asr import __version__
from asr.errors import DataError
from asr.messages import STATUS_ERROR, did_you_mean, user_errors_exit
from asr.process import prepare_process

COMMANDS = {
    # name: (help, "module:function"); the function takes the arguments after the name and gives the exit status
    "check": ("compose a recipe's configuration and print it, or all its mistakes", "asr.config.check:main"),
    "decode": ("transcribe audio files", "asr.decode.cli:main"),
    "check streaming": ("prove on a model and files that streaming equals offline", "asr.decode.check_streaming:main"),
    "evaluate": ("word and character error rates of a model on a manifest", "asr.decode.evaluate:main"),
    "calibrate": ("make a model's confidences and word times right on a set", "asr.decode.calibrate:main"),
    "average": ("average the weights of the last or best checkpoints of a run", "asr.decode.average:main"),
    "align": ("say where each word of a known text was said", "asr.decode.align_cli:main"),
    "ledger": ("list training utterances that look wrong, and those left out", "asr.decode.ledger_cli:main"),
    "tune-lm": ("weigh a language model on a development set", "asr.decode.tune_lm:main"),
    "show": ("hear and see what augmentation does to a file", "asr.features.show:main"),
    "launch": ("write or start a training on this machine or a cluster", "asr.launch.command:main"),
    "doctor": ("examine data, device, memory and time before a training", "asr.train.doctor.command:main"),
    "stack": ("size, cost, look-ahead and memory of stacks, side by side", "asr.stacks._command:main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the command line names; gives the exit status.

    Args:
        argv: arguments without the program's name; none: those of this process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for words in (2, 1):
        if (command := " ".join(arguments[:words])) in COMMANDS:
            return run(command, arguments[words:])

    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="asr",
        description="End-to-end speech recognition; `asr COMMAND --help` has a command's own options.",
        usage="asr [--help] [--version] COMMAND ...",
        epilog="\n".join(["commands:", *(f"  {name:{width}}  {text}" for name, (text, _) in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"asr {__version__}")
    parser.add_argument("command", help=argparse.SUPPRESS)
    command = parser.parse_known_args(arguments)[0].command
    parser.error(f"got command {command!r}, expected one of {', '.join(COMMANDS)}{did_you_mean(command, COMMANDS)}")


def run(command: str, argv: Sequence[str]) -> int:
    """Call a command with its arguments; gives the exit status.

    Raises:
        SystemExit: a mistake of the user's, after its message on stderr.
    """
    prepare_process()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that are not UTF-8; valid in JSON too
    module, _, function = COMMANDS[command][1].partition(":")
    with user_errors_exit(f"asr {command}"):
        try:
            status: int = getattr(importlib.import_module(module), function)(argv)
            sys.stdout.flush()
            return status
        except OSError as error:
            if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's exit flushes and fails
            if error.errno == errno.EPIPE:  # the reader, such as `head`, has seen enough
                return STATUS_ERROR
            raise DataError(f"what it prints cannot be written: {error.strerror}") from error
