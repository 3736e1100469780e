"""`python -m tests.bench`: Shoal beside plain docker-py, on one engine, in one run, taking turns.

subject.py    what is compared: the contract, which every peer fulfils
shoalpy.py    Shoal, blocking and async
peers/        docker-py (always), others with PEERS=1 where they can be installed
stats.py      samples, medians, ratios
measures.py   the measures there are, with their targets: one list
execs.py creates.py maps.py files.py memory.py    one module per group of measures
table.py      the table, and build/bench.json
"""
