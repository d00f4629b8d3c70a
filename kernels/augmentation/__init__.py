"""From uint8 images to views: drawing parameters (spec, table, params) and applying them (one backend per file)."""
