"""A process's place in a run, from what each launcher sets; how ranks leave."""

import time
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from asr.train.ranks import global_rank, leave_group, local_rank

NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_LOCALID")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 0)),
        ({"LOCAL_RANK": "2"}, (2, 2)),  # Lightning's child on one machine
        ({"LOCAL_RANK": "2", "NODE_RANK": "3"}, (14, 2)),  # and on the fourth of several
        ({"RANK": "9", "LOCAL_RANK": "1", "GROUP_RANK": "2"}, (9, 1)),  # torchrun
        ({"SLURM_PROCID": "5", "SLURM_LOCALID": "1"}, (5, 1)),  # srun
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "RANK": "6", "LOCAL_RANK": "2"}, (6, 2)),  # torchrun under srun
        # Lightning's child in an interactive job: the shell is task 0.
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "LOCAL_RANK": "3"}, (3, 3)),
    ],
)
def test_each_launcher(variables: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (global_rank(devices=4), local_rank()) == expected
    if variables.keys() == {"SLURM_PROCID", "SLURM_LOCALID"}:
        theirs = SLURMEnvironment()
        assert (theirs.global_rank(), theirs.local_rank()) == expected
    if "RANK" in variables:
        theirs = TorchElasticEnvironment()
        assert (theirs.global_rank(), theirs.local_rank()) == expected


def leave(rank: int, folder: str) -> None:
    """One rank's process: rank 0 has something left to do, and rank 2 more than it."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    if rank != 1:
        time.sleep(1.0 + rank)
        (Path(folder) / f"done {rank}").touch()
    leave_group()
    assert (Path(folder) / "done 0").exists()
    assert (Path(folder) / "done 2").exists()
    assert not dist.is_initialized()


def test_nobody_leaves_before_the_others_are_done(tmp_path: Path) -> None:
    mp.spawn(leave, args=(str(tmp_path),), nprocs=3)
    assert (tmp_path / "done 0").exists()
    leave_group()  # where there is no group: nothing
