"""A simple recurrent net trained as Elman trained it: after each frame, back through one step and no further.

The context is a copy of the last hidden state and counts as an input, so its gradient is not followed. With an update
after every frame nothing can be batched: compiled loops take the place of some twenty small operations a frame.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from asr.compiled import compiled

INITIAL_CONTEXT = 0.5  # the middle of a logistic unit's range


_kernel = partial(compiled, fastmath={"contract", "reassoc"})


@_kernel
def train(inputs, targets, hidden_weights, output_weights, rate, num_passes):
    """Go through a stream so many times and change the weights in place; gives the last pass's mean squared error.

    Args:
        inputs: (T, D).
        targets: (T, O).
        hidden_weights: (H, D + H + 1), of the frame, the context and a bias.
        output_weights: (O, H + 1).
        rate: learning rate, for half the squared error summed over outputs.
        num_passes: each begins with a context of 0.5.
    """
    num_hidden, num_inputs = len(hidden_weights), inputs.shape[1]
    below = np.ones(num_inputs + num_hidden + 1)  # frame, context, 1
    hidden = np.ones(num_hidden + 1)  # hidden units, 1
    d_hidden = np.empty(num_hidden)
    total = 0.0
    for _ in range(num_passes):
        total = 0.0
        below[num_inputs:-1] = INITIAL_CONTEXT
        for t in range(len(inputs)):
            below[:num_inputs] = inputs[t]
            for j in range(num_hidden):
                hidden[j] = 1.0 / (1.0 + math.exp(-np.dot(hidden_weights[j], below)))
            d_hidden[:] = 0.0
            for k in range(len(output_weights)):
                output = 1.0 / (1.0 + math.exp(-np.dot(output_weights[k], hidden)))
                error = output - targets[t, k]
                total += error * error
                slope = error * output * (1.0 - output)
                for j in range(num_hidden):
                    d_hidden[j] += slope * output_weights[k, j]
                for j in range(num_hidden + 1):
                    output_weights[k, j] -= rate * slope * hidden[j]
            for j in range(num_hidden):
                slope = rate * d_hidden[j] * hidden[j] * (1.0 - hidden[j])
                for i in range(len(below)):
                    hidden_weights[j, i] -= slope * below[i]
            below[num_inputs:-1] = hidden[:-1]
    return total / targets.size


@_kernel
def predict(inputs, hidden_weights, output_weights):
    """Hidden states (T, H) and outputs (T, O) of a stream."""
    num_hidden, num_inputs = len(hidden_weights), inputs.shape[1]
    hidden = np.empty((len(inputs), num_hidden))
    outputs = np.empty((len(inputs), len(output_weights)))
    below = np.ones(num_inputs + num_hidden + 1)
    below[num_inputs:-1] = INITIAL_CONTEXT
    for t in range(len(inputs)):
        below[:num_inputs] = inputs[t]
        for j in range(num_hidden):
            hidden[t, j] = 1.0 / (1.0 + math.exp(-np.dot(hidden_weights[j], below)))
        below[num_inputs:-1] = hidden[t]
        for k in range(len(output_weights)):
            total = np.dot(output_weights[k, :-1], hidden[t]) + output_weights[k, -1]
            outputs[t, k] = 1.0 / (1.0 + math.exp(-total))
    return hidden, outputs
