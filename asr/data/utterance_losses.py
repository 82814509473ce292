"""A running loss of each training utterance: what it still costs the model, epoch after epoch.

Utterances whose transcript is wrong stay expensive while the model learns the others (as in Huang et al. 2019, O2U-Net,
which ranks by the mean loss over epochs).
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from asr.data.corpus import Corpus
from asr.nn.distributed import sum_over_ranks

KEY = "utterance_losses"  # where a checkpoint's trainer.pt holds the state
DECAY = 0.9  # what a loss weighs an epoch later: the mean is over some ten epochs


class UtteranceLosses:
    """Loss per target token of each utterance in a corpus, averaged over epochs with weights that decay.

    Adding is all on the losses' device. An epoch's losses stay on the rank that computed them until `merge` adds them
    to the totals, which every rank has. As an utterance has one loss an epoch, no sum depends on when that happens, or
    on how many ranks there are.

    Args:
        corpus: its utterances count as they were opened, those that were left out since included.

    Attributes:
        totals: (2, n) float32: decayed sums of losses in nats per token, and of their weights.
        epoch: up to which the totals have decayed.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.folders = [reader.location for reader in corpus.readers]
        self.digest = corpus_digest(corpus)
        num_utterances = sum(map(len, corpus.readers))
        self.totals = torch.zeros(2, num_utterances)
        self._new = torch.zeros(2, num_utterances)  # since the last merge, on this rank
        self.epoch = 0

    def to(self, device: torch.device) -> None:
        """Move everything to where the losses will be."""
        self.totals, self._new = self.totals.to(device), self._new.to(device)

    def add(self, numbers: Int[Tensor, "B"], losses: Float[Tensor, "B"], target_lengths: Int[Tensor, "B"]) -> None:
        """Enter a batch.

        Args:
            numbers: of the utterances in the corpus.
            losses: in nats, summed over tokens; one that is not finite is passed over.
            target_lengths: tokens; an item of none is a stand-in and is passed over.
        """
        counts = losses.isfinite() & (target_lengths > 0)
        rows = torch.stack(((losses / target_lengths).masked_fill(~counts, 0.0), counts))  # (2, B)
        self._new.index_add_(1, numbers, rows.to(self._new.dtype))

    def merge(self) -> None:
        """Sum over ranks what is new since the last time; every rank has to call it at the same step."""
        self.totals += sum_over_ranks(self._new)
        self._new.zero_()

    def begin_epoch(self, epoch: int) -> None:
        """Let what earlier epochs brought weigh less; an epoch that is begun twice, by a resumed run, decays once."""
        self.merge()
        self.totals *= DECAY ** (epoch - self.epoch)
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs; to be merged before."""
        return {
            "totals": self.totals.cpu().clone(),
            "epoch": self.epoch,
            "folders": self.folders,
            "digest": self.digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go on from a checkpoint; False, and nothing changes, if that was of other utterances."""
        if state["digest"] != self.digest:
            return False
        self.totals = state["totals"].to(self.totals.device)
        self.epoch = state["epoch"]
        return True


def corpus_digest(corpus: Corpus) -> str:
    """Tells whether two corpora have the same utterances in the same order."""
    digest = hashlib.blake2b(digest_size=16)
    for reader in corpus.readers:
        digest.update(f"{len(reader)}\n".encode())
        for name in reader.ids:
            digest.update(name.encode() + b"\n")
    return digest.hexdigest()
