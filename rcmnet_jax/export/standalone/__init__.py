"""Files that exports carry along: each runs beside the exported weights, without this package."""
