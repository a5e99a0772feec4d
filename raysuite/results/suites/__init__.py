"""Evaluations on prompt suites: tables and a page."""
