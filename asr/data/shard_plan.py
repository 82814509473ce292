"""Which utterances go into which shard: fixed before the first one is made, and written down.

    plan.jsonl    first line: settings, a digest, and where each shard's lines begin; then one utterance a line

So making shard i needs nothing but this file and the audio, whichever process or machine does it, and however often.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from asr.atomic import atomic_write
from asr.data.manifest import read_manifest
from asr.errors import DataError
from asr.types import Utterance

PLAN_FILE = "plan.jsonl"
MANIFEST_FILE = "manifest.jsonl"  # beside the shards of a corpus that was prepared; make_shards leaves the plan only
FORMAT = 1


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """First line of the file.

    digest: sha256 of all that decides what the shards hold: the rate, the cuts, and each utterance as planned.
    source: what was planned, for messages.
    starts: bytes from the end of this line to each shard's first utterance; one more for the end of the last.
    """

    format: int
    digest: str
    source: str
    sample_rate_hz: int
    num_utterances: int
    starts: list[int]

    @property
    def num_shards(self) -> int:
        return len(self.starts) - 1


def write_plan(
    utterances: Iterable[Utterance],
    folder: Path,
    *,
    sample_rate_hz: int,
    utterances_per_shard: int,
    source: str = "",
    replace: bool = False,
) -> ShardPlan:
    """Cut `utterances`, in the order of their ids, into shards; the same ones give the same file.

    Args:
        utterances: with absolute paths to their audio.
        folder: made if need be.
        sample_rate_hz: of the shards' audio.
        utterances_per_shard: the last shard has the rest.
        source: where they come from, for messages.
        replace: whether another plan in the folder makes way.

    Raises:
        DataError: two utterances have one id, there are none, or the folder has another plan.
    """
    ordered = sorted(utterances, key=lambda utterance: utterance.id)
    for one, other in pairwise(ordered):
        if one.id == other.id:
            raise DataError(f"{folder}: got the id {one.id!r} twice: {one.audio} and {other.audio}; rename one")
    if not ordered:
        raise DataError(f"{folder}: there are no utterances to write")
    lines = [json.dumps(asdict(utterance), ensure_ascii=False).encode() + b"\n" for utterance in ordered]
    starts, position = [], 0
    for number, line in enumerate(lines):
        if number % utterances_per_shard == 0:
            starts.append(position)
        position += len(line)
    starts.append(position)
    body = b"".join(lines)
    digest = hashlib.sha256(json.dumps([FORMAT, sample_rate_hz, starts]).encode() + b"\n" + body).hexdigest()
    plan = ShardPlan(FORMAT, digest, source, sample_rate_hz, len(ordered), starts)
    if not replace:
        _refuse_another(folder, plan)
    content = json.dumps(asdict(plan), ensure_ascii=False).encode() + b"\n" + body
    path = folder / PLAN_FILE
    if not path.is_file() or path.read_bytes() != content:
        with atomic_write(path) as handle:
            handle.write(content)
    return plan


def read_plan(folder: Path) -> ShardPlan:
    """The plan in `folder`, without its utterances.

    Raises:
        DataError: there is none, or it is damaged.
    """
    return _read(folder)[0]


def read_shard_plan(folder: Path, number: int) -> tuple[ShardPlan, list[Utterance]]:
    """The plan in `folder`, and the utterances of one of its shards.

    Raises:
        DataError: there is no plan, or it is damaged.
    """
    return _read(folder, slice(number, number + 2))


def made_from(folder: Path | None) -> tuple[str, dict[int, Utterance]]:
    """What the shards in `folder` were made from.

    Returns:
        The name of the file there that says so, a manifest or the plan, and each utterance by the number of its line;
        no utterance if the file, or the folder, is not on this machine.

    Raises:
        DataError: the file is damaged.
    """
    if folder is not None and (folder / MANIFEST_FILE).is_file():
        return MANIFEST_FILE, dict(enumerate(read_manifest(folder / MANIFEST_FILE), 1))
    if folder is not None and (folder / PLAN_FILE).is_file():
        return PLAN_FILE, dict(enumerate(_read(folder, slice(None))[1], 2))
    return MANIFEST_FILE, {}


def _read(folder: Path, shards: slice | None = None) -> tuple[ShardPlan, list[Utterance]]:
    """The plan, and the utterances between the first and the last of its `starts[shards]`."""
    path = folder / PLAN_FILE
    try:
        with path.open("rb") as handle:
            plan = ShardPlan(**json.loads(handle.readline()))
            if plan.format != FORMAT:
                raise ValueError(f"got format {plan.format}, this version reads {FORMAT}")
            if shards is None:
                return plan, []
            start, *_, end = plan.starts[shards]
            handle.seek(start, 1)
            content = handle.read(end - start)
        if len(content) != end - start:
            raise ValueError(f"got {len(content)} bytes of utterances, expected {end - start}")
        return plan, [Utterance(**json.loads(line)) for line in content.splitlines()]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no plan here; make_shards.py MANIFEST {folder} writes it") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(folder, error) from error


def _refuse_another(folder: Path, plan: ShardPlan) -> None:
    if not (folder / PLAN_FILE).exists():
        return
    other = read_plan(folder)
    if other.digest != plan.digest:
        raise DataError(
            f"{folder / PLAN_FILE}: got the plan of {_describe(other)}, expected that of {_describe(plan)}: another "
            f"manifest, or it or a setting has changed. Choose another folder; or start anew: rm -r {folder}"
        )


def _describe(plan: ShardPlan) -> str:
    what = f"{plan.num_utterances} utterances in {plan.num_shards} shards at {plan.sample_rate_hz} Hz"
    return f"{plan.source or 'other utterances'} ({what}, digest {plan.digest[:12]})"


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(f"{folder / PLAN_FILE}: damaged plan: {error}; start anew: rm -r {folder}")
