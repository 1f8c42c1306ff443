"""Options: dataclasses read strictly from YAML and the command line, and values that are annealed."""
