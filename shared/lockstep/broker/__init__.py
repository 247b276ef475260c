"""Implementations of the `Broker` port."""
