"""The errors the lab raises: one tree, each saying what was found, what was wanted, what to do next.

The library raises them; only cli.py prints and exits, with the exit code that the class carries.
"""


class GptlabError(Exception):
    """A failure that is said in one message, without a traceback."""

    exit_code = 1


class UserError(GptlabError):
    """Something the user asked for cannot be: a wrong key, a missing file, an impossible value."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe, or a change to it, that cannot be run."""


class DataError(UserError):
    """Data that is missing, empty, not what its name says, or that contradicts other data."""


class TokenizerError(UserError):
    """A tokenizer that cannot be read, or does not match a token file or a model."""


class ModelError(UserError):
    """A model that cannot be found or opened, or whose shape is impossible."""


class RunError(UserError):
    """A run directory that cannot be used for what was asked."""


class RunHeld(RunError):
    """A run that another process trains at this moment."""


class DeviceError(UserError):
    """A device or precision this machine does not have."""


class CheckpointError(GptlabError):
    """A checkpoint that is damaged, or could not be written."""


class MemoryLimitError(GptlabError):
    """Not even the smallest micro-batch fits into the memory there is."""


class TrainingStopped(GptlabError):
    """Training stopped itself (the loss is not finite, fp16 steps are skipped again and again)."""

    status = "stopped"
    """Of the run, in its state."""


class Pruned(TrainingStopped):
    """A search ended the run early, since others were better at this point."""

    status = "pruned"


class Interrupted(GptlabError):
    """Ctrl-C or SIGTERM: what there was has been saved."""

    exit_code = 130


def nearest(word: str, words: list[str]) -> str:
    """`" (did you mean …?)"` with the closest of `words`, or "" where none is close."""
    from difflib import get_close_matches

    found = get_close_matches(word, words, n=1, cutoff=0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""
