"""The only importer of ray: rollout actors, the Ray Train learner, and how they are started."""
