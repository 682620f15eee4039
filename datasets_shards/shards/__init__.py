"""Shard sets: which sample lies in which tar, writing them, and proving them."""
