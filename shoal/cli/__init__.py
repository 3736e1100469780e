"""The `shoal` command.

entry.py      the console script, and interrupts before all is imported
main.py       the commands put together; errors become one line and an exit code
cluster.py    up, down, status, doctor
run.py        run, exec, shell
sandboxes.py  ls, logs, rm
copy.py       cp
attach.py     a process joined to this terminal
session.py    one command's time with the cluster
exits.py      the map from errors to exit codes
"""
