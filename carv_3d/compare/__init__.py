"""Runs compared: read from their folders or run here in turns, as curves, tables, pictures and one offline page."""
