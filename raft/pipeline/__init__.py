"""The loop and its stages. Read loop.py first. What a stage computes is in the packages below."""
