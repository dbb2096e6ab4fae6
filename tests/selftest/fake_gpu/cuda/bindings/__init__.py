"""A fake cuda-bindings on the fake device."""
