"""What containers mount of what outlives them.

contract.py    a kind of mount: what a new kind must say of itself. This is the manual
manager.py     the mounts of one node: shared, counted, watched, healed, ended
mounted.py     one mount: its helper process, from start to end
threads.py     blocking calls that may never return
juicefs.py     the program behind volumes: where it is, and one call of it
volumes.py     the kind of volumes: JuiceFS
versions.py    their versions
buckets.py     the kind of a user's own buckets: rclone
"""
