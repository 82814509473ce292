"""From a recipe's command line to a finished run: configuration, data, then `fit`.

This file imports no torch, so that a wrong configuration is answered at once.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from asr.config import Config, run_recipe, to_yaml
from asr.errors import CheckpointError, ConfigError
from asr.process import prepare_process
from asr.train.ranks import global_rank, leave_group, local_rank

STATUS_SIGNAL = 128  # and the number of the signal that stopped the run
Prepare = Callable[[Config], Mapping[str, Path | str]]  # configuration -> split -> folder of shards, or its URL


def main(recipe_file: str, prepare: Prepare) -> None:
    """Train the recipe in whose folder `recipe_file` stands, with the overrides on the command line.

    Args:
        recipe_file: the recipe's train.py; its folder has the config.yaml.
        prepare: makes the data that the configuration names.
    """
    run_recipe(recipe_file, lambda config: train(config, prepare))


def train(config: Config, prepare: Prepare) -> Path:
    """Prepare the data, train, evaluate; gives the run folder."""
    prepare_process()
    require_splits(config)
    run = run_folder(config)
    require_model(config, run)
    folders = prepare_once(config, prepare)
    with _alone_in(config, run):
        _begin(config, run)
        from asr.train.fit import fit  # torch and Lightning, some seconds

        try:
            fit(config, folders, run)
        except SystemExit as stop:
            if isinstance(stop.code, int) and stop.code > STATUS_SIGNAL:  # on every rank
                leave_group()
            raise
        leave_group()
    return run


def require_splits(config: Config) -> None:
    for key in ("train", "validation"):
        if not getattr(config.data, key):
            raise ConfigError(f"data.{key}=[]: expected at least one split")


def require_model(config: Config, run: Path) -> None:
    """Answer before data is prepared if there is no model at `init_from`, unless the run goes on with its own."""
    if config.init_from is None:
        return
    from asr import checkpoint

    if config.resume and checkpoint.read_index(run):
        return
    try:
        checkpoint.find(config.init_from)
    except CheckpointError as error:
        raise ConfigError(f"init_from: {error}") from error


def run_folder(config: Config) -> Path:
    """Choose the run folder, one for all ranks."""
    if config.run_dir is not None:
        run = config.run_dir
    elif config.resume:
        raise ConfigError("resume=true needs run_dir=FOLDER, the run to go on with")
    else:
        # Ranks are started with the first one's environment; torchrun's ranks share its run id.
        name = os.environ.get("TORCHELASTIC_RUN_ID") or datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        run = Path(os.environ.setdefault("ASR_RUN_DIR", f"runs/{config.recipe}/{name}"))
    if not config.resume and (run / "checkpoints.json").exists() and _is_first_here():
        raise ConfigError(
            f"run_dir={run}: holds a run already; resume=true goes on with it, another folder starts anew"
        )
    names = ("command.txt", "checkpoints.json")  # of a run
    if (run / "config.yaml").exists() and not any((run / name).exists() for name in names) and _is_first_here():
        raise ConfigError(f"run_dir={run}: has a config.yaml and is no run's folder; choose another one")
    return run


def _is_first_here() -> bool:
    """Whether this process is the first, or the only one, of the run's on this machine."""
    return not local_rank()


@contextmanager
def _alone_in(config: Config, run: Path) -> Iterator[None]:
    """Make the run folder, and keep a second run out of it; killed, this process does so no longer.

    Raises:
        ConfigError: another process trains in it.
    """
    _make_folder("run_dir", run)
    if global_rank(config.trainer.devices):
        yield
        return
    try:
        lock = (run / ".lock").open("a+")
    except OSError as error:
        raise ConfigError(f"run_dir={run}: cannot be written to: {error.strerror}; choose another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(
                f"run_dir={run}: {lock.read().strip() or 'another process'} trains in it; wait for its end, or choose "
                "another folder"
            ) from None
        except OSError:  # some network file systems have no locks
            pass
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


def _begin(config: Config, run: Path) -> None:
    """Put the full configuration and the command into the run folder."""
    if not _is_first_here():
        return
    with (run / "command.txt").open("a") as handle:  # first, as the mark of a run's folder
        handle.write(" ".join([sys.executable, *sys.argv]) + "\n")
    (run / "config.yaml").write_text(to_yaml(config))


def _make_folder(key: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}={folder}: the folder cannot be made: {error.strerror}; choose another one") from error


def prepare_once(config: Config, prepare: Prepare) -> Mapping[str, Path | str]:
    """Prepare the data; of several ranks on a machine the first does it and the others find it done.

    Raises:
        ConfigError: there is something to prepare, and the cache cannot be written to.
    """
    cache = config.data.cache
    _make_folder("data.cache", cache)
    try:
        lock = (cache / ".lock").open("w")
    except OSError as error:  # it will do where all is prepared
        try:
            return prepare(config)
        except OSError as cause:
            raise ConfigError(
                f"data.cache={cache}: cannot be written to: {error.strerror}; choose another folder ({cause})"
            ) from cause
    with lock:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        return prepare(config)
