"""Directions: whose gradients are compared, how they are measured, and what comes of it."""
