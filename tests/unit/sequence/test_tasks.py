"""Each task's examples are what its paper says, and the figure of a blind answer is the chance level that it states."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from asr.errors import ConfigError
from asr.sequence import tasks
from asr.sequence.settings import Case
from asr.sequence.task import Examples, SupervisedTask
from asr.sequence.tasks.frequency import OTHERS_MS, WANTED_MS, other_periods
from asr.sequence.tasks.number_prediction import NumberPrediction, Skimmer
from asr.sequence.tasks.reversal import EncoderDecoder
from asr.sequence.tasks.temporal_order import smart_matrix
from asr.sequence.trainer import build_model


def make(name: str, **options: object) -> SupervisedTask:
    task = tasks.build(name, Case(options=options), "test")
    assert isinstance(task, SupervisedTask)
    return task


def batch(task: SupervisedTask, count: int = 200, seed: int = 1) -> Examples:
    return next(iter(task.batches(count, torch.Generator().manual_seed(seed))))


def figure(task: SupervisedTask, examples: Examples, outputs: Tensor) -> float:
    total, count = task.score(outputs, examples)
    return float(total / count)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adding", {"length": 9}),
        ("recall", {"num_distractors": 9}),
        ("copy_memory", {"length": 9}),
        ("frequency", {}),
        ("temporal_order", {"num_test": 500}),
        ("number_prediction", {"lengths": [9]}),
        ("waveform", {}),
    ],
)
def test_batches_come_from_the_generator_and_held_out_sets_stay(name: str, options: dict[str, object]) -> None:
    task = make(name, **options)
    same, again, other = batch(task), batch(task), batch(task, seed=2)
    assert torch.equal(same.inputs, again.inputs)
    assert torch.equal(same.targets, again.targets)
    if name != "waveform":  # which is one sequence
        assert not torch.equal(same.targets, other.targets)
        first, second = (torch.cat([e.targets.flatten() for e in task.evaluation(s)]) for s in ("validation", "test"))
        assert not torch.equal(first, second)
    for split in ("validation", "test"):
        sets = [torch.cat([e.targets.flatten() for e in task.evaluation(split)]) for _ in range(2)]
        assert torch.equal(*sets)


def test_adding() -> None:
    task = make("adding", length=7)
    examples = batch(task, 4000)
    values, marks = examples.inputs.unbind(-1)
    assert ((marks == 0) | (marks == 1)).all()
    assert (marks.sum(1) == 2).all()
    assert marks.mean(0).sub(2 / 7).abs().max() < 0.04  # each place is as likely
    for i in range(20):
        first, second = marks[i].nonzero()[:, 0].tolist()
        assert examples.targets[i] == pytest.approx(float(values[i, first] + values[i, second]), abs=1e-6)
    assert task.chance is not None
    assert figure(task, examples, torch.ones(4000, 1)) == pytest.approx(task.chance, abs=0.01)


def test_recall() -> None:
    task = make("recall", num_distractors=30, num_symbols=5, num_distractor_symbols=3)
    examples = batch(task, 1000)
    assert examples.inputs.shape == (1000, 31)
    assert examples.inputs[:, 0].unique().tolist() == [0, 1, 2, 3, 4]
    assert examples.inputs[:, 1:].unique().tolist() == [5, 6, 7]
    assert torch.equal(examples.targets, examples.inputs[:, 0])
    blind = torch.zeros(1000, 5)
    blind[:, 2] = 1
    assert task.chance == 0.2
    assert figure(task, examples, blind) == pytest.approx(0.2, abs=0.05)


def test_copy_memory() -> None:
    task = make("copy_memory", length=12)
    examples = batch(task, 500)
    symbols = examples.inputs[..., 0].long()
    assert symbols.shape == examples.targets.shape == (500, 32)
    assert symbols[:, :10].unique().tolist() == list(range(1, 9))
    assert (symbols[:, 10:21] == 0).all()
    assert (symbols[:, 21:] == 9).all()
    assert (examples.targets[:, :22] == 0).all()
    assert torch.equal(examples.targets[:, 22:], symbols[:, :10])
    memoryless = torch.full((500, 32, 10), -50.0)
    memoryless[:, :22, 0] = 0
    memoryless[:, 22:, 1:9] = 0
    assert task.chance == pytest.approx(10 * math.log(8) / 32)
    assert figure(task, examples, memoryless) == pytest.approx(task.chance, rel=1e-4)
    assert float(task.loss(memoryless, examples)) == pytest.approx(task.chance, rel=1e-4)
    right = torch.nn.functional.one_hot(examples.targets, 10).float()
    (total, count), *_ = task.figures(right, examples).values()
    assert total == count == 5000


def test_copy_memory_at_500_has_the_papers_baseline() -> None:
    assert make("copy_memory", length=500).chance == pytest.approx(0.0400, abs=5e-5)
    assert make("copy_memory", length=1000).chance == pytest.approx(0.0204, abs=5e-5)


def test_temporal_order() -> None:
    task = make("temporal_order", length=50)
    examples = batch(task, 2000)
    for symbols, target in zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True):
        places = [i for i, symbol in enumerate(symbols) if symbol < 2]
        assert len(places) == 2
        assert 5 <= places[0] < 10
        assert 25 <= places[1] < 30
        assert target == symbols[places[0]] + 2 * symbols[places[1]]
    assert figure(task, examples, torch.tensor([[1.0, 0, 0, 0]]).expand(2000, 4)) == pytest.approx(0.75, abs=0.05)


def test_smart_tanh_has_15_links_a_unit_and_a_spectral_radius_of_095() -> None:
    torch.manual_seed(0)
    weight = smart_matrix(50)
    assert (weight != 0).sum(1).tolist() == [15] * 50
    assert float(torch.linalg.eigvals(weight).abs().max()) == pytest.approx(0.95, rel=1e-5)
    task = make("temporal_order", initialization="smart_tanh")
    case = Case.model_validate({"stack": {"name": "gru", "bidirectional": False}})
    with pytest.raises(ConfigError, match=r"options\.initialization: got smart_tanh"):
        task.initialize(build_model(task, case))


@pytest.mark.parametrize("waveform", ["sines", "speech_like"])
def test_waveform(waveform: str) -> None:
    task = make("waveform", waveform=waveform)
    examples = batch(task)
    wave = examples.targets[0]
    assert wave.shape == (320,)
    assert float(wave.abs().max()) == pytest.approx(1.0)
    assert examples.inputs.flatten().nonzero().tolist() == [[0]]
    mean = wave.mean().expand(1, 320, 1)
    assert figure(task, examples, mean) == pytest.approx(1.0, abs=1e-5)
    assert figure(task, examples, wave[None, :, None]) == 0.0


def test_the_two_waveforms_have_the_periods_that_are_stated() -> None:
    sines = make("waveform", waveform="sines", length=160 * 8)
    power = torch.fft.rfft(batch(sines).targets[0]).abs().square()
    assert sorted(power.topk(4).indices.tolist()) == [8, 16, 40, 160]  # 1280 samples / 160, 80, 32, 8
    speech = make("waveform", waveform="speech_like", length=147 * 6)
    power = torch.fft.rfft(batch(speech).targets[0]).abs().square()
    assert int(power.argmax()) == 4 * 6  # the formant's harmonic of 147 samples


@pytest.mark.parametrize("sampling", ["standard", "high_resolution", "asynchronous"])
def test_frequency(sampling: str) -> None:
    """The period can be found from values and times: a sine of the right one fits them, in just the wanted class."""
    task = make("frequency", sampling=sampling)
    examples = batch(task, 60)
    assert examples.times is not None
    assert examples.inputs.shape == (60, examples.times.shape[1], 1)
    periods = torch.linspace(*WANTED_MS, 401).double()
    for i, length in enumerate(examples.lengths.tolist()):
        times, values = examples.times[i, :length].double(), examples.inputs[i, :length, 0].double()
        steps = times.diff()
        assert float(times[0]) >= 0
        assert float(times[-1]) <= 125.001
        if sampling == "asynchronous":
            assert 15 <= length <= 125
            assert (steps >= 0).all()
        else:
            assert torch.allclose(steps, torch.full_like(steps, 1.0 if sampling == "standard" else 0.1), atol=1e-3)
        angles = 2 * math.pi * times[None] / periods[:, None]
        basis = torch.stack((angles.sin(), angles.cos()), -1)  # (P, n, 2)
        fitted = basis @ torch.linalg.lstsq(basis, values[None, :, None].expand(401, -1, -1)).solution
        error = float((fitted[..., 0] - values).square().mean(1).min())
        if examples.targets[i]:
            assert error < 1e-4
        elif times[-1] - times[0] > 40:  # a short piece of another sine may look alike
            assert error > 1e-4


def test_other_periods_are_log_uniform_without_the_wanted_ones() -> None:
    periods = other_periods(20_000, torch.Generator().manual_seed(0))
    assert OTHERS_MS[0] <= float(periods.min()) < 1.01
    assert 99 < float(periods.max()) <= OTHERS_MS[1]
    assert not ((periods > WANTED_MS[0]) & (periods < WANTED_MS[1])).any()
    assert float((periods < 5).double().mean()) == pytest.approx(math.log(5) / math.log(100 * 5 / 6), abs=0.015)


def test_time_as_a_feature() -> None:
    with_feature, with_stamp = (batch(make("frequency", time=t), 5) for t in ("feature", "stamp"))
    assert with_feature.times is None
    assert with_stamp.times is not None
    assert torch.allclose(with_feature.inputs[..., 1], with_stamp.times / 50 - 1)
    assert torch.equal(with_feature.inputs[..., :1], with_stamp.inputs)


def test_number_prediction() -> None:
    task = make("number_prediction", lengths=[20])
    examples = batch(task, 300)
    for numbers, answer in zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True):
        assert answer == numbers[numbers[0]]
    assert examples.inputs.max() == 19


def test_a_curriculum_asks_for_the_last_length_and_starts_with_the_first() -> None:
    task = make("number_prediction", lengths=[4, 9])
    assert isinstance(task, NumberPrediction)
    assert (task.input_size, task.output_size, task.length) == (9, 9, 4)
    assert batch(task).inputs.max() == 3


JUMP_ONCE = Case.model_validate(
    {
        "embedding_size": 6,
        "stack": {"name": "skip", "num_layers": 1, "hidden_size": 6, "max_jump": 5, "max_jumps": 1},
    }
)


def test_a_reward_for_surprise_makes_a_skimmer_that_is_always_wrong_try_other_jumps() -> None:
    examples = batch(make("number_prediction", lengths=[6]), 200)
    torch.manual_seed(0)
    model = Skimmer(JUMP_ONCE, 6, entropy_weight=1.0)
    with torch.no_grad():
        model.linear.weight.zero_()
        model.linear.bias.copy_(10 * F.one_hot(examples.targets.new_tensor(0), 6))
        model.stack.policy.bias[2] = 4.0
    always_wrong = replace(examples, targets=torch.full_like(examples.targets, 5))
    optimizer = torch.optim.Adam(model.stack.parameters(), lr=0.03)

    def share_of_jump_2() -> float:
        return float((model.stack.read(*reading, sample=True, embed=model.embedding).jumps == 2).double().mean())

    reading = (examples.inputs, examples.lengths)
    assert share_of_jump_2() > 0.8
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(always_wrong).backward()
        optimizer.step()
    assert share_of_jump_2() < 0.35  # 1/6 of equals


def test_a_skimmer_is_offered_more_jumps_as_its_curriculum_goes_on() -> None:
    examples = batch(make("number_prediction", lengths=[6]), 200)
    torch.manual_seed(0)
    model = Skimmer(JUMP_ONCE, 6, entropy_weight=0.0)

    def drawn() -> set[int]:
        trace = model.stack.read(examples.inputs, examples.lengths, sample=True, embed=model.embedding)
        return set(trace.jumps[trace.decided].tolist())

    model.offer_jumps(3)
    assert drawn() == {0, 1, 2}
    model.loss(examples).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    with torch.no_grad():
        model.stack.policy.bias[1] = -0.5
    model.offer_jumps(5)
    assert drawn() == {0, 1, 2, 3, 4}
    assert model.stack.policy.bias.tolist() == [0.0, -0.5, 0.0, 0.0, 0.0, -math.inf]


def test_a_skimmers_policy_has_a_learning_rate_of_its_own() -> None:
    task = make("number_prediction", lengths=[2], policy_rate=10.0)
    assert isinstance(task, NumberPrediction)
    before = Skimmer(JUMP_ONCE, 2, entropy_weight=0.0)
    model = copy.deepcopy(before)
    optimizer = task._optimizer(model, JUMP_ONCE.optim)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # Adam's first step is of the learning rate
    for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
        rate = JUMP_ONCE.optim.learning_rate * (10 if name.startswith("stack.policy.") else 1)
        assert torch.allclose(old - new, torch.full_like(new, rate), rtol=1e-3)


def test_jumps_that_are_not_offered_yet_have_no_weight_decay() -> None:
    task = make("number_prediction", lengths=[2, 6])
    assert isinstance(task, NumberPrediction)
    model = Skimmer(JUMP_ONCE, 6, entropy_weight=0.0)
    model.offer_jumps(2)
    optimizer = task._optimizer(model, JUMP_ONCE.optim.model_copy(update={"weight_decay": 0.1}))
    for _ in range(2):
        model.loss(batch(task, 30)).backward()
        optimizer.step()
    bias = model.stack.policy.bias
    assert bool(bias[:2].isfinite().all())
    assert bool((bias[2:] == -math.inf).all())


def test_a_skimmer_that_jumps_by_what_it_reads_reads_two_numbers() -> None:
    """A policy set by hand: the jump is the number; the answer is then the number that is read last."""
    task = make("number_prediction", lengths=[6])
    torch.manual_seed(0)
    model = Skimmer(JUMP_ONCE, 6, entropy_weight=0.0)
    hidden = model.stack.read(model.embedding(torch.arange(6)[:, None]), torch.ones(6).long(), sample=False).hidden
    with torch.no_grad():  # what each number leaves in the LSTM tells it apart linearly, for the policy and the answer
        for linear in (model.stack.policy, model.linear):
            linear.weight.copy_((30 * torch.linalg.pinv(hidden)).T)
            linear.bias.zero_()
    examples = batch(task, 200)
    outputs, frames_read = model.answer(examples)
    first = examples.inputs[:, 0]
    assert torch.equal(frames_read, torch.where(first == 0, 1, 2))  # a jump of 0 stops
    assert torch.equal(
        model.stack.read(model.embedding(examples.inputs), examples.lengths, sample=False).jumps[:, 0], first
    )
    assert outputs.shape == (200, 6)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("adding", {"length": 1}, r"options\.length"),
        ("recall", {"num_symbols": 0}, r"options\.num_symbols"),
        ("copy_memory", {"inputs": "digits"}, r"options\.inputs.*digits"),
        ("frequency", {"sampling": "regular"}, r"options\.sampling.*regular"),
        ("waveform", {"lenght": 3}, r"options\.lenght"),
        ("ading", {}, "did you mean adding"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(name, **options)


def test_a_skimmer_needs_symbols_as_vectors() -> None:
    case = Case.model_validate({"stack": {"name": "skip", "hidden_size": 6}})
    with pytest.raises(ConfigError, match="embedding_size: got 0"):
        Skimmer(case, 6, entropy_weight=0.0)


def test_a_decoder_answers_what_it_is_trained_to_say() -> None:
    """Two symbols, two lengths: learned within seconds, and `answer`, step by step, says what `loss` asked for."""
    case = Case.model_validate(
        {"stack": {"name": "gru", "num_layers": 1, "hidden_size": 24, "bidirectional": False, "batch_norm": "none"}}
    )
    torch.manual_seed(0)
    model = EncoderDecoder(case, num_symbols=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    symbols, lengths = torch.randint(2, (64, 4)), torch.tensor([3, 4] * 32)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(symbols, lengths).backward()
        optimizer.step()
    assert float(model.loss(symbols, lengths).detach()) < 0.05
    for length in (3, 4):
        chosen = symbols[lengths == length][:, :length]
        assert torch.equal(model.answer(chosen), chosen.flip(1))


def test_a_decoder_cannot_look_ahead() -> None:
    case = Case.model_validate({"stack": {"name": "gru", "hidden_size": 8}})
    with pytest.raises(ConfigError, match="a decoder cannot"):
        EncoderDecoder(case, num_symbols=2)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("key_door", {"embedding_size": 4}, "embedding_size: got 4"),
        ("key_door", {"optim": {"vanishing_regularizer": 1.0}}, r"optim\.vanishing_regularizer: got 1\.0"),
        ("latch", {"stack": {"name": "gru"}}, "stack: got"),
        ("latch", {"optim": {"name": "sgd", "momentum": 0.9}}, r"optim\.momentum: got 0\.9"),
        ("latch", {}, r"optim\.name: got 'adam', but the task latch knows 'sgd' only"),
        ("symmetry", {"optim": {"name": "sgd", "gradient_clip": 1.0}}, r"optim\.gradient_clip: got 1\.0"),
        ("symmetry", {"optim": {"name": "sgd"}, "batch_size": 5}, "batch_size: got 5"),
        ("elman", {"optim": {"name": "rmsprop"}}, r"optim\.name: got 'rmsprop'"),
        ("elman", {"optim": {"name": "sgd"}, "device": "cuda"}, "device: got 'cuda'"),
        ("gas_market", {"optim": {"learning_rate": 0.1}}, "optim: got"),
        ("gas_market", {"seconds": 5.0}, r"seconds: got 5\.0"),
    ],
)
def test_settings_that_a_task_of_its_own_kind_would_ignore_are_refused(
    name: str, given: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"config.yaml: {said}"):
        tasks.check_options(name, Case.model_validate(given), "config.yaml")
