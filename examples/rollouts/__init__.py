"""Reinforcement-learning rollouts on real code: many candidate patches, each judged by the test suite in a sandbox of
its own.

package.py    the task: a published package and its own tests, kept in a volume
mutate.py     the policy: candidate patches of one of its modules
evaluate.py   the rollout: one candidate, one sandbox, one reward     ← start reading here
report.py     progress, table, figures
__main__.py   puts them together: `python -m examples.rollouts --candidates 16`
"""
