"""What the search recovers where the truth is known."""
