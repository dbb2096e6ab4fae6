"""A fake pycuda on the fake device."""
