"""Teachers and rules as networks, and the operators they are made of."""
