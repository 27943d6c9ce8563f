"""The command line and what it prints. Whatever a script may also need is in the packages below."""
