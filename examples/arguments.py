"""What the examples' command lines share."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A number of 1 or more, for `type=`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is out of range; give 1 or more")
    return number
