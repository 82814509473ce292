"""make_shards: the same bytes from every engine, whatever is killed meanwhile; and refusals that say what to do."""

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.data.ledger import Ledger
from asr.data.shards import ShardReader
from data_prep import make_shards

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "data_prep" / "make_shards.py"
PER_SHARD = 4
SBATCH = """\
#!{python}
# Stands in for sbatch: checks the script, runs its tasks in turn as SLURM would, notes its arguments.
import os, re, subprocess, sys
*options, script = sys.argv[1:]
text = open(script).read()
lines = text.splitlines()
assert lines[0] == "#!/bin/bash", lines[0]
directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
assert directives and all(re.fullmatch(r"--[a-z-]+(=.+)?", line) for line in directives), directives
assert lines[1 : len(directives) + 1] == ["#SBATCH " + line for line in directives], "sbatch stops at the first command"
assert subprocess.run(["bash", "-n", script]).returncode == 0
with open({log!r}, "a") as log:
    print(*options, *directives, sep=" ", file=log)
array = next((line for line in directives if line.startswith("--array=")), None)
low, high = map(int, array.removeprefix("--array=").split("-")) if array else (0, 0)
order = range(high, low - 1, -1)  # no order is promised
for task in order:
    environment = os.environ | ({{"SLURM_ARRAY_TASK_ID": str(task)}} if array else {{}})
    subprocess.run(["bash", script], env=environment, check=True, stdout=sys.stderr)
print("4711;here" if "--parsable" in options else "Submitted batch job 4712")
"""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 utterances, each some seconds of noise as wav, one of them cut off and one not there."""
    folder = tmp_path_factory.mktemp("raw")
    lines = []
    for i in range(40):
        path = folder / f"u{i:02d}.wav"
        soundfile.write(path, np.random.default_rng(i).uniform(-0.3, 0.3, 30_000), 22_050, subtype="PCM_16")
        lines.append({"audio": path.name, "text": f"text {i}", "seconds": 1.4})
    whole = (folder / "u05.wav").read_bytes()
    (folder / "u05.wav").write_bytes(whole[:20_000])
    (folder / "u17.wav").unlink()
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def expected(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run in one process makes."""
    folder = tmp_path_factory.mktemp("expected") / "out"
    run(manifest, folder)
    return contents(folder)


def run(manifest: Path, folder: Path, *options: str) -> None:
    """In this process; one worker, unless told otherwise."""
    defaults = () if "--workers" in options else ("--workers", "1")
    assert make_shards.main([str(manifest), str(folder), "--utterances-per-shard", "4", *defaults, *options]) == 0


def start(manifest: Path, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(manifest), str(folder), "--utterances-per-shard", "4", *options]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def shards_in(folder: Path) -> int:
    return len(list(folder.glob("shard-*.jsonl")))


def test_what_is_made(manifest: Path, expected: dict[str, bytes], tmp_path: Path, capsys) -> None:
    folder = tmp_path / "out"
    run(manifest, folder)
    output = capsys.readouterr()
    assert output.out == f"{folder}: 38 utterances, 0.01 h at 16000 Hz in 10 shards\n"
    assert "could not be used: 1 truncated, 1 missing" in output.err
    assert len(ShardReader(folder)) == 38
    drops = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert [(d["id"], d["reason"], d["source"]) for d in drops] == [
        ("u05", "truncated", "out"),
        ("u17", "missing", "out"),
    ]
    assert contents(folder) == expected
    assert set(expected) == {"plan.jsonl", "index.jsonl", "ledger.jsonl"} | {
        f"shard-{i:06d}.{suffix}" for i in range(10) for suffix in ("tar", "jsonl")
    }
    before = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    run(manifest, folder)  # nothing is made twice
    assert {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")} == before


def test_unusable_audio_changes_no_other_shard(manifest: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """u05 and u17 are in shards 1 and 4; made with whole audio, the other tars are the same."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for path in manifest.parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for name in ("u05", "u17"):
        soundfile.write(folder / f"{name}.wav", np.zeros(100), 16_000)
    run(folder / "manifest.jsonl", tmp_path / "out")
    for i in range(10):
        name = f"shard-{i:06d}.tar"
        assert ((tmp_path / "out" / name).read_bytes() == expected[name]) is (i not in (1, 4))


def test_audio_that_was_mended_leaves_the_ledger(manifest: Path, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(manifest.parent, raw)
    run(raw / "manifest.jsonl", out)
    shutil.copy(raw / "u04.wav", raw / "u05.wav")
    run(raw / "manifest.jsonl", out)
    assert len(ShardReader(out)) == 39
    assert [drop.id for drop in Ledger(out / "ledger.jsonl").drops] == ["u17"]


def test_killed_again_and_again(manifest: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """The whole is killed at some moment, several times, in the middle of shards too; its workers end with it."""
    folder = tmp_path / "out"
    chance = random.Random(0)
    for target in (0, 3, 6):
        process = start(manifest, folder, "--workers", "2")
        wait_for(lambda target=target: (folder / "plan.jsonl").exists() and shards_in(folder) >= target)
        time.sleep(chance.uniform(0, 0.05))
        workers = [pid for pid, command in children(process.pid) if "spawn_main" in command]
        process.kill()
        process.communicate()
        wait_for(lambda workers=workers: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    process = start(manifest, folder, "--workers", "2")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert contents(folder) == expected


def test_a_killed_worker(manifest: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = start(manifest, folder, "--workers", "2")
    wait_for(lambda: shards_in(folder) >= 1)
    workers = [pid for pid, command in children(process.pid) if "spawn_main" in command]
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    if process.returncode:  # else it had nothing more to do
        assert process.returncode == 1
        assert b"one of 2 processes was killed" in errors
        assert b"Traceback" not in errors
    run(manifest, folder)
    assert contents(folder) == expected


def children(pid: int) -> list[tuple[int, str]]:
    """Processes that `pid` has started, and their command lines; Linux only."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
        except OSError:
            continue  # it has ended
    return found


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray (extra `ray`)")
def test_ray_with_a_killed_worker(manifest: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = start(manifest, folder, "--engine", "ray", "--workers", "2")

    def workers() -> list[int]:
        raylets = [pid for pid, command in children(process.pid) if "raylet" in command.split(" ")[0]]
        return [pid for raylet in raylets for pid, command in children(raylet) if command.startswith("ray::make_shard")]

    killed = []

    def kill_one() -> bool:
        for pid in workers()[:1] if shards_in(folder) < 10 else []:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        return bool(killed) or process.poll() is not None

    wait_for(kill_one)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert killed, "Ray was through before one could be killed"
    assert contents(folder) == expected


@pytest.mark.parametrize("tasks", [1, 3, 100])
def test_slurm(manifest: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch, capfd, tasks: int) -> None:
    folder, log = tmp_path / "it's out", tmp_path / "log"  # a name that has to be quoted
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "sbatch"
    stub.write_text(SBATCH.format(python=sys.executable, log=str(log)))
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run(manifest, folder, "--engine", "slurm", "--tasks", str(tasks), "--submit")
    count = min(tasks, 10)
    assert capfd.readouterr().out == f"job 4711: {count} tasks\nSubmitted batch job 4712\n"
    array, last = log.read_text().splitlines()
    assert f"--array=0-{count - 1} " in array
    assert last.startswith("--dependency=afterok:4711 ")
    ledger = expected["ledger.jsonl"].replace(b'"source": "out"', b'"source": "it\'s out"')
    assert contents(folder) == expected | {"ledger.jsonl": ledger}


def test_slurm_without_submission(manifest: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run(manifest, tmp_path / "out", "--engine", "slurm")
    scripts = tmp_path / "out" / "slurm"
    assert capsys.readouterr().out.splitlines() == [
        f"job=$(sbatch --parsable {scripts}/make_shards.sh)",
        f'sbatch --dependency=afterok:"${{job%;*}}" {scripts}/finish_shards.sh',
    ]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        run(manifest, tmp_path / "out", "--engine", "slurm", "--submit")
    assert "--submit: there is no sbatch on PATH; on a login node: sbatch" in capsys.readouterr().err


def test_refusals(manifest: Path, tmp_path: Path, capsys) -> None:
    def refused(path: Path, *options: str, status: int = 1) -> str:
        with pytest.raises(SystemExit) as left:
            run(path, tmp_path / "out", *options)
        assert left.value.code == status
        return capsys.readouterr().err

    assert "plan.jsonl: no plan here; make_shards.py MANIFEST" in refused(manifest, "--share", "0/2")
    assert "argument --share: got '2/2', expected I/N with 0 <= I < N" in refused(manifest, "--share", "2/2", status=2)
    assert "--submit: expected --engine slurm" in refused(manifest, "--submit", status=2)
    assert "expected a manifest (JSON lines)" in refused(tmp_path / "gone.jsonl")
    run(manifest, tmp_path / "out")
    kept = contents(tmp_path / "out")
    (tmp_path / "out" / "shard-000003.jsonl").unlink()
    message = refused(manifest, "--finish")
    assert "got 9 of 10 shards; make the others first. The first that is missing: " in message
    assert "shard-000003.jsonl" in message

    other = manifest.parent / "other.jsonl"
    other.write_text("".join(manifest.read_text().splitlines(keepends=True)[:20]))
    message = refused(other)
    assert f"got the plan of {manifest} (40 utterances in 10 shards at 16000 Hz, digest" in message
    assert f"expected that of {other} (20 utterances in 5 shards" in message
    assert f"Choose another folder; or start anew: rm -r {tmp_path}/out" in message
    assert "another manifest" in refused(manifest, "--sample-rate-hz", "8000")
    run(manifest, tmp_path / "out")
    assert contents(tmp_path / "out") == kept


def test_without_ray(manifest: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as left:
        run(manifest, tmp_path / "out", "--engine", "ray")
    assert left.value.code == 2
    assert "Ray is not installed: pip install 'asr-toolkit[ray]'" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray (extra `ray`)")
def test_ray_at_no_address(manifest: Path, tmp_path: Path) -> None:
    environment = os.environ | {"RAY_ADDRESS": "nowhere", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), str(manifest), str(tmp_path / "out"), "--engine", "ray"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "make_shards: RAY_ADDRESS=nowhere: no Ray cluster answers there" in done.stderr
    assert "Traceback" not in done.stderr
