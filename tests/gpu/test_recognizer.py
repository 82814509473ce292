"""From audio to text on a GPU: what tests/unit holds of recognisers and of training's parts, there.

Log-probabilities of one recogniser in other batches, or in chunks, differ by up to 1e-5; those of a CPU and a GPU,
which round in another order from the features on, by up to 1e-4. Both are relative to the largest: these models' go
down to -60. Texts do not differ.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from asr import checkpoint as checkpoints
from asr import cli, features
from asr.config.schema import Features
from asr.decode import beam, check_streaming
from asr.decode.align import Aligner
from asr.decode.beam import BeamDecoder
from asr.decode.recognizer import Recognizer, Source
from asr.features.specaugment import SpecAugment
from asr.heads.ctc import ctc_loss
from asr.nn.batch_norm import MaskedBatchNorm
from asr.nn.precision import whole_float32
from asr.types import Transcript
from tests.support.waiting import nothing_waits
from tests.unit.decode.test_stream import RATE_HZ, TOKENIZER, audio, checkpoint, same, streamed

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default:RNN module weights"),  # held in test_stacks.py
]
SAME, OTHER_DEVICE = 1e-5, 1e-4
STREAMING: list[dict[str, Any]] = [
    {"name": "gru", "bidirectional": False, "lookahead_frames": 2},
    {"name": "diagonal", "bidirectional": False},
    {"name": "tcn", "padding": "causal"},
]
WHOLE: list[dict[str, Any]] = [{"name": "gru"}, {"name": "rnn", "activation": "clipped_relu"}]
RECORDINGS = [audio(seconds, seed=seed) for seed, seconds in enumerate((1.3, 0.4, 2.1, 0.05, 1.0, 1.9, 0.7, 1.6))]


def name_of(stack: dict[str, Any]) -> str:
    return "-".join(map(str, stack.values()))


def pair(stack: dict[str, Any]) -> tuple[Recognizer, Recognizer]:
    """The same recogniser on the GPU and on the CPU."""
    one = checkpoint(stack)
    return Recognizer(copy.deepcopy(one), DEVICE), Recognizer(one, "cpu")


def largest(values: Tensor) -> float:
    return max(1.0, float(values.abs().max())) if values.numel() else 1.0


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest one, relative to the largest value expected, or to 1 if that is more."""
    got, expected = got.cpu().double(), expected.cpu().double()
    assert got.shape == expected.shape
    return float((got - expected).abs().max()) / largest(expected) if got.numel() else 0.0


@pytest.mark.parametrize("stack", [*STREAMING, *WHOLE], ids=name_of)
def test_transcripts_are_the_cpus_in_any_batch(stack: dict[str, Any]) -> None:
    on_gpu, on_cpu = pair(stack)
    expected = [on_cpu.transcribe(samples) for samples in RECORDINGS]
    assert sum(bool(transcript.text) for transcript in expected) > 5
    for size in (1, 3, 8):
        for start in range(0, len(RECORDINGS), size):
            got = on_gpu.transcribe_batch(RECORDINGS[start : start + size])
            for one, other in zip(got, expected[start:], strict=False):
                same(one, other)


@pytest.mark.parametrize("stack", [*STREAMING, *WHOLE], ids=name_of)
def test_log_probabilities_are_the_cpus_in_any_batch(stack: dict[str, Any]) -> None:
    on_gpu, on_cpu = pair(stack)
    padded = torch.zeros(3, max(map(len, RECORDINGS[:3])))
    for row, samples in enumerate(RECORDINGS[:3]):
        padded[row] = 1e6
        padded[row, : len(samples)] = torch.from_numpy(samples)
    lengths = torch.tensor([len(samples) for samples in RECORDINGS[:3]])
    with torch.inference_mode(), whole_float32():
        together, frames = on_gpu.model(padded.to(DEVICE), lengths.to(DEVICE))
    for row, samples in enumerate(RECORDINGS[:3]):
        alone = on_gpu.log_probs(samples)
        assert difference(together[row, : frames[row]], alone) <= SAME
        assert difference(alone, on_cpu.log_probs(samples)) <= OTHER_DEVICE


@pytest.mark.parametrize("stack", STREAMING, ids=name_of)
def test_any_chunking_gives_the_offline_transcript(stack: dict[str, Any]) -> None:
    recognizer, _ = pair(stack)
    for samples in RECORDINGS[:4]:
        offline = recognizer.transcribe(samples)
        for sizes in ([], [1, 0, 999, 5000], [640] * 20):
            same(streamed(recognizer, samples, sizes), offline)
        log_probs = recognizer.log_probs(samples)
        compared = check_streaming.compare(recognizer, samples, check_streaming.Offline(log_probs, offline.text), 1600)
        assert compared.same_text
        assert compared.difference <= SAME * largest(log_probs)


def test_streams_of_different_age_go_together_and_fork() -> None:
    recognizer, _ = pair(STREAMING[0])
    streams = [recognizer.stream() for _ in range(3)]
    streams[0].accept_waveform(RECORDINGS[2][:7000])
    recognizer.step(streams)
    rests = [RECORDINGS[2][7000:], RECORDINGS[0], RECORDINGS[5]]
    for stream, rest in zip(streams, rests, strict=True):
        stream.accept_waveform(rest[:16000])
    recognizer.step(streams)
    fork = streams[0].fork()
    for stream, rest in zip([*streams, fork], [*rests, rests[0]], strict=True):
        stream.accept_waveform(rest[16000:])
    for stream, number in zip([*streams, fork], (2, 0, 5, 2), strict=True):
        same(stream.finish(), recognizer.transcribe(RECORDINGS[number]))


def test_beam_search_and_segments() -> None:
    """Beam search runs on the CPU; endpoints look at the network's blanks."""
    decoder = BeamDecoder(TOKENIZER, beam_size=8, hotwords={"ab": 2.0}, beta=0.5)
    texts = []
    for device in (DEVICE, "cpu"):
        recognizer = Recognizer(checkpoint(STREAMING[0]), device, decoder=decoder, endpoints=True, nbest=2)
        offline = recognizer.transcribe_batch(RECORDINGS)
        stream = recognizer.stream()
        stream.accept_waveform(np.concatenate([RECORDINGS[2], np.zeros(3 * RATE_HZ, np.float32), RECORDINGS[0]]))
        segments = [segment.text for segment in stream.result().segments]
        texts.append(([one.text for one in offline], [r.text for one in offline for r in one.nbest], segments))
    assert any(texts[0][0])
    assert texts[0] == texts[1]


def test_long_audio_goes_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a stream, and, for a model that needs the whole, its front end block by block."""
    samples = audio(20.0)
    for stack in (STREAMING[0], WHOLE[0]):
        recognizer, on_cpu = pair(stack)
        whole = on_cpu.transcribe(samples)
        assert len(whole.text) > 20
        with monkeypatch.context() as patch:
            patch.setattr("asr.model.BLOCK_SAMPLES", 50_000)
            same(recognizer.transcribe(samples), whole)
        if not recognizer.model.not_streamable:
            source = Source(20.0, lambda: samples)
            ((_, pieces),) = recognizer.transcribe_many([source], batch_seconds=5.0)
            assert isinstance(pieces, Transcript)
            same(pieces, whole)


def test_alignments_are_the_cpus() -> None:
    samples = RECORDINGS[2]
    for stack in (STREAMING[0], WHOLE[0]):
        one = checkpoint(stack)
        got, expected = (
            Aligner(copy.deepcopy(one), device).align(samples, "abc de fa hi ab") for device in (DEVICE, "cpu")
        )
        assert [(w.text, w.start_seconds, w.end_seconds) for w in got.words] == [
            (w.text, w.start_seconds, w.end_seconds) for w in expected.words
        ]
        assert got.log_prob == pytest.approx(expected.log_prob, abs=1e-2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint and audio files on disk."""
    one = checkpoint(STREAMING[0])
    weights = one.model.state_dict()
    checkpoints.save(tmp_path / "model", weights=weights, config=one.config, tokenizer=TOKENIZER, provenance={})
    (tmp_path / "audio").mkdir()
    for number, samples in enumerate(RECORDINGS):
        soundfile.write(tmp_path / "audio" / f"{number}.wav", samples, RATE_HZ, subtype="FLOAT")
    return tmp_path


def test_the_commands_take_the_device(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`asr decode`, whole and streaming."""
    texts = {}
    for device in (DEVICE, "cpu"):
        for more in ([], ["--stream", "--chunk-ms", "100"]):
            files = sorted(map(str, (folder / "audio").iterdir()))
            assert cli.main(["decode", str(folder / "model"), *files, "--device", device, *more]) == 0
            texts[device, len(more)] = capsys.readouterr().out
    assert texts[DEVICE, 0].strip()
    assert texts[DEVICE, 0] == texts["cpu", 0]
    assert texts[DEVICE, 3] == texts["cpu", 3]


@pytest.mark.parametrize(
    "config", [Features(), Features(kind="log_spectrogram", window_seconds=0.02), Features(normalization="utterance")]
)
def test_features_are_the_cpus(config: Features) -> None:
    """Offline; of log power, so that a bin near silence is not asked for more than float32 can tell."""
    extractor = features.build(config, RATE_HZ)
    lengths = torch.tensor([16000, 399, 8000])
    samples = 0.1 * torch.randn(3, 16000, generator=torch.Generator().manual_seed(0))
    extractor.fit_normalization([samples[0].numpy()])
    exact, _ = copy.deepcopy(extractor).double()(samples.double(), lengths)
    got, counts = extractor.to(DEVICE)(samples.to(DEVICE), lengths.to(DEVICE))
    assert got.dtype == torch.float32
    assert counts.tolist() == [98, 0, 48] or config.window_seconds != 0.025
    assert float((got.cpu() - exact).abs().max()) <= 1e-3
    alone, _ = extractor(samples[2:, :8000].to(DEVICE), lengths[2:].to(DEVICE))
    assert float((alone[0] - got[2, : alone.shape[1]]).abs().max()) <= SAME


def test_specaugment_draws_the_cpus_masks() -> None:
    augment = SpecAugment(
        frequency_masks=2, frequency_mask_bins=27, time_masks=3, time_mask_frames=40, time_mask_fraction=0.2
    )
    lengths, seeds = torch.tensor([200, 3, 150, 1]), torch.tensor([5, -7, 2**62, 0])
    frames = torch.randn(4, 200, 80)
    got = augment(frames.to(DEVICE), lengths.to(DEVICE), seeds.to(DEVICE))
    expected = augment(frames, lengths, seeds)
    assert bool((expected == 0).any())
    assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("shape", [(5, 40, 7), (3, 30, 9, 32), (2, 50, 300)])
def test_masked_batch_norm_is_the_cpus(shape: tuple[int, ...]) -> None:
    """Training: outputs, gradients and running statistics against float64."""
    generator = torch.Generator().manual_seed(0)
    hidden, weights = (torch.randn(shape, generator=generator) for _ in range(2))
    lengths = torch.randint(1, shape[1] + 1, shape[:1], generator=generator)
    hidden.masked_fill_((torch.arange(shape[1]) >= lengths[:, None])[(..., *[None] * (len(shape) - 2))], 0.0)
    results = []
    for device, kind in ((DEVICE, torch.float32), ("cpu", torch.float64)):
        norm = MaskedBatchNorm(shape[-1], clip=1.5).to(device, kind)
        inputs = hidden.to(device, kind).requires_grad_()
        with whole_float32():
            out = norm(inputs, lengths.to(device))
            gradients = torch.autograd.grad((out * weights.to(out)).sum(), [inputs, norm.scale, norm.shift])
        results.append([value.detach().cpu() for value in (out, *gradients, *norm.buffers())])
    for got, expected in zip(*results, strict=True):
        assert float((got - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_ctc_loss_is_the_cpus_in_any_batch() -> None:
    """Against float64. Gradients are differences of logs of up to some hundred, of which float32 keeps 1e-5."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 120, 29, generator=generator)
    lengths = torch.tensor([120, 90, 1, 60, 120, 33])
    target_lengths = torch.tensor([30, 12, 0, 29, 1, 16])
    targets = torch.randint(1, 29, (6, 30), generator=generator)

    def loss_and_gradient(device: str, kind: torch.dtype, rows: slice = slice(None)) -> tuple[Tensor, ...]:
        frames = int(lengths[rows].max())
        mine = logits[rows, :frames].to(device, kind, copy=True).requires_grad_()
        tokens = targets[rows, : max(1, int(target_lengths[rows].max()))]
        numbers = (values[rows].to(device) for values in (lengths, target_lengths))
        length, target_length = numbers
        loss = ctc_loss(mine.log_softmax(-1), length, tokens.to(device), target_length)
        loss.sum().backward()
        assert mine.grad is not None
        return loss.detach().cpu(), mine.grad.cpu()

    loss, gradient = loss_and_gradient(DEVICE, torch.float32)
    exact_loss, exact_gradient = loss_and_gradient("cpu", torch.float64)
    assert bool(torch.isfinite(exact_loss).all())
    assert float(((loss - exact_loss) / exact_loss).abs().max()) <= 1e-5
    assert float((gradient - exact_gradient).abs().max()) <= 1e-3
    for row in range(len(logits)):
        alone, alone_gradient = loss_and_gradient(DEVICE, torch.float32, slice(row, row + 1))
        assert float((alone[0] - loss[row]).abs() / loss[row].abs()) <= 1e-5
        frames = alone_gradient.shape[1]
        assert float((alone_gradient[0] - gradient[row, :frames]).abs().max()) <= 1e-3
        assert not gradient[row, int(lengths[row]) :].any()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_the_whole_model(precision: str) -> None:
    """SpecAugment, batch norm and loss: nothing waits for the device."""
    model = checkpoint({"name": "gru"}).model.to(DEVICE).train()
    samples = torch.from_numpy(np.stack([RECORDINGS[0][:6000], RECORDINGS[2][:6000]])).to(DEVICE)
    lengths, target_lengths = torch.tensor([6000, 4000], device=DEVICE), torch.tensor([3, 2], device=DEVICE)
    targets, seeds = torch.ones(2, 3, dtype=torch.int64, device=DEVICE).cumsum(1), torch.tensor([1, 2], device=DEVICE)
    weights = torch.ones(2, 1, TOKENIZER.num_tokens, device=DEVICE)

    def outputs() -> tuple[Tensor, Tensor]:
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=precision == "bf16"):
            return model(samples, lengths, seeds)

    outputs()[0].backward(weights.expand_as(outputs()[0]))  # loads kernels and libraries
    ctc_loss(outputs()[0].detach(), *outputs()[1:], targets, target_lengths)
    model.zero_grad()
    with nothing_waits():
        log_probs, frames = outputs()
        loss = ctc_loss(log_probs, frames, targets, target_lengths)
        loss.sum().backward()
    assert log_probs.dtype == torch.float32
    assert bool(torch.isfinite(loss).all())
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert all(bool(gradient.any()) for gradient in gradients if gradient is not None)


def test_the_beam_takes_what_lies_on_a_gpu() -> None:
    log_probs = torch.randn(2, 20, TOKENIZER.num_tokens).log_softmax(-1)
    decoder = beam.BeamDecoder(TOKENIZER, beam_size=4)
    paths = []
    for device in (DEVICE, "cpu"):
        lengths = torch.tensor([20, 7], device=device)
        states = decoder.extend([decoder.initial_state()] * 2, log_probs.to(device), lengths)
        paths.append([decoder.best(state, final=True)[0].path for state in states])
    assert paths[0] == paths[1]
