"""The pure core: what makes Lockstep deterministic. No I/O, no clock, no randomness, no threads.

Read in this order: `records`, `ordering`, `frontier`, `merge`, `superstep`.
"""
