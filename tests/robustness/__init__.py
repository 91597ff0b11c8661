"""Processes that are killed, disks that are full, and input that nobody meant."""
