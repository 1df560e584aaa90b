"""The drawing commands: generate, inpaint, outpaint, edit, interpolate, enrich."""
