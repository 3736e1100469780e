"""Why a peer takes no part."""


class NotInstallable(Exception):
    """It cannot be had on this machine; the message says why."""
