"""The passes, one a file, each named after its file."""
