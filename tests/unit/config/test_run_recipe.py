"""A recipe's train.py on the command line: overrides, Hydra's flags, sweeps, exit statuses."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os
import signal
import sys
import time
from asr.config import Config, run_recipe
from asr.errors import DataError

def train(config: Config) -> None:
    print("ran", config.seed, config.stack.model_dump()["lookahead_frames"], config.run_dir)
    print("argv", *sys.argv[1:])
    if config.trainer.devices > 1:
        print("local rank", os.environ.setdefault("LOCAL_RANK", str(config.seed)))
    if config.seed == 5:
        raise ValueError("a bug")
    if config.seed == 6:
        raise DataError("shard 3 is damaged")
    if config.seed == 7:
        raise KeyboardInterrupt
    if config.seed == 8:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        print("waits", os.getpid(), flush=True)
        time.sleep(60)
    assert "torch" not in sys.modules

if __name__ == "__main__":
    run_recipe(__file__, train)
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    (folder / "config.yaml").write_text("defaults:\n  - base\n  - override /data: an4\n  - _self_\nrecipe: mine\n")
    return folder


def start(recipe: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[3]
    environment = {"PYTHONPATH": str(root), "PATH": "", "HOME": str(recipe.parent)}
    return subprocess.run(
        [sys.executable, str(recipe / "train.py"), *arguments],
        cwd=recipe.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_run_leaves_no_folder_of_hydras(recipe: Path) -> None:
    done = start(recipe, "seed=3", "stack=gru_streaming")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "ran 3 20 None\nargv seed=3 stack=gru_streaming\n"
    assert [path.name for path in recipe.parent.iterdir()] == ["mine"]


def test_a_wrong_configuration_is_a_message_and_status_2(recipe: Path) -> None:
    done = start(recipe, "sead=3", "optim.nam=sgd")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0].startswith("train.py: 2 mistakes in the configuration from ")
    assert "sead: no such key; did you mean seed?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("seed", "status", "message"),
    [(5, 1, "ValueError: a bug"), (6, 1, "train.py: shard 3 is damaged\n"), (7, 130, "")],
)
@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_errors_of_the_run(recipe: Path, flags: list[str], seed: int, status: int, message: str) -> None:
    done = start(recipe, *flags, f"seed={seed}")
    assert done.returncode == status
    assert message in done.stderr
    assert ("Traceback" in done.stderr) == (seed == 5)


def test_a_sweep_runs_each_job_in_a_folder_of_its_own_with_its_own_command_line(recipe: Path) -> None:
    done = start(recipe, "-m", "seed=1,2", "stack=gru,gru_streaming")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    ran, argv = [line[1:] for line in lines if line[0] == "ran"], [line[1:] for line in lines if line[0] == "argv"]
    assert [(seed, lookahead) for seed, lookahead, _ in ran] == [("1", "0"), ("1", "20"), ("2", "0"), ("2", "20")]
    assert len({run_dir for *_, run_dir in ran}) == 4
    assert all(run_dir.startswith("runs/mine/sweep_") for *_, run_dir in ran)
    assert argv[3] == ["++seed=2", "stack=gru_streaming", f"++run_dir={ran[3][2]}"]


def test_a_job_that_fails_is_not_the_end_of_a_sweep(recipe: Path) -> None:
    done = start(recipe, "-m", "seed=6,5,3")
    assert done.returncode == 1
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("ran")] == ["6", "5", "3"]
    assert "train.py: job 0: shard 3 is damaged" in done.stderr.splitlines()
    assert done.stderr.endswith("train.py: shard 3 is damaged\n")


def test_jobs_with_ranks_find_nothing_of_the_job_before(recipe: Path) -> None:
    """Lightning leaves variables behind by which a process takes itself for a rank that somebody else has started."""
    done = start(recipe, "-m", "seed=6,3", "trainer.devices=2")
    assert done.returncode == 1
    ran = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("local rank")]
    assert ran == ["6", "3"]
    said = [line for line in done.stderr.splitlines() if line.startswith("train.py")]
    failed = "the job's process ended with status 1"
    assert said == ["train.py: shard 3 is damaged", f"train.py: job 0: {failed}", f"train.py: {failed}"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_ends_a_sweep(recipe: Path, ranks: int) -> None:
    command = [sys.executable, str(recipe / "train.py"), "-m", "seed=8,1", f"trainer.devices={ranks}"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command, cwd=recipe.parent, env=environment, stdout=subprocess.PIPE, text=True) as sweep:
        assert sweep.stdout is not None
        lines = iter(sweep.stdout.readline, "")
        job = int(next(line for line in lines if line.startswith("waits")).split()[1])
        assert (job == sweep.pid) == (ranks == 1)
        sweep.send_signal(signal.SIGTERM)
        assert not [line for line in lines if line.startswith("ran")]  # the second job does not start
    assert sweep.returncode == 128 + signal.SIGTERM


def test_mistakes_in_a_sweep(recipe: Path) -> None:
    done = start(recipe, "--multirun", "sead=1,2")
    assert done.returncode == 2
    assert "sead: no such key; did you mean seed?" in done.stderr
    done = start(recipe, "--multirun", "model=null", "run_dir=a=b,c=d")
    assert done.returncode == 2
    assert "model: got None, expected one of ds2_3x2560_streaming, " in done.stderr
    assert "run_dir=a=b,c=d: expected section.key=value or group=option; what Hydra" in done.stderr
    assert "Traceback" not in done.stderr
    done = start(recipe, "--multirun", "stack=gru,gru_s")
    assert done.returncode == 2
    assert "Could not find 'stack/gru_s'" in done.stderr
    assert "Traceback" not in done.stderr


def test_flags_may_stand_anywhere_and_paths_have_any_characters(recipe: Path) -> None:
    recipe = recipe.rename(recipe.with_name("jos\u00e9 (b)"))
    done = start(recipe, "run_dir=/tmp/a=b", "-m", "seed=1,2")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line.startswith("ran")] == [
        "ran 1 0 /tmp/a=b",
        "ran 2 0 /tmp/a=b",
    ]
    done = start(recipe, "seed=1,2", "--multirun")
    assert "ran 1 0 runs/jos\u00e9 (b)/sweep_" in done.stdout


def test_hydras_own_flags(recipe: Path) -> None:
    done = start(recipe, "--help")
    assert done.returncode == 0
    assert "front_end: conv1d_1, conv1d_2" in done.stdout
    done = start(recipe, "--cfg", "job", "optim.learning_rate=3")
    assert done.returncode == 0
    assert "learning_rate: 3\n" in done.stdout
    assert "ran" not in done.stdout.split()
    done = start(recipe, "--info", "defaults", "seed=3")
    assert done.returncode == 0
    assert "Defaults List" in done.stdout
