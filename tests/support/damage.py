"""Damage that comes after data was prepared: a bad block of a disk, a broken copy."""

from pathlib import Path

from asr.data.shards import ShardReader, shard_name


def damage(folder: Path, utterance_id: str) -> Path:
    """Overwrite 16 bytes in the middle of an utterance's flac in its shard; gives the shard's tar."""
    reader = ShardReader(folder)
    index = reader.ids.index(utterance_id)
    path = folder / f"{shard_name(int(reader.shard[index]))}.tar"
    with path.open("r+b") as tar:
        tar.seek(int(reader.offset[index]) + int(reader.size[index]) // 2)
        tar.write(bytes(16))
    return path
