"""Disks of the containers' own: file systems of bounded size, so that the kernel holds the limit.

disks.py     makes, finds and removes them
ready.py     a few that wait for containers
failures.py  the error where one cannot be mounted
loop.py      loop devices
mounts.py    mounting, and the table of mounts
"""

from shoal.actors.engines.disks.disks import Disk, Disks

__all__ = ["Disk", "Disks"]
