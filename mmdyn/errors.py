"""Errors in user input, and their messages."""


class BadDataError(ValueError):
    """Bad user input found during a run; the message names it.

    A file of a data set, a whole data set, or a model without a keep-ratio loss. The tools end with
    this message even in the middle of training or evaluation, where other errors count as bugs.

    Args:
        message: one line; the traceback text that a data loader worker passes on is cut to its
            last line.
    """

    def __init__(self, message: str) -> None:
        last = message.strip().rpartition('\n')[2]
        super().__init__(last.rpartition(f'{type(self).__name__}: ')[2])


class DamagedCheckpointError(ValueError):
    """A file that is not a checkpoint, or only part of one."""


def in_words(error: BaseException) -> str:
    """Message of an error, also for a KeyError and for errors without text."""
    # str() of a KeyError is the repr of its message.
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
        return text if ' ' in text else f'{text!r} is missing'
    return str(error) or type(error).__name__


def printable(text: str) -> str:
    """Escape control characters in a text that may quote a file, for the terminal."""
    return ''.join(c if c.isprintable() or c == '\n' else ascii(c)[1:-1] for c in text)


def one_line(error: BaseException) -> str:
    """Message of an error without line breaks."""
    return ' '.join(in_words(error).split())
