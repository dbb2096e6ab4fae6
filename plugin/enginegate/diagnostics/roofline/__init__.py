"""FLOPs of a model, ceilings of a device, and how near an engine comes to them."""
