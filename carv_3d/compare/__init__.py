"""Runs compared: read from their folders or run here in turns, as curves, tables, images and one offline page."""
