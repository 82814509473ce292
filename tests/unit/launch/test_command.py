"""`asr launch` on the command line: settings of a cluster and of a recipe, mistakes, what is written and started."""

import subprocess
import sys
from pathlib import Path

import pytest

from asr.config import Config
from asr.config.presets import conf_folder
from asr.launch.command import main
from asr.launch.settings import KEYS, KINDS, cluster_presets, load_cluster
from asr.messages import user_errors_exit
from tests.support import slurm

RECIPE = "recipes/an4"


def launch(*arguments: str) -> int:
    with user_errors_exit("asr launch"):
        return main([RECIPE, *arguments])


def mistakes(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        launch(*arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_no_setting_of_a_cluster_has_the_name_of_a_recipes() -> None:
    assert not KEYS & Config.model_fields.keys()


@pytest.mark.parametrize("name", KINDS)
def test_presets_load(name: str) -> None:
    assert (conf_folder() / "cluster" / f"{name}.yaml").is_file()
    assert load_cluster(name, Path(RECIPE), {}).kind == name


def test_a_recipe_can_have_a_cluster_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "home.yaml").write_text("kind: slurm\npartition: booster\ntime: 12:00:00\n")
    assert set(cluster_presets(tmp_path)) == {*KINDS, "home"}
    cluster = load_cluster("home", tmp_path, {"nodes": "3", "environment.A": "1", "environment.B": "x y"})
    assert cluster.model_dump(include={"kind", "partition", "time", "nodes"}) == {
        "kind": "slurm",
        "partition": "booster",
        "time": "12:00:00",  # and not 43200, as YAML has it
        "nodes": 3,
    }
    assert cluster.environment == {"A": "1", "B": "x y"}


def test_all_mistakes_come_together(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = mistakes(
        capsys,
        *("--cluster", "slurm", "--output", str(tmp_path / "out")),
        *("nods=2", "time=soon", "image=x", "cluster.partitoin=a", "optim.learning_rat=1", "sead=1"),
        *("resume=true", "trainer.devices=3", "gpus=-1", "partition=a b"),
    )
    for expected in (
        "nods: no such setting of a cluster or a recipe; did you mean nodes?",
        "sead: no such setting of a cluster or a recipe; did you mean seed?",
        "trainer.devices=3: here it follows from gpus=N or ranks_per_node=N",
        "resume=true: here it follows from run_dir=FOLDER",
        "cluster.gpus: got '-1', expected greater than or equal to 0",
        "cluster.time: got 'soon'",
        "cluster.partition: got 'a b'",
        "cluster.image: no such setting of a cluster of this kind; kubernetes has it",
        "cluster.partitoin: no such setting of a cluster of this kind; did you mean partition?",
        "optim.learning_rat: no such key; did you mean learning_rate?",
    ):
        assert expected in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cluster", "slrm"], "got 'slrm', expected one of kubernetes, local, slurm, torchrun; did you mean slurm?"),
        (["--cluster", "local", "nodes=2"], "nodes: got 2, expected 1: --cluster local is this machine"),
        (["--cluster", "torchrun", "nodes=2"], "hosts: got 0, expected one for each of nodes=2"),
        (["--cluster", "torchrun", "hosts=[a,b]"], "hosts: got 2, expected one for each of nodes=1"),
        (["--cluster", "torchrun", "hosts=[a"], "hosts=[a"),
        (["--cluster", "kubernetes"], "image: missing"),
        (["--cluster", "kubernetes", "work_dir=/opt"], "work_dir: got /opt, expected a folder of the claim"),
        (["--cluster", "local", "gpus=1", "trainer.accelerator=cpu"], "trainer.accelerator=cpu: gpus=1 means gpu"),
        (["--cluster", "local", "cluster.environment.A-B=1"], "got 'A-B', expected the name of a variable"),
        (
            ["--cluster", "slurm", "gpus=8", "cluster.gpus.x=1"],
            "cluster.gpus.x: no such setting of a cluster of this kind",
        ),
        (["--cluster", "torchrun", "nodes=2", "hosts=[a,b]", "--submit"], "cannot start several machines"),
        (["--cluster", "slurm", "--submit"], "there is no sbatch here"),
    ],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert message in mistakes(capsys, *arguments)
    assert not Path("runs/an4").exists() or not list(Path("runs/an4").glob("*/launch"))


def test_a_recipe_has_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("defaults: [base]\n")
    with pytest.raises(SystemExit), user_errors_exit("asr launch"):
        main([str(tmp_path), "--cluster", "local"])
    assert "has no train.py, expected a recipe's folder" in capsys.readouterr().err


def test_what_is_written_and_how_it_is_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("--cluster", "slurm", f"run_dir={tmp_path}/run") == 0
    script = tmp_path / "run" / "launch" / "train.sbatch"
    said = capsys.readouterr()
    assert said.out == f"{script}\nstart it with:\n  sbatch {script}\n"
    assert "trainer.checkpoint_every_steps=0" in said.err
    assert launch("--cluster", "torchrun", "nodes=2", "hosts=[a,b]", "--output", str(tmp_path / "o")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [f"  ssh {host} bash {tmp_path}/o/node.sh" for host in ("a", "b")]
    assert launch("--cluster", "local", "trainer.checkpoint_every_steps=9", "--output", str(tmp_path / "o")) == 0
    assert capsys.readouterr().err == ""


def test_submit_gives_the_file_to_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub checks the directives; a script that fails at once gives its status."""
    slurm.install(tmp_path, tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    command = [sys.executable, "-m", "asr", "launch", RECIPE, "--cluster", "slurm", "cluster.setup=[exit 7]", "nodes=2"]
    command += ["--submit", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7
    assert done.stdout == f"{tmp_path}/out/train.sbatch\nSubmitted batch job 4242\n"
    command.append("cluster.options=[--no-such-option]")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "sbatch: error: unrecognized option '--no-such-option'" in done.stderr


def test_it_imports_no_torch_and_is_quick() -> None:
    code = (
        "import sys; from asr.launch.command import main; main(sys.argv[1:]);"
        "found = [m for m in ('torch', 'numpy', 'lightning') if m in sys.modules]; assert not found, found"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, RECIPE, "--cluster", "slurm", "--output", "/dev/null/x"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "AssertionError" not in done.stderr
    assert "/dev/null/x/train.sbatch: cannot be written" in done.stderr  # it got as far as writing
