"""Deep Speech 2 as most people would write it: the yardstick of `train_step.py`, not part of the toolkit.

torch.stft, Conv2d + BatchNorm2d + Hardtanh, BatchNorm1d and bidirectional nn.GRU on packed sequences, directions
summed, a linear layer, torch's CTC loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class PlainDeepSpeech(nn.Module):
    """Two 2D convolutions and `num_layers` bidirectional GRUs of `hidden_size`."""

    def __init__(self, *, num_tokens: int, num_layers: int, hidden_size: int) -> None:
        super().__init__()
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(320))
        self.conv = nn.Sequential(
            nn.Conv2d(1, 32, (41, 11), stride=(2, 2), padding=(20, 5), bias=False),
            nn.BatchNorm2d(32),
            nn.Hardtanh(0, 20),
            nn.Conv2d(32, 32, (21, 11), stride=(2, 1), padding=(10, 5), bias=False),
            nn.BatchNorm2d(32),
            nn.Hardtanh(0, 20),
        )
        sizes = [32 * 41] + [hidden_size] * (num_layers - 1)
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes)
        self.rnns = nn.ModuleList(nn.GRU(size, hidden_size, bidirectional=True, batch_first=True) for size in sizes)
        self.head = nn.Linear(hidden_size, num_tokens)

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) samples, (B,) -> (B, S, V) log-probabilities, (B,)."""
        spectrum = torch.stft(audio, 320, 160, window=self.window, center=False, return_complex=True)
        features = torch.log1p(spectrum.abs())
        features = (features - features.mean((1, 2), keepdim=True)) / features.std((1, 2), keepdim=True)
        hidden = self.conv(features[:, None])  # (B, C, F, S)
        hidden = hidden.flatten(1, 2).transpose(1, 2)
        frames = (lengths - 320) // 160 + 1
        frames = (frames + 1) // 2
        for norm, rnn in zip(self.norms, self.rnns, strict=True):
            hidden = norm(hidden.transpose(1, 2)).transpose(1, 2)
            packed = pack_padded_sequence(hidden, frames.cpu(), batch_first=True, enforce_sorted=False)
            hidden, _ = pad_packed_sequence(rnn(packed)[0], batch_first=True)
            hidden = hidden.view(*hidden.shape[:2], 2, -1).sum(2)
        return F.log_softmax(self.head(hidden), -1), frames

    def loss(self, audio: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """CTC loss for each target token."""
        log_probs, frames = self(audio, lengths)
        return F.ctc_loss(log_probs.transpose(0, 1), targets, frames, target_lengths, reduction="sum") / (
            target_lengths.sum()
        )
