"""Reward-ranked fine-tuning of language models: generate K responses, keep the best, fine-tune, repeat."""

__version__ = "0.1.0"
