"""Where a run goes on follows from its steps, whatever Lightning had counted."""

from typing import Any

import pytest

from asr.train.restart import restart_epoch_loop

# What Lightning 2.6 has at step 12 of epochs of 9, in the hook at a batch's end.
COUNTS = {"ready": 12, "started": 12, "processed": 12, "completed": 11}
SAVED = {
    "state_dict": {"combined_loader": [{}]},
    "epoch_loop.state_dict": {"_batches_that_stepped": 11},
    "epoch_loop.batch_progress": {
        "total": COUNTS,
        "current": {"ready": 3, "started": 3, "processed": 3, "completed": 2},
        "is_last_batch": False,
    },
    "epoch_progress": {
        "total": {"ready": 2, "started": 2, "processed": 1, "completed": 1},
        "current": {"ready": 2, "started": 2, "processed": 1, "completed": 1},
    },
    "something else": 1,
}


def test_in_the_middle_of_an_epoch_it_is_what_lightning_had() -> None:
    got = restart_epoch_loop(SAVED, step=12, steps_per_epoch=9, pieces=1, is_last=False, validate=False)
    assert got == SAVED | {"state_dict": {}}


@pytest.mark.parametrize(
    ("steps_per_epoch", "pieces", "epochs_done", "batches"),
    [(9, 2, 1, 6), (5, 1, 2, 2), (15, 1, 0, 12), (15, 4, 0, 48)],
    ids=["in pieces", "larger batches", "smaller batches", "smaller batches in pieces"],
)
def test_with_other_batches_it_is_where_the_data_is(
    steps_per_epoch: int, pieces: int, epochs_done: int, batches: int
) -> None:
    got: Any = restart_epoch_loop(
        SAVED, step=12, steps_per_epoch=steps_per_epoch, pieces=pieces, is_last=False, validate=False
    )
    for counts in got["epoch_progress"].values():
        assert (counts["completed"], counts["ready"]) == (epochs_done, epochs_done + 1)
    progress = got["epoch_loop.batch_progress"]
    assert progress["current"] == {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1}
    assert progress["total"]["ready"] == 12 * pieces


@pytest.mark.parametrize("validate", [False, True])
def test_after_the_last_step_its_epoch_is_over(validate: bool) -> None:
    """But for its validation, if that is outstanding; in the middle of an epoch as at the end of one."""
    middle: Any = restart_epoch_loop(SAVED, step=12, steps_per_epoch=9, pieces=2, is_last=True, validate=validate)
    end: Any = restart_epoch_loop(SAVED, step=12, steps_per_epoch=6, pieces=2, is_last=True, validate=validate)
    assert middle["epoch_progress"] == end["epoch_progress"]
    assert middle["epoch_progress"]["current"]["processed"] == 2 - validate
    for got, batches in ((middle, 6), (end, 12)):
        progress = got["epoch_loop.batch_progress"]
        assert (progress["current"]["completed"], progress["is_last_batch"]) == (batches * validate, validate)


def test_before_the_first_step_there_is_nothing_to_say() -> None:
    got = restart_epoch_loop(SAVED, step=0, steps_per_epoch=9, pieces=1, is_last=False, validate=False)
    assert got == SAVED
