"""What tells a run that failed from a bad argument: when it happened."""


class RunFailed(Exception):
    """A run that had begun went wrong; the message is one line."""


class Stage:
    """A context in which a verb does what it is for.

    Until this has `begun`, an error is due to the arguments. After that, one which would be taken for theirs is raised
    as a [`RunFailed`].
    """

    def __init__(self):
        self.begun = False

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self.begun and isinstance(error, (ValueError, OSError, ImportError)):
            raise RunFailed(str(error)) from error
