"""Offline pages: the report of a run, and the charts on every page."""
