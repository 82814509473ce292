"""The CTC output layer and loss (Graves et al. 2006), always in float32 or better; blank is 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from asr.heads.deterministic_ctc import BLANK, deterministic_ctc_loss, one_launch
from asr.nn.products import Linear


class CtcHead(nn.Module):
    """Linear map to tokens and log-softmax, computed outside autocast.

    Args:
        input_size: features of a frame, D.
        num_tokens: V, blank included.
        dropout: on the input.
    """

    def __init__(self, *, input_size: int, num_tokens: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = Linear(input_size, num_tokens)

    def forward(self, hidden: Float[Tensor, "B S D"]) -> Float[Tensor, "B S V"]:
        """Log-probabilities of the tokens for each frame."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.linear(self.dropout(hidden).to(self.linear.weight.dtype))
            return F.log_softmax(logits, dim=-1)


def ctc_loss(
    log_probs: Float[Tensor, "B S V"],
    lengths: Int[Tensor, "B"],
    targets: Int[Tensor, "B U"],
    target_lengths: Int[Tensor, "B"],
) -> Float[Tensor, "B"]:
    """-log p(targets | audio) of each utterance, summed over all alignments; inf where there is none.

    Infeasible utterances never get here: `asr.data.corpus.drop_unusable` finds them before the first step. So
    `zero_infinity`, which would hide them, is not used. On a GPU torch's own waits for the device, and in
    deterministic mode it has no gradient; `deterministic_ctc_loss` does neither.
    """
    if log_probs.is_cuda and (torch.are_deterministic_algorithms_enabled() or one_launch(log_probs) is not None):
        return deterministic_ctc_loss(log_probs, lengths, targets, target_lengths)
    return F.ctc_loss(
        log_probs.transpose(0, 1), targets, lengths, target_lengths, blank=BLANK, reduction="none", zero_infinity=False
    )
