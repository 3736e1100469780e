"""Volumes: routes.py, and their files from outside: files.py."""
