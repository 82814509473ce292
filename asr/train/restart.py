"""Where Lightning goes on from a checkpoint.

Left to itself it takes the counts that it had noted when the checkpoint was written. Depending on the hook in which
that was it leaves out the validation, counts an epoch that is not over, or begins the data anew; and where an epoch has
another number of batches now, its counts fit neither. Where a run stands follows from its steps alone, and from whether
the epoch's validation is done.
"""

from __future__ import annotations

import math
from typing import Any


def restart_epoch_loop(
    loop: dict[str, Any], *, step: int, steps_per_epoch: int, pieces: int, is_last: bool, validate: bool
) -> dict[str, Any]:
    """The state of Lightning's fit loop from which it goes on right.

    Args:
        loop: the state as it was saved.
        step: the last one that was taken.
        steps_per_epoch: of this run.
        pieces: batches of a step.
        is_last: whether the run ends with this step; its epoch does then too.
        validate: at an epoch's end: whether validation is still to be done, as Lightning would do it there.
    """
    epoch, rest = divmod(step, steps_per_epoch)
    if not step:
        return loop
    if rest and not is_last:  # to Lightning: at the end of the last batch
        epochs = _counts(epoch) | {"ready": epoch + 1, "started": epoch + 1}
        total, current = (_counts(count * pieces) | {"completed": count * pieces - 1} for count in (step, rest))
        return loop | {
            "state_dict": {},
            "epoch_progress": {"total": epochs, "current": epochs},
            "epoch_loop.state_dict": {"_batches_that_stepped": step - 1},
            "epoch_loop.batch_progress": {"total": total, "current": current, "is_last_batch": False},
        }
    # To Lightning an epoch whose validation is outstanding is one whose batches are processed and which is itself not.
    ended = math.ceil(step / steps_per_epoch)
    epochs, batches = ended - validate, (rest or steps_per_epoch) * pieces * validate
    validations = {"ready": int(validate), "started": int(validate)}
    return loop | {
        "state_dict": {},
        "epoch_progress": {name: _counts(epochs) | {"ready": ended, "started": ended} for name in ("total", "current")},
        "epoch_loop.state_dict": {"_batches_that_stepped": step - 1},
        "epoch_loop.batch_progress": {
            "total": _counts(step * pieces),
            "current": _counts(batches),
            "is_last_batch": validate,
        },
        "epoch_loop.val_loop.batch_progress": {
            "total": _counts(0) | validations,
            "current": _counts(0),
            "is_last_batch": False,
        },
    }


def _counts(number: int) -> dict[str, int]:
    return dict.fromkeys(("ready", "started", "processed", "completed"), number)
