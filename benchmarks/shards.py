"""Making shards against bare soundfile and tarfile, and reading them over HTTP against reading them from the disk.

    python benchmarks/shards.py [--files 1000] [--repeats 5]

One process and one thread each; the candidates take turns. Files are made: 2 s of noise at 16 kHz as wav. Bare: each
file is read, written as flac to memory and added to a tar, without checks, index, or a disk that is waited for. The
server is a small one of Python's on this machine. Ratios are of medians.
"""

import argparse
import io
import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from common import emit, side_by_side, spread

from asr.data.shards import ShardReader
from data_prep import make_shards
from tests.support.range_server import range_server

RATE_HZ = 16_000
AT_ONCE = 32  # utterances of a batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = _corpus(folder / "raw", options.files)
        made = iter(folder / f"made{i}" for i in range(10**6))

        def shards() -> None:
            make_shards.main([str(manifest), str(next(made)), "--workers", "1"])

        def bare() -> None:
            with tarfile.open(next(made), "w") as tar:
                for path in sorted(manifest.parent.glob("*.wav")):
                    samples, _ = soundfile.read(path, dtype="int16")
                    flac = io.BytesIO()
                    soundfile.write(flac, samples, RATE_HZ, format="FLAC", subtype="PCM_16")
                    member = tarfile.TarInfo(f"{path.stem}.flac")
                    member.size = flac.tell()
                    flac.seek(0)
                    tar.addfile(member, flac)

        making = side_by_side({"make_shards": shards, "bare": bare}, repeats=options.repeats, warm_up=1)
        last = folder / "read" / "shards"
        make_shards.main([str(manifest), str(last), "--workers", "1"])
        with range_server(last.parent) as server:
            local, remote = ShardReader(last), ShardReader(f"{server.url}/shards")
            order = np.random.default_rng(0).permutation(len(local)).tolist()

            def read(reader: ShardReader, at_once: int) -> None:
                for i in range(0, len(order), at_once):
                    reader.audio_many(order[i : i + at_once])

            reading = side_by_side(
                {
                    "local": lambda: read(local, AT_ONCE),
                    "remote": lambda: read(remote, AT_ONCE),
                    "remote, one at a time": lambda: read(remote, 1),
                },
                repeats=options.repeats,
                warm_up=1,
            )
    seconds = {name: spread(values) for name, values in (making | reading).items()}
    median = {name: values["median"] for name, values in seconds.items()}
    emit(
        benchmark="shards",
        files=options.files,
        seconds=seconds,
        ratio={
            "make_shards / bare": median["make_shards"] / median["bare"],
            "remote / local": median["remote"] / median["local"],
            "remote, one at a time / local": median["remote, one at a time"] / median["local"],
        },
    )


def _corpus(folder: Path, num_files: int) -> Path:
    folder.mkdir()
    lines = []
    for i in range(num_files):
        samples = np.random.default_rng(i).normal(0, 0.05, 2 * RATE_HZ)
        soundfile.write(folder / f"{i:06d}.wav", samples, RATE_HZ, subtype="PCM_16")
        lines.append(json.dumps({"audio": f"{i:06d}.wav", "text": "some words", "seconds": 2.0}) + "\n")
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(lines))
    return manifest


if __name__ == "__main__":
    main()
