"""The one error that a user sees as a sentence."""


class UserError(ValueError):
    """Something that the user can put right. Its text is one sentence: what was wrong, and what to do."""
