"""From a batch plan to batches: decode in workers, collate, and go on from any place of any epoch."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from asr.audio.augment import Perturbation
from asr.data.corpus import Corpus
from asr.data.plan import BatchPlan
from asr.data.remote import Unreachable
from asr.data.workers import follow_parent
from asr.errors import DataError
from asr.types import Batch, Drop

SILENT_STAND_IN_SAMPLES = 1  # a rank or batch with nothing to do gets one item of this many padding samples


class BatchDataset(Dataset[Batch | Unreachable]):
    """Item (epoch, place) is one piece of this rank's share of a global batch, decoded and collated.

    The pieces of a step come one after another: place = step * pieces + piece. Piece k of all ranks together is the
    global batch's items k, k + pieces, ...; so it does not depend on the number of ranks either.

    Where the audio lies elsewhere and cannot be fetched, the item is the error: raised in a worker it would reach the
    user with the worker's traceback.

    Args:
        corpus: the utterances.
        plan: which of them make up each global batch.
        encode: text -> token ids.
        seed: of the run; with epoch and utterance id it seeds augmentation.
        perturbation: what is done to the audio in training; None: nothing.
        rank, world_size: this process's place; it takes items rank, rank + world_size, ... of each piece.
        pieces: of each share.
    """

    def __init__(
        self,
        corpus: Corpus,
        plan: BatchPlan,
        *,
        encode: Callable[[str], list[int]],
        seed: int = 0,
        perturbation: Perturbation | None = None,
        rank: int = 0,
        world_size: int = 1,
        pieces: int = 1,
    ) -> None:
        self.corpus, self.plan, self.encode, self.seed = corpus, plan, encode, seed
        self.perturbation = perturbation
        self.rank, self.world_size, self.pieces = rank, world_size, pieces
        self._epoch, self._batches = -1, []
        self._times: list[NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        """Items of an epoch."""
        return len(self.plan) * self.pieces

    def __getitem__(self, position: tuple[int, int]) -> Batch | Unreachable:
        epoch, place = position
        step, piece = divmod(place, self.pieces)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self.plan.batches(epoch)
            self._times = _times_before(self._batches) if self.plan.repeats else None
        items, dropped = [], []
        mine = slice(piece + self.pieces * self.rank, None, self.pieces * self.world_size)
        indices = self._batches[step][mine].tolist()
        times = self._times[step][mine].tolist() if self._times is not None else [0] * len(indices)
        try:
            audios = self.corpus.audio_or_drop_many(indices)
        except Unreachable as error:
            return error
        for index, audio, time in zip(indices, audios, times, strict=True):
            if isinstance(audio, Drop):
                dropped.append(audio)
                continue
            seed = utterance_seed(self.seed, epoch, self.corpus.ids[index], time)
            if self.perturbation is not None:
                audio = self.perturbation(audio, seed, epoch)
            items.append((index, audio, seed))
        # Those that cannot be read count as well: who reads the others does not know of them.
        step_tokens = int(self.corpus.num_tokens[self._batches[step]].sum())
        return self._collate(items, tuple(dropped), step_tokens)

    def _collate(
        self, items: list[tuple[int, NDArray[np.float32], int]], dropped: tuple[Drop, ...], step_tokens: int
    ) -> Batch:
        texts = tuple(self.corpus.texts[index] for index, _, _ in items)
        targets = [self.encode(text) for text in texts]
        longest = max((len(audio) for _, audio, _ in items), default=SILENT_STAND_IN_SAMPLES)
        num_items = max(1, len(items))
        audio = np.zeros((num_items, longest), dtype=np.float32)
        padded = np.zeros((num_items, max((len(ids) for ids in targets), default=0)), dtype=np.int64)
        audio_lengths, target_lengths, seeds, numbers = np.zeros((4, num_items), dtype=np.int64)
        for row, (index, samples, seed) in enumerate(items):
            audio[row, : len(samples)] = samples
            padded[row, : len(targets[row])] = targets[row]
            audio_lengths[row], target_lengths[row], seeds[row] = len(samples), len(targets[row]), seed
            numbers[row] = self.corpus.numbers[index]
        return Batch(
            audio=torch.from_numpy(audio),
            audio_lengths=torch.from_numpy(audio_lengths),
            targets=torch.from_numpy(padded),
            target_lengths=torch.from_numpy(target_lengths),
            seeds=torch.from_numpy(seeds),
            ids=tuple(self.corpus.ids[index] for index, _, _ in items),
            texts=texts,
            seconds=float(audio_lengths.sum()) / self.corpus.sample_rate_hz,
            step_tokens=step_tokens,
            dropped=dropped,
            numbers=torch.from_numpy(numbers),
        )


def reached(item: Batch | Unreachable) -> Batch:
    """An item of a `BatchDataset` that is a batch; raises the one that is an error."""
    if isinstance(item, Unreachable):
        raise item
    return item


def utterance_seed(seed: int, epoch: int, utterance_id: str, times_before: int = 0) -> int:
    """A 63-bit number that depends on nothing but its arguments; the same on every rank, worker and machine.

    Args:
        seed: of the run.
        epoch: counted from 0.
        utterance_id: which utterance.
        times_before: how often the epoch has had it, so that its copies are not augmented alike.
    """
    name = f"{seed}:{epoch}:{utterance_id}" + (f":{times_before}" if times_before else "")
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _times_before(batches: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """For each place of each batch: how many earlier places of the epoch have the same utterance."""
    flat = np.concatenate(batches)
    order = np.argsort(flat, kind="stable")
    arranged = flat[order]
    times = np.empty_like(flat)
    times[order] = np.arange(len(flat)) - np.searchsorted(arranged, arranged)
    return np.split(times, np.cumsum([len(batch) for batch in batches])[:-1])


class BatchLoader:
    """Iterates over the batches of one epoch after another, on from any place.

    The workers stay: they read the next epoch's first batches while the model is validated.

    Args:
        dataset: pickled for the workers; what it encodes and perturbs with has to allow that.
        num_workers: processes that read; 0: this one does.
        pin_memory: hand the batches out in page-locked memory.

    Attributes:
        consumed: tells how many batches have been taken before, over all epochs; there the next `iter()` begins, to the
            end of that epoch. Training sets it to a count that its checkpoints hold anyway, so there is no state to
            save here.
    """

    def __init__(self, dataset: BatchDataset, *, num_workers: int, pin_memory: bool = False) -> None:
        self.dataset, self.num_workers, self.pin_memory = dataset, num_workers, pin_memory
        self.consumed: Callable[[], int] = lambda: 0
        self._items: Iterator[Batch | Unreachable] = iter(())
        self._next: tuple[int, int] | None = None  # epoch and place of what `_items` gives next

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = divmod(self.consumed(), len(self))
        for place in range(start, len(self)):
            if self._next != (epoch, place):
                self._items = self._read_from(epoch, place)
            self._next = (epoch, place + 1) if place + 1 < len(self) else (epoch + 1, 0)
            yield reached(self._read())

    def _read(self) -> Batch | Unreachable:
        """The next item.

        Raises:
            DataError: the process that was to read it is gone.
        """
        try:
            return next(self._items)
        except (RuntimeError, EOFError, ConnectionError) as error:
            said = str(error) or type(error).__name__
            # Errors of that process's own come with a traceback. It may be gone while it hands a batch over.
            gone = not isinstance(error, RuntimeError) or "DataLoader worker (pid" in said
            if not self.num_workers or not gone or "Traceback" in said:
                raise
            raise DataError(
                "a process that reads audio is gone, killed by somebody or for memory: a lower data.num_workers takes "
                f"less, also of /dev/shm; the system's log may say more ({said.splitlines()[0]})"
            ) from error

    def _read_from(self, epoch: int, place: int) -> Iterator[Batch | Unreachable]:
        """Items without end, from here on."""
        if self.num_workers:
            # Not by fork: this process has threads, and a fork may copy a lock that one of them holds.
            multiprocessing.set_forkserver_preload([__name__, "asr.audio.augment", "asr.text.tokenizer"])
        loader = DataLoader(
            self.dataset,
            batch_size=None,
            sampler=_Places(epoch, place, len(self)),
            num_workers=self.num_workers,
            multiprocessing_context="forkserver" if self.num_workers else None,
            prefetch_factor=4 if self.num_workers else None,
            pin_memory=self.pin_memory,
            worker_init_fn=follow_parent,
        )
        return iter(loader)

    def state_dict(self) -> dict[str, int]:
        """Nothing; but without it Lightning takes a loader for one that cannot go on in the middle of an epoch."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing, see `state_dict`."""


class _Places(Sampler[tuple[int, int]]):
    """(epoch, place) of every item from a first one on."""

    def __init__(self, epoch: int, place: int, per_epoch: int) -> None:
        self.epoch, self.place, self.per_epoch = epoch, place, per_epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = self.epoch * self.per_epoch + self.place
        return (divmod(number, self.per_epoch) for number in itertools.count(first))
