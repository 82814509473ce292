"""Piano rolls: what is predicted from what, the likelihood of a set, and files that are not what they should be."""

from pathlib import Path

import numpy as np
import pytest
import torch

from asr.errors import ConfigError, DataError
from asr.sequence import tasks
from asr.sequence.settings import Case
from asr.sequence.tasks.music import FILES, KEYS, Music, Options, read
from tests.support.shared_data import shared_data

scipy_io = pytest.importorskip("scipy.io", reason="scipy is not installed (asr-toolkit[sequence])")


def pieces(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(length, 88, generator=generator) < 0.1).float() for length in lengths]


def music(**options: object) -> Music:
    sets = {"train": pieces(7, 12, 5), "validation": pieces(4, 9, seed=1), "test": pieces(6, 8, 3, seed=2)}
    return Music(sets, Options.model_validate(options))


def save(path: Path, **sets: list[np.ndarray]) -> None:
    arrays = {}
    for key, values in sets.items():
        arrays[key] = np.empty((1, len(values)), dtype=object)
        for i, value in enumerate(values):
            arrays[key][0, i] = value
    scipy_io.savemat(path, arrays)


def test_each_frame_asks_for_the_next_one() -> None:
    task = music()
    (examples,) = task.evaluation("validation")
    for row, piece in enumerate(pieces(4, 9, seed=1)):
        length = int(examples.lengths[row])
        assert length == len(piece) - 1
        assert torch.equal(examples.inputs[row, :length], piece[:-1])
        assert torch.equal(examples.targets[row, :length], piece[1:])


def test_an_epoch_has_each_piece_once_and_the_next_another_order() -> None:
    task = music()
    batches = task.batches(2, torch.Generator().manual_seed(0))
    orders = [[length for _ in range(2) for length in next(batches).lengths.tolist()] for _ in range(6)]
    assert all(sorted(order) == [4, 6, 11] for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_the_likelihood_is_summed_over_notes_and_averaged_over_frames() -> None:
    task = music()
    total = count = 0.0
    for examples in task.evaluation("test"):
        outputs = torch.zeros(*examples.inputs.shape[:2], 88)
        outputs[~torch.arange(outputs.shape[1]).lt(examples.lengths[:, None])] = 100.0  # of padding nobody asks
        part, frames = task.score(outputs, examples)
        total, count = total + float(part), count + float(frames)
    assert count == 5 + 7 + 2
    assert total / count == pytest.approx(88 * np.log(2), rel=1e-5)


def test_chance_is_the_likelihood_under_the_notes_frequencies() -> None:
    task = music()
    share = torch.cat([piece[1:] for piece in pieces(7, 12, 5)]).mean(0).clamp(1e-4, 1 - 1e-4).double()
    losses = []
    for piece in pieces(6, 8, 3, seed=2):
        for frame in piece[1:].double():
            losses.append(-float((frame * share.log() + (1 - frame) * (1 - share).log()).sum()))
    assert task.chance == pytest.approx(np.mean(losses), rel=1e-5)


def test_training_pieces_can_be_chopped() -> None:
    task = music(chop_frames=5)
    assert sorted(len(piece) for piece in task.pieces["train"]) == [2, 2, 5, 5, 5, 5]
    assert sorted(len(piece) for piece in task.pieces["test"]) == [3, 6, 8]


def test_files_are_read_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "JSB_Chorales.mat"
    good = [np.zeros((4, 88), dtype=np.uint8), np.ones((1, 88), dtype=np.uint8)]
    save(path, traindata=good, validdata=good, testdata=good)
    shapes = {split: [tuple(piece.shape) for piece in found] for split, found in read(path).items()}
    assert shapes == {split: [(4, 88)] for split in KEYS}
    save(path, traindata=good, validdata=good)
    with pytest.raises(DataError, match=r"JSB_Chorales\.mat.*testdata"):
        read(path)
    save(path, traindata=good, validdata=good, testdata=[np.zeros((4, 87))])
    with pytest.raises(DataError, match="piece 0 of testdata"):
        read(path)
    path.write_bytes(b"no music")
    with pytest.raises(DataError, match=r"JSB_Chorales\.mat"):
        read(path)


def test_without_data_the_ways_on_are_told(tmp_path: Path) -> None:
    for data, said in ({"cache": tmp_path}, "Three ways on"), ({"root": tmp_path}, r"got no JSB_Chorales\.mat there"):
        with pytest.raises(ConfigError, match=said):
            tasks.build("music", Case.model_validate({"data": data}), "test")


@pytest.mark.parametrize(
    ("name", "sequences", "frames"),
    [
        ("jsb", (229, 76, 77), (13_807, 4_602, 4_725)),
        ("nottingham", (694, 173, 170), (176_561, 45_513, 44_463)),
        ("musedata", (524, 135, 124), (245_202, 82_755, 64_339)),
        ("piano_midi", (87, 12, 25), (75_911, 8_540, 19_036)),
    ],
)
def test_the_real_sets_have_their_published_sizes(
    name: str, sequences: tuple[int, ...], frames: tuple[int, ...]
) -> None:
    found = read(shared_data("music") / FILES[name][0])
    assert tuple(len(found[split]) for split in KEYS) == sequences
    assert tuple(sum(map(len, found[split])) for split in KEYS) == frames
