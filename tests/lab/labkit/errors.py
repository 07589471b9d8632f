"""What can go wrong in the lab, said so that a person can act on it."""


class LabError(Exception):
    """The lab cannot do what was asked."""


class KernelCrashed(LabError):
    """The lab's own kernel crashed."""


class CommandError(LabError):
    """A command in the lab failed or took too long."""


class NoSuchFile(LabError):
    """A file is not in the lab."""
