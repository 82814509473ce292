"""Where the time goes when many short files are transcribed: an hour of them, greedy, on two cores.

    python benchmarks/offline.py RUN AUDIO... [--hours 1] [--threads 2] [--batch-seconds 600]

AUDIO, files or folders, are taken over and over until they make --hours. What `asr decode` does with them is done,
without the start of Python and the loading of the model. `shares` of the time: `network`, front end, stack and head;
`features`; `greedy`, tokens from log-probabilities; `text`, words with times from tokens; `waiting` for files to be
read, which another thread does meanwhile; `rest`.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import emit

from asr import checkpoint
from asr.decode import recognizer as recognizer_module
from asr.decode.cli import find_audio
from asr.decode.recognizer import BATCH_SECONDS, Recognizer
from asr.errors import AsrError
from asr.process import prepare_process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--hours", type=float, default=1.0, help="of audio (1)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (2)")
    parser.add_argument("--batch-seconds", type=float, default=BATCH_SECONDS, help=f"({BATCH_SECONDS:g})")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    prepare_process()  # as commands do
    torch.set_num_threads(options.threads)
    recognizer = Recognizer(checkpoint.load(options.run), "cpu")
    sources, seconds = [], 0.0
    for path in itertools.cycle(find_audio(options.audio)):
        if seconds >= 3600 * options.hours:
            break
        sources.append(recognizer.file_source(path))
        seconds += sources[-1].seconds
    clock = Clock()
    clock.watch(recognizer.model, "forward")
    clock.watch(recognizer.model.features, "forward", "features")
    clock.watch(recognizer_module, "greedy")
    clock.watch(recognizer, "transcript")
    clock.watch(recognizer, "transcribe_batch")
    recognizer.transcribe_batch([sources[0].read()])
    for _ in range(options.repeats):
        clock.seconds.clear()
        began = time.perf_counter()
        for _, result in recognizer.transcribe_many(sources, batch_seconds=options.batch_seconds):
            if isinstance(result, AsrError):
                raise result
        total = time.perf_counter() - began
        spent = clock.seconds
        parts = {
            "network": spent["forward"] - spent["features"],
            "features": spent["features"],
            "greedy": spent["greedy"],
            "text": spent["transcript"],
            "waiting": total - spent["transcribe_batch"],
        }
        parts["rest"] = total - sum(parts.values())
        emit(
            benchmark="offline",
            run=options.run.name,
            files=len(sources),
            hours=seconds / 3600,
            batch_seconds=options.batch_seconds,
            seconds=total,
            real_time_factor=total / seconds,
            shares={name: round(value / total, 4) for name, value in parts.items()},
        )


class Clock:
    """Sums the time that functions take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: Any, name: str, label: str = "") -> None:
        """Put a watch around `owner.name`."""
        function: Callable[..., Any] = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **options)
            spent = time.perf_counter() - began
            self.seconds[label or name] = self.seconds.get(label or name, 0.0) + spent
            return result

        setattr(owner, name, watched)


if __name__ == "__main__":
    main()
