"""Which layer did it, and what keeping layers in higher precision gives back."""
