"""Statistics of what is measured: bootstrap intervals, and when one can be believed."""
