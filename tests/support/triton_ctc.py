"""Runs the GPU kernel of CTC's recursion under Triton's interpreter, on the CPU, and prints its largest errors.

    TRITON_INTERPRET=1 python -m tests.support.triton_ctc

One JSON object: the number of target tokens -> the errors of loss and gradient against torch's, in float64.
"""

import json
import warnings

import torch
import torch.nn.functional as F

from asr.heads.deterministic_ctc import deterministic_ctc_loss, one_launch

FRAMES, TOKENS = 13, 6
warnings.filterwarnings("ignore", "divide by zero")  # the interpreter's logarithm of 0, which is -inf here as on a GPU


def main() -> None:
    errors: dict[str, list[float]] = {}
    for longest in (0, 1, 5):
        torch.manual_seed(longest)
        logits = torch.randn(4, FRAMES, TOKENS, dtype=torch.float64, requires_grad=True)
        lengths = torch.tensor([FRAMES, 11, 1, 12])
        targets = torch.randint(1, 3, (4, longest))  # of few tokens, so that many follow their like
        target_lengths = torch.tensor([longest, min(2, longest), 0, longest])
        assert one_launch(logits) is not None
        results = []
        for loss in (deterministic_ctc_loss, torchs):
            losses = loss(logits.log_softmax(-1), lengths, targets, target_lengths)
            results.append((losses.detach(), *torch.autograd.grad(losses.sum(), logits)))
        errors[str(longest)] = [float((one - other).abs().max()) for one, other in zip(*results, strict=True)]
    print(json.dumps(errors))


def torchs(
    log_probs: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor, target_lengths: torch.Tensor
) -> torch.Tensor:
    return F.ctc_loss(log_probs.transpose(0, 1), targets, lengths, target_lengths, reduction="none")


if __name__ == "__main__":
    main()
