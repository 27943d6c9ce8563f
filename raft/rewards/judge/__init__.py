"""A language model that reads responses and says in words which is better: what it is asked, and what it answers."""
