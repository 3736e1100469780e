"""Reinforcement learning in small, from end to end: a policy learns to write programs that sort four numbers.

Each step samples programs from the policy, runs each in a sandbox of its own, scores it there, and moves the policy
towards the best ones (the cross-entropy method). One of the lines that the policy may write is a cheat.

policy.py     the policy: what it writes, and how it learns
judge.py      the rollout: one program, one sandbox, one score     ← start reading here
curve.py      the learning curve, as text and as a picture
__main__.py   puts them together: `python -m examples.training --steps 15`
"""
