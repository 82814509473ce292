"""Elman's simulations (Elman 1990, "Finding structure in time"): what a net that predicts the next frame comes to know.

One layer of logistic units, whose last state is an input, predicts the next frame of a stream by logistic outputs. It
is trained after each frame, back through one step only. Where the error is high and where low shows the structure
that the net has found:

    xor      two random bits, their exclusive or, and again: every third bit can be predicted
    letters  b, d and g at random, then ba, dii, guuu: vowels can be predicted, and of a consonant that it is one
    words    words at random, letter by letter, without spaces: what begins cannot be predicted, what goes on can
    classes  sentences of two or three words: the hidden states of words cluster as their uses do
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from asr.config.fields import PositiveFloat, PositiveInt, Section
from asr.errors import ConfigError
from asr.sequence.report import Report
from asr.sequence.settings import SHARED_TRAINING, Case, Data
from asr.sequence.task import Outcome, Task

Array = NDArray[np.float64]
FEATURES = {  # Consonant, Vowel, Interrupted, High, Back, Voiced
    "b": "101001", "d": "101101", "g": "101011", "a": "010011", "i": "010101", "u": "010111",
}  # fmt: skip
SYLLABLES = ("ba", "dii", "guuu")
LEXICON = ("a", "cat", "sat", "on", "the", "old", "green", "boat", "and", "saw", "fish", "under", "water", "why", "me")
NOUNS = {
    "human": ("man", "woman", "boy", "girl"),
    "animal": ("cat", "mouse", "dog"),
    "beast": ("dragon", "monster", "lion"),
    "thing": ("book", "rock", "car"),
    "brittle": ("glass", "plate"),
    "food": ("cookie", "bread", "cheese"),
}
ANIMATE = ("human", "animal", "beast")
VERBS = {
    "eat": ("eat",),
    "be": ("think", "sleep", "exist"),
    "meet": ("see", "chase", "like"),
    "shift": ("move", "break"),
    "sense": ("smell",),
    "ruin": ("smash",),
}
SENTENCES = tuple(
    tuple(line.split())
    for line in (
        "human eat food",
        "human sense thing",
        "human ruin brittle",
        "human be",
        "human meet human",
        "human shift thing",
        "human shift",
        "animal eat food",
        "animal be",
        "animal meet animal",
        "animal shift thing",
        "animal shift",
        "thing shift",
        "beast ruin brittle",
        "beast eat human",
        "beast eat animal",
        "beast meet food",
    )
)

# A net of its own, an update after each frame.
UNUSED_SETTINGS = (*SHARED_TRAINING, "optim.momentum", "optim.gradient_clip", "batch_size")
FIXED_SETTINGS = {"optim.name": "sgd"}


class Options(Section):
    """Options of Elman's simulations."""

    simulation: Literal["xor", "letters", "words", "classes"] = "letters"
    size: PositiveInt = Field(1000, description="cycles of three bits, consonants, or sentences in a stream")
    num_hidden: PositiveInt = 20
    spread: PositiveFloat = Field(1.0, description="initial weights are uniform in +-spread")


def build(options: Options, data: Data) -> Elman:
    """Make the task."""
    return Elman(options)


@dataclass(frozen=True, slots=True)
class Stream:
    """Frames to read one after the other, each one to be predicted from those before it.

    frames: (T, D) of 0 and 1. places: (T,) where in its unit a frame stands, from 0: cycle, syllable, word or sentence.
    names: for words' streams, what each frame is.
    """

    frames: Array
    places: NDArray[np.int64]
    names: tuple[str, ...] = ()


class Elman(Task):
    """The next frame of a stream. Each simulation has its own figure, a ratio without a unit."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.simulation = {"xor": Xor, "letters": Letters, "words": Words, "classes": Classes}[options.simulation]()
        self.figure = self.simulation.figure
        self.higher_is_better = self.simulation.higher_is_better
        self.chance = self.simulation.chance

    def run(self, case: Case, report: Report) -> Outcome:
        """`case.steps` passes over the stream; the figure is of another stream."""
        from asr.sequence.tasks import _elman

        generator = np.random.default_rng(case.seed)
        stream, test = (self.simulation.stream(self.options.size, generator) for _ in range(2))
        num_features, num_hidden, spread = stream.frames.shape[1], self.options.num_hidden, self.options.spread
        hidden_weights = generator.uniform(-spread, spread, (num_hidden, num_features + num_hidden + 1))
        output_weights = generator.uniform(-spread, spread, (num_features, num_hidden + 1))
        curve: list[tuple[int, float, float]] = []
        figures: dict[str, float] = {}
        done = 0
        while done < case.steps:
            passes = min(case.evaluate_every, case.steps - done)
            loss = _elman.train(
                stream.frames[:-1], stream.frames[1:], hidden_weights, output_weights, case.optim.learning_rate, passes
            )
            hidden, outputs = _elman.predict(test.frames[:-1], hidden_weights, output_weights)
            value, figures = self.simulation.judge(test, hidden, outputs)
            done += passes
            curve.append((done, loss, value))
            report.step(done)
            report.point(*curve[-1])
        return Outcome(curve[-1][2], hidden_weights.size + output_weights.size, done, curve, figures)

    def draw(self, folder: Path) -> list[Path]:
        return self.simulation.draw(folder)


class Xor:
    """Two random bits and their exclusive or."""

    figure = "error at predictable bits / at others"
    higher_is_better = False
    chance = 1.0

    def stream(self, size: int, generator: np.random.Generator) -> Stream:
        """`size` cycles."""
        bits = generator.integers(0, 2, (size, 2))
        frames = np.column_stack((bits, bits[:, 0] ^ bits[:, 1])).reshape(-1, 1).astype(float)
        return Stream(frames, np.arange(len(frames)) % 3)

    def judge(self, stream: Stream, hidden: Array, outputs: Array) -> tuple[float, dict[str, float]]:
        """The ratio, and the mean squared error at each of the three bits."""
        errors = np.square(outputs - stream.frames[1:]).mean(1)
        first, second, third = (float(errors[stream.places[1:] == place].mean()) for place in range(3))
        figures = {"error at bit 1": first, "at bit 2": second, "at their exclusive or": third}
        return 2 * third / (first + second), figures

    def draw(self, folder: Path) -> list[Path]:
        return []


class Letters:
    """Consonants at random, each with the vowels that it calls for."""

    figure = "error of predictable bits / of others"
    higher_is_better = False
    chance = None

    def __init__(self) -> None:
        self.errors: Array = np.zeros((2, 6))

    def stream(self, size: int, generator: np.random.Generator) -> Stream:
        """`size` syllables."""
        letters = [letter for i in generator.integers(0, 3, size) for letter in enumerate(SYLLABLES[i])]
        frames = np.array([[float(bit) for bit in FEATURES[letter]] for _, letter in letters])
        return Stream(frames, np.array([place for place, _ in letters]))

    def judge(self, stream: Stream, hidden: Array, outputs: Array) -> tuple[float, dict[str, float]]:
        """Largest error of a bit that follows from the letters so far, over the smallest of one that does not.

        Which consonant comes is in its bits High and Back alone; all others follow.
        """
        consonant = stream.places[1:] == 0
        squares = np.square(outputs - stream.frames[1:])
        self.errors = np.sqrt([squares[consonant].mean(0), squares[~consonant].mean(0)])
        unknown = np.zeros((2, 6), bool)
        unknown[0, 3:5] = True
        known, unknowable = float(self.errors[~unknown].max()), float(self.errors[unknown].min())
        return known / unknowable, {"predictable bits' largest error": known, "the others' smallest": unknowable}

    def draw(self, folder: Path) -> list[Path]:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.2, 2.6), layout="constrained")
        axes = figure.subplots()
        places = np.arange(6)
        axes.bar(places - 0.2, self.errors[0], 0.4, label="at consonants")
        axes.bar(places + 0.2, self.errors[1], 0.4, label="at vowels")
        axes.set_xticks(places, ["Consonant", "Vowel", "Interrupted", "High", "Back", "Voiced"], fontsize="small")
        axes.set(ylabel="root mean squared error", title="next letter: which of its features can be known")
        axes.legend(fontsize="small")
        figure.savefig(folder / "features.png", dpi=90)
        return [folder / "features.png"]


class Words:
    """Words at random, without spaces, a letter at a time as 5 random bits."""

    figure = "error at first letters / at later ones"
    higher_is_better = True
    chance = 1.0
    code_seed = 1990

    def __init__(self) -> None:
        codes = np.random.default_rng(self.code_seed).permutation(32)[:26]
        self.codes = {chr(ord("a") + i): [float(bit) for bit in f"{code:05b}"] for i, code in enumerate(codes)}
        self.errors: Array = np.zeros(0)
        self.letters: list[str] = []
        self.starts: NDArray[np.bool_] = np.zeros(0, bool)

    def stream(self, size: int, generator: np.random.Generator) -> Stream:
        """`size` sentences of four to nine words."""
        words = [LEXICON[i] for n in generator.integers(4, 10, size) for i in generator.integers(0, len(LEXICON), n)]
        letters = [letter for word in words for letter in enumerate(word)]
        frames = np.array([self.codes[letter] for _, letter in letters])
        return Stream(frames, np.array([place for place, _ in letters]), tuple(letter for _, letter in letters))

    def judge(self, stream: Stream, hidden: Array, outputs: Array) -> tuple[float, dict[str, float]]:
        """Root mean squared error at words' first letters, over the largest of any later place."""
        squares = np.square(outputs - stream.frames[1:]).mean(1)
        places = stream.places[1:]
        by_place = [float(np.sqrt(squares[places == place].mean())) for place in range(int(places.max()) + 1)]
        self.errors, self.letters, self.starts = np.sqrt(squares), list(stream.names[1:]), places == 0
        figures = {f"error at letter {place + 1}": error for place, error in enumerate(by_place)}
        return by_place[0] / max(by_place[1:]), figures

    def draw(self, folder: Path) -> list[Path]:
        from matplotlib.figure import Figure

        count = 60
        figure = Figure(figsize=(7, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.errors[:count], marker=".", color="tab:gray", linewidth=0.8)
        firsts = np.flatnonzero(self.starts[:count])
        axes.plot(firsts, self.errors[firsts], "o", color="tab:red", label="a word's first letter")
        axes.set_xticks(range(count), self.letters[:count], fontsize="x-small")
        axes.set(ylabel="root mean squared error", ylim=(0, None))
        axes.legend(fontsize="small")
        figure.savefig(folder / "letters.png", dpi=90)
        return [folder / "letters.png"]


class Classes:
    """Sentences of a small grammar, words as one of 29 bits.

    Each word's hidden states are averaged over its places; Ward's linkage makes clusters of the means.
    """

    figure = "share beside a word of their class"
    higher_is_better = True

    def __init__(self) -> None:
        self.groups = {word: kind for kinds in (NOUNS, VERBS) for kind, words in kinds.items() for word in words}
        self.words = tuple(self.groups)
        self.classes = np.array([self.groups[word] for word in self.words])
        sizes = (self.classes[:, None] == self.classes).sum(1)
        self.accompanied = sizes > 1  # words that are not the only ones of their class
        self.chance = float((sizes - 1)[self.accompanied].mean() / (len(sizes) - 1))
        self.means: Array = np.zeros((len(self.words), 1))

    def stream(self, size: int, generator: np.random.Generator) -> Stream:
        """`size` sentences."""
        kinds = NOUNS | VERBS
        patterns = (SENTENCES[i] for i in generator.integers(0, len(SENTENCES), size))
        said = [(place, kinds[kind]) for pattern in patterns for place, kind in enumerate(pattern)]
        drawn = generator.random(len(said))
        names = tuple(words[int(draw * len(words))] for (_, words), draw in zip(said, drawn, strict=True))
        frames = np.eye(len(self.words))[[self.words.index(name) for name in names]]
        return Stream(frames, np.array([place for place, _ in said]), names)

    def judge(self, stream: Stream, hidden: Array, outputs: Array) -> tuple[float, dict[str, float]]:
        """The share among words that have a companion, and how well the dendrogram's first fork parts the words."""
        names = np.array(stream.names[:-1])
        self.means = np.stack([hidden[names == word].mean(0) for word in self.words])
        distances = np.linalg.norm(self.means[:, None] - self.means, axis=-1)
        np.fill_diagonal(distances, np.inf)
        nearest = self.classes[distances.argmin(1)] == self.classes
        nouns, animate = np.isin(self.classes, list(NOUNS)), np.isin(self.classes, ANIMATE)
        figures = {
            "nouns and verbs on their side of the first fork": agreement(self.means, nouns),
            "nouns on theirs, animate or not": agreement(self.means[nouns], animate[nouns]),
        }
        return float(nearest[self.accompanied].mean()), figures

    def draw(self, folder: Path) -> list[Path]:
        from matplotlib.figure import Figure
        from scipy.cluster.hierarchy import dendrogram

        figure = Figure(figsize=(4.6, 5.6), layout="constrained")
        axes = figure.subplots()
        labels = [f"{word} ({self.groups[word]})" for word in self.words]
        dendrogram(_linkage(self.means), labels=labels, orientation="left", ax=axes, leaf_font_size=8)
        axes.set(xlabel="distance", title="mean hidden states of the words")
        figure.savefig(folder / "dendrogram.png", dpi=90)
        return [folder / "dendrogram.png"]


def agreement(points: Array, truth: NDArray[np.bool_]) -> float:
    """Share of points on the right side of their dendrogram's first fork, whichever side is which."""
    from scipy.cluster.hierarchy import fcluster

    side = fcluster(_linkage(points), 2, criterion="maxclust") == 1
    return float(max((side == truth).mean(), (side != truth).mean()))


def _linkage(points: Array) -> Array:
    try:
        from scipy.cluster.hierarchy import linkage
    except ImportError:
        raise ConfigError(
            "options.simulation=classes: needs scipy, which is not installed (pip install 'asr-toolkit[sequence]')"
        ) from None
    return linkage(points, method="ward")
