"""Doors into other projects: one file each, and none knows another."""
