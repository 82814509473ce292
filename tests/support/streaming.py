"""A stream as its user would feed it, for whatever has `initial_state`, `step` and maybe `flush`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def streamed(module: Any, inputs: Tensor, sizes: Sequence[int]) -> Tensor:
    """Give `inputs` (B, N, ...) to `module` in chunks of `sizes`, then the rest, then its end; (B, S, ...) comes out.

    Chunks that the inputs are too short for come out empty.
    """
    state, outputs, position = module.initial_state(len(inputs), inputs), [], 0
    for size in [*sizes, inputs.shape[1]]:
        output, state = module.step(inputs[:, position : position + size], state)
        outputs.append(output)
        position += size
    if hasattr(module, "flush"):
        outputs.append(module.flush(state))
    return torch.cat(outputs, 1)
