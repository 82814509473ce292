"""The key and the door: a corridor in which what was seen at one end decides what is right at the other.

A T-maze (Bakker 2002) is a corridor with a sign at its start that says which of two doors at its far end is worth a
reward. With `key_distance` the agent begins somewhere else: first it has to fetch the key, a red or a blue one, and
then to walk back past where it started, to the door of that colour. What it sees never tells whether it holds a key,
nor which. The agent, a stack with one linear read-out for policy and value, learns by advantage actor-critic (Mnih et
al. 2016, arXiv 1602.01783) from whole episodes of `batch_size` mazes side by side.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from asr import stacks
from asr.config.fields import NonNegativeFloat, NonNegativeInt, PositiveInt, Probability, Section
from asr.errors import ConfigError
from asr.nn.masking import valid_mask
from asr.sequence.report import Report
from asr.sequence.settings import READOUT, SCHEDULE, Case, Data
from asr.sequence.task import HELD_OUT_SEEDS, Outcome, Split, Task
from asr.sequence.trainer import Curve, device_of, make_optimizer, update

UNUSED_SETTINGS = (  # an agent of its own, whose one read-out is as torch draws it
    *READOUT,
    *SCHEDULE,
    "optim.vanishing_regularizer",
    "graph",
)

CORRIDOR, RED_KEY, BLUE_KEY, JUNCTION, NUM_SIGHTS = 0, 1, 2, 3, 4
LEFT, RIGHT, RED_DOOR, BLUE_DOOR, NUM_ACTIONS = 0, 1, 2, 3, 4


class Options(Section):
    """Options of the key and the door."""

    length: PositiveInt = Field(20, description="cells from the key to the junction with the two doors")
    key_distance: NonNegativeInt = Field(
        0, description="cells from the key within which an episode starts; 0: at the key, a T-maze"
    )
    time_limit: PositiveInt = Field(200, description="moves, after which an episode ends without a reward")
    bump_cost: NonNegativeFloat = Field(0.1, description="of a move that leads nowhere; the right door is worth 1")
    discount: Probability = Field(0.99, description="of a reward, for each move until it comes")
    entropy_weight: NonNegativeFloat = 0.01
    value_weight: NonNegativeFloat = 0.5
    num_test: PositiveInt = Field(1000, description="episodes of a validation, and of the test")

    @model_validator(mode="after")
    def _can_be_solved(self) -> Options:
        if self.key_distance >= self.length:
            raise ValueError(f"key_distance: got {self.key_distance}, expected less than length, {self.length}")
        needed = self.key_distance + self.length + 1
        if self.time_limit < needed:
            raise ValueError(f"time_limit: got {self.time_limit}, expected at least {needed}, the shortest solution")
        return self


def build(options: Options, data: Data) -> KeyDoor:
    """Make the task."""
    return KeyDoor(options)


class Mazes:
    """B corridors side by side; key at cell 0, doors at cell `length`.

    Attributes:
        place: (B,) int64, the cell of each agent.
        blue: (B,) bool, the key's colour.
        holds_key: (B,) bool.
        inside: (B,) bool, False once a door was opened; from then on nothing changes.
    """

    def __init__(self, options: Options, count: int, generator: torch.Generator, device: torch.device) -> None:
        self.options = options
        self.blue = torch.randint(2, (count,), generator=generator).bool().to(device)
        self.place = torch.randint(options.key_distance + 1, (count,), generator=generator).to(device)
        self.holds_key = torch.zeros_like(self.blue)
        self.inside = torch.ones_like(self.blue)

    def look(self) -> Tensor:
        """(B,) what each agent sees; a key that it stands at is picked up and not seen again."""
        finds = (self.place == 0) & ~self.holds_key
        self.holds_key = self.holds_key | finds
        sights = torch.where(self.place == self.options.length, JUNCTION, CORRIDOR)
        return torch.where(finds, torch.where(self.blue, BLUE_KEY, RED_KEY), sights)

    def move(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Take (B,) actions; gives (B,) rewards, and whether the right door was opened just now.

        A door opens with a key only, and only from the junction; one of the wrong colour ends the episode as well.
        """
        aims = (self.place + (actions == RIGHT).long() - (actions == LEFT).long()).clamp(0, self.options.length)
        opens = (actions >= RED_DOOR) & (self.place == self.options.length) & self.holds_key & self.inside
        right = opens & ((actions == BLUE_DOOR) == self.blue)
        bumps = (aims == self.place) & ~opens & self.inside
        self.place = torch.where(self.inside, aims, self.place)
        self.inside = self.inside & ~opens
        return right.float() - self.options.bump_cost * bumps, right


class Episodes(NamedTuple):
    """Whole episodes; the S moves of the longest one, of which `lengths` (B,) are real.

    sights, actions: (B, S) int64. rewards: (B, S). succeeded: (B,) bool.
    """

    sights: Tensor
    actions: Tensor
    rewards: Tensor
    lengths: Tensor
    succeeded: Tensor


class KeyDoor(Task):
    """The share of episodes that end at the right door, actions drawn from the policy."""

    figure = "success rate"
    higher_is_better = True
    chance = 0.5  # of an agent that walks as it should and forgets the key's colour

    def __init__(self, options: Options) -> None:
        self.options = options

    def run(self, case: Case, report: Report) -> Outcome:
        """Train an agent; the weights that did best in a validation are tested."""
        device = device_of(case)
        torch.manual_seed(case.seed)
        agent = Agent(case).to(device)
        optimizer = make_optimizer(agent.parameters(), case.optim)
        generator = torch.Generator().manual_seed(case.seed)
        draws = torch.Generator(device).manual_seed(case.seed)
        curve = Curve(report, case.steps, case.evaluate_every, case.seconds)
        best, best_weights = -1.0, agent.state_dict()
        step = moves = 0
        for step in range(1, case.steps + 1):
            mazes = Mazes(self.options, case.batch_size, generator, device)
            episodes = agent.play(mazes, self.options.time_limit, draws)
            loss = agent.loss(episodes, self.options)
            update(agent, optimizer, loss, case.optim)
            moves += int(episodes.lengths.sum())
            if not curve.due(step, loss):
                continue
            value, _ = self._evaluate(agent, "validation", device)
            curve.add(value)
            if value > best:  # a policy may be lost again
                best, best_weights = value, copy.deepcopy(agent.state_dict())
            reached = case.stop_at_target and case.target is not None and case.target.holds(value)
            if reached or curve.cut_short:
                break
        agent.load_state_dict(best_weights)
        value, mean_moves = self._evaluate(agent, "test", device)
        figures = {"moves of an episode": mean_moves, "million moves in training": moves / 1e6}
        num_parameters = sum(p.numel() for p in agent.parameters())
        return Outcome(value, num_parameters, step, curve.points, figures, curve.cut_short)

    def _evaluate(self, agent: Agent, split: Split, device: torch.device) -> tuple[float, float]:
        """The success rate, and the mean number of moves."""
        seed = HELD_OUT_SEEDS[split]
        mazes = Mazes(self.options, self.options.num_test, torch.Generator().manual_seed(seed), device)
        episodes = agent.play(mazes, self.options.time_limit, torch.Generator(device).manual_seed(seed))
        return float(episodes.succeeded.double().mean()), float(episodes.lengths.double().mean())


class Agent(nn.Module):
    """A stack over what is seen, with a linear read-out for the policy's logits and the value.

    Args:
        case: its stack has to stream, as the agent goes move by move.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        if case.stack is None:
            raise ConfigError("stack: missing; this task needs one, such as stack=lstm")
        self.stack = stacks.build(case.stack, NUM_SIGHTS)
        if self.stack.lookahead_frames != 0:
            raise ConfigError(
                f"stack.name={case.stack.name}: looks ahead; an agent cannot, expected a forward-only stack"
            )
        self.linear = nn.Linear(self.stack.output_size, NUM_ACTIONS + 1)

    def forward(self, sights: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) sights -> log-probabilities of the actions (B, S, A), values (B, S)."""
        hidden, _ = self.stack(_one_hot(sights), lengths)
        outputs = self.linear(hidden)
        return outputs[..., :NUM_ACTIONS].log_softmax(-1), outputs[..., NUM_ACTIONS]

    @torch.no_grad()
    def play(self, mazes: Mazes, time_limit: int, draws: torch.Generator) -> Episodes:
        """Move until every episode has ended or the time is up."""
        count = len(mazes.place)
        state = self.stack.initial_state(count, self.linear.weight)
        lengths = torch.zeros_like(mazes.place)
        succeeded = torch.zeros_like(mazes.inside)
        frames: list[tuple[Tensor, Tensor, Tensor]] = []
        while len(frames) < time_limit and mazes.inside.any():
            sights = mazes.look()
            hidden, state = self.stack.step(_one_hot(sights)[:, None], state)
            policy = self.linear(hidden[:, 0])[:, :NUM_ACTIONS].softmax(-1)
            actions = torch.multinomial(policy, 1, generator=draws)[:, 0]
            lengths += mazes.inside
            rewards, right = mazes.move(actions)
            succeeded |= right
            frames.append((sights, actions, rewards))
        sights, actions, rewards = (torch.stack(column, 1) for column in zip(*frames, strict=True))
        return Episodes(sights, actions, rewards, lengths, succeeded)

    def loss(self, episodes: Episodes, options: Options) -> Tensor:
        """Actor-critic over whole episodes: -A log pi(a) + c_v (V - R)^2 - c_e H, mean over moves, A = R - V."""
        log_probs, values = self(episodes.sights, episodes.lengths)
        returns = discounted(episodes.rewards, options.discount)
        chosen = log_probs.gather(-1, episodes.actions[..., None])[..., 0]
        advantages = returns - values.detach()
        entropies = -(log_probs.exp() * log_probs).sum(-1)
        losses = -advantages * chosen + options.value_weight * (values - returns).square()
        real = valid_mask(episodes.lengths, values.shape[1])
        return (losses - options.entropy_weight * entropies)[real].mean()


def discounted(rewards: Tensor, discount: float) -> Tensor:
    """(B, S) rewards -> the sum of those that follow, each counted `discount` less for every move until it comes."""
    returns = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + discount * following
        returns[:, t] = following
    return returns


def _one_hot(sights: Tensor) -> Tensor:
    return F.one_hot(sights, NUM_SIGHTS).float()
