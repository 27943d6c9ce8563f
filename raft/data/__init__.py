"""Prompts, examples and preference pairs from files, the hub and lists. Nothing here generates or scores."""
