"""Engines and the actors that host them. Nothing here knows files, stores, units' names or tables."""
