"""The one schema of the configuration: every setting, its default, its unit and its bounds.

Nothing here imports torch. `asr.config.load` composes YAML into this; run-time sizes (number of tokens, of
features) are arguments of the `build` functions and never stand in the configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, model_validator

from asr.config.fields import (
    BelowOne,
    Folder,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
    Seed,
)
from asr.config.options import StackOptions, validate_stack
from asr.messages import did_you_mean


class Data(Section):
    """Where speech comes from and how it is cut into batches."""

    corpus: str = Field(default="", description="reader in data_prep/ that turns the raw corpus into manifests")
    root: Folder | None = Field(
        default=None, description="folder that holds the raw corpus, as downloaded and unpacked"
    )
    download: bool = Field(default=False, description="fetch the corpus from its public source, with a checksum")
    cache: Folder = Field(default=Path("data"), description="folder for downloads, manifests and shards")
    train: tuple[str, ...] = Field(
        default=("train",),
        description="splits to train on; a name with a slash is a folder of shards, or the URL of one (http, s3, ...)",
    )
    validation: tuple[str, ...] = Field(default=("validation",), description="splits to choose the best checkpoint on")
    test: tuple[str, ...] = Field(default=("test",), description="splits to report at the end")
    weights: dict[str, PositiveFloat] = Field(
        default={},
        description="how often an epoch draws a training split's utterances, relative to the others; 1 where not named",
    )
    temperature: PositiveFloat = Field(
        default=1.0,
        description="a split's share of an epoch is as weight * audio^(1 / this): 1 keeps sizes, more evens them out",
    )
    sample_rate_hz: PositiveInt = 16000
    min_seconds: NonNegativeFloat = Field(default=0.1, description="shorter utterances are dropped and named")
    max_seconds: PositiveFloat = Field(default=35.0, description="longer utterances are dropped and named")
    batch_seconds: PositiveFloat = Field(default=320.0, description="audio of one global batch, padding included")
    max_batch_items: PositiveInt = Field(default=512, description="utterances in one global batch at the most")
    length_jitter: BelowOne = Field(
        default=0.05,
        description="batches are cut from an order by length * U(1 - this, 1 + this); 0: the same in each epoch;"
        " about as much of a batch is padding",
    )
    sorta_grad: bool = Field(default=True, description="first epoch by increasing length (Deep Speech 2, section 3.3)")
    num_workers: NonNegativeInt = Field(default=1, description="processes that read and decode audio; 0: the main one")

    @model_validator(mode="after")
    def _weights_of_training_splits(self) -> Data:
        for name in self.weights:
            if name not in self.train:
                raise ValueError(
                    f"weights: got the split {name!r}, data.train has {', '.join(self.train)}"
                    f"{did_you_mean(name, self.train)}"
                )
        return self

    @property
    def is_mixed(self) -> bool:
        """Whether splits are drawn otherwise than by their sizes."""
        weights = {self.weights.get(name, 1.0) for name in self.train}
        return len(self.train) > 1 and (len(weights) > 1 or self.temperature != 1.0)


class Text(Section):
    """How a transcript becomes tokens."""

    tokenizer: Literal["characters", "bigrams", "bpe", "unigram"] = "characters"
    vocabulary_size: PositiveInt = Field(
        default=256, description="pieces of bpe and unigram; characters and bigrams ignore it"
    )
    language: str = Field(default="en", description="BCP 47 tag; picks the case and punctuation policy's details")
    case: Literal["lower", "upper", "keep"] = "lower"
    punctuation: Literal["remove", "keep"] = Field(
        default="remove", description="remove keeps apostrophes inside words"
    )


class Features(Section):
    """The spectrogram, computed from samples inside the model."""

    kind: Literal["log_spectrogram", "log_mel"] = "log_mel"
    window_seconds: PositiveFloat = 0.025
    hop_seconds: PositiveFloat = 0.010
    num_mels: PositiveInt = Field(
        default=80, description="mel bins of log_mel; log_spectrogram has window / 2 + 1 bins"
    )
    preemphasis: Probability = Field(default=0.97, description="of log_mel; log_spectrogram has none")
    normalization: Literal["global", "utterance", "none"] = Field(
        default="global",
        description="global uses the training data's mean and variance and streams; utterance does not stream",
    )


Range = tuple[float, float]


def _ascending(value: Range) -> Range:
    if value[0] > value[1]:
        raise ValueError(f"got {list(value)}, expected the lower bound first")
    return value


class NoiseOptions(Section):
    """Noise under the speech."""

    probability: Probability = Field(default=0.0, description="share of the utterances; Deep Speech 2 takes 0.4")
    snr_db: Annotated[Range, AfterValidator(_ascending)] = Field(
        default=(0.0, 30.0), description="lowest and highest ratio of the powers of speech and noise"
    )
    folder: Folder | None = Field(
        default=None, description="recordings of noise; none: Gaussian noise of a drawn colour"
    )


class ReverberationOptions(Section):
    """A room around the speech."""

    probability: Probability = Field(default=0.0, description="share of the utterances")
    rt60_seconds: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ascending)] = Field(
        default=(0.1, 0.8), description="time in which a simulated room's sound falls by 60 dB"
    )
    folder: Folder | None = Field(default=None, description="recorded impulse responses; none: simulated ones")


class CodecOptions(Section):
    """A telephone or a lossy file format between the speech and us."""

    probability: Probability = Field(default=0.0, description="share of the utterances")
    kinds: tuple[Literal["telephone", "vorbis", "opus", "mp3"], ...] = ("telephone", "vorbis", "opus", "mp3")

    @model_validator(mode="after")
    def _some_kind(self) -> CodecOptions:
        if not self.kinds:
            raise ValueError("kinds: got none, expected one or more; probability=0 turns codecs off")
        return self


class Augment(Section):
    """What is done to training audio and features, keyed by (seed, epoch, utterance)."""

    speeds: tuple[PositiveFloat, ...] = Field(
        default=(1.0,), min_length=1, description="speed factors, one drawn for each utterance"
    )
    gain_db: NonNegativeFloat = Field(default=0.0, description="gain drawn from U(-gain_db, gain_db)")
    noise: NoiseOptions = NoiseOptions()
    reverberation: ReverberationOptions = ReverberationOptions()
    codec: CodecOptions = CodecOptions()
    curriculum_epochs: NonNegativeInt = Field(
        default=0, description="noise, reverberation and codecs grow from nothing to full strength in so many epochs"
    )
    frequency_masks: NonNegativeInt = 0
    frequency_mask_bins: NonNegativeInt = Field(default=27, description="width of a frequency mask drawn from 0..this")
    time_masks: NonNegativeInt = 0
    time_mask_frames: NonNegativeInt = Field(default=100, description="width of a time mask drawn from 0..this")
    time_mask_fraction: Probability = Field(
        default=0.2, description="a time mask covers at most this share of the utterance"
    )


class ConvLayer(Section):
    """One convolution over (time, frequency). A 1D one takes the frequencies as its input channels."""

    channels: PositiveInt = 32
    time_kernel: PositiveInt = Field(default=11, description="frames; odd, so that there is a centre")
    time_stride: PositiveInt = 1
    frequency_kernel: PositiveInt = Field(
        default=1, description="bins of conv2d; odd. conv1d spans all and leaves it at 1"
    )
    frequency_stride: PositiveInt = Field(default=1, description="bins of conv2d; conv1d leaves it at 1")

    @model_validator(mode="after")
    def _odd(self) -> ConvLayer:
        if self.time_kernel % 2 == 0 or self.frequency_kernel % 2 == 0:
            raise ValueError(
                f"kernels have to be odd, so that they have a centre; got {self.time_kernel} x {self.frequency_kernel}"
            )
        return self


class FrontEnd(Section):
    """Deep Speech 2's convolutions below the stack (section 3.5)."""

    kind: Literal["conv2d", "conv1d"] = "conv2d"
    layers: tuple[ConvLayer, ...] = (
        ConvLayer(channels=32, frequency_kernel=41, frequency_stride=2, time_kernel=11, time_stride=2),
        ConvLayer(channels=32, frequency_kernel=21, frequency_stride=2, time_kernel=11, time_stride=1),
    )
    padding: Literal["same", "causal"] = Field(default="same", description="causal looks at no future frame")
    batch_norm: bool = True
    clip: PositiveFloat = Field(default=20.0, description="clipped ReLU: min(max(x, 0), clip)")
    dropout: Probability = 0.0

    @model_validator(mode="after")
    def _no_ignored_frequencies(self) -> FrontEnd:
        if self.kind == "conv1d" and any(max(x.frequency_kernel, x.frequency_stride) > 1 for x in self.layers):
            raise ValueError("conv1d spans all frequencies, so that frequency_kernel and frequency_stride have to be 1")
        return self


class Head(Section):
    """The CTC output layer."""

    dropout: Probability = Field(default=0.0, description="on the stack's output")


class Optim(Section):
    """The optimiser, its schedule, and what is done to gradients and weights."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    momentum: Probability = Field(default=0.99, description="of sgd (Nesterov)")
    betas: tuple[BelowOne, BelowOne] = Field(default=(0.9, 0.98), description="of adamw")
    schedule: Literal["cosine", "anneal", "constant"] = Field(
        default="cosine", description="cosine decay to final_fraction, or division by anneal_factor after each epoch"
    )
    warmup_steps: NonNegativeInt = 200
    final_fraction: Probability = Field(default=0.02, description="of cosine: last learning rate / learning_rate")
    anneal_factor: Annotated[float, Field(ge=1.0)] = Field(default=1.2, description="of anneal")
    gradient_clip: NonNegativeFloat = Field(
        default=10.0, description="norm of the gradient of the loss per target token; 0: no clipping"
    )
    vanishing_regularizer: NonNegativeFloat = Field(
        default=0.0, description="weight of Pascanu et al.'s Omega, for simple recurrent cells; 0: none"
    )
    ema_decay: BelowOne = Field(default=0.0, description="average of weights; 0: none")


class Trainer(Section):
    """How long, how precise, on what, and what is kept."""

    max_epochs: PositiveInt = 20
    max_steps: PositiveInt | None = Field(default=None, description="stop after this many steps, if that comes first")
    precision: Literal["auto", "float32", "bf16"] = Field(
        default="auto", description="auto: bf16 where the device computes it natively, else float32"
    )
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: PositiveInt = Field(default=1, description="processes (ranks) on each node")
    num_nodes: PositiveInt = 1
    threads: NonNegativeInt = Field(
        default=0, description="CPU threads of each rank; 0: chosen from the cores and the model"
    )
    pieces: PositiveInt = Field(
        default=1,
        description="parts in which each rank works through its share of a global batch, one after another: the same"
        " step in less memory, but batch norm has each part's statistics",
    )
    validate_every_epochs: PositiveInt = Field(default=1, description="and after the last step")
    checkpoint_every_steps: NonNegativeInt = Field(
        default=0, description="also in the middle of an epoch; 0: at its end only"
    )
    checkpoint_every_minutes: NonNegativeFloat = Field(
        default=0.0, description="also when the last one is so old; 0: whatever its age"
    )
    keep_last: PositiveInt = Field(default=2, description="last checkpoints to keep, beside the best ones")
    keep_best: PositiveInt = Field(default=1, description="checkpoints of the lowest validation WER to keep")
    log_every_steps: PositiveInt = 10
    max_skipped_steps: NonNegativeInt = Field(
        default=10,
        description="steps in a row whose gradient is not finite, or that run out of memory; one more ends the run",
    )
    stall_seconds: NonNegativeFloat = Field(
        default=900.0,
        description="for which nothing may go on; then the run says which rank stalled, and ends; 0: it waits for ever."
        " Longer than the slowest checkpoint takes to write",
    )
    deterministic: bool = Field(default=False, description="refuse operations that are not reproducible bit for bit")

    @property
    def world_size(self) -> int:
        """Ranks of all nodes."""
        return self.devices * self.num_nodes


class Endpoint(Section):
    """When a stream's segment ends (Kaldi's rules), if it is asked for segments."""

    silence_seconds: PositiveFloat = Field(default=2.4, description="without any speech")
    trailing_seconds: PositiveFloat = Field(default=1.2, description="after speech")
    longest_seconds: PositiveFloat = Field(default=20.0, description="in all, wherever that is")


class Decode(Section):
    """How log-probabilities become text."""

    method: Literal["greedy"] = "greedy"
    batch_seconds: PositiveFloat = Field(default=600.0, description="audio decoded at a time, padding included")
    endpoint: Endpoint = Endpoint()


class Config(Section):
    """The whole configuration of a run."""

    recipe: str = Field(default="", description="name of the recipe; set by it")
    seed: Seed = 1
    run_dir: Folder | None = Field(default=None, description="folder of this run; none: runs/RECIPE/DATE-TIME")
    resume: bool = Field(default=False, description="go on from the last checkpoint in run_dir")
    init_from: Folder | None = Field(
        default=None,
        description="run or checkpoint folder of a model to begin with, as far as it fits; resuming passes over it",
    )
    data: Data = Data()
    text: Text = Text()
    features: Features = Features()
    augment: Augment = Augment()
    front_end: FrontEnd = FrontEnd()
    stack: Annotated[SerializeAsAny[StackOptions], BeforeValidator(validate_stack)] = Field(
        default_factory=lambda: validate_stack({"name": "gru"}),
        description="name of a file in asr/stacks/, and that stack's options",
    )
    head: Head = Head()
    optim: Optim = Optim()
    trainer: Trainer = Trainer()
    decode: Decode = Decode()
