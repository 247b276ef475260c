"""The worker: executes nodes and returns what came of them. Needs no database."""
