"""`carv generate`: the built-in text-to-3D trainer, from a configuration to an asset in its folder."""
