"""Errors that are the user's to put right, and errors in words."""


class BadDataError(ValueError):
    """What the user gave can't be used, as a run finds out; the message names it.

    A file of a data set, a whole one, or a model without the loss on its keep ratios. The
    tools end with this message also in the middle of a training or an evaluation, where
    other errors count as failures of ours.

    Args:
        message: one line. What a data loader's worker hands on, a whole traceback with
            that line at its end, is cut down to it.
    """

    def __init__(self, message: str) -> None:
        last = message.strip().rpartition('\n')[2]
        super().__init__(last.rpartition(f'{type(self).__name__}: ')[2])


class DamagedCheckpointError(ValueError):
    """A file that is no checkpoint, or only a part of one."""


def in_words(error: BaseException) -> str:
    """What an error says: a KeyError's text is a bare key, and some have no text at all."""
    # str() of a KeyError is the repr of its message.
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
        return text if ' ' in text else f'{text!r} is missing'
    return str(error) or type(error).__name__


def printable(text: str) -> str:
    """A text that may quote a file, without what could do something to a terminal."""
    return ''.join(c if c.isprintable() or c == '\n' else ascii(c)[1:-1] for c in text)


def one_line(error: BaseException) -> str:
    """The same without line breaks, to be a part of a message."""
    return ' '.join(in_words(error).split())
