"""What the differences do to a search: rankings, labelled pairs, worst texts, stability."""
