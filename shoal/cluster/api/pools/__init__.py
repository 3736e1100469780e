"""Pools: sandboxes of one spec that are kept ready."""
