"""Whether somebody speaks, by silero-vad (extra: vad), for the endpoints of streams.

A net of its own hears a quiet or strange voice where the recogniser gives blanks, and silence where that makes words of
noise. Its windows lie at fixed places in the audio, so how the audio was cut changes nothing.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asr.errors import ConfigError

RATE_HZ = 16_000
WINDOW, CONTEXT = 512, 64  # samples that a window adds, and those before it that it hears once more
THRESHOLD = 0.5  # probability of speech from which on there is speech; silero-vad's own default
MODEL = "data/silero_vad_16k_sequence.onnx"


class VadState(NamedTuple):
    """What a stream's audio has left; arrays are never changed in place.

    hidden, cell: (1, 1, 128) of its LSTM. samples: (CONTEXT + n,) n < WINDOW wait for a window. windows: heard so far.
    speech: (m,) whether there is speech in the last m of them.
    """

    hidden: NDArray[np.float32]
    cell: NDArray[np.float32]
    samples: NDArray[np.float32]
    windows: int
    speech: NDArray[np.bool_]


class SileroVad:
    """The net, which many streams can share.

    Args:
        sample_rate_hz: of the audio that it will hear.

    Raises:
        ConfigError: silero-vad is not installed, or the rate is not 16 kHz.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        if sample_rate_hz != RATE_HZ:
            raise ConfigError(f"silero-vad: got a model of {sample_rate_hz} Hz, expected {RATE_HZ}")
        package = find_spec("silero_vad")  # not imported: only a file of it is needed
        if package is None or package.origin is None or find_spec("onnxruntime") is None:
            raise ConfigError("silero-vad is not installed: pip install 'asr-toolkit[vad]'")
        path = Path(package.origin).parent / MODEL
        if not path.exists():
            raise ConfigError(f"silero-vad: {path} is missing; expected version 6.2 or newer")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def initial_state(self) -> VadState:
        """The state before any audio."""
        zeros = np.zeros((1, 1, 128), np.float32)
        return VadState(zeros, zeros, np.zeros(CONTEXT, np.float32), 0, np.zeros(0, np.bool_))

    def step(self, state: VadState, samples: NDArray[np.float32]) -> VadState:
        """Hear (n,) samples, n >= 0."""
        samples = np.concatenate((state.samples, samples))
        count = (len(samples) - CONTEXT) // WINDOW
        if not count:
            return state._replace(samples=samples)
        windows = np.lib.stride_tricks.sliding_window_view(samples, CONTEXT + WINDOW)[::WINDOW][:count]
        inputs = {"input": np.ascontiguousarray(windows), "h": state.hidden, "c": state.cell}
        probabilities, hidden, cell = map(np.asarray, self._session.run(["speech_probs", "hn", "cn"], inputs))
        speech = np.concatenate((state.speech, probabilities.reshape(-1) >= THRESHOLD))
        return VadState(hidden, cell, samples[count * WINDOW :].copy(), state.windows + count, speech)

    def take(
        self, state: VadState, first: int, count: int, samples_per_frame: int
    ) -> tuple[NDArray[np.bool_], VadState]:
        """Whether there is speech in the output frames `first` ..; what no later frame needs leaves the state.

        A frame is given the last window that ended before it began, which has been heard whatever the look-ahead is.
        """
        numbers = np.arange(first, first + count) * samples_per_frame // WINDOW - 1
        oldest = state.windows - len(state.speech)
        places = np.minimum(numbers, state.windows - 1) - oldest
        speech = np.zeros(count, np.bool_)
        speech[places >= 0] = state.speech[places[places >= 0]]
        next_place = max(0, (first + count) * samples_per_frame // WINDOW - 1 - oldest)
        kept = min(next_place, len(state.speech) - 1) if len(state.speech) else 0
        return speech, state._replace(speech=state.speech[kept:].copy())
