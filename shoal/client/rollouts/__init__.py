"""`shoal.map`, which calls a function for every item in a sandbox of its own, and `shoal.reward`, which scores one.

map.py       the public call, in both forms
options.py   its options, checked
run.py       one map under way: items in, outcomes out, what runs in between
supply.py    its sandboxes: made, reused, ended
source.py    its items, one at a time, from any kind of iterable
threads.py   plain functions and iterators in threads
outcome.py   what became of one item
bar.py       the progress bar
reporter.py  what it tells the cluster of itself
reward.py    a command's score
"""
