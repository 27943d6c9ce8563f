"""One page of HTML on a run: its facts, its groups of responses, and the page that shows them."""
