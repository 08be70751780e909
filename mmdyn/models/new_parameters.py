"""Which parameters a sparse model has and its dense twin has not."""

NEW_PARAMETERS = ('predictors.', 'fast_path')
"""Parts of the names of all of them."""


def is_new(name: str) -> bool:
    """Whether a parameter of this name is a predictor's or a fast path's."""
    return any(part in name for part in NEW_PARAMETERS)
