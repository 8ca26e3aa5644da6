"""The two errors that end a job with one sentence instead of a traceback."""


class UserError(ValueError):
    """The user's mistake: one sentence that names the key or file, what was found, what is allowed.

    Ends the program with exit code 2.
    """


class JobError(RuntimeError):
    """The job failed for a reason that one sentence explains (a diverged loss, a lost cluster).

    Ends the program with exit code 1.
    """


def check(ok: bool, key: str, value: object, allowed: str) -> None:
    """Refuses a configuration value.

    Args:
        ok: Whether the value is allowed.
        key: The full key, as a user would type it (`train.epochs`).
        value: The value found.
        allowed: What would have been right, to follow "must be".

    Raises:
        UserError: If `ok` is false.
    """
    if not ok:
        shown = "null" if value is None else value
        raise UserError(f"{key}={shown}: must be {allowed}")
