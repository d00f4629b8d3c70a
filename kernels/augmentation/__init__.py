"""From uint8 images to views: what is drawn (spec, params) and what is done with it (one backend per file)."""
