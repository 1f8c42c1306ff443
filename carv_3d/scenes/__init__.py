"""Scenes: cameras, radiance fields, their rendering, and meshes."""
