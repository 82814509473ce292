"""SLURM for tests: `sbatch`, `srun`, `scontrol` and `squeue` that check what they are given and run it here.

    python -m tests.support.slurm COMMAND ...       with FAKE_SLURM=FOLDER, where what happens is written down

sbatch refuses a directive that the real one would not know or not understand; it runs the script, and runs it again
when the script has asked for that by `scontrol requeue`. srun starts the tasks of all "nodes" on this machine, each in
a process group of its own whose number it writes to FOLDER/tasks, and ends like the real one: by the highest exit
status, and with --kill-on-bad-exit the first bad one ends the others.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
JOB_ID = "4242"
MAX_STARTS = 4
KILL_WAIT_SECONDS = 10.0  # between SIGTERM and SIGKILL

_WORD, _COUNT = r"[^\s=]+", r"[1-9]\d*"
DIRECTIVES = {
    "job-name": _WORD,
    "nodes": _COUNT,
    "ntasks-per-node": _COUNT,
    "cpus-per-task": _COUNT,
    "gres": r"gpu(:[a-z0-9_]+)?:[1-9]\d*",
    "mem": r"\d+[KMGT]?",
    "time": r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}",
    "partition": _WORD,
    "account": _WORD,
    "qos": _WORD,
    "constraint": _WORD,
    "chdir": r"/.*",
    "output": r"/.*",
    "open-mode": "append|truncate",
    "signal": r"(B:|R:)?(USR1|USR2|TERM|INT)@\d+",
    "requeue": "",
    "exclusive": "",
}


def install(folder: Path, bin_folder: Path) -> None:
    """Put the commands into `bin_folder`; they write to `folder`."""
    bin_folder.mkdir()
    for name in ("sbatch", "srun", "scontrol", "squeue"):
        path = bin_folder / name
        path.write_text(
            f"#!/bin/sh\nFAKE_SLURM={shlex.quote(str(folder))} PYTHONPATH={shlex.quote(str(ROOT))} "
            f'exec {shlex.quote(sys.executable)} -m tests.support.slurm {name} "$@"\n'
        )
        path.chmod(0o755)


def directives(script: str) -> dict[str, str]:
    """The options in a script's #SBATCH lines, as far as sbatch reads: to the first line that is a command.

    Raises:
        ValueError: an option that there is not, or that cannot have this value.
    """
    lines = script.splitlines()
    if not lines or not lines[0].startswith("#!"):
        raise ValueError("This does not look like a batch script: its first line has to begin with #!")
    found: dict[str, str] = {}
    for line in lines:
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith("#SBATCH"):
            for word in shlex.split(line.removeprefix("#SBATCH"), comments=True):
                name, equals, value = word.removeprefix("--").partition("=")
                if not word.startswith("--") or name not in DIRECTIVES:
                    raise ValueError(f"unrecognized option '{word}'")
                if not re.fullmatch(DIRECTIVES[name], value) or bool(equals) != bool(DIRECTIVES[name]):
                    raise ValueError(f"invalid argument: {word}")
                found[name] = value
    return found


def sbatch(arguments: list[str], state: Path) -> int:
    """Check a script and run it until it does not ask to be queued again; the real one does not wait for it."""
    script = Path(arguments[-1])
    try:
        options = directives(script.read_text())
    except ValueError as error:
        print(f"sbatch: error: {error}", file=sys.stderr)
        return 1
    if not Path(options["output"]).parent.is_dir():  # where the real one fails without a word
        print(f"sbatch: error: no folder for {options['output']}", file=sys.stderr)
        return 1
    print(f"Submitted batch job {JOB_ID}", flush=True)
    nodes, per_node = int(options["nodes"]), int(options["ntasks-per-node"])
    status = 1
    for start in range(MAX_STARTS):
        environment = os.environ | {
            "SLURM_JOB_ID": JOB_ID,
            "SLURM_JOB_NAME": options["job-name"],
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_NNODES": str(nodes),
            "SLURM_NTASKS": str(nodes * per_node),
            "SLURM_NTASKS_PER_NODE": str(per_node),
            "SLURM_RESTART_COUNT": str(start),
        }
        (state / "requeue").unlink(missing_ok=True)
        with Path(options["output"].replace("%j", JOB_ID)).open("a") as log:
            status = subprocess.run(
                ["bash", str(script)], cwd=options["chdir"], env=environment, stdout=log, stderr=log, check=False
            ).returncode
        with (state / "starts").open("a") as handle:
            handle.write(f"{status}\n")
        if not (state / "requeue").exists():
            break
    return status


def srun(arguments: list[str], state: Path) -> int:
    """Run the tasks of a step."""
    kill = False
    while arguments[0].startswith("-"):
        option = arguments.pop(0)
        if not re.fullmatch(r"--kill-on-bad-exit=[01]|--cpus-per-task=[1-9]\d*", option):
            print(f"srun: error: unrecognized option '{option}'", file=sys.stderr)
            return 1
        kill = kill or option == "--kill-on-bad-exit=1"
    count, per_node = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
    tasks = []
    for number in range(count):
        place = {
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number % per_node),
            "SLURM_NODEID": str(number // per_node),
        }
        tasks.append(subprocess.Popen(arguments, env=os.environ | place, start_new_session=True))
    (state / "tasks").write_text("".join(f"{task.pid}\n" for task in tasks))
    deadline = None
    while any(task.poll() is None for task in tasks):
        if kill and deadline is None and any(task.returncode for task in tasks):
            signal_tasks([task.pid for task in tasks if task.returncode is None], signal.SIGTERM)
            deadline = time.monotonic() + KILL_WAIT_SECONDS
        elif deadline is not None and time.monotonic() > deadline:
            signal_tasks([task.pid for task in tasks if task.returncode is None], signal.SIGKILL)
        time.sleep(0.02)
    return max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks)


def signal_tasks(groups: list[int], number: signal.Signals) -> None:
    """Send a signal to every process of the tasks, as SLURM does."""
    for group in groups:
        os.killpg(group, number)


def scontrol(arguments: list[str], state: Path) -> int:
    """`show hostnames LIST` and `requeue JOB`."""
    if arguments[:2] == ["show", "hostnames"] and len(arguments) == 3:
        print("\n".join(arguments[2].split(",")))
        return 0
    if arguments == ["requeue", JOB_ID]:
        (state / "requeue").touch()
        return 0
    print(f"scontrol: error: {arguments}", file=sys.stderr)
    return 1


def squeue(arguments: list[str], state: Path) -> int:
    """The state of the job, RUNNING if FOLDER/state says nothing else."""
    if sorted(arguments) != ["--format=%T", f"--jobs={JOB_ID}", "--noheader"]:
        print(f"squeue: error: {arguments}", file=sys.stderr)
        return 1
    file = state / "state"
    print(file.read_text() if file.exists() else "RUNNING")
    return 0


if __name__ == "__main__":
    commands = {"sbatch": sbatch, "srun": srun, "scontrol": scontrol, "squeue": squeue}
    sys.exit(commands[sys.argv[1]](sys.argv[2:], Path(os.environ["FAKE_SLURM"])))
