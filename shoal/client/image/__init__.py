"""Images in code.

image.py        `Image`: an immutable recipe, and what is done with it
commands.py     the shell lines of `apt_install`, `pip_install` and their like
local_files.py  files of this machine that go into an image, and the hash of their content
ignore.py       which of them do not: the rules of `.dockerignore`
dockerfile.py   a Dockerfile as a recipe; words.py: its quoting and variables
building.py     has the cluster build a recipe, sends it the files that it lacks, and follows the log
"""
