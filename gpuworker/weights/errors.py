"""The one error of this package."""


class WeightsError(Exception):
    """A model cannot be found, read or run. One line of text that says what to do next."""
