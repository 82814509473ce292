"""From a corpus to shards that training reads. One file here = one corpus, found by its file name.

A file defines `VERSION`, to be raised when it would give other utterances than before, and

    def splits(data: Data, names: Sequence[str], work: Path, ledger: Ledger) -> dict[str, list[Utterance]]

which finds the raw corpus (in `data.root`, or downloaded or made in the folder `work`), and gives the utterances of
the splits in `names`, with absolute paths to their audio. What cannot be used it enters in the ledger.
"""

from __future__ import annotations

import hashlib
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from asr.config import Config
from asr.config.schema import Data
from asr.cores import num_cores
from asr.data.ledger import Ledger
from asr.data.manifest import write_manifest
from asr.data.progress import progress_bar
from asr.data.shard_plan import MANIFEST_FILE
from asr.data.shard_writer import write_shards
from asr.data.shards import ShardReader
from asr.errors import ConfigError
from asr.messages import did_you_mean
from asr.types import Utterance


def prepare(config: Config) -> dict[str, Path | str]:
    """Make the shards of every split that the configuration trains, validates or tests on.

    A split whose name has a slash in it is a folder of shards that is there already, or the URL of one.

    They go to `data.cache/CORPUS/...`, one folder for each corpus, raw folder and sample rate, with the manifest that
    they were made from and a ledger of what could not be used. What is finished there is not looked at again; what was
    interrupted goes on where it stopped.

    Returns:
        Split name -> folder of shards, or its URL.

    Raises:
        ConfigError: there is no such corpus or split, or its data is not here.
        DataError: the data cannot be used, downloaded or written.
    """
    data = config.data
    every = list(dict.fromkeys([*data.train, *data.validation, *data.test]))
    names = [name for name in every if "/" not in name]
    made = _prepare_splits(data, names) if names else {}
    return {name: made.get(name) or (name if "://" in name else Path(name)) for name in every}


def _prepare_splits(data: Data, names: Sequence[str]) -> dict[str, Path]:
    corpus = _corpus(data.corpus)
    folder = _folder(data, corpus.VERSION)
    # A split's manifest is written last: where it is, the split is finished.
    missing = [name for name in names if not (folder / name / MANIFEST_FILE).is_file()]
    if missing:
        ledger = Ledger(folder / "ledger.jsonl")
        found: Mapping[str, list[Utterance]] = corpus.splits(data, missing, data.cache / data.corpus / "raw", ledger)
        for name in missing:
            _write_split(folder / name, found[name], data, ledger)
        if len(ledger):
            again = f"what you mend there is read after: rm -r {folder}"
            print(f"{data.corpus}: could not be used: {ledger.summary()}; {again}", file=sys.stderr)
    return {name: folder / name for name in names}


def check_splits(names: Sequence[str], known: Sequence[str], corpus: str) -> None:
    """Refuse a split that the corpus does not have.

    Raises:
        ConfigError: names the split and those that there are.
    """
    for name in names:
        if name not in known:
            raise ConfigError(
                f"data.train, data.validation, data.test: got the split {name!r}, {corpus} has {', '.join(known)}"
                f"{did_you_mean(name, known)}"
            )


def no_data(corpus: str, data: Data, expected: str, source: str) -> ConfigError:
    """The error for a corpus that is not here, with the three ways on.

    Args:
        corpus: its name.
        data: says where it was looked for.
        expected: what that folder should hold.
        source: what `data.download=true` fetches, and its size.
    """
    got = "data.root is not set" if data.root is None else f"data.root={data.root} does not hold it all"
    return ConfigError(
        f"the {corpus} corpus is not here: {got}. Three ways on:\n"
        f"  data.root=FOLDER      a folder with {expected}\n"
        f"  data.download=true    without data.root; fetches {source} into data.cache={data.cache}\n"
        f"  data=embedded         trains on speech made on this machine instead, without any download"
    )


COMMANDS = {"make_shards", "train_ngram"}  # modules that are programs; every other one reads a corpus


def _corpus(name: str) -> ModuleType:
    public = (module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    known = sorted(set(public) - COMMANDS)
    if name not in known:
        raise ConfigError(f"data.corpus: got {name!r}, expected one of {', '.join(known)}{did_you_mean(name, known)}")
    return import_module(f"{__name__}.{name}")


def _folder(data: Data, version: int) -> Path:
    """Where the corpus's shards go; another root, rate or version never meets them."""
    root = hashlib.sha256(str(data.root.resolve()).encode()).hexdigest()[:8] if data.root else "download"
    return data.cache.absolute() / data.corpus / f"v{version}-{data.sample_rate_hz}hz-{root}"


def _write_split(folder: Path, utterances: Sequence[Utterance], data: Data, ledger: Ledger) -> None:
    workers = num_cores()
    with progress_bar(f"{data.corpus} {folder.name}", len(utterances)) as progress:
        write_shards(
            utterances, folder, sample_rate_hz=data.sample_rate_hz, ledger=ledger, workers=workers, progress=progress
        )
    written = ShardReader(folder)
    hours = int(written.num_samples.sum()) / data.sample_rate_hz / 3600
    print(f"{data.corpus} {folder.name}: {len(written)} utterances, {hours:.2f} h in {folder}", file=sys.stderr)
    write_manifest(folder / MANIFEST_FILE, utterances)
