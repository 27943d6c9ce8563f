"""The command line and what it prints. Whatever a script may also want stands in the rooms below."""
