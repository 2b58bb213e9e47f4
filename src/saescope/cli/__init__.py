"""The command line: one thin file per command, and the views they print."""
