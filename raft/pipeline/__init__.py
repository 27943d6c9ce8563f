"""The loop and its stages. Read loop.py first. What a stage computes stands in the rooms below."""
