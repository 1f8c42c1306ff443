"""Files: written whole or not at all, locks, tables of figures, images and films."""
