"""The self-test before training: `python -m asr.launch.self_test RECIPE [key=value ...]`, started like a rank of it.

Every rank says what it is and what it sees: host, device, versions, the recipe as it composes there, the shards as
they are there. Rank 0 compares, and names each rank that differs from most. Then they form the process group that
training will form, and sum known numbers, each rank in a row of its own, so that a wrong sum names the rank whose row
it is. What is wrong is printed by rank 0, and all ranks end with status 1.

The ranks talk through torch's key-value store, not through the collectives that are being tested.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import __version__
from asr.config import Config, load, to_yaml
from asr.errors import AsrError
from asr.messages import STATUS_ERROR, user_errors_exit
from asr.train.ranks import global_rank, local_rank

if TYPE_CHECKING:
    import torch

Facts = Mapping[str, str]

SUM_FLOATS = 4_000_000  # 16 MB, the gradients of a model of that many parameters
SUM_REPEATS = 5
COMPARED = ("python", "torch", "asr", "recipe", "shards")
# What to do about it, in the message.
_REMEDIES = {
    "python": "take the same environment on every node (cluster.python, cluster.setup)",
    "torch": "take the same environment on every node (cluster.python, cluster.setup)",
    "asr": "let every node run the same version of the toolkit (cluster.work_dir)",
    "recipe": "let every node have the same recipe and presets",
    "shards": "let every node see the same shards in data.cache, or prepare them anew",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Take part in the self-test; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m asr.launch.self_test", description="Check a cluster; started once for each rank."
    )
    parser.add_argument("recipe", type=Path, help="folder with config.yaml")
    parser.add_argument("overrides", nargs="*", help="as for the recipe's train.py")
    parser.add_argument("--wait-seconds", type=float, default=120.0, help="for a rank that does not come (120)")
    options = parser.parse_intermixed_args(argv)
    begin = time.monotonic()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # or a refused connection is a page of C++ frames
    config, problem = None, ""
    try:
        config = load(options.recipe, options.overrides)
    except AsrError as error:
        problem = str(error)
    rank, world_size = place(config)
    meeting = Meeting(rank, world_size, options.wait_seconds)
    if config is None:
        facts: Facts = {"host": socket.gethostname(), "problem": problem}
    else:
        facts = look_around(config)
    everyone = meeting.gather("facts", dict(facts))
    if rank == 0 and all(everyone):
        meeting.conclude("facts", compare(everyone))
    elif rank == 0:
        meeting.conclude("facts", absent(everyone, options.wait_seconds))
    wrong = meeting.verdict("facts")
    if not wrong and config is not None:
        results = meeting.gather("sums", sum_known_numbers(meeting, config))
        if rank == 0:
            meeting.conclude("sums", wrong_sums(results, everyone))
        wrong = meeting.verdict("sums")
        if rank == 0 and not wrong:
            print(summary(everyone, [result["seconds"] for result in results], time.monotonic() - begin), flush=True)
    if rank == 0:
        for line in wrong:
            print(f"self-test: {line}", file=sys.stderr, flush=True)
    meeting.part()
    return STATUS_ERROR if wrong else 0


def place(config: Config | None) -> tuple[int, int]:
    """This process's rank and the number of ranks, as torchrun or SLURM has said; alone without them."""
    size = next((int(os.environ[name]) for name in ("WORLD_SIZE", "SLURM_NTASKS") if name in os.environ), 1)
    return global_rank(config.trainer.devices if config else 1), size


class Meeting:
    """Where the ranks exchange text: torch's TCP store, at the address where they will meet for training.

    Args:
        rank, world_size: this process's place.
        wait_seconds: how long to wait for others.

    Raises:
        AsrError: rank 0 cannot be reached.
    """

    def __init__(self, rank: int, world_size: int, wait_seconds: float) -> None:
        import torch.distributed as dist

        self.rank, self.world_size, self.wait_seconds = rank, world_size, wait_seconds
        host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "0"))
        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's own process has it there
        try:
            self.store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
                host,
                port,
                is_master=rank == 0 and not hosted,
                wait_for_workers=False,
                timeout=timedelta(seconds=wait_seconds),
            )
        except (dist.DistError, RuntimeError) as error:
            raise AsrError(
                f"rank {rank} on {socket.gethostname()}: rank 0 cannot be reached at {host}:{port}: "
                f"{str(error).splitlines()[0].rstrip('.')}; is the name right, the port open, and has rank 0 started?"
            ) from None

    def gather(self, what: str, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Say `value` to rank 0; gives it what everyone said, and nothing for who was not heard of in time."""
        self.store.set(f"{what}/{self.rank}", json.dumps(value))
        if self.rank:
            return []
        deadline = time.monotonic() + self.wait_seconds
        missing = set(range(self.world_size))
        while missing and time.monotonic() < deadline:
            missing = {rank for rank in missing if not self.store.check([f"{what}/{rank}"])}
            time.sleep(0.02)
        return [
            {} if rank in missing else json.loads(self.store.get(f"{what}/{rank}")) for rank in range(self.world_size)
        ]

    def conclude(self, what: str, wrong: Sequence[str]) -> None:
        """Tell everyone what is wrong; by rank 0."""
        self.store.set(f"{what}/verdict", json.dumps(list(wrong)))

    def verdict(self, what: str) -> list[str]:
        """What rank 0 has concluded.

        Raises:
            AsrError: rank 0 has gone.
        """
        import torch.distributed as dist

        try:
            # Rank 0 may have to wait for someone else first.
            self.store.wait([f"{what}/verdict"], timedelta(seconds=self.wait_seconds + 10))
            return json.loads(self.store.get(f"{what}/verdict"))
        except (dist.DistError, RuntimeError):
            raise AsrError(f"rank {self.rank} on {socket.gethostname()}: rank 0 has gone") from None

    def part(self) -> None:
        """Let rank 0, which may hold the store, be the last one."""
        self.store.set(f"parted/{self.rank}", "")
        deadline = time.monotonic() + 5.0
        while self.rank == 0 and time.monotonic() < deadline:
            if self.store.check([f"parted/{rank}" for rank in range(self.world_size)]):
                return
            time.sleep(0.02)


def look_around(config: Config) -> dict[str, str]:
    """What this rank is and sees."""
    import torch

    facts = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "asr": f"{__version__} ({_source_digest()})",
        "recipe": hashlib.sha256(to_yaml(config).encode()).hexdigest()[:12],
        "shards": shards_digest(config.data.cache),
    }
    device = torch_device(config)
    if device.type == "cpu":
        return facts | {"device": "CPU"}
    if not torch.cuda.is_available() or torch.cuda.device_count() <= local_rank():
        count = torch.cuda.device_count()
        return facts | {"problem": f"sees {count} GPUs, and trainer.accelerator=gpu wants number {local_rank()}"}
    properties = torch.cuda.get_device_properties(device)
    return facts | {"device": properties.name, "device_id": str(getattr(properties, "uuid", local_rank()))}


def torch_device(config: Config) -> torch.device:
    """Where this rank will train."""
    import torch

    accelerator = config.trainer.accelerator
    on_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    return torch.device("cuda", local_rank()) if on_gpu else torch.device("cpu")


def _source_digest() -> str:
    """Tells two states of the toolkit's source apart that have the same version."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def shards_digest(cache: Path) -> str:
    """Tells shards apart: their number, and a digest of their places, sizes, and what they say they are made from."""
    digest, count = hashlib.sha256(), 0
    for folder, below, files in os.walk(cache):
        below[:] = sorted(name for name in below if name != "raw")  # the corpus as it came, which may be large
        for name in sorted(files):
            if name.startswith("shard-") and name.endswith(".jsonl"):
                index = Path(folder) / name
                tar = index.with_suffix(".tar")
                with index.open("rb") as handle:
                    header = handle.readline()
                size = tar.stat().st_size if tar.exists() else "no tar"
                digest.update(f"{index.relative_to(cache)} {size}\n".encode() + header)
                count += 1
    return f"{count} ({digest.hexdigest()[:12]})" if count else "none yet"


def compare(everyone: Sequence[Facts]) -> list[str]:
    """Name the ranks that have a problem, differ from most, or share a GPU."""
    wrong = [
        f"{_name(rank, everyone)}: {facts['problem']}" for rank, facts in enumerate(everyone) if "problem" in facts
    ]
    for key in COMPARED:
        values = [facts.get(key) for facts in everyone]
        counted = Counter(value for value in values if value is not None)
        if len(counted) > 1:
            usual, count = counted.most_common(1)[0]  # among equals, the first rank's
            wrong += [
                f"{_name(rank, everyone)}: {key} is {value}, on {count} of {len(everyone)} ranks it is {usual}; "
                f"{_REMEDIES[key]}"
                for rank, value in enumerate(values)
                if value not in (None, usual)
            ]
    owners: dict[tuple[str, str], int] = {}
    for rank, facts in enumerate(everyone):
        if "device_id" in facts:
            owner = owners.setdefault((facts["host"], facts["device_id"]), rank)
            if owner != rank:
                wrong.append(f"{_name(rank, everyone)}: has the same GPU as rank {owner}, {facts['device_id']}")
    return wrong


def absent(everyone: Sequence[Facts], wait_seconds: float) -> list[str]:
    """Name the ranks that were not heard of, and the hosts that were."""
    missing = [str(rank) for rank, facts in enumerate(everyone) if not facts]
    hosts = Counter(facts["host"] for facts in everyone if facts)
    came = ", ".join(f"{host} ({count})" for host, count in hosts.items())
    return [f"rank {', '.join(missing)}: not heard of within {wait_seconds:g} s; ranks came from {came}"]


def sum_known_numbers(meeting: Meeting, config: Config) -> dict[str, Any]:
    """All-reduce a row of known numbers from each rank; gives the rows that came out wrong, and the seconds it took."""
    import torch
    import torch.distributed as dist

    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a collective that hangs is an error, not a killed process
    device = torch_device(config)
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("ranks", meeting.store),  # pyright: ignore[reportPrivateImportUsage]
            rank=meeting.rank,
            world_size=meeting.world_size,
            timeout=timedelta(seconds=meeting.wait_seconds),
        )
        seconds, wrong = [], set()
        for _ in range(SUM_REPEATS):
            rows = torch.zeros(meeting.world_size, SUM_FLOATS // meeting.world_size, device=device)
            rows[meeting.rank] = _row(meeting.rank, rows.shape[1], device)
            begin = time.perf_counter()
            dist.all_reduce(rows)
            wrong |= {r for r, row in enumerate(rows) if not torch.equal(row, _row(r, rows.shape[1], device))}
            seconds.append(time.perf_counter() - begin)
        dist.destroy_process_group()
    except (dist.DistError, RuntimeError) as error:
        return {"error": (str(error).strip() or type(error).__name__).splitlines()[0]}
    return {"wrong": sorted(wrong), "seconds": statistics.median(seconds)}


def _row(rank: int, size: int, device: torch.device) -> torch.Tensor:
    """Whole numbers that float32 holds exactly, others on every rank."""
    import torch

    return torch.arange(size, device=device, dtype=torch.float32) % 1000 + 1000 * (rank + 1)


def wrong_sums(results: Sequence[Mapping[str, Any]], everyone: Sequence[Facts]) -> list[str]:
    """Name who could not sum, and whose numbers came out wrong where."""
    wrong = []
    for rank, result in enumerate(results):
        name = _name(rank, everyone)
        if not result:
            wrong.append(f"{name}: began the sum and was not heard of again")
        elif "error" in result:
            wrong.append(f"{name}: the sum over all ranks failed: {result['error']}")
        else:
            wrong += [
                f"{name}: got a wrong sum for the numbers of {_name(other, everyone)}" for other in result["wrong"]
            ]
    return wrong


def summary(everyone: Sequence[Facts], seconds: Sequence[float], total_seconds: float) -> str:
    """What was found, when all is well."""
    hosts = Counter((facts["host"], facts["device"]) for facts in everyone)
    places = ", ".join(f"{host}: {count} x {device}" for (host, device), count in hosts.items())
    versions = ", ".join(f"{key} {everyone[0][key]}" for key in COMPARED)
    megabytes = SUM_FLOATS * 4 / 1e6
    return (
        f"self-test: {len(everyone)} rank{'s' * (len(everyone) > 1)} agree ({places}); {versions}; "
        f"a sum of {megabytes:.0f} MB takes {max(seconds) * 1000:.0f} ms; {total_seconds:.0f} s in all"
    )


def _name(rank: int, everyone: Sequence[Facts]) -> str:
    return f"rank {rank} on {everyone[rank].get('host', 'an unknown host')}"


if __name__ == "__main__":
    with user_errors_exit("self-test"):
        sys.exit(main())
