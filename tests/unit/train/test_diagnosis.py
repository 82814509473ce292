"""Plateau or collapse: on what trainings of AN4 and of the language of tones showed, and on made-up ones."""

import math

import pytest
import torch

from asr.config.schema import Optim
from asr.train.diagnosis import Diagnosis, Verdict, Window, guessing_loss, patience_steps
from asr.train.explain import explain

# Every second look (20 steps) of real trainings: blank rate, frames a token that are not blank, entropy, loss, norm.
AN4_GUESSING = 4.22  # 100 subwords
AN4 = (  # stack=rnn stack.hidden_size=320: WER 99.0 %, 95.2 %, 52.6 %, 33.9 % after epochs of 76 steps
    (0.019, 8.998, 4.077, 34.940, 85.378),
    (0.749, 2.303, 1.642, 10.605, 74.307),
    (0.999, 0.006, 0.774, 4.350, 8.761),
    (0.997, 0.030, 0.566, 3.982, 6.745),
    (0.999, 0.008, 0.635, 4.233, 6.944),
    (1.000, 0.004, 0.643, 4.247, 5.868),
    (0.996, 0.034, 0.598, 3.872, 6.000),
    (0.993, 0.063, 0.529, 3.686, 7.113),
    (0.977, 0.212, 0.516, 3.403, 6.166),
    (0.964, 0.345, 0.454, 3.126, 7.452),
    (0.954, 0.427, 0.423, 2.758, 6.075),
    (0.933, 0.634, 0.392, 2.608, 6.318),
    (0.934, 0.669, 0.334, 2.445, 7.403),
    (0.918, 0.761, 0.302, 2.678, 6.681),
    (0.911, 0.816, 0.351, 2.340, 5.813),
    (0.897, 0.913, 0.311, 2.018, 5.078),
)
AN4_FAST = (  # the same with optim.learning_rate=0.3
    (1.000, 0.000, 0.700, 4.732, 5.609),
    (0.999, 0.013, 0.553, 4.984, 15.470),
    (0.943, 0.535, 0.330, 9.469, 74530.123),
    (0.799, 2.114, 0.048, 114.288, 36891874718.842),
    (0.811, 1.751, 0.029, 216.535, 216.387),
    (0.832, 1.643, 0.025, 227.183, 176.809),
)
AN4_SLOW = (  # the same with optim.learning_rate=1e-5: it is still where it began
    (0.000, 9.175, 4.081, 39.137, 74.867),
    (0.000, 9.178, 4.081, 37.702, 70.307),
    (0.000, 9.304, 4.075, 36.093, 81.115),
    (0.000, 10.540, 4.063, 41.226, 117.068),
    (0.000, 9.244, 4.055, 35.858, 103.787),
)
AN4_LOST = (  # the same, at a WER of 13 %, gone on with at optim.learning_rate=0.02, every tenth step: WER 100 %
    (0.605, 3.504, 0.557, 26.978, 418.026),
    (0.996, 0.042, 0.512, 9.825, 50.981),
    (0.951, 0.514, 0.340, 6.813, 24.422),
    (0.941, 0.547, 0.577, 5.865, 8.176),
    (0.998, 0.021, 0.643, 5.217, 4.390),
    (1.000, 0.000, 0.601, 4.470, 2.056),
    (1.000, 0.002, 0.689, 4.275, 1.145),
    (0.998, 0.019, 0.563, 4.706, 1.748),
    (0.999, 0.005, 0.592, 4.279, 1.593),
)
TONES_GUESSING = 1.69
TONES_FAST = (  # optim.learning_rate=1, every tenth step
    (0.902, 0.918, 0.059, 8.507, 5.877),
    (0.820, 1.745, 0.109, 7.092, 8.419),
    (0.884, 1.179, 0.056, 8.867, 4.273),
    (0.900, 0.932, 0.055, 7.012, 3.822),
    (0.850, 1.458, 0.115, 10.427, 39.934),
)
GUESSED = (0.998, 0.02, 0.6, 4.1, 6.0)  # as on AN4's plateau
OPTIM = Optim()
Row = tuple[float, float, float, float, float]


def diagnosis_of(guessing: float) -> Diagnosis:
    """Of a training of some 20 000 steps."""
    return Diagnosis(guessing, patience=3000)


def judge(diagnosis: Diagnosis, rows: tuple[Row, ...], *, first: int = 0, steps: int = 20) -> list[tuple[int, Verdict]]:
    """The verdicts that were new, with their steps."""
    new = []
    for number, row in enumerate(rows, 1):
        step = first + steps * number
        if diagnosis.add(Window(step, *row)):
            new.append((step, diagnosis.verdict))
    return new


def told(diagnosis: Diagnosis, rows: tuple[Row, ...], *, first: int = 0, optim: Optim = OPTIM) -> str:
    """What is said at the last change."""
    text = ""
    for number, row in enumerate(rows, 1):
        if diagnosis.add(Window(first + 20 * number, *row)):
            text = explain(diagnosis, learning_rate=0.25, optim=optim)
    return text


def test_a_healthy_training_has_a_plateau_and_leaves_it() -> None:
    diagnosis = diagnosis_of(AN4_GUESSING)
    assert judge(diagnosis, AN4) == [(100, Verdict.PLATEAU), (240, Verdict.LEARNING)]


def test_what_is_said_of_a_plateau() -> None:
    diagnosis = diagnosis_of(AN4_GUESSING)
    text = told(diagnosis, AN4[:6])
    assert text.startswith("step 100: the output is blanks only (99.9 % of frames). This is CTC's normal plateau, not")
    assert "the loss is 4.23 a token, guessing tokens by how often they come costs 4.22" in text
    assert told(diagnosis, AN4[6:12], first=120).startswith("step 240: the plateau is over: the loss is 2.61 a token")


@pytest.mark.parametrize(
    ("rows", "guessing", "cause"),
    [
        (AN4_FAST, AN4_GUESSING, "has jumped from 5.61 to 3.69e+10: the learning rate is too high"),
        (TONES_FAST, TONES_GUESSING, "has not jumped (7.15, then 8.42): the learning rate is far too high"),
    ],
    ids=["after a plateau", "from the start"],
)
def test_a_learning_rate_that_is_too_high(rows: tuple[Row, ...], guessing: float, cause: str) -> None:
    assert [verdict for _, verdict in judge(diagnosis_of(guessing), rows)][-1] == Verdict.COLLAPSE
    text = told(diagnosis_of(guessing), rows)
    assert "COLLAPSE: the output has" in text
    assert "It has not learnt yet; it is sure of what is wrong" in text
    assert cause in text
    assert "Lower optim.learning_rate (now 0.25)" in text


def test_a_model_that_is_still_where_it_began_is_neither() -> None:
    assert judge(diagnosis_of(AN4_GUESSING), AN4_SLOW * 5) == []


def test_blanks_after_speech_are_a_collapse() -> None:
    """The same output as on the plateau, with another verdict for what came before."""
    diagnosis = diagnosis_of(AN4_GUESSING)
    judge(diagnosis, AN4)
    assert judge(diagnosis, (GUESSED,) * 10, first=320) == [(380, Verdict.COLLAPSE)]
    diagnosis = diagnosis_of(AN4_GUESSING)
    assert judge(diagnosis, (GUESSED,) * 10) == [(60, Verdict.PLATEAU)]


def test_a_model_that_fell_back_to_blanks_is_not_on_a_plateau() -> None:
    """Its last looks are those of the plateau."""
    diagnosis = diagnosis_of(AN4_GUESSING)
    judge(diagnosis, AN4)
    assert judge(diagnosis, AN4_LOST, first=320, steps=10) == [(350, Verdict.COLLAPSE)]
    assert judge(diagnosis_of(AN4_GUESSING), AN4_LOST[4:] * 2, steps=10)[0][1] == Verdict.PLATEAU


def test_what_is_said_of_blanks_after_speech() -> None:
    diagnosis = diagnosis_of(AN4_GUESSING)
    judge(diagnosis, AN4)
    text = told(diagnosis, ((0.9, 0.9, 0.3, 3.0, 500.0), *(GUESSED,) * 4), first=320, optim=Optim(gradient_clip=0.0))
    assert text.startswith("step 400: COLLAPSE: the output is blanks only (99.8 % of frames); the loss is 4.1 a token")
    assert "It had learnt (loss 2.02); the gradient norm has jumped from 6.71 to 500" in text
    assert "set optim.gradient_clip, which is off" in text
    assert "which is off" not in explain(diagnosis, learning_rate=0.25, optim=Optim())


def test_one_that_recovers() -> None:
    diagnosis = diagnosis_of(AN4_GUESSING)
    judge(diagnosis, AN4)
    judge(diagnosis, (GUESSED,) * 6, first=320)
    assert diagnosis.verdict == Verdict.COLLAPSE
    assert told(diagnosis, AN4[-4:] * 2, first=440).startswith("step 500: it learns again")


def test_a_gradient_that_has_vanished() -> None:
    diagnosis = diagnosis_of(AN4_GUESSING)
    dead = (1.0, 0.0, 0.6, 4.3, 1e-4)
    text = told(diagnosis, (*AN4[:3], *(dead,) * 6))
    assert text.startswith("step 120: COLLAPSE: the output is blanks only")
    assert "The gradient has vanished (norm 0.0001, at first 85.4)" in text


def test_a_plateau_without_end() -> None:
    diagnosis = diagnosis_of(AN4_GUESSING)
    text = told(diagnosis, (GUESSED,) * 151)
    assert text.startswith("step 3020: STUCK: the output is blanks only")
    assert "In 3000 steps it has learnt nothing from the audio: the loss began at 4.1 and has not fallen well" in text
    assert "Check that transcripts belong to their audio" in text
    assert "the plateau is over" in told(diagnosis, AN4[-4:], first=3020)


# Every tenth look (10 steps) of real trainings of the language of tones, 540 steps, which learn nothing.
TONES_SHUFFLED = (  # transcripts exchanged with each other; ends not quite silent
    (0.780, 2.300, 1.310, 7.000, 9.980),
    (1.000, 0.000, 0.365, 1.860, 1.130),
    (1.000, 0.000, 0.382, 1.820, 1.130),
    (0.999, 0.007, 0.390, 1.770, 1.070),
    (0.995, 0.046, 0.448, 1.690, 0.904),
    (0.995, 0.044, 0.435, 1.680, 0.961),
    (0.991, 0.081, 0.433, 1.630, 0.942),
)
TONES_SILENT = (  # audio of zeros
    (1.000, 0.000, 1.500, 7.840, 8.970),
    (1.000, 0.000, 0.434, 1.690, 0.901),
    (1.000, 0.000, 0.434, 1.700, 0.927),
    (1.000, 0.000, 0.454, 1.670, 0.570),
    (1.000, 0.000, 0.449, 1.660, 0.639),
    (1.000, 0.000, 0.442, 1.640, 0.594),
    (1.000, 0.000, 0.433, 1.660, 0.557),
)
TONES_SLOW = (  # optim.learning_rate=1e-4, a hundredth
    (0.355, 6.390, 1.550, 10.200, 8.050),
    (0.673, 3.270, 1.520, 8.900, 9.660),
    (0.786, 2.200, 1.470, 7.820, 10.500),
    (0.851, 1.470, 1.400, 6.330, 9.610),
    (0.870, 1.310, 1.360, 6.040, 10.000),
    (0.888, 1.120, 1.330, 5.680, 9.630),
    (0.899, 1.030, 1.330, 5.750, 9.970),
)


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        (TONES_SHUFFLED, "and has not fallen well below guessing's"),
        (TONES_SILENT, "and that it is not silent"),
        (
            TONES_SLOW,
            "is still far above guessing's, with an output about as even as then (entropy 1.3 nats): steps are",
        ),
    ],
    ids=["other transcripts", "no audio", "too slow"],
)
def test_what_never_learns_is_stuck_whether_it_is_silent_or_not(rows: tuple[Row, ...], cause: str) -> None:
    diagnosis = Diagnosis(TONES_GUESSING, patience=patience_steps(540))
    verdicts = judge(diagnosis, rows, steps=100)
    assert verdicts[-1] == (600, Verdict.STUCK)
    text = explain(diagnosis, learning_rate=1e-7, optim=Optim(learning_rate=1e-4))
    assert "STUCK: the output" in text
    assert cause in text
    assert "optim.learning_rate=0.0001" in text
    resumed = Diagnosis(TONES_GUESSING, patience=patience_steps(540))
    resumed.load_state_dict(diagnosis.state_dict())
    assert judge(resumed, rows[-1:] * 5, first=700, steps=100) == []  # said once


def test_what_has_learnt_is_never_stuck() -> None:
    diagnosis = diagnosis_of(AN4_GUESSING)
    judge(diagnosis, AN4)
    assert judge(diagnosis, AN4[-1:] * 200, first=320) == []


@pytest.mark.parametrize(
    ("total_steps", "expected"), [(20, 500), (540, 500), (3040, 760), (20_000, 3000), (100_000, 10_000)]
)
def test_how_long_it_may_take(total_steps: int, expected: int) -> None:
    assert patience_steps(total_steps) == expected


def test_a_checkpoint_of_a_former_version_is_begun_anew_from() -> None:
    diagnosis = diagnosis_of(AN4_GUESSING)
    diagnosis.load_state_dict({"verdict": "plateau", "first_norm": 1.0, "plateau_since": None, "windows": []})
    assert diagnosis.state_dict() == diagnosis_of(AN4_GUESSING).state_dict() | {"best_loss": diagnosis.best_loss}


def test_no_verdict_flickers() -> None:
    """A word now and then, or a gradient now and then, neither ends nor begins anything."""
    word = (0.98, 0.2, 0.6, 4.0, 6.0)
    assert judge(diagnosis_of(AN4_GUESSING), (GUESSED, GUESSED, GUESSED, word) * 40) == [
        (60, Verdict.PLATEAU),
        (3020, Verdict.STUCK),
    ]
    dead = (1.0, 0.0, 0.6, 4.3, 1e-4)
    rows = (*AN4[:3], *((dead,) * 3 + (GUESSED,) * 5) * 10)
    assert judge(diagnosis_of(AN4_GUESSING), rows) == [(100, Verdict.PLATEAU), (120, Verdict.COLLAPSE)]


def test_a_few_odd_looks_change_nothing() -> None:
    diagnosis = diagnosis_of(AN4_GUESSING)
    judge(diagnosis, AN4)
    odd = (GUESSED, (0.5, 3.0, 0.01, 50.0, 900.0), AN4[-1])
    assert judge(diagnosis, odd * 5, first=320) == []


def test_looks_at_nothing_are_passed_over() -> None:
    nothing = (math.nan,) * 5
    diagnosis = diagnosis_of(AN4_GUESSING)
    assert judge(diagnosis, (nothing,) * 10) == []
    rows = tuple(row for pair in zip(AN4, (nothing,) * len(AN4), strict=True) for row in pair)
    assert [verdict for _, verdict in judge(diagnosis, rows)] == [Verdict.PLATEAU, Verdict.LEARNING]


def test_small_steps_between_looks_need_more_looks() -> None:
    assert judge(diagnosis_of(AN4_GUESSING), (GUESSED,) * 30, steps=1) == [(21, Verdict.PLATEAU)]


@pytest.mark.parametrize("cut", [1, 4, 8, 15])
def test_a_resumed_diagnosis_goes_on(cut: int) -> None:
    whole, first, second = (diagnosis_of(AN4_GUESSING) for _ in range(3))
    rows = AN4 + (GUESSED,) * 6
    expected = judge(whole, rows)
    before = judge(first, rows[:cut])
    second.load_state_dict(first.state_dict())
    assert before + judge(second, rows[cut:], first=20 * cut) == expected
    assert second.state_dict() == whole.state_dict()


def test_a_diagnosis_survives_a_checkpoint(tmp_path: pytest.TempPathFactory) -> None:
    diagnosis = diagnosis_of(AN4_GUESSING)
    judge(diagnosis, (*AN4, GUESSED))
    torch.save(diagnosis.state_dict(), f"{tmp_path}/state.pt")
    assert torch.load(f"{tmp_path}/state.pt", weights_only=True) == diagnosis.state_dict()


def test_guessing_costs_what_the_best_constant_output_costs() -> None:
    """Found by optimisation, with torch's CTC loss; texts without repeats, which the formula does not know."""
    random = torch.Generator().manual_seed(0)
    weights = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0, 1.0])
    targets = [_without_repeats(weights, length, random) for length in (6, 10, 14, 18, 22) * 8]
    lengths = torch.tensor([len(ids) for ids in targets])
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in targets], batch_first=True)
    logits = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=50, line_search_fn="strong_wolfe")
    frames = 12 * lengths

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        log_probs = logits.log_softmax(0).expand(int(frames.max()), len(targets), 7)
        loss = torch.nn.functional.ctc_loss(log_probs, padded, frames, lengths, reduction="sum") / lengths.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert guessing_loss(targets) == pytest.approx(float(closure().detach()), rel=0.05)


def _without_repeats(weights: torch.Tensor, length: int, random: torch.Generator) -> list[int]:
    ids: list[int] = []
    while len(ids) < length:
        token = 1 + int(torch.multinomial(weights, 1, generator=random))
        if not ids or ids[-1] != token:
            ids.append(token)
    return ids


def test_guessing_of_nothing_is_no_number() -> None:
    assert math.isnan(guessing_loss([]))
