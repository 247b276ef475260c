"""The coordinator: computes steps, hands out tasks, commits."""
