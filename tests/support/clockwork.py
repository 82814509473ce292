"""The clockwork RNN, module by module from the equations (arXiv 1402.3511)."""

import torch
from torch import Tensor

from asr.stacks.clockwork import Clockwork


def reference(stack: Clockwork, inputs: Tensor) -> Tensor:
    """Run `stack` without dropout on one (S, D) utterance: (S, H)."""
    hidden = inputs
    for layer in stack.layers:
        size = layer.module_size
        module_rows = [slice(i * size, (i + 1) * size) for i in range(len(stack.periods))]
        state = torch.zeros(stack.hidden_size, dtype=inputs.dtype) if layer.initial is None else layer.initial
        outputs = []
        for t, frame in enumerate(hidden):
            modules = []
            for i, (period, rows) in enumerate(zip(stack.periods, module_rows, strict=True)):
                if t % period:
                    modules.append(state[rows])
                    continue
                total = layer.projection.weight[rows] @ frame + layer.projection.bias[rows]
                for j in range(i, len(module_rows)):
                    block = layer.recurrent[i][:, (j - i) * size : (j - i + 1) * size]
                    total = total + block @ state[module_rows[j]]
                modules.append(torch.tanh(total))
            state = torch.cat(modules)
            outputs.append(state)
        hidden = torch.stack(outputs)
    return hidden
