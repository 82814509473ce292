"""`asr stack`: what it counts, what it shows, what it says of mistakes."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from asr import cli, model, stacks
from asr.config import load
from asr.config.options import names, validate_stack
from asr.config.presets import presets
from asr.stacks._command import NUM_FRAMES, main
from asr.stacks._multiply_adds import FORMULAS, build_and_count

INPUT_SIZE = 12
SMALL = ["--input-size", str(INPUT_SIZE), "--frame-seconds", "0.02", "hidden_size=16"]  # 16: clockwork has 8 modules


def described(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    """The JSON of each stack."""
    assert main(["--json", *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, *words: str) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(words) == 0
    return capsys.readouterr().out


def mistakes(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["stack", *words])
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {"name": "gru", "num_layers": 2, "projection_size": 5},
        {"name": "gru", "reset": "before", "bidirectional": False, "lookahead_frames": 3},
        {"name": "lstm", "merge": "concat", "batch_norm": "input"},
        {"name": "rnn", "residual": "projection"},
        {"name": "dilated", "num_layers": 9},
        {"name": "dilated", "first_dilation": 4, "bidirectional": False},
        {"name": "linear_rnn", "cell": "sru"},
        {"name": "phased_lstm", "peepholes": False},
        {"name": "tcn"},
        {"name": "tcn", "padding": "centred", "batch_norm": True},
    ],
)
def test_a_matrix_has_one_multiply_add_an_element_and_frame(options: dict[str, object]) -> None:
    stack, multiply_adds = build_and_count(validate_stack({"hidden_size": 16, **options}), INPUT_SIZE, NUM_FRAMES)
    assert multiply_adds == sum(p.numel() for p in stack.parameters() if p.squeeze().dim() > 1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # An element-wise recurrence costs nothing beside the projections of 2 directions with 3 gates, on 12 and on 16.
        ({"name": "diagonal", "num_layers": 2}, 2 * 3 * 16 * (12 + 16)),
        # Modules of 8 units run every frame and every second; the first multiplies 16 old states, the second its own 8.
        # Both have zeros in place of what they do not read, up to all 16.
        ({"name": "clockwork", "num_layers": 1, "num_modules": 2}, (8 + 16) / 2 * (12 + 16)),
    ],
)
def test_multiply_adds_counted_by_hand(options: dict[str, object], expected: float) -> None:
    assert build_and_count(validate_stack({"hidden_size": 16, **options}), INPUT_SIZE, NUM_FRAMES)[1] == expected


@pytest.mark.parametrize("name", ["gru", "tcn", "linear_rnn"])
def test_torch_counts_the_same_where_it_counts_all(name: str) -> None:
    """Its counter computes the products, and knows no operations in place."""
    config = validate_stack({"name": name, "hidden_size": 16})
    stack = stacks.build(config, INPUT_SIZE).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as theirs:
        stack(torch.randn(1, 50, INPUT_SIZE), torch.tensor([50]))
    assert build_and_count(config, INPUT_SIZE, 50)[1] * 50 * 2 == theirs.get_total_flops()


class Seen(TorchDispatchMode):
    """Writes down the names of the operations that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.add(func.overloadpacket)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", names())
def test_no_product_of_any_stack_is_overlooked(name: str) -> None:
    stack = stacks.build(validate_stack({"name": name, "hidden_size": 16}), INPUT_SIZE).eval()
    with torch.no_grad(), Seen() as seen:
        stack(torch.randn(1, 20, INPUT_SIZE), torch.tensor([20]))
    parts = ("mm", "mv", "dot", "linear", "conv", "einsum", "rnn", "lstm", "gru", "attention", "fft", "cdist", "solve")
    products = {packet for packet in seen.operations if any(part in str(packet) for part in parts)}
    assert seen.operations
    assert products <= FORMULAS.keys()


def test_every_stack_and_preset_has_a_description(capsys: pytest.CaptureFixture[str]) -> None:
    known = sorted({*names(), *presets()["stack"]})
    rows = described(capsys, *SMALL, "num_layers=2", *known)
    assert [row["stack"] for row in rows] == known
    assert {"gru", "gru_streaming"} <= set(known)
    for row in rows:
        assert row["options"]["num_layers"] == 2
        assert row["parameters"] > 0
        assert row["multiply_adds_per_second"] == row["multiply_adds_per_frame"] / 0.02 > 0
        assert row["streams"] == (row["lookahead_frames"] is not None) == (row["not_streamable"] == "")


def test_a_preset_comes_before_a_file_and_own_options_before_those_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    rows = described(capsys, *SMALL, "num_layers=2", "tcn_causal", "gru_streaming", "num_layers=1", "merge=concat")
    causal, streaming = rows
    assert (causal["options"]["name"], causal["options"]["num_layers"]) == ("tcn", 2)
    assert causal["given"] == []
    assert streaming["options"]["lookahead_frames"] == 20  # the preset's; the file's default is 0
    assert streaming["given"] == ["num_layers=1", "merge=concat"]
    assert (streaming["options"]["num_layers"], streaming["options"]["merge"]) == (1, "concat")


def test_frames_and_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("num_layers=2", "kernel_size=3")
    centred, gru, backward = described(
        capsys, *SMALL, "tcn", "padding=centred", *options, "gru_streaming", "gru", "bidirectional=true"
    )
    assert (centred["lookahead_frames"], centred["past_frames"]) == (6, 6)  # (3 - 1) * (2^2 - 1)
    assert centred["receptive_field_frames"] == 13
    assert centred["lookahead_seconds"] == pytest.approx(0.12)
    assert centred["past_seconds"] == pytest.approx(0.12)
    assert (gru["lookahead_frames"], gru["past_frames"], gru["receptive_field_frames"]) == (20, None, None)
    assert (backward["lookahead_frames"], backward["lookahead_seconds"]) == (None, None)
    assert "bidirectional=true" in backward["not_streamable"]


def test_values_are_written_as_for_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = described(capsys, *SMALL, "clockwork", "num_modules=2", "periods=[1,4]", "learned_initial=true")
    assert row["options"]["periods"] == [1, 4]
    assert row["options"]["learned_initial"] is True
    assert row["figures"]["active_units_share"] == pytest.approx(5 / 8)


def test_the_default_frames_are_those_of_the_default_model(capsys: pytest.CaptureFixture[str]) -> None:
    speech = model.build(load("recipes/librispeech", ["stack.num_layers=1", "stack.hidden_size=8"]), num_tokens=5)
    (row,) = described(capsys, "rnn", "hidden_size=8")
    assert row["input_size"] == speech.front_end.output_size
    assert row["frame_seconds"] == speech.frame_seconds
    (row,) = described(capsys, "rnn", "hidden_size=8", "--input-size", "7")
    assert (row["input_size"], row["frame_seconds"]) == (7, speech.frame_seconds)


UNREACHABLE = [
    "dilated",
    "first_dilation=2",
    "fusion=none",
    "num_layers=2",
    "bidirectional=false",
    "lookahead_frames=0",
]


def test_an_infinite_figure_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = described(capsys, *SMALL, *UNREACHABLE)
    assert list(row["figures"].values()) == [None]


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = printed(capsys, monkeypatch, 200, *SMALL, "tcn_causal", "kernel_size=3", "gru_streaming", *UNREACHABLE)
    lines = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in shown.splitlines() if "\u2502" in line]
    table = {line[0]: line[1:] for line in lines}
    assert shown.startswith("12 features a frame, a frame every 20 ms; hidden_size=16\n")
    assert table["look-ahead, frames"] == ["0", "20 = 400 ms", "0"]
    assert table["past, frames"] == ["60 = 1.2 s", "unbounded", "unbounded"]
    assert table["receptive field, frames"] == ["61 = 1.22 s", "unbounded", "unbounded"]
    assert table["streams"] == ["yes", "yes", "yes"]
    assert table["mean recurrent length"][0] == ""  # a TCN has none
    assert table["mean recurrent length"][2] == "infinite"
    assert "kernel_size=3" in shown
    assert "does not stream" not in shown


@pytest.mark.parametrize(("width", "tables"), [(80, 2), (120, 1)])
def test_tables_have_as_many_columns_as_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, tables: int
) -> None:
    asked = ["tcn_causal", "gru_streaming", "diagonal", "linear_rnn", "clockwork"]
    shown = printed(capsys, monkeypatch, width, *SMALL, *asked)
    assert shown.count("parameters") == tables
    assert max(map(len, shown.splitlines())) <= width
    assert all(f" {name} " in shown for name in asked)
    assert "diagonal does not stream: stack diagonal with bidirectional=true needs" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["gru", "hidden_sizee=3", "tcnn", "dilated", "cell=gruu", "num_layers=0"],
            [
                "1 mistake in the configuration from gru hidden_sizee=3",
                "stack.hidden_sizee: no such key; did you mean hidden_size?",
                "got stack 'tcnn', expected one of clockwork, ",
                "did you mean tcn?",
                "2 mistakes in the configuration from dilated cell=gruu num_layers=0",
                "stack.cell: got 'gruu', expected 'rnn', 'lstm' or 'gru'; did you mean gru?",
                "stack.num_layers: got 0, expected greater than 0",
            ],
        ),
        (
            ["cell=gru", "gru", "dilated"],
            ["1 mistake in the configuration from cell=gru gru\n", "stack.cell: no such key"],
        ),
        (
            ["gru", "a[=3", "num_layers=1,2"],
            ["a[=3: expected key=value", "num_layers=1,2: several values, expected one"],
        ),
        (
            [*SMALL, "gru", "bidirectional=true", "lookahead_frames=3", "tcn", "padding=centred", "kernel_size=4"],
            [
                "1 mistake in the configuration from hidden_size=16 gru bidirectional=true lookahead_frames=3\n",
                "stack.lookahead_frames: got 3",
                "from hidden_size=16 tcn padding=centred kernel_size=4\n  stack.kernel_size: got 4",
            ],
        ),
        (["hidden_size=3"], ["got no stack, expected one of clockwork, "]),
        (["gru", "--input-size", "0"], ["--input-size: got 0, expected a number above 0"]),
        (["gru", "--frame-seconds", "nan"], ["--frame-seconds: got nan, expected a number above 0"]),
    ],
)
def test_mistakes_are_answered_all_at_once(
    words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = mistakes(capsys, *words)
    assert all(part in message for part in expected), message


def test_a_bug_in_a_stack_is_no_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: object, input_size: int) -> None:
        raise ValueError("not for the user")

    monkeypatch.setattr(stacks, "build", fail)
    with pytest.raises(ValueError, match="not for the user"):
        main([*SMALL, "gru"])


@pytest.mark.parametrize("words", [["--help"], ["gru", "hidden_sizee=3"]])
def test_help_and_mistakes_do_not_wait_for_torch(words: list[str]) -> None:
    code = f"""
import sys
from asr.cli import main
try:
    main(["stack", *{words!r}])
except SystemExit:
    assert "torch" not in sys.modules
else:
    raise AssertionError("expected an exit")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
