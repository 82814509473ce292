"""Symmetry: the 64 strings, the solution that the paper describes, and that nets side by side do not mix."""

import torch

from asr.sequence import tasks
from asr.sequence.report import Report
from asr.sequence.settings import Case, Optim
from asr.sequence.tasks.symmetry import forward, strings


def test_the_strings_are_all_64_and_8_of_them_are_symmetric() -> None:
    bits, targets = strings()
    texts = ["".join(str(int(bit)) for bit in row) for row in bits]
    assert len(set(texts)) == 64
    assert [bool(target) for target in targets] == [text == text[::-1] for text in texts]
    assert targets.sum() == 8


def test_the_papers_solution_solves_it() -> None:
    """Weights of equal size and opposite sign about the middle, 1:2:4, so that only symmetric strings cancel."""
    first = torch.tensor([1.0, 2.0, 4.0, -4.0, -2.0, -1.0])[:, None] * torch.tensor([5.0, -5.0])
    weights = [w[None] for w in (first, torch.full((1, 2), -2.5), torch.full((2, 1), -10.0), torch.full((1, 1), 5.0))]
    bits, targets = strings()
    assert torch.equal(forward(bits, weights)[0] > 0.5, targets > 0.5)


def test_nets_side_by_side_are_nets() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(3, *size) for size in ((6, 2), (1, 2), (2, 1), (1, 1))]
    bits, _ = strings()
    together = forward(bits, weights)
    for net in range(3):
        w, a, v, b = (weight[net] for weight in weights)
        alone = torch.sigmoid(torch.sigmoid(bits @ w + a) @ v + b)[:, 0]
        assert (together[net] - alone).abs().max() < 1e-6


def test_a_run_counts_nets() -> None:
    optim = Optim(name="sgd", learning_rate=0.1, momentum=0.9)
    case = Case(options={"num_nets": 2}, steps=40, evaluate_every=20, optim=optim)
    task = tasks.build("symmetry", case, "test")
    with Report("test", task.figure, case.steps) as report:
        first, second = task.run(case, report), task.run(case, report)
    assert first == second
    assert first.value == 0.0  # 40 sweeps solve nothing
    assert first.parameters == 6 * 2 + 2 + 2 + 1
    assert [step for step, *_ in first.curve] == [20, 40]
