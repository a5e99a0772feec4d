"""raysuite: align text-to-image diffusion models by reinforcement or preference, and see which moves them where."""
