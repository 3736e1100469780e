"""Volumes: directories that outlive sandboxes.

volume.py    `Volume`: make, find, mount, commit, delete
files.py     their files, from outside
"""

from shoal.client.volume.volume import MountedVolume, Volume

__all__ = ["MountedVolume", "Volume"]
