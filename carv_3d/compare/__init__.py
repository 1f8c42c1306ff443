"""Runs compared: read from their folders or run here interleaved, as curves, tables, images and one offline page."""
