"""The errors that SpeechLMM raises for its users' mistakes.

Command-line tools print them on one line and exit with code 2; a library caller catches `SpeechLMMError`.
Each message says what was got, what was expected, and what to do next.
"""


class SpeechLMMError(Exception):
    """Base of every error that the user can mend."""


class ConfigError(SpeechLMMError, ValueError):
    """A configuration that is wrong in itself or does not fit together."""


class DataError(SpeechLMMError, ValueError):
    """Data that cannot be used: a manifest, a message, a dataset specification."""


class MediaError(DataError):
    """A media file that is missing, unreadable, empty or too long."""


class CheckpointError(SpeechLMMError):
    """A checkpoint that is missing, incomplete or does not fit the model."""


class OutOfStepError(SpeechLMMError):
    """What several processes do together has failed in this one, which cannot take part any more: it has to end."""


class DivergedError(SpeechLMMError):
    """A training whose losses or gradients are no finite numbers, or have exploded."""

    exit_code = 1


class ComponentLoadError(SpeechLMMError, ImportError):
    """A plugin that exists but cannot be used: a packaging fault, not a configuration fault."""


class MissingDependencyError(SpeechLMMError, ImportError):
    """An optional package that the request needs and that is not installed."""
