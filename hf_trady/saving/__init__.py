from .pretrained import SAVED_NAMES, PretrainedMixin
from .trained_state import buffer_checksums, collect_state, mark_touched, refuse_misfit, restore_state, touch_changed
from .weights_file import WEIGHTS_NAME, TrainedState, checksum, load_state, make_saveable, save_state


__all__ = [
    "SAVED_NAMES",
    "WEIGHTS_NAME",
    "PretrainedMixin",
    "TrainedState",
    "buffer_checksums",
    "checksum",
    "collect_state",
    "load_state",
    "make_saveable",
    "mark_touched",
    "refuse_misfit",
    "restore_state",
    "save_state",
    "touch_changed",
]
