"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: one sentence that names the field, the value and the fix.

    The command line prints it without a traceback and exits with status 2. It is no ``ValueError`` because the
    argument parser would wrap those in a message of its own. Broken invariants are ``assert`` statements and keep
    their traceback.
    """
