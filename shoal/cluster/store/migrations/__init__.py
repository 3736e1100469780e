"""Alembic's migrations of the store's tables; `env.py` says how to add one."""
