"""Model folders and text: hub, checkpoints, tokenizers, chat and reward templates, packed passes, log-probabilities.

Nothing here knows of runs, rewards or training."""
