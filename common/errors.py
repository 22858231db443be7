"""The one error type for bad input."""


class L2OError(ValueError):
    """Bad input from outside: a name, a number, a file.

    The message is one line saying what was expected, what came, and the remedy. Every command line
    entry point prints it as it is and exits with code 2.
    """
