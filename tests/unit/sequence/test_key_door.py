"""The key and the door: mazes equal a slow single one, returns their definition, and an agent acts as it is trained."""

import pytest
import torch
from torch import Tensor

from asr.errors import ConfigError
from asr.sequence import tasks
from asr.sequence.report import Report
from asr.sequence.settings import Case
from asr.sequence.task import Outcome
from asr.sequence.tasks.key_door import (
    BLUE_DOOR,
    BLUE_KEY,
    CORRIDOR,
    JUNCTION,
    LEFT,
    RED_DOOR,
    RED_KEY,
    RIGHT,
    Agent,
    Mazes,
    Options,
    discounted,
)

CPU = torch.device("cpu")
LSTM = {"name": "lstm", "num_layers": 1, "hidden_size": 12, "bidirectional": False, "batch_norm": "none"}


def mazes(count: int = 300, **options: object) -> Mazes:
    return Mazes(Options.model_validate(options), count, torch.Generator().manual_seed(1), CPU)


def agent(**stack: object) -> Agent:
    torch.manual_seed(0)
    return Agent(Case.model_validate({"stack": LSTM | stack}))


def walk(blue: bool, place: int, actions: list[int], *, length: int, bump_cost: float) -> list[tuple[int, float, bool]]:
    """One maze, told move by move: (what is seen, reward, whether the right door opened); stops at a door."""
    told = []
    key = False
    for action in actions:
        sight = JUNCTION if place == length else CORRIDOR
        if place == 0 and not key:
            key, sight = True, BLUE_KEY if blue else RED_KEY
        if action == LEFT and place > 0:
            place, reward = place - 1, 0.0
        elif action == RIGHT and place < length:
            place, reward = place + 1, 0.0
        elif action in (RED_DOOR, BLUE_DOOR) and place == length and key:
            right = (action == BLUE_DOOR) == blue
            return [*told, (sight, float(right), right)]
        else:
            reward = -bump_cost
        told.append((sight, reward, False))
    return told


@pytest.mark.parametrize("key_distance", [0, 2])
def test_mazes_side_by_side_equal_one_told_move_by_move(key_distance: int) -> None:
    """Random moves in short corridors, so that many doors open."""
    all_mazes = mazes(length=3, key_distance=key_distance, bump_cost=0.25)
    starts, blue = all_mazes.place.tolist(), all_mazes.blue.tolist()
    assert set(starts) == set(range(key_distance + 1))
    actions = torch.randint(4, (300, 40), generator=torch.Generator().manual_seed(2))
    frames = []
    for t in range(40):
        inside = all_mazes.inside.clone()
        frames.append((inside, all_mazes.look(), *all_mazes.move(actions[:, t])))
    insides, sights, rewards, rights = (torch.stack(column, 1) for column in zip(*frames, strict=True))
    ended = 0
    for i in range(300):
        told = walk(blue[i], starts[i], actions[i].tolist(), length=3, bump_cost=0.25)
        n = len(told)
        assert insides[i].tolist() == [True] * n + [False] * (40 - n)
        seen = zip(sights[i, :n].tolist(), rewards[i, :n].tolist(), rights[i, :n].tolist(), strict=True)
        assert list(seen) == told
        assert not rewards[i, n:].any()
        assert not rights[i, n:].any()
        ended += n < 40
    assert 100 < ended < 300


def walker(options: dict[str, object], *, remembers: bool) -> tuple[float, int]:
    """A rule that plays: to the key, to the junction, the door of its colour or always the red one; moves it took."""
    all_mazes = mazes(4000, **options)
    knows, blue, succeeded = torch.zeros(3, 4000, dtype=torch.bool)
    moves = 0
    while all_mazes.inside.any():
        sights = all_mazes.look()
        knows |= (sights == RED_KEY) | (sights == BLUE_KEY)
        blue |= sights == BLUE_KEY
        door = torch.where(blue & remembers, BLUE_DOOR, RED_DOOR)
        actions = torch.where(sights == JUNCTION, door, torch.where(knows, RIGHT, LEFT))
        succeeded |= all_mazes.move(actions)[1]
        moves += 1
    return float(succeeded.double().mean()), moves


def test_chance_is_an_agent_that_forgets_the_colour() -> None:
    options: dict[str, object] = {"length": 9, "key_distance": 4, "time_limit": 14}
    assert walker(options, remembers=True) == (1.0, 14)
    blind, _ = walker(options, remembers=False)
    assert blind == pytest.approx(
        tasks.build("key_door", Case.model_validate({"options": options}), "test").chance, abs=0.03
    )


def test_returns_are_discounted_sums() -> None:
    rewards = torch.randn(3, 7, dtype=torch.float64)
    expected = [[sum(0.9**k * row[t + k] for k in range(7 - t)) for t in range(7)] for row in rewards.tolist()]
    assert torch.allclose(discounted(rewards, 0.9), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


STACKS = [
    {},
    {"name": "dilated", "cell": "lstm", "first_dilation": 4, "fusion": "mean"},
    {"name": "gru", "num_layers": 2},
]


@pytest.mark.parametrize("stack", STACKS)
def test_an_agent_acts_by_the_policy_that_it_is_trained_on(
    stack: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    policies: list[Tensor] = []
    multinomial = torch.multinomial

    def draw(policy: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
        policies.append(policy)
        return multinomial(policy, count, generator=generator)

    monkeypatch.setattr(torch, "multinomial", draw)
    player = agent(**stack)
    with torch.no_grad():
        player.linear.weight.mul_(5)  # policies that differ
    played = mazes(200, length=3, key_distance=1)
    episodes = player.play(played, 30, torch.Generator().manual_seed(3))
    assert episodes.sights.shape == episodes.actions.shape == episodes.rewards.shape == (200, 30)
    log_probs, _ = player(episodes.sights, episodes.lengths)
    real = torch.arange(30) < episodes.lengths[:, None]
    assert 200 < int(real.sum()) < 6000
    assert float((torch.stack(policies, 1) - log_probs.exp())[real].detach().abs().max()) < 1e-5
    holds_key = ((episodes.sights == RED_KEY) | (episodes.sights == BLUE_KEY)).cummax(1).values
    opened = (episodes.actions >= RED_DOOR) & (episodes.sights == JUNCTION) & holds_key
    assert torch.equal((opened & real).any(1), ~played.inside)
    assert torch.equal(episodes.succeeded, ((episodes.rewards == 1) & real).any(1))


def test_loss_is_actor_critic_move_by_move() -> None:
    options = Options.model_validate(
        {"length": 3, "time_limit": 12, "discount": 0.8, "entropy_weight": 0.3, "value_weight": 0.7}
    )
    player = agent()
    episodes = player.play(mazes(20, length=3), 12, torch.Generator().manual_seed(3))
    log_probs, values = player(episodes.sights, episodes.lengths)
    terms = []
    for i, length in enumerate(episodes.lengths.tolist()):
        for t in range(length):
            value = values[i, t]
            later = sum(0.8 ** (k - t) * float(episodes.rewards[i, k]) for k in range(t, length))
            entropy = torch.distributions.Categorical(logits=log_probs[i, t]).entropy()
            advantage = later - float(value.detach())
            action = int(episodes.actions[i, t])
            terms.append(-advantage * log_probs[i, t, action] + 0.7 * (value - later) ** 2 - 0.3 * entropy)
    expected, got = torch.stack(terms).mean(), player.loss(episodes, options)
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    weights = list(player.parameters())
    for ours, theirs in zip(torch.autograd.grad(got, weights), torch.autograd.grad(expected, weights), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def run(**settings: object) -> Outcome:
    case = Case.model_validate({"stack": LSTM, "options": {"length": 3, "time_limit": 12, "num_test": 200}} | settings)
    task = tasks.build("key_door", case, "test")
    with Report("test", task.figure, case.steps) as report:
        return task.run(case, report)


def test_a_short_corridor_is_learnt_and_the_seed_decides_everything() -> None:
    settings = {"steps": 120, "evaluate_every": 40, "batch_size": 64, "optim": {"learning_rate": 0.02}}
    outcome = run(**settings)
    assert outcome.value > 0.95
    assert outcome.figures["moves of an episode"] < 6
    assert [step for step, *_ in outcome.curve] == [40, 80, 120]
    few = settings | {"steps": 4, "evaluate_every": 2}
    assert run(**few) == run(**few)
    assert run(**few).curve != run(**few, seed=2).curve


def test_a_stack_that_looks_ahead_is_refused() -> None:
    with pytest.raises(ConfigError, match="an agent cannot"):
        agent(bidirectional=True)
    with pytest.raises(ConfigError, match="an agent cannot"):
        agent(lookahead_frames=2)
    with pytest.raises(ConfigError, match="stack: missing"):
        Agent(Case.model_validate({}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"length": 5, "key_distance": 5}, "key_distance: got 5, expected less than length, 5"),
        ({"length": 50, "time_limit": 50}, "time_limit: got 50, expected at least 51"),
        ({"lenght": 5}, "lenght"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tasks.build("key_door", Case.model_validate({"options": options}), "test")
