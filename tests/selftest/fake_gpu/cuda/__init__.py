"""A fake of NVIDIA's `cuda` packages."""
