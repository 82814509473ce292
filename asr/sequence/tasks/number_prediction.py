"""Number prediction (Yu, Lee and Le 2017, section 4.1): of the numbers x_0 .. x_{T-1}, all below T, say x_{x_0}.

A reader that jumps needs two: the first says how far the second is. `stack=skip` learns to by REINFORCE; any other
stack reads everything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from asr import stacks
from asr.config.fields import NonNegativeFloat, PositiveFloat, PositiveInt, Section
from asr.config.options import validate_stack
from asr.errors import ConfigError
from asr.sequence.report import Report
from asr.sequence.settings import Case, Data, Optim
from asr.sequence.task import Classification, Examples, MadeTask, Outcome, Split
from asr.sequence.trainer import Curve, device_of, fit, make_optimizer, update
from asr.stacks.skip import Skip, reinforce_loss

TIMED_SEQUENCES, TIMINGS = 500, 9


class Options(Section):
    """Options of number prediction."""

    lengths: tuple[PositiveInt, ...] = Field(
        (20,), description="T; several: a curriculum, the next one when `enough` of the last are right"
    )
    enough: float = Field(0.98, gt=0.0, le=1.0)
    entropy_weight: NonNegativeFloat = Field(
        0.0, description="of -log p of the jump that was drawn, in the reward: keeps jumps that are not known yet alive"
    )
    policy_rate: PositiveFloat = Field(
        1.0,
        description="the policy's learning rate over the others': a jump has to be found before answers are unlearned",
    )
    num_test: PositiveInt = Field(2000, description="sequences of the validation set, and of the test set")


def build(options: Options, data: Data) -> NumberPrediction:
    """Make the task."""
    return NumberPrediction(options)


class NumberPrediction(MadeTask, Classification):
    """(B, T) numbers -> the one that the first one points at."""

    def __init__(self, options: Options) -> None:
        self.options, self.num_test = options, options.num_test
        self.length = options.lengths[0]
        self.input_size = self.output_size = options.lengths[-1]
        self.chance = 1 / options.lengths[-1]

    def run(self, case: Case, report: Report) -> Outcome:
        if case.stack is None or case.stack.name != "skip":
            return fit(self, case, report)
        return self._run_skimmer(case, report)

    def examples(self, count: int, generator: torch.Generator) -> Examples:
        numbers = torch.randint(self.length, (count, self.length), generator=generator)
        return Examples(numbers, torch.full((count,), self.length), numbers.gather(1, numbers[:, :1])[:, 0])

    def _run_skimmer(self, case: Case, report: Report) -> Outcome:
        device = device_of(case)
        torch.manual_seed(case.seed)
        model = Skimmer(case, self.input_size, self.options.entropy_weight).to(device)
        optimizer = self._optimizer(model, case.optim)
        generator = torch.Generator().manual_seed(case.seed)
        stages = iter(self.options.lengths[1:])
        model.offer_jumps(self.length)
        curve, step = Curve(report, case.steps, case.evaluate_every, case.seconds), 0
        for step in range(1, case.steps + 1):
            examples = self.examples(case.batch_size, generator)
            loss = model.loss(examples.to(device))
            update(model, optimizer, loss, case.optim)
            if not curve.due(step, loss):
                continue
            value, _ = self._evaluate(model, "validation")
            curve.add(value)
            if value >= self.options.enough:
                following = next(stages, None)
                if following is not None:
                    self.length = following
                    model.offer_jumps(following)
                elif case.stop_at_target and case.target is not None and case.target.holds(value):
                    break
            if curve.cut_short:
                break
        self.length = self.options.lengths[-1]  # also where the curriculum did not end: judged on what was asked for
        value, read = self._evaluate(model, "test")
        figures = {"share of numbers read": read / self.length, "times as fast as reading all": self._gain(model, case)}
        num_parameters = sum(p.numel() for p in model.parameters())
        return Outcome(value, num_parameters, step, curve.points, figures, curve.cut_short)

    def _optimizer(self, model: Skimmer, optim: Optim) -> torch.optim.Optimizer:
        policy = list(model.stack.policy.parameters())
        others = [p for name, p in model.named_parameters() if not name.startswith("stack.policy.")]
        own = {"lr": self.options.policy_rate * optim.learning_rate, "weight_decay": 0.0}  # of -inf there is no decay
        return make_optimizer([{"params": others}, {"params": policy} | own], optim)

    @torch.no_grad()
    def _evaluate(self, model: Skimmer, split: Split) -> tuple[float, float]:
        """Accuracy, and numbers read of a sequence."""
        (examples,) = self.evaluation(split)
        examples = examples.to(model.linear.weight.device)
        outputs, frames_read = model.answer(examples)
        total, count = self.score(outputs, examples)
        return float(total / count), float(frames_read.double().mean())

    @torch.no_grad()
    def _gain(self, model: Skimmer, case: Case) -> float:
        """Seconds of an LSTM of the same size that reads all numbers, over those of the skimmer; medians in turn."""
        assert case.stack is not None
        size = case.stack.model_dump(include={"num_layers", "hidden_size"})
        options = validate_stack({"name": "lstm", "bidirectional": False, "batch_norm": "none", **size})
        device = model.linear.weight.device
        reader = stacks.build(options, model.embedding.embedding_dim).eval().to(device)
        examples = self.examples(TIMED_SEQUENCES, torch.Generator().manual_seed(-3)).to(device)

        def read_all() -> None:
            reader(model.embedding(examples.inputs), examples.lengths)

        def seconds(function: Callable[[], object]) -> float:
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start

        for warm_up in (lambda: model.answer(examples), read_all):
            seconds(warm_up)
        times = [(seconds(lambda: model.answer(examples)), seconds(read_all)) for _ in range(TIMINGS)]
        ours, theirs = (sorted(column)[TIMINGS // 2] for column in zip(*times, strict=True))
        return theirs / ours


class Skimmer(nn.Module):
    """Symbols -> a skimming LSTM -> an answer, trained by cross-entropy and REINFORCE together.

    Args:
        case: `stack=skip`, `embedding_size`.
        num_symbols: that come in, and may be the answer.
        entropy_weight: see `Options`.
    """

    def __init__(self, case: Case, num_symbols: int, entropy_weight: float) -> None:
        super().__init__()
        self.entropy_weight = entropy_weight
        if not case.embedding_size:
            raise ConfigError("embedding_size: got 0, expected 1 or more with stack=skip")
        assert case.stack is not None
        self.embedding = nn.Embedding(num_symbols, case.embedding_size)
        stack = stacks.build(case.stack, case.embedding_size)
        assert isinstance(stack, Skip)
        self.stack = stack
        self.linear = nn.Linear(stack.output_size, num_symbols)

    @torch.no_grad()
    def offer_jumps(self, number: int) -> None:
        """Let the policy draw from the jumps below `number` alone, of which new ones begin with a bias of 0.

        Others would lead out of the sequences that the curriculum has so far.
        """
        bias = self.stack.policy.bias
        bias[:number].masked_fill_(bias[:number].isinf(), 0.0)
        bias[number:] = -math.inf

    def loss(self, examples: Examples) -> Tensor:
        """The paper's equation 2: jumps are drawn; a right answer is worth +1, a wrong one -1.

        With an entropy weight, a jump that was improbable is worth something beside.
        """
        trace = self.stack.train().read(examples.inputs, examples.lengths, sample=True, embed=self.embedding)
        outputs = self.linear(trace.hidden)
        rewards = (outputs.argmax(1) == examples.targets).float() * 2 - 1
        rewards = rewards - self.entropy_weight * trace.log_probs.detach().sum(1)
        return F.cross_entropy(outputs, examples.targets) + reinforce_loss(trace, rewards).mean()

    def answer(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Outputs (B, V) and the numbers read (B,); jumps are the most probable ones."""
        trace = self.stack.eval().read(examples.inputs, examples.lengths, sample=False, embed=self.embedding)
        return self.linear(trace.hidden), trace.frames_read
