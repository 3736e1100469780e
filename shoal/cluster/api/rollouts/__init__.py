"""Rollouts in progress: how far maps are, and their rewards."""
