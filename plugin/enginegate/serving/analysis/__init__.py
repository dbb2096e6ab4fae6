"""Where a sweep breaks, why, and what to change."""
