"""`asr launch` from the command to trained weights: self-test, two nodes under torchrun, pre-emption under SLURM."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from asr import checkpoint
from tests.integration.conftest import ROOT, Start, children, finish, wait_for_checkpoint
from tests.support import slurm, train_tones

EPOCHS = 4  # 9 steps each
# A rank that sends a wrong number, as a broken link or memory would.
LIAR = """
import sys
import torch.distributed as dist
right = dist.all_reduce
def wrong(rows):
    rows[1, 7] += 1
    right(rows)
dist.all_reduce = wrong
from asr.launch.self_test import main
sys.exit(main())
"""


def free_port() -> int:
    """One whose neighbour is most likely free as well."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return min(taken.getsockname()[1], 65000)


def start_process(command: list[str], **variables: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def start_rank(rank: int, port: int, *arguments: str, program: tuple[str, ...] = ("-m", "asr.launch.self_test")):
    """One of two tasks of the self-test, as srun would start it."""
    command = [sys.executable, *program, "recipes/an4", "trainer.accelerator=cpu", *arguments]
    place = {"SLURM_NTASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    return start_process(command, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), **place)


HOST = socket.gethostname()


def test_two_ranks_that_agree() -> None:
    port = free_port()
    ranks = start_rank(0, port), start_rank(1, port)
    out = finish(ranks[0])
    assert out.startswith(f"self-test: 2 ranks agree ({HOST}: 2 x CPU); python {sys.version.split()[0]}, torch ")
    assert "a sum of 16 MB takes" in out
    assert finish(ranks[1]) == ""


def test_another_recipe_and_another_checkout_are_named(tmp_path: Path) -> None:
    """One rank with a copy of the toolkit in which one file has changed."""
    shutil.copytree(ROOT / "asr", tmp_path / "asr", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    with (tmp_path / "asr" / "model.py").open("a") as handle:
        handle.write("# an old state\n")
    run = "from asr.launch.self_test import main; sys.exit(main())"
    port = free_port()
    other = start_rank(1, port, "seed=5", program=("-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {run}"))
    out = finish(start_rank(0, port), 1)
    finish(other, 1)
    assert f"self-test: rank 1 on {HOST}: asr is 0.1.0 (" in out
    assert f"self-test: rank 1 on {HOST}: recipe is " in out
    assert "agree" not in out


def test_a_rank_whose_numbers_come_out_wrong_is_named() -> None:
    port = free_port()
    liar = start_rank(1, port, program=("-c", LIAR))
    out = finish(start_rank(0, port), 1)
    finish(liar, 1)
    assert f"rank 0 on {HOST}: got a wrong sum for the numbers of rank 1 on {HOST}" in out
    assert "agree" not in out


def test_a_rank_that_does_not_come_is_named() -> None:
    out = finish(start_rank(0, free_port(), "--wait-seconds", "2"), 1)
    assert out == f"self-test: rank 1: not heard of within 2 s; ranks came from {HOST} (1)\n"


def test_a_host_that_cannot_be_reached_is_named() -> None:
    out = finish(start_rank(1, free_port(), "--wait-seconds", "1"), 1)
    assert out.startswith(f"self-test: rank 1 on {HOST}: rank 0 cannot be reached at 127.0.0.1:")
    assert len(out.splitlines()) == 1


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The last checkpoint's."""
    folder = run / checkpoint.read_index(run)["last"]
    checkpoint.verify(folder)
    return load_file(folder / "model.safetensors")


def test_two_nodes_train_what_one_process_trains(start: Start, recipe: Path, cache: Path, tmp_path: Path) -> None:
    """A torchrun for each of two ranks, on this machine. Dropout differs by rank, so there is none.

    tests/integration/test_ranks.py compares gradients in float64, to 1e-10. Here whole runs in float32 are compared:
    each step rounds otherwise, by some 1e-7 of a gradient, and SGD adds that up.
    """
    same = ["optim=ds2_sgd", "stack.dropout=0", "head.dropout=0", "optim.ema_decay=0", "trainer.max_epochs=2"]
    same += ["optim.learning_rate=1e-3", "optim.momentum=0.9"]
    one = start([f"run_dir={tmp_path}/one", *same])
    finish(one)
    settings = [*train_tones.SETTINGS, *same, f"data.cache={cache}", f"run_dir={tmp_path}/two"]
    nodes = ["nodes=2", "hosts=[127.0.0.1,127.0.0.1]", "gpus=0", "ranks_per_node=1", f"port={free_port()}"]
    launch = [sys.executable, "-m", "asr", "launch", str(recipe), "--cluster", "torchrun", *nodes, *settings]
    script = finish(start_process(launch)).splitlines()[0]
    started = [start_process(["bash", script]) for _ in range(2)]
    said = "".join(finish(process) for process in started)
    assert said.count("self-test: 2 ranks agree") == 1
    assert "trainer.devices=1" in (tmp_path / "two" / "command.txt").read_text()
    expected, got = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert got.keys() == expected.keys()
    assert len(got) > 10
    moved = 0.0
    for name, value in expected.items():
        assert float((got[name] - value).abs().max()) <= 1e-5 * max(1.0, float(value.abs().max())), name
        moved = max(moved, float(value.abs().max()))
    assert moved > 0.01


def test_a_job_that_is_told_to_stop_goes_on_where_it_was(
    start: Start, recipe: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM's signal before the time limit, to every process of the step: saved, requeued, and the same weights."""
    finish(start([f"run_dir={tmp_path}/whole", f"trainer.max_epochs={EPOCHS}", "trainer.devices=2"]))
    state = tmp_path / "slurm"
    state.mkdir()
    slurm.install(state, tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    run = tmp_path / "run"
    settings = [*train_tones.SETTINGS, f"data.cache={cache}", f"run_dir={run}", f"trainer.max_epochs={EPOCHS}"]
    job = ["gpus=0", "ranks_per_node=2", "cpus_per_rank=1"]  # one thread, as the other run has
    launch = [sys.executable, "-m", "asr", "launch", str(recipe), "--cluster", "slurm", "--submit", *job, *settings]
    process = start_process(launch)
    wait_for_checkpoint(run, process)
    tasks = [int(line) for line in (state / "tasks").read_text().split()]
    slurm.signal_tasks(tasks, signal.SIGUSR1)
    assert "Submitted batch job 4242" in finish(process)
    log = (run / "launch" / "slurm-4242.out").read_text()
    assert (state / "starts").read_text().split() == ["138", "0"], log
    assert "stopped with status 138; requeued" in log
    assert log.count("self-test: 2 ranks agree") == 2
    expected, got = weights(tmp_path / "whole"), weights(run)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


def test_a_rank_that_is_killed_costs_what_came_after_the_last_checkpoint(
    recipe: Path, cache: Path, tmp_path: Path
) -> None:
    """Kill -9 of a rank on one of two nodes: torchrun starts both ranks again, and they come to the same weights."""
    nodes = ["nodes=2", "hosts=[127.0.0.1,127.0.0.1]", "gpus=0", "ranks_per_node=1"]
    every = ["trainer.checkpoint_every_steps=3", f"trainer.max_epochs={EPOCHS}", f"data.cache={cache}"]
    launch = [sys.executable, "-m", "asr", "launch", str(recipe), "--cluster", "torchrun", *nodes]
    for name in ("whole", "killed"):
        settings = [f"port={free_port()}", *train_tones.SETTINGS, *every, f"run_dir={tmp_path}/{name}"]
        script = finish(start_process([*launch, *settings])).splitlines()[0]
        processes = [start_process(["bash", script]) for _ in range(2)]
        if name == "killed":
            wait_for_checkpoint(tmp_path / name, processes[0])
            os.kill(children(processes[0])[0], signal.SIGKILL)
        said = "".join(finish(process) for process in processes)
        assert ("exitcode: -9" in said) == (name == "killed")
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_what_stops_torchrun_lets_the_run_save(recipe: Path, cache: Path, tmp_path: Path) -> None:
    """SIGTERM to the command itself, two ranks below it."""
    run = tmp_path / "run"
    settings = [*train_tones.SETTINGS, f"data.cache={cache}", f"run_dir={run}", "trainer.max_epochs=99"]
    settings += ["trainer.checkpoint_every_minutes=0.001"]
    launch = [sys.executable, "-m", "asr", "launch", str(recipe), "--cluster", "local", "--submit", "ranks_per_node=2"]
    process = start_process([*launch, *settings])
    before = wait_for_checkpoint(run, process)
    process.terminate()
    assert f"stopped by SIGTERM; to go on, add: run_dir={run} resume=true" in finish(process, 1)
    saved = checkpoint.read_index(run)["last"]
    assert saved > before
    checkpoint.verify(run / saved)


@pytest.mark.parametrize(
    ("status", "job_state", "starts"),
    [
        (138, "RUNNING", ["138"] * slurm.MAX_STARTS),  # SIGUSR1
        (143, "RUNNING", ["143"] * slurm.MAX_STARTS),  # SIGTERM, a pre-emption with time to clean up
        (143, "CANCELLED", ["143"]),  # scancel
        (1, "RUNNING", ["1"]),  # a mistake, which would be there again
        (0, "RUNNING", ["0"]),
    ],
)
def test_which_ends_are_requeued(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, job_state: str, starts: list[str]
) -> None:
    """With a program in Python's place: it passes the self-test and ends the training with a status."""
    state = tmp_path / "slurm"
    state.mkdir()
    (state / "state").write_text(job_state)
    slurm.install(state, tmp_path / "bin")
    program = tmp_path / "python"
    program.write_text(f"#!/bin/bash\n[[ $2 == asr.launch.self_test ]] || exit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    job = ["gpus=0", f"cluster.python={program}", f"run_dir={tmp_path}/run"]
    launch = [sys.executable, "-m", "asr", "launch", str(recipe), "--cluster", "slurm", "--submit", *job]
    finish(start_process(launch), status)
    assert (state / "starts").read_text().split() == starts


def test_training_does_not_begin_after_a_failed_self_test(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In no kind of job."""
    state = tmp_path / "slurm"
    state.mkdir()
    slurm.install(state, tmp_path / "bin")
    program = tmp_path / "python"
    program.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/started\n[[ $* != *self_test* ]]\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    common = [str(recipe), f"cluster.python={program}", f"run_dir={tmp_path}/run"]
    kubernetes = ["image=i", "claim=c", "gpus=0", f"work_dir={ROOT}", f"mount={ROOT.parent}"]
    for cluster in (
        ["slurm", "gpus=0", "ranks_per_node=2", "--submit"],
        ["local", "--submit"],
        ["local", "ranks_per_node=2", "--submit"],
        ["torchrun", "gpus=0", "--submit"],
        ["kubernetes", *kubernetes],
    ):
        (tmp_path / "started").write_text("")
        launch = start_process([sys.executable, "-m", "asr", "launch", *common, "--cluster", *cluster])
        out = finish(launch, 0 if cluster[0] == "kubernetes" else 1)
        if cluster[0] == "kubernetes":
            script = yaml.safe_load(Path(out.splitlines()[0]).read_text())["spec"]["trainer"]["command"][2]
            finish(start_process(["bash", "-c", script], PET_MASTER_PORT="29500"), 1)
        started = (tmp_path / "started").read_text()
        assert "self_test" in started, cluster
        assert "train.py" not in started, cluster
