"""Sweeps: what is raced, and how far each run has come."""
