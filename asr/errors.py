"""Every error that a user can cause, as one small tree: catch `AsrError` to catch them all."""


class AsrError(Exception):
    """Something a user can mend. The message names the file or key, what was got and what was expected."""


class ConfigError(AsrError):
    """The configuration is wrong; all its mistakes are listed at once."""


class DataError(AsrError):
    """Audio, a transcript, a manifest or a shard cannot be used."""


class CheckpointError(AsrError):
    """A checkpoint is missing, damaged, or of another make."""


class TrainingError(AsrError):
    """A training cannot go on."""


class NotStreamable(AsrError):
    """The model needs the whole utterance; the message says why and which stack streams instead."""
