"""Evaluation as the field does it: prompt suites, under a protocol that every result carries."""
