"""Recipes: how they are read, what their sections are, and what can be checked before a run."""
