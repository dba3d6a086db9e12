"""The rows of LUME: their format, files, checks, download and directory."""
