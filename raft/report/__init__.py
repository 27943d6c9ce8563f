"""What is drawn and told of finished artifacts: figures, the page of HTML, trackers."""
